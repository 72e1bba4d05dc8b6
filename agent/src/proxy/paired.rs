//! The path of a server whose answers come on a stream of their own (MCP 2024-11-05, HTTP with SSE): a GET opens the stream,
//! and what is sent to the endpoint that it names is answered there, by the server or in its place.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use toolgate_core::decision::{Denied, Target};
use toolgate_core::denial::{self, Answer, Reason, Shape};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Call, Id, Message, Method, Owed};

use super::ids::Named;
use super::refused::deny;
use super::{Flow, Turn};
use crate::endpoints::{self, NoPlace, Paired, RequestId, Sending};
use crate::forward::{self, ForwardError, Leg, Upstream};
use crate::parse::{self, Asked, Client, Expected, HeadAt, Refused, Request, Stream, Watch};
use crate::pins::Findings;
use crate::record::Entry;
use crate::respond::{self, Exchange, McpExchange, PairedExchange, PinExchange, Seen};
use crate::shares::{Held, Use};

/// What became of a request before its reply.
enum Outcome {
    /// It was refused; this is said in the server's place.
    Answered(Answer),
    /// The same, on the stream where its answer would have come.
    Told(Arc<Paired>, Answer),
    /// It was permitted, and did not get there.
    Unsent { error: ForwardError, expected: Expected, awaited: Option<Awaited> },
    /// A stream, which counts as one as long as it is open.
    Opened { upstream: Upstream, leg: Leg, stream: Held },
    /// A message is with the server.
    Sent { upstream: Upstream, leg: Leg, expected: Expected, awaited: Option<Awaited> },
}

/// A request whose answer is due on a stream.
struct Awaited {
    paired: Arc<Paired>,
    sending: Sending,
}

impl Turn<'_> {
    /// A request to such a server, in the same order as any other.
    pub(super) async fn paired<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        target: Target<'_>,
        mut entry: Entry,
    ) -> Flow {
        entry.target(&target.server.identity);
        self.name_caller(&mut entry);
        let body = match client.body(head, &self.worker.node.limits).await {
            Ok(body) => body,
            Err(broken) => return self.broken(client, &broken, Some(target), entry).await,
        };
        let outcome = match client.request(head, &body) {
            Ok((request, mut watch)) => self.decided_paired(request, &mut watch, target, &mut entry).await,
            Err(broken) => return self.broken(client, &broken, Some(target), entry).await,
        };
        client.done(head, &body); // from here on the request's bytes are forgotten
        match outcome {
            Outcome::Answered(answer) => self.answer(client, &answer, !head.keep_alive).await,
            Outcome::Told(paired, answer) => self.tell(client, head, &paired, answer, &mut entry).await,
            Outcome::Unsent { error, expected, awaited: None } => {
                self.unreachable(client, head, &error, &expected, &mut entry).await
            }
            Outcome::Unsent { error, expected, awaited: Some(awaited) } => {
                let answer = self.unsent(&error, &expected, &mut entry);
                self.tell_awaited(client, head, awaited, answer, &mut entry).await
            }
            Outcome::Opened { upstream, leg, stream } => {
                let flow = self.paired_stream(client, head, upstream, leg, target, &mut entry).await;
                drop(stream); // it counts as long as it is open
                flow
            }
            Outcome::Sent { upstream, leg, expected, awaited } => {
                self.posted(client, head, (upstream, leg), &expected, target, awaited, entry).await
            }
        }
    }

    /// Parse, decide, forward. What waits for an answer does so before the server can give one.
    async fn decided_paired<S: Stream>(
        &self,
        request: Request<'_>,
        watch: &mut Watch<'_, S>,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Outcome {
        let (node, server) = (&*self.worker.node, target.server);
        let mut asked = match parse::asked(request, server, &node.limits) {
            Ok(asked) => asked,
            Err(refused) => return Outcome::Answered(self.refuse(&refused, entry)),
        };
        entry.asked(&asked, &node.record);
        let named = self.named(server, &asked, entry);
        if let Some(paired) = &named.paired {
            asked.is_of(paired.revision());
        }
        let (permitted, caller) = match self.judged(&asked, &named, target, entry) {
            Ok(permitted) => permitted,
            Err(denied) => return denied_paired(&denied, &asked, named, entry),
        };
        let leg = forward::leg(caller, server, self.tls(), &asked);
        let expected = Expected::of(&asked, None, named.revision());
        let Some(paired) = &named.paired else {
            let stream = match self.origin.share.take(Use::Stream, 1) {
                Ok(stream) => stream,
                Err(exceeded) => return Outcome::Answered(self.shed(exceeded.limit, &exceeded, entry)),
            };
            return match self.sent(permitted, target, (&leg, None), watch, entry).await {
                Ok(upstream) => Outcome::Opened { upstream, leg, stream },
                Err(error) => Outcome::Unsent { error, expected, awaited: None },
            };
        };
        let awaited = match asked.message() {
            Some(Message::Request(call)) => self.awaited(paired, call, &expected, target, entry),
            Some(Message::Notification(call)) => {
                if let Some(id) = cancels(call) {
                    paired.cancelled(&id);
                }
                Ok(None)
            }
            Some(Message::Response(_)) | None => Ok(None),
        };
        let awaited = match awaited {
            Ok(awaited) => awaited,
            Err(answer) => return Outcome::Answered(answer),
        };
        match self.sent(permitted, target, (&leg, named.bound()), watch, entry).await {
            Ok(upstream) => Outcome::Sent { upstream, leg, expected, awaited },
            Err(error) => Outcome::Unsent { error, expected, awaited },
        }
    }

    /// Has the answer to a request awaited on the stream; or what is said instead of sending it.
    fn awaited(
        &self,
        paired: &Arc<Paired>,
        call: &Call<'_>,
        expected: &Expected,
        Target { server, ends }: Target<'_>,
        entry: &mut Entry,
    ) -> Result<Option<Awaited>, Answer> {
        let mut all = self.resources.servers.iter();
        let declared = all.find(|one| one.identity == server.identity);
        let (Some(id), Some(declared)) = (&call.id, declared) else { return Ok(None) };
        let request = endpoints::Request {
            expected: expected.clone(),
            resources: Arc::clone(self.resources),
            server: Arc::clone(declared),
            ends,
            observe: self.worker.node.mode.relaxes(server),
            request_id: entry.request_id(),
        };
        match paired.expect(id.into(), request, &self.origin.share) {
            Ok(sending) => Ok(Some(Awaited { paired: Arc::clone(paired), sending })),
            Err(no_place) => Err(self.no_place(&no_place, entry)),
        }
    }

    /// Records that a request cannot wait on its stream, and says so.
    fn no_place(&self, no_place: &NoPlace, entry: &mut Entry) -> Answer {
        match no_place {
            NoPlace::Ended => deny(&Denied::because(Reason::UnknownEndpoint), Shape::Connection, entry),
            NoPlace::SameId => {
                let (reason, detail) = (Reason::MalformedMessage, no_place.to_string());
                self.refuse(
                    &Refused { reason, status: 400, code: -32600, detail, limit: None, id: None },
                    entry,
                )
            }
            NoPlace::Full { .. } | NoPlace::NoRoom(_) => match no_place.limit() {
                Some(limit) => self.shed(limit, no_place, entry),
                None => denial::answer(Reason::Overload, Shape::Connection, &entry.request_id()),
            },
        }
    }

    /// Says on the stream what answers a request in its server's place; the request itself is accepted.
    async fn tell<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        paired: &Paired,
        answer: Answer,
        entry: &mut Entry,
    ) -> Flow {
        let close = !head.keep_alive || answer.close;
        let said = match paired.tell(answer.body, &self.origin.share) {
            Ok(()) => Answer::accepted(),
            Err(NoPlace::Ended | NoPlace::SameId) => {
                denial::answer(Reason::UnknownEndpoint, Shape::Connection, &entry.request_id())
            }
            Err(no_place @ (NoPlace::Full { .. } | NoPlace::NoRoom(_))) => {
                if let Some(limit) = no_place.limit() {
                    self.worker.node.metrics.limits.count(limit, &no_place);
                }
                denial::answer(Reason::Overload, Shape::Connection, &entry.request_id())
            }
        };
        entry.replied(said.status, 0);
        self.answer(client, &said, close).await
    }

    /// The same of a request that was to be sent; `None`: the client has left.
    async fn tell_awaited<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        Awaited { paired, sending }: Awaited,
        answer: Option<Answer>,
        entry: &mut Entry,
    ) -> Flow {
        let is_answered = !sending.withdraw();
        match answer {
            None => Flow::Close,
            // It needs no second one.
            Some(_) if is_answered => self.answer(client, &Answer::accepted(), !head.keep_alive).await,
            Some(answer) => self.tell(client, head, &paired, answer, entry).await,
        }
    }

    /// Passes on what the server says to a message, which is no answer: that comes on the stream.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two ends, the request and its record: all different things"
    )]
    async fn posted<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        (mut upstream, leg): (Upstream, Leg),
        expected: &Expected,
        Target { server, ends }: Target<'_>,
        awaited: Option<Awaited>,
        mut entry: Entry,
    ) -> Flow {
        let node = &*self.worker.node;
        let (findings, accepted) = (Findings::default(), Expected::unread(expected.http_method));
        let exchange = Exchange {
            http_method: expected.http_method,
            mcp: Some(McpExchange {
                caller: &leg.caller,
                server,
                ends,
                resources: self.resources,
                owed: Owed::Elsewhere,
                pins: None,
                bindings: &node.bindings,
                replica: upstream.replica(),
                expected: &accepted,
                pages: None,
                view: Cell::default(),
                others_tasks: &findings.others_tasks,
                observe: false,
                may_ask: &|_| false,
                paired: None,
            }),
            upgrade: false,
            close: !head.keep_alive,
            begun: Cell::new(false),
            limits: &node.limits,
        };
        let replied = respond::stream(&mut upstream, client, &exchange).await;
        // Who left before it was accepted may still read the stream.
        let (is_accepted, is_unheard) = match &replied {
            Ok(replied) => ((200..300).contains(&replied.status), false),
            Err(broken) => {
                let has_left = broken.fault.reason() == Reason::ClientLeft;
                (has_left, !has_left && broken.seen == Seen::Nothing)
            }
        };
        let (awaited, replied) = match (awaited, replied) {
            (Some(awaited), Err(broken)) if is_unheard => {
                let answer = self.broke(&broken, expected, &mut entry);
                return self.tell_awaited(client, head, awaited, Some(answer), &mut entry).await;
            }
            other => other,
        };
        let (flow, reusable) = self.replied(client, replied, head, expected, &mut entry).await;
        if reusable {
            self.worker.pool.checkin(leg, upstream, &node.limits);
        }
        if let Some(Awaited { sending, .. }) = awaited
            && is_accepted
        {
            sending.settle(entry);
        }
        flow
    }

    /// Passes the stream on until either side, or the agent, ends it.
    async fn paired_stream<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        mut upstream: Upstream,
        leg: Leg,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Flow {
        let (node, Target { server, ends }) = (&*self.worker.node, target);
        entry.opened(); // and the end of the agent waits for it, which has it end
        let open = node.endpoints.open(&leg.caller, &server.identity, upstream.replica());
        let (findings, of_answer) = (Findings::default(), Findings::default());
        let pinned = PinExchange { pins: &node.pins, findings: &of_answer };
        let with = PairedExchange {
            endpoints: &node.endpoints,
            paired: &open.paired,
            pins: pinned,
            found: &|| self.record_findings(&leg.caller, server, &of_answer),
        };
        let expected = Expected::stream();
        let exchange = Exchange {
            http_method: expected.http_method,
            mcp: Some(McpExchange {
                caller: &leg.caller,
                server,
                ends,
                resources: self.resources,
                owed: expected.owed(),
                pins: None,
                bindings: &node.bindings,
                replica: upstream.replica(),
                expected: &expected,
                pages: None,
                view: Cell::default(),
                others_tasks: &findings.others_tasks,
                observe: node.mode.relaxes(server),
                may_ask: &|asking| self.may_ask_on(&open.paired, &leg.caller, target, asking),
                paired: Some(&with),
            }),
            upgrade: false,
            close: !head.keep_alive,
            begun: Cell::new(false),
            limits: &node.limits,
        };
        let ending = async {
            self.worker.ending().await;
            open.paired.end();
            pending::<Infallible>().await
        };
        let replied = tokio::select! {
            biased;
            replied = respond::stream(&mut upstream, client, &exchange) => replied,
            never = ending => match never {},
        };
        drop(open); // its endpoint is nobody's before the client knows of the end
        let (flow, reusable) = self.replied(client, replied, head, &expected, entry).await;
        if let Some(note) = self.record_findings(&leg.caller, server, &findings) {
            entry.noted(note);
        }
        if reusable {
            self.worker.pool.checkin(leg, upstream, &node.limits);
        }
        if self.worker.is_leaving() { Flow::Close } else { flow }
    }

    fn may_ask_on(
        &self,
        paired: &Paired,
        caller: &Identity,
        target: Target<'_>,
        asking: respond::Asking<'_>,
    ) -> bool {
        self.may_ask(caller, target, (paired.endpoint(), paired.revision()), asking)
    }
}

/// How a denial is put: on the stream where its client reads answers, and as of an unknown endpoint where that is not its
/// own.
fn denied_paired(denied: &Denied, asked: &Asked<'_>, named: Named, entry: &mut Entry) -> Outcome {
    match (named.paired, asked.message()) {
        (Some(paired), Some(Message::Request(_))) => {
            Outcome::Told(paired, deny(denied, asked.shape(), entry))
        }
        (None, Some(_)) => {
            let answer = denial::answer(Reason::UnknownEndpoint, asked.shape(), &entry.request_id());
            entry.denied(denied, answer.status);
            Outcome::Answered(answer)
        }
        (Some(_), Some(Message::Notification(_) | Message::Response(_))) | (_, None) => {
            Outcome::Answered(deny(denied, asked.shape(), entry))
        }
    }
}

/// The request that a notification cancels.
fn cancels(call: &Call<'_>) -> Option<RequestId> {
    if call.method != Method::Cancelled {
        return None;
    }
    let id = Id::new(call.params?.get("requestId")?).ok()?;
    Some((&id).into())
}

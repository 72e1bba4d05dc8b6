//! The request path, whole: capture -> identify -> parse -> decide -> forward -> respond -> record.
//!
//! Every stage is a module that knows no other; what leads from one to the next is here, and how what does not pass is
//! answered in `proxy/refused.rs`. The same path for what goes to no declared server is in `proxy/undeclared.rs`, to a proxy
//! in `proxy/proxied.rs`, by App ID in `proxy/invoked.rs`, within TLS that is read in `proxy/inspected.rs`, for a server whose
//! answers come on a stream of their own (`transport: sse`) in `proxy/paired.rs`;
//! what begins as no request is in `proxy/opening.rs`.

mod content;
mod identified;
mod ids;
mod inspected;
mod invoked;
mod opening;
mod pages;
mod paired;
mod proxied;
mod refused;
mod target;
mod undeclared;

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use toolgate_core::decision::{self, Decision, Denied, Permitted, Place, Target, Transport};
use toolgate_core::denial::{self, Answer, Reason, Shape};
use toolgate_core::http1::Guess;
use toolgate_core::identity::Identity;
use toolgate_core::workload::Unidentified;

use crate::app::{Worker, Working};
use crate::capture::Captured;
use crate::config::Resources;
use crate::forward::{self, Bound, BoundBy, ForwardError, Leg, Upstream};
use crate::identify::Origin;
use crate::inspect::Name as TlsName;
use crate::io::Io;
use crate::limits::Limits;
use crate::netns::CANARY;
use crate::parse::{self, Again, Asked, Client, Expected, HeadAt, Request, Stream, Watch};
use crate::pins::Findings;
use crate::record::Entry;
use crate::respond::{self, Exchange, McpExchange, Pages, Replied, Seen};
use crate::room::housed;
use crate::shares::{Held, Share, Use};
use identified::{Identified, Latest, identified};
use ids::Named;
use inspected::{Meant, inspected};
use opening::{Opening, Passing, canary, opening};
use refused::deny;
use target::{declared, named, named_in_tls};

/// Whether a connection goes on after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    Close,
    /// The server, or a proxy, agreed to speak something else than HTTP from here on.
    Upgraded,
}

/// Where the requests of a connection go that is to no declared server.
#[expect(clippy::large_enum_variant, reason = "one for each connection, on its own stack")]
enum Beyond<'w> {
    /// To where it was captured to go.
    Undeclared(Passing, forward::Undeclared<'w>),
    /// To the server that each of them names.
    Invoked,
    /// The server that it was for is no more.
    Nowhere,
}

/// What one request is judged by: who asks, and one generation of the resources for all of it.
struct Turn<'a> {
    worker: &'a Worker,
    origin: &'a Arc<Origin>,
    resources: &'a Arc<Resources>,
    caller: &'a Result<Identity, Unidentified>,
    /// The end of the agent waits for it.
    working: Cell<Option<Working<'a>>>,
    /// The name by which its TLS is read.
    spoken: Option<&'a TlsName>,
    /// What its connection goes on as: TLS that is to be read.
    then: Cell<Option<Box<Meant>>>,
}

/// What became of a request to a declared server before its reply.
enum Outcome {
    /// It was refused; this is said in the server's place.
    Answered(Answer),
    /// It was permitted, and did not get there.
    Unsent { error: ForwardError, expected: Expected },
    /// It is with the server; a stream counts as one as long as it is open.
    Sent { upstream: Upstream, leg: Leg, expected: Expected, stream: Option<Held> },
}

/// One captured connection: who connected, where to; then one request after another.
pub async fn connection(stream: Io, captured: Captured, share: Arc<Share>, worker: &Worker) {
    if captured.original == CANARY {
        return canary(stream, &worker.node.limits).await;
    }
    let mut client = Client::new(stream, Arc::clone(&share));
    let origin = Arc::new(worker.node.identify.origin(captured, share));
    let limits = &worker.node.limits;
    let mut beyond = match opening(&mut client, &origin, &captured, worker).await {
        Opening::Http(_) if worker.node.is_invoked(captured.original) => {
            client.invokes();
            Beyond::Invoked
        }
        Opening::Http(passing) => Beyond::Undeclared(passing, undeclared::beyond(&captured, worker)),
        Opening::Inspect(meant) => {
            // Few are: the others need not have room for it.
            return Box::pin(inspected(client, meant, &origin, &captured, worker)).await;
        }
        Opening::Relay(way) => {
            Box::pin(opening::relay(&mut client, way)).await;
            return client.close(limits).await;
        }
        Opening::Ended => return client.close(limits).await,
    };
    let then = requests(&mut client, &origin, &mut beyond, None, worker).await;
    drop(beyond); // what was on the way is over before the client has gone
    match then {
        Some(meant) => Box::pin(inspected(client, meant, &origin, &captured, worker)).await,
        None => client.close(limits).await,
    }
}

/// A connection of another agent, or a lane of one, which speaks for its caller: requests alone, and to one server.
pub async fn remote<S: Stream>(stream: S, origin: Arc<Origin>, worker: &Worker) {
    let mut client = Client::new(stream, Arc::clone(&origin.share));
    requests(&mut client, &origin, &mut Beyond::Nowhere, None, worker).await;
    client.close(&worker.node.limits).await;
}

/// Tells one connection too many that it may come again, if it speaks HTTP at once. It is no message, so there is no
/// entry.
pub async fn one_too_many<S: Stream>(stream: S, share: Arc<Share>, limits: &Limits) {
    let mut client = Client::new(stream, share);
    if client.guess(limits.linger_time_max).await == Some(Guess::Yes) {
        // Who did not wait for the answer did not want it.
        let _ = client.answer(&denial::answer(Reason::Overload, Shape::Connection, ""), true, limits).await;
    }
    client.close(limits).await;
}

/// One request after another, until either side has enough, or goes on in TLS that is to be read. `spoken`: they are within
/// TLS themselves.
async fn requests<S: Stream>(
    client: &mut Client<S>,
    origin: &Arc<Origin>,
    beyond: &mut Beyond<'_>,
    spoken: Option<&TlsName>,
    worker: &Worker,
) -> Option<Box<Meant>> {
    let node = &*worker.node;
    let (mut latest, mut before) = (Latest::new(&node.resources), None);
    loop {
        let head = client.head(&node.limits).await;
        if matches!(head, Ok(None)) {
            return None;
        }
        // One generation for the whole request.
        let now = identified(before.take(), &mut latest, origin, node).await;
        let Identified { resources, caller } = before.insert(now);
        let working = Cell::new(Some(worker.working()));
        // The next request is the next agent's.
        let head = head.map(|head| head.map(|head| head.going_on_if(!worker.is_leaving())));
        let turn = Turn { worker, origin, resources, caller, working, spoken, then: Cell::default() };
        let mut entry = match node.record.open(origin, resources.generation) {
            Ok(entry) => entry, // closed exactly once, also on drop
            Err(no_slot) => {
                turn.unrecorded(client, &no_slot).await;
                return None;
            }
        };
        if let Some(spoken) = spoken {
            entry.inspected(&spoken.shown);
        }
        if worker.is_stopping() {
            turn.turned_away(client, entry).await;
            return None;
        }
        let target = declared(resources, origin, node).or_else(|| {
            // Another agent's connection is to one server, and a call by App ID to whom that names.
            let may_be = matches!(beyond, Beyond::Undeclared(..)) && resources.has_externals();
            let by_head = client.kept_head().filter(|_| may_be);
            let by_head = by_head.and_then(|head| named(resources, &head, spoken.is_some()));
            by_head.or_else(|| named_in_tls(resources, spoken.filter(|_| may_be)?, origin))
        });
        let flow = match (head, target, &mut *beyond) {
            (Ok(None), _, _) => return None,
            (Err(broken), None, Beyond::Undeclared(passing, to)) if broken.is_for_a_proxy() => {
                housed(|| turn.proxied(client, (passing, *to), entry)).await
            }
            (Err(broken), target, _) => turn.broken(client, &broken, target, entry).await,
            // Its place is another since this connection began: the agent there would speak plain HTTP to it.
            (Ok(Some(_)), Some(Target { server, .. }), _)
                if spoken.is_some() && matches!(server.place, Place::Peer { .. }) =>
            {
                turn.gone(client, entry).await
            }
            (Ok(Some(head)), Some(target), _) => turn.declared(client, &head, target, entry).await,
            (Ok(Some(head)), None, Beyond::Undeclared(passing, to)) => {
                housed(|| turn.undeclared(client, &head, (passing, *to), None, entry)).await
            }
            (Ok(Some(head)), None, Beyond::Invoked) => turn.invoked(client, &head, entry).await,
            (Ok(Some(_)), None, Beyond::Nowhere) => turn.gone(client, entry).await,
        };
        if flow != Flow::Continue {
            return turn.then.take();
        }
    }
}

impl Turn<'_> {
    async fn declared<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        target: Target<'_>,
        entry: Entry,
    ) -> Flow {
        match target.server.transport {
            Transport::Streamable => housed(|| self.served(client, head, target, entry)).await,
            Transport::Sse => housed(|| self.paired(client, head, target, entry)).await,
        }
    }

    /// A request to a declared server, from its body to the end of its reply.
    async fn served<S: Stream>(
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
            Ok((request, mut watch)) => self.decided(request, &mut watch, target, &mut entry).await,
            Err(broken) => return self.broken(client, &broken, Some(target), entry).await,
        };
        client.done(head, &body); // from here on the request's bytes are forgotten
        match outcome {
            Outcome::Answered(answer) => self.answer(client, &answer, !head.keep_alive).await,
            Outcome::Unsent { error, expected } => {
                self.unreachable(client, head, &error, &expected, &mut entry).await
            }
            Outcome::Sent { upstream, leg, expected, stream } => {
                let flow = self.reply(client, head, upstream, leg, &expected, target, &mut entry).await;
                drop(stream); // it counts as long as it is open
                flow
            }
        }
    }

    /// Parse, decide, forward: what is decided on is what is sent.
    async fn decided<S: Stream>(
        &self,
        request: Request<'_>,
        watch: &mut Watch<'_, S>,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Outcome {
        let (node, server) = (&*self.worker.node, target.server);
        let asked = match parse::asked(request, server, &node.limits) {
            Ok(asked) => asked,
            Err(refused) => return Outcome::Answered(self.refuse(&refused, entry)),
        };
        entry.asked(&asked, &node.record);
        let named = self.named(server, &asked, entry);
        let (permitted, caller) = match self.judged(&asked, &named, target, entry) {
            Ok(permitted) => permitted,
            Err(denied) => return Outcome::Answered(deny(&denied, asked.shape(), entry)),
        };
        let mut expected = Expected::of(&asked, named.owes(), named.revision());
        let stream = match (!expected.ends_by_itself).then(|| self.origin.share.take(Use::Stream, 1)) {
            Some(Err(exceeded)) => return Outcome::Answered(self.shed(exceeded.limit, &exceeded, entry)),
            taken => taken.and_then(Result::ok),
        };
        let leg = forward::leg(caller, server, self.tls(), &asked);
        match self.sent(permitted, target, (&leg, named.bound()), watch, entry).await {
            Ok(upstream) => {
                if expected.list.is_some() {
                    expected.again = Again::of(&asked, &self.origin.share);
                }
                Outcome::Sent { upstream, leg, expected, stream }
            }
            Err(error) => Outcome::Unsent { error, expected },
        }
    }

    /// Decides: policy, then pins. What is permitted is recorded so.
    fn judged<'j>(
        &'j self,
        asked: &'j Asked<'j>,
        named: &Named,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Result<(Permitted<&'j Asked<'j>>, &'j Identity), Denied> {
        let (caller, policies) = (self.caller.as_ref(), &self.resources.policies);
        let mode = self.worker.node.mode;
        let (permitted, caller) =
            match (decision::decide(caller, target, asked, named.ids(), policies, mode), caller) {
                (Decision::Permitted(permitted), Ok(caller)) => (permitted, caller),
                (Decision::Permitted(_), Err(unidentified)) => return Err(unidentified.into()),
                (Decision::Denied(denied), _) => return Err(denied),
            };
        entry.permitted(&permitted);
        self.held_to_pins(caller, target.server, &permitted, entry)?;
        Ok((permitted, caller))
    }

    /// Forwards, unless the client leaves first.
    async fn sent<S: Stream>(
        &self,
        permitted: Permitted<&Asked<'_>>,
        target: Target<'_>,
        (leg, bound): (&Leg, Option<Bound>),
        watch: &mut Watch<'_, S>,
        entry: &Entry,
    ) -> Result<Upstream, ForwardError> {
        let node = &*self.worker.node;
        let session = permitted.get().session;
        let sent = {
            let traceparent = self.traceparent(target, permitted.get(), entry);
            let ways = self.worker.ways();
            let (server, limits) = (target.server, &node.limits);
            let sending = pin!(forward::send(permitted, (leg, bound), server, &traceparent, &ways, limits));
            watch.unless_left(sending).await.unwrap_or(Err(ForwardError::ClientLeft))
        };
        for fault in self.worker.pool.faults() {
            // Without a record it is in the log all the same.
            let _ = node.record.event(&fault);
        }
        if let (Err(ForwardError::ReplicaGone { by: BoundBy::Session, .. }), Some(session)) = (&sent, session)
        {
            node.bindings.end_session(&target.server.identity, session);
        }
        sent
    }

    /// Streams the reply of a declared server, and keeps what can serve again.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two ends, the request and its record: all different things"
    )]
    async fn reply<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        mut upstream: Upstream,
        leg: Leg,
        expected: &Expected,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Flow {
        let (node, Target { server, ends }) = (&*self.worker.node, target);
        if !expected.ends_by_itself {
            self.working.take(); // nobody waits for the end of a stream
            entry.opened();
        }
        let (observe, findings) = (node.mode.relaxes(server), Findings::default());
        let pages = expected.again.as_ref().map(|again| Pages::new(again.cursor()));
        let exchange = Exchange {
            http_method: expected.http_method,
            mcp: Some(McpExchange {
                caller: &leg.caller,
                server,
                ends,
                resources: self.resources,
                owed: expected.owed(),
                pins: self.pinned(server, &findings),
                bindings: &node.bindings,
                replica: upstream.replica(),
                expected,
                pages: pages.as_ref(),
                view: Cell::new(self.view(&leg.caller, target, expected, &findings)),
                others_tasks: &findings.others_tasks,
                observe,
                may_ask: &|asking| {
                    self.may_ask(&leg.caller, target, (expected.session(), expected.revision), asking)
                },
                paired: None,
            }),
            upgrade: false,
            close: !head.keep_alive,
            begun: Cell::new(false),
            limits: &node.limits,
        };
        let replied = respond::stream(&mut upstream, client, &exchange).await;
        let (replied, upstream) = match replied {
            // The caller would be shown an empty page.
            Ok(page @ Replied { next: Some(_), .. }) => {
                let further =
                    self.further_pages(client, (upstream, &leg), (page, expected), &exchange, target, entry);
                Box::pin(further).await
            }
            replied => (replied, Some(upstream)),
        };
        let (flow, reusable) = self.replied(client, replied, head, expected, entry).await;
        findings.pages.set(pages.as_ref().map_or(0, Pages::asked));
        if let Some(note) = self.record_findings(&leg.caller, server, &findings) {
            entry.noted(note);
        }
        if let Some(upstream) = upstream.filter(|_| reusable) {
            self.worker.pool.checkin(leg, upstream, &node.limits);
        }
        flow
    }

    /// Records how a reply ended, and answers in the server's place where it did not begin. Also says whether the
    /// upstream connection can serve again.
    async fn replied<S: Stream>(
        &self,
        client: &mut Client<S>,
        replied: Result<Replied, respond::Broken>,
        head: &HeadAt,
        expected: &Expected,
        entry: &mut Entry,
    ) -> (Flow, bool) {
        match replied {
            Ok(replied) => {
                entry.replied(replied.status, replied.bytes);
                if replied.beyond > 0 {
                    let detail =
                        format!("{} bytes beyond the reply: their connection was closed", replied.beyond);
                    entry.failed(Reason::ServerFault, replied.bytes, detail);
                }
                let flow = match (replied.status, head.keep_alive) {
                    (101, _) => Flow::Upgraded,
                    (200..300, _) if expected.http_method == "CONNECT" => Flow::Upgraded,
                    (_, true) => Flow::Continue,
                    (_, false) => Flow::Close,
                };
                (flow, replied.reusable)
            }
            Err(broken) => {
                let answer = self.broke(&broken, expected, entry);
                match broken.seen {
                    Seen::Nothing if broken.fault.reason() != Reason::ClientLeft => {
                        entry.replied(answer.status, 0);
                        (self.answer(client, &answer, !head.keep_alive).await, false)
                    }
                    Seen::Events { unanswered } => {
                        let message = unanswered.then_some(&*answer.body);
                        let ended = respond::end_events(client, message, &self.worker.node.limits).await;
                        (if ended && head.keep_alive { Flow::Continue } else { Flow::Close }, false)
                    }
                    Seen::Nothing | Seen::Part => (Flow::Close, false),
                }
            }
        }
    }

    async fn answer<S: Stream>(&self, client: &mut Client<S>, answer: &Answer, close: bool) -> Flow {
        let written = client.answer(answer, close, &self.worker.node.limits).await;
        if written.is_err() || close || answer.close { Flow::Close } else { Flow::Continue }
    }

    /// Opens the one entry of a connection whose traffic is not read.
    fn record_connection(&self, say: impl FnOnce(&mut Entry)) -> Option<Entry> {
        let opened = self.worker.node.record.open(self.origin, self.resources.generation);
        let mut entry = opened.inspect_err(|error| tracing::error!(%error, "connection closed")).ok()?;
        entry.method("connection");
        if let Some(spoken) = self.spoken {
            entry.inspected(&spoken.shown);
        }
        self.name_caller(&mut entry);
        say(&mut entry);
        Some(entry)
    }

    /// The name by which a server must prove itself to this client.
    fn tls(&self) -> Option<&ServerName<'static>> {
        self.spoken.map(|spoken| &spoken.name)
    }

    fn name_caller(&self, entry: &mut Entry) {
        if let Ok(caller) = self.caller {
            entry.caller(caller);
        }
    }
}

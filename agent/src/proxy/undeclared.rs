//! The path of what goes to no declared server: MCP is decided, the rest goes its way or not at all.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::SystemTime;

use toolgate_core::decision::{self, Decision, Denied, Passage, Permitted};
use toolgate_core::denial::{Answer, Shape};
use toolgate_core::http1::Guess;

use super::{Flow, Opening, Turn, deny};
use crate::app::Worker;
use crate::capture::Captured;
use crate::forward::{self, ForwardError, Upstream};
use crate::parse::{self, BodyAt, Client, Expected, HeadAt, Request, Shadow, Stream, Watch};
use crate::record::Entry;
use crate::respond::{self, Exchange};

/// The way that traffic that is not MCP may take: to where the client wanted it, over a connection of this client's own.
pub(super) struct Way {
    passage: Permitted<Passage>,
    upstream: Option<Upstream>,
    /// One entry for all of that traffic; the connection's end closes it.
    entry: Option<Entry>,
}

/// Decided once for a connection, from what is read at start alone.
pub(super) type Passing = Result<Way, Denied>;

/// What became of a request to no declared server before its reply.
enum Undeclared {
    /// It is not MCP; the connection that it may take.
    Other(Option<Upstream>),
    /// It was refused; this is said in the server's place.
    Denied(Answer),
    /// It was permitted, and sent where it got there.
    Sent(Result<Upstream, ForwardError>, Box<Expected>),
}

/// Traffic that is no HTTP, passed both ways until both sides end.
pub(super) async fn relay<S: Stream>(client: &mut Client<S>, way: Way) {
    let Way { passage, upstream: Some(mut upstream), entry: Some(mut entry) } = way else { return };
    let (sent, received) = forward::relay(&passage, client, &mut upstream).await;
    entry.relayed(sent, received);
}

/// Where a captured connection goes if no Server is there.
pub(super) fn beyond<'w>(captured: &Captured, worker: &'w Worker) -> forward::Undeclared<'w> {
    let Captured { original, process } = captured;
    let namespaces = &worker.node.namespaces;
    forward::Undeclared { address: *original, namespace: process.netns_cookie, namespaces }
}

impl Turn<'_> {
    /// A request to no declared server: MCP is decided by `undeclared`, the rest goes its connection's way.
    pub(super) async fn undeclared<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        (passing, to): (&mut Passing, forward::Undeclared<'_>),
        mut entry: Entry,
    ) -> Flow {
        let node = &*self.worker.node;
        self.name_caller(&mut entry);
        if !client.may_be_mcp(&node.limits) {
            return self.pass(client, head, None, (passing, to), entry).await;
        }
        let body = match client.body(head, &node.limits).await {
            Ok(body) => body,
            Err(broken) => return self.broken(client, &broken, None, entry).await,
        };
        let own = passing.as_mut().ok().and_then(|way| way.upstream.take());
        let outcome = match client.request(head, &body) {
            Ok((request, mut watch)) => {
                self.decided_undeclared(&request, &mut watch, own, to, &mut entry).await
            }
            Err(broken) => return self.broken(client, &broken, None, entry).await,
        };
        let (sent, expected) = match outcome {
            Undeclared::Other(own) => {
                if let Ok(way) = passing {
                    way.upstream = own;
                }
                return self.pass(client, head, Some(body), (passing, to), entry).await;
            }
            Undeclared::Denied(answer) => {
                client.done(head, &body);
                return self.answer(client, &answer, !head.keep_alive).await;
            }
            Undeclared::Sent(sent, expected) => (sent, expected),
        };
        client.done(head, &body);
        let (flow, upstream) = self.unread_reply(client, head, sent, &expected, &mut entry).await;
        if let Ok(way) = passing {
            way.upstream = upstream;
        }
        flow
    }

    /// Parse, decide, forward, for MCP to no declared server; other requests are left alone.
    async fn decided_undeclared<S: Stream>(
        &self,
        request: &Request<'_>,
        watch: &mut Watch<'_, S>,
        own: Option<Upstream>,
        to: forward::Undeclared<'_>,
        entry: &mut Entry,
    ) -> Undeclared {
        let node = &*self.worker.node;
        let Shadow::Mcp(message) = parse::shadow(request, &node.limits) else {
            return Undeclared::Other(own);
        };
        entry.shadow(message.as_ref(), request, &node.record);
        let caller = self.caller.as_ref().ok().map(ToString::to_string);
        let address = SocketAddr::new(to.address.ip().to_canonical(), to.address.port());
        node.discovered.saw(caller, address, request.head.path, message.as_ref(), SystemTime::now());
        match decision::undeclared(self.caller.as_ref(), request, node.undeclared, node.mode) {
            Decision::Denied(denied) => Undeclared::Denied(deny(&denied, Shape::Connection, entry)),
            Decision::Permitted(permitted) => {
                entry.permitted(&permitted);
                let expected = Box::new(Expected::unread(request.head.method));
                let sending = pin!(forward::send_undeclared(permitted, own, to, &node.limits));
                let sent = watch.unless_left(sending).await.unwrap_or(Err(ForwardError::ClientLeft));
                Undeclared::Sent(sent, expected)
            }
        }
    }

    /// A request that is not MCP, to no declared server. A body that was not read yet is streamed.
    async fn pass<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        body: Option<BodyAt>,
        (passing, to): (&mut Passing, forward::Undeclared<'_>),
        mut entry: Entry,
    ) -> Flow {
        let limits = &self.worker.node.limits;
        entry.method("http");
        let way = match passing {
            Ok(way) => way,
            Err(denied) => {
                let answer = deny(denied, Shape::Connection, &mut entry);
                return self.answer(client, &answer, true).await; // its body is perhaps still to come
            }
        };
        // The first of them opens the one entry that all share.
        let mut entry = match way.entry.take() {
            Some(first) => {
                entry.forget();
                first
            }
            None => entry,
        };
        entry.permitted(&way.passage);
        let expected = Expected::passing(head.http_method);
        let upstream = way.upstream.take();
        let sent = forward::pass(&way.passage, client, head, body, upstream, to, limits).await;
        let whole = sent.as_ref().is_ok_and(|upstream| !upstream.cut);
        let head = &head.going_on_if(whole);
        let (flow, upstream) = self.unread_reply(client, head, sent, &expected, &mut entry).await;
        if flow == Flow::Upgraded
            && let Some(mut upstream) = upstream
        {
            let (sent, received) = forward::relay(&way.passage, client, &mut upstream).await;
            entry.relayed(sent, received);
            return Flow::Close;
        }
        way.upstream = upstream;
        way.entry = Some(entry);
        // After a request that was not read to its end nothing can be told from its body.
        if whole { flow } else { Flow::Close }
    }

    /// Streams a reply that no rule looks into. Returns its connection where that can serve this client again.
    async fn unread_reply<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        sent: Result<Upstream, ForwardError>,
        expected: &Expected,
        entry: &mut Entry,
    ) -> (Flow, Option<Upstream>) {
        let mut upstream = match sent {
            Ok(upstream) => upstream,
            Err(error) => return (self.unreachable(client, head, &error, expected, entry).await, None),
        };
        let limits = &self.worker.node.limits;
        let exchange = Exchange {
            http_method: expected.http_method,
            mcp: None,
            upgrade: expected.may_upgrade,
            close: !head.keep_alive,
            limits,
        };
        let replied = respond::stream(&mut upstream, client, &exchange).await;
        let (flow, reusable) = self.replied(client, replied, head, expected, entry).await;
        (flow, reusable.then_some(upstream))
    }

    /// Dials where a permitted passage leads, and sees who speaks first: only a client that does can speak HTTP.
    pub(super) async fn on_the_way<S: Stream>(
        &self,
        client: &mut Client<S>,
        passage: Permitted<Passage>,
        to: forward::Undeclared<'_>,
    ) -> Opening {
        let limits = &self.worker.node.limits;
        let mut upstream = match forward::dial(&passage, to, limits).await {
            Ok(upstream) => upstream,
            Err(error) => {
                let (reason, _) = error.reason();
                self.record_connection(|entry| {
                    entry.permitted(&passage);
                    entry.failed(reason, 0, error.to_string());
                });
                return Opening::Ended;
            }
        };
        let guess = forward::first_to_speak(&passage, client, &mut upstream, limits).await;
        match guess {
            None => Opening::Ended,
            Some(Guess::Yes) => Opening::Http(Ok(Way { passage, upstream: Some(upstream), entry: None })),
            Some(Guess::No | Guess::Maybe) => {
                let entry = self.record_connection(|entry| {
                    entry.permitted(&passage);
                });
                match entry {
                    Some(entry) => {
                        Opening::Relay(Way { passage, upstream: Some(upstream), entry: Some(entry) })
                    }
                    None => Opening::Ended,
                }
            }
        }
    }
}

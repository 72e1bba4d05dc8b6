//! The path of what goes to no declared server: MCP is decided, the rest goes its way or not at all.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::SystemTime;

use toolgate_core::decision::{self, Decision};
use toolgate_core::denial::{Answer, Shape};
use toolgate_core::mcp::Message;

use super::opening::Passing;
use super::{Flow, Turn, deny};
use crate::app::Worker;
use crate::capture::Captured;
use crate::forward::{self, ForwardError, Upstream};
use crate::parse::{self, BodyAt, Client, Expected, HeadAt, Request, Shadow, Stream, Watch};
use crate::record::Entry;
use crate::respond::{self, Exchange};

/// What became of a request to no declared server before its reply.
enum Undeclared {
    /// It is not MCP; the connection that it may take.
    Other(Option<Upstream>),
    /// It opens a WebSocket with MCP in it, which is permitted, and recorded as that.
    WebSocket(Option<Upstream>),
    /// It was refused; this is said in the server's place.
    Denied(Answer),
    /// It was permitted, and sent where it got there.
    Sent(Result<Upstream, ForwardError>, Box<Expected>),
}

/// Where a captured connection goes if no Server is there.
pub(super) fn beyond<'w>(captured: &Captured, worker: &'w Worker) -> forward::Undeclared<'w> {
    let Captured { original, process } = captured;
    let (namespaces, connectors) = (&*worker.node.namespaces, &worker.node.connectors);
    let namespace = process.netns_cookie;
    forward::Undeclared { address: *original, namespace, namespaces, is_tunnel: false, tls: None, connectors }
}

impl Turn<'_> {
    /// A request to no declared server: MCP is decided by `undeclared`, the rest goes its connection's way. `whom`: whom a
    /// proxy is asked for.
    pub(super) async fn undeclared<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        (passing, to): (&mut Passing, forward::Undeclared<'_>),
        whom: Option<&str>,
        mut entry: Entry,
    ) -> Flow {
        let node = &*self.worker.node;
        self.name_caller(&mut entry);
        let tunnel = passing.as_ref().ok().and_then(|way| way.tunnel_to.clone());
        let whom = whom.or(tunnel.as_deref());
        if !client.may_be_mcp(&node.limits) {
            return self.pass(client, head, None, (passing, to), false, entry).await;
        }
        let body = match client.body(head, &node.limits).await {
            Ok(body) => body,
            Err(broken) => return self.broken(client, &broken, None, entry).await,
        };
        let own = passing.as_mut().ok().and_then(|way| way.upstream.take());
        let to = to.by(tunnel.as_deref());
        let outcome = match client.request(head, &body) {
            Ok((request, mut watch)) => {
                self.decided_undeclared(&request, &mut watch, (own, to), whom, &mut entry).await
            }
            Err(broken) => return self.broken(client, &broken, None, entry).await,
        };
        let (sent, expected) = match outcome {
            outcome @ (Undeclared::Other(_) | Undeclared::WebSocket(_)) => {
                let is_mcp = matches!(outcome, Undeclared::WebSocket(_));
                if let (Ok(way), Undeclared::Other(own) | Undeclared::WebSocket(own)) =
                    (&mut *passing, outcome)
                {
                    way.upstream = own;
                }
                return self.pass(client, head, Some(body), (passing, to), is_mcp, entry).await;
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
        (own, to): (Option<Upstream>, forward::Undeclared<'_>),
        whom: Option<&str>,
        entry: &mut Entry,
    ) -> Undeclared {
        let node = &*self.worker.node;
        let Shadow::Mcp(message) = parse::shadow(request, &node.limits) else {
            return Undeclared::Other(own);
        };
        entry.shadow(message.as_ref(), request, &node.record);
        if whom.is_none() {
            // What is behind a proxy has no address here to be declared by.
            self.discover(request, message.as_ref(), to.address);
        }
        let decision = decision::undeclared(self.caller.as_ref(), request, node.undeclared, node.mode);
        let outcome = self.sent_undeclared(decision, request, watch, (own, to), entry).await;
        if let Some(whom) = whom {
            entry.noted(format!("through a proxy to `{whom}`"));
        }
        outcome
    }

    async fn sent_undeclared<S: Stream>(
        &self,
        decision: Decision<&Request<'_>>,
        request: &Request<'_>,
        watch: &mut Watch<'_, S>,
        (own, to): (Option<Upstream>, forward::Undeclared<'_>),
        entry: &mut Entry,
    ) -> Undeclared {
        let node = &*self.worker.node;
        match decision {
            Decision::Denied(denied) => Undeclared::Denied(deny(&denied, Shape::Connection, entry)),
            // Its messages are not read then: it goes as other upgrades do.
            Decision::Permitted(permitted) if parse::opens_mcp_websocket(&request.head) => {
                entry.permitted(&permitted);
                Undeclared::WebSocket(own)
            }
            Decision::Permitted(permitted) => {
                entry.permitted(&permitted);
                let expected = Box::new(Expected::unread(request.head.method));
                let sending = pin!(forward::send_undeclared(permitted, own, to, &node.limits));
                let sent = watch.unless_left(sending).await.unwrap_or(Err(ForwardError::ClientLeft));
                Undeclared::Sent(sent, expected)
            }
        }
    }

    fn discover(&self, request: &Request<'_>, message: Option<&Message<'_>>, address: SocketAddr) {
        let caller = self.caller.as_ref().ok().map(ToString::to_string);
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.worker.node.discovered.saw(caller, address, request.head.path, message, SystemTime::now());
    }

    /// A request that is not MCP, to no declared server. A body that was not read yet is streamed. `is_mcp`: it opens a
    /// WebSocket with MCP, and is recorded as permitted.
    async fn pass<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        body: Option<BodyAt>,
        (passing, to): (&mut Passing, forward::Undeclared<'_>),
        is_mcp: bool,
        mut entry: Entry,
    ) -> Flow {
        let limits = &self.worker.node.limits;
        if !is_mcp {
            entry.method("http");
        }
        let way = match passing {
            Ok(way) => way,
            Err(denied) => {
                let answer = deny(denied, Shape::Connection, &mut entry);
                return self.answer(client, &answer, true).await; // its body is perhaps still to come
            }
        };
        if !is_mcp {
            // The first of them opens the one entry that all share.
            if let Some(first) = way.entry.take() {
                std::mem::replace(&mut entry, first).forget();
            }
            entry.permitted(&way.passage);
        }
        let expected = Expected::passing(head);
        let (upstream, to) = (way.upstream.take(), to.by(way.tunnel_to.as_deref()));
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
        if !is_mcp {
            way.entry = Some(entry);
        }
        // After a request that was not read to its end nothing can be told from its body.
        if whole { flow } else { Flow::Close }
    }

    /// Streams a reply that no rule looks into. Returns its connection where that can serve this client again.
    pub(super) async fn unread_reply<S: Stream>(
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
            begun: Cell::new(false),
            limits,
        };
        let replied = respond::stream(&mut upstream, client, &exchange).await;
        let (flow, reusable) = self.replied(client, replied, head, expected, entry).await;
        (flow, reusable.then_some(upstream))
    }
}

//! What a connection begins with: requests that can be decided one by one, or something that is decided once.

use std::cell::Cell;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use toolgate_core::decision::{self, Decision, Denied, Passage, Permitted, Target, Unread};
use toolgate_core::denial::Reason;
use toolgate_core::http1::Guess;
use toolgate_core::tls::Hello;

use super::identified::{Identified, identified};
use super::{Turn, declared, undeclared};
use crate::app::Worker;
use crate::capture::Captured;
use crate::deadline::timeout;
use crate::forward::{self, ForwardError, Upstream};
use crate::identify::Origin;
use crate::limits::Limits;
use crate::parse::{Client, Stream};
use crate::record::Entry;

/// The way that traffic that is not MCP may take: to where the client wanted it, over a connection of this client's own.
pub(super) struct Way {
    pub(super) passage: Permitted<Passage>,
    pub(super) upstream: Option<Upstream>,
    /// One entry for all of that traffic; the connection's end closes it.
    pub(super) entry: Option<Entry>,
    /// The connection is a tunnel through a proxy to this name, and ends with it.
    pub(super) tunnel_to: Option<String>,
}

/// Decided once for a connection, from what is read at start alone.
pub(super) type Passing = Result<Way, Denied>;

/// What a connection turned out to be.
pub(super) enum Opening {
    Http(Passing),
    Relay(Way),
    Ended,
}

/// Looks at the first bytes: requests that can be decided one by one, or something else.
pub(super) async fn opening<S: Stream>(
    client: &mut Client<S>,
    origin: &Arc<Origin>,
    captured: &Captured,
    worker: &Worker,
) -> Opening {
    let node = &*worker.node;
    let Identified { resources, caller } = &identified(None, origin, node).await;
    let turn = Turn { worker, origin, resources, caller, working: Cell::default() };
    let decision = match declared(resources, origin, node) {
        Some(target) => return turn.to_declared(client, target).await,
        None if node.is_invoked(captured.original) => Decision::Denied(
            Denied::because(Reason::Opaque).with_detail("what calls by App ID is plain HTTP"),
        ),
        // The guard lets the agent pass: what is not decided as for that server must not.
        None if node.namespaces.guards(captured.process.netns_cookie, captured.original) => {
            Decision::Denied(Denied::because(Reason::Undeclared))
        }
        None => decision::unrecognised(node.unrecognised),
    };
    match decision {
        Decision::Denied(denied) => match (client.guess(node.limits.silence_time_max).await, denied.reason) {
            (Some(Guess::Yes | Guess::Http2), _) => Opening::Http(Err(denied)),
            // It said nothing, to a server of which nothing is known.
            (None, reason) if reason != Reason::Unrecognised => Opening::Ended,
            (Some(Guess::No | Guess::Maybe) | None, _) => turn.ended(&denied),
        },
        Decision::Permitted(passage) => {
            turn.on_the_way(client, passage, undeclared::beyond(captured, worker)).await
        }
    }
}

/// Proves to who connected that it is captured. It is no message, so there is no entry.
pub(super) async fn canary<S: Stream>(mut stream: S, limits: &Limits) {
    let answered = async {
        stream.write_all(b"toolgate\n").await?;
        stream.shutdown().await
    };
    // Who did not wait for the answer did not want it.
    let _ = timeout(limits.client_write_max, answered).await;
}

/// Traffic that is no HTTP, passed both ways until both sides end.
pub(super) async fn relay<S: Stream>(client: &mut Client<S>, way: Way) {
    let Way { passage, upstream: Some(mut upstream), entry: Some(mut entry), .. } = way else { return };
    let (sent, received) = forward::relay(&passage, client, &mut upstream).await;
    entry.relayed(sent, received);
}

impl Turn<'_> {
    /// The first bytes to a declared server.
    async fn to_declared<S: Stream>(&self, client: &mut Client<S>, target: Target<'_>) -> Opening {
        let node = &*self.worker.node;
        let hello = match client.guess(node.limits.silence_time_max).await {
            // Without the server, should it be declared no more, there is no way for this connection.
            Some(Guess::Yes | Guess::Http2) => return Opening::Http(Err(Denied::because(Reason::Opaque))),
            None => return Opening::Ended,
            Some(Guess::No | Guess::Maybe) => client.hello(node.limits.head_time_max).await,
        };
        let what = match &hello {
            Hello::Client { server_name } => Unread::Tls { server_name: server_name.as_deref() },
            Hello::No | Hello::Maybe => Unread::Other,
        };
        let policies = &self.resources.policies;
        let passage = match decision::opaque(self.caller.as_ref(), target, what, policies, node.mode) {
            Decision::Denied(denied) => return self.ended(&denied),
            Decision::Permitted(passage) => passage,
        };
        let dialled =
            forward::dial_declared(&passage, target.server, node.namespaces.home(), &node.limits).await;
        self.relayed(passage, dialled, |entry| {
            entry.method("opaque");
            entry.opened();
        })
    }

    /// Dials where a permitted passage leads, and sees who speaks first: only a client that does can speak HTTP.
    async fn on_the_way<S: Stream>(
        &self,
        client: &mut Client<S>,
        passage: Permitted<Passage>,
        to: forward::Undeclared<'_>,
    ) -> Opening {
        let limits = &self.worker.node.limits;
        match forward::dial(&passage, to, limits).await {
            Ok(upstream) => {
                self.told_apart(
                    client,
                    Way { passage, upstream: Some(upstream), entry: None, tunnel_to: None },
                )
                .await
            }
            failed @ Err(_) => self.relayed(passage, failed, |_entry| {}),
        }
    }

    /// What goes a way that is open: requests, or bytes that nobody reads.
    pub(super) async fn told_apart<S: Stream>(&self, client: &mut Client<S>, mut way: Way) -> Opening {
        let node = &*self.worker.node;
        let Some(mut upstream) = way.upstream.take() else { return Opening::Ended };
        let passage = match forward::first_to_speak(&way.passage, client, &mut upstream, &node.limits).await {
            None => return Opening::Ended,
            Some(Guess::Yes) => {
                way.upstream = Some(upstream);
                return Opening::Http(Ok(way));
            }
            Some(Guess::Http2) => {
                match decision::unread_http2(self.caller.as_ref(), node.undeclared, node.mode) {
                    Decision::Denied(denied) => return self.ended(&denied),
                    Decision::Permitted(passage) => passage,
                }
            }
            Some(Guess::No | Guess::Maybe) => way.passage,
        };
        self.relayed(passage, Ok(upstream), |entry| {
            if let Some(name) = way.tunnel_to {
                entry.noted(format!("through a proxy to `{name}`"));
            }
        })
    }

    /// A permitted way for bytes that nobody reads, with the one entry of all of them.
    fn relayed(
        &self,
        passage: Permitted<Passage>,
        dialled: Result<Upstream, ForwardError>,
        say: impl FnOnce(&mut Entry),
    ) -> Opening {
        let entry = self.record_connection(|entry| {
            entry.permitted(&passage);
            match &dialled {
                Ok(_) => say(entry),
                Err(error) => entry.failed(error.reason().0, 0, error.to_string()),
            }
        });
        match (dialled, entry) {
            (Ok(upstream), entry @ Some(_)) => {
                Opening::Relay(Way { passage, upstream: Some(upstream), entry, tunnel_to: None })
            }
            (Ok(_) | Err(_), _) => Opening::Ended,
        }
    }

    fn ended(&self, denied: &Denied) -> Opening {
        self.record_connection(|entry| entry.denied(denied, 0));
        Opening::Ended
    }
}

//! The beginning of a captured connection: what it turns out to be.

use std::cell::Cell;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use toolgate_core::decision::{self, Decision, Denied};
use toolgate_core::denial::Reason;
use toolgate_core::http1::Guess;

use super::identified::{Identified, identified};
use super::undeclared::{self, Passing, Way};
use super::{Turn, declared};
use crate::app::Worker;
use crate::capture::Captured;
use crate::deadline::timeout;
use crate::identify::Origin;
use crate::limits::Limits;
use crate::parse::{Client, Stream};

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
        Some(target) => decision::opaque(caller.as_ref(), target.server),
        // The guard lets the agent pass: what is not decided as for that server must not.
        None if node.namespaces.guards(captured.process.netns_cookie, captured.original) => {
            Decision::Denied(Denied::because(Reason::Undeclared))
        }
        None => decision::unrecognised(node.unrecognised),
    };
    match decision {
        Decision::Denied(denied) => match (client.guess(node.limits.silence_time_max).await, denied.reason) {
            (Some(Guess::Yes), _) => Opening::Http(Err(denied)),
            // It said nothing, to a server of which nothing is known.
            (None, reason) if reason != Reason::Unrecognised => Opening::Ended,
            (Some(Guess::No | Guess::Maybe) | None, _) => {
                turn.record_connection(|entry| entry.denied(&denied, 0));
                Opening::Ended
            }
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

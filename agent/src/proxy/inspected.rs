//! TLS that is read: it ends here, in the server's place, and what is within takes the path of plain HTTP. What goes on does
//! so in TLS, to who proves to be whom the client means.

use std::cell::Cell;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use toolgate_core::decision::{self, Denied};
use toolgate_core::denial::Reason;
use toolgate_core::http1::Guess;
use toolgate_core::tls::ClientHello;

use super::Beyond;
use super::identified::{Identified, Latest, identified};
use super::opening::{self, Opening, Passing, Way};
use super::{Turn, declared, named_in_tls, requests, undeclared};
use crate::ahead::Ahead;
use crate::app::Worker;
use crate::capture::Captured;
use crate::deadline::timeout;
use crate::forward;
use crate::identify::Origin;
use crate::inspect::{self, AcceptError, InspectError, Name};
use crate::io::Io;
use crate::limits::Limit;
use crate::parse::Client;

/// TLS that is to be read: by which name, and where what is within may go that is not for a declared server.
pub(super) struct Meant {
    pub(super) name: Name,
    pub(super) passing: Passing,
}

/// Why there is no TLS with the client.
#[derive(Debug, thiserror::Error)]
enum Unshaken {
    #[error(transparent)]
    Certify(#[from] InspectError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error("it did not finish the handshake in time ({})", Limit::HandshakeTime)]
    Slow,
}

impl Unshaken {
    fn reason(&self) -> Reason {
        match self {
            Self::Accept(AcceptError::Untrusting { .. } | AcceptError::Left) => Reason::ClientPinned,
            Self::Certify(_) | Self::Accept(AcceptError::Failed(_) | AcceptError::Setup(_)) | Self::Slow => {
                Reason::HandshakeFailed
            }
        }
    }
}

/// A connection from here on: TLS with its client, then one request after another.
pub(super) async fn inspected(
    client: Client<Io>,
    meant: Box<Meant>,
    origin: &Arc<Origin>,
    captured: &Captured,
    worker: &Worker,
) {
    let (node, Meant { name, passing }) = (&*worker.node, *meant);
    let Identified { resources, caller } =
        &identified(None, &mut Latest::new(&node.resources), origin, node).await;
    let (working, then) = (Cell::default(), Cell::default());
    let turn = Turn { worker, origin, resources, caller, working, spoken: Some(&name), then };
    let share = Arc::clone(client.share());
    let mut client = match turn.shaken(client).await {
        Ok(tls) => Client::new(tls, share),
        Err(unshaken) => return turn.unshaken(unshaken.reason(), &unshaken),
    };
    let to = forward::Undeclared { tls: Some(&name.name), ..undeclared::beyond(captured, worker) };
    match turn.within(&mut client, passing, to).await {
        Opening::Http(passing) => {
            let mut beyond = Beyond::Undeclared(passing, to);
            requests(&mut client, origin, &mut beyond, Some(&name), worker).await;
        }
        Opening::Relay(way) => opening::relay(&mut client, way).await,
        // Node looks at what it was shown when all is done, and leaves.
        Opening::Ended if client.has_left() => {
            turn.unshaken(Reason::ClientPinned, &"it left without a word behind the handshake, as Node does");
        }
        // TLS within TLS is denied.
        Opening::Inspect(_) | Opening::Ended => {}
    }
    client.close(&node.limits).await;
}

impl Turn<'_> {
    /// TLS with a client whose first message is in its buffer.
    async fn shaken(&self, client: Client<Io>) -> Result<Io, Unshaken> {
        let node = &*self.worker.node;
        let (io, buffer) = client.into_parts();
        let (Io::Plain(io), Some(inspection), Some(spoken)) = (io, &node.inspection, self.spoken) else {
            return Err(AcceptError::Left.into()); // what is asked for here was looked at before
        };
        let certified = inspection.certified(&spoken.name)?;
        let shaking = inspect::accept(Ahead::after(io, buffer), certified);
        match timeout(node.limits.handshake_time_max, shaking).await {
            Ok(shaken) => Ok(Io::Tls(Box::new(shaken?))),
            Err(_) => {
                node.metrics.limits.count(Limit::HandshakeTime, &Unshaken::Slow);
                Err(Unshaken::Slow)
            }
        }
    }

    /// Records that there is no TLS with the client; one that does not believe this node is remembered by name.
    fn unshaken(&self, reason: Reason, why: &dyn Display) {
        let (Some(spoken), Some(inspection)) = (self.spoken, &self.worker.node.inspection) else { return };
        let detail = format!("`{}`: {why}", spoken.shown);
        let denied = Denied::because(reason).with_detail(detail);
        let target = declared(self.resources, self.origin, &self.worker.node)
            .or_else(|| named_in_tls(self.resources, spoken, self.origin));
        self.record_connection(|entry| {
            if let Some(target) = target {
                entry.target(&target.server.identity);
            }
            entry.denied(&denied, 0);
        });
        if let (Reason::ClientPinned, Ok(caller)) = (reason, self.caller) {
            let now = SystemTime::now();
            inspection.untrusting.saw(caller.to_string(), &spoken.shown, why.to_string(), now);
        }
    }

    /// Tells apart what is within TLS. What goes its client's own way does so in TLS: one that does not stand is told to the
    /// first request.
    async fn within(
        &self,
        client: &mut Client<Io>,
        passing: Passing,
        to: forward::Undeclared<'_>,
    ) -> Opening {
        let limits = &self.worker.node.limits;
        let passing = match passing {
            Ok(Way { passage, upstream: Some(upstream), entry, tunnel_to }) => {
                let to = to.by(tunnel_to.as_deref());
                let upstream = forward::secure(&passage, upstream, to, limits).await.ok();
                let is_open = upstream.is_some();
                let way = Way { passage, upstream, entry, tunnel_to };
                if is_open {
                    return self.told_apart(client, way).await;
                }
                Ok(way)
            }
            passing => passing,
        };
        match (client.guess(limits.client_idle_max).await, passing) {
            (None, _) => Opening::Ended,
            (Some(Guess::Yes | Guess::Http2), passing) => Opening::Http(passing),
            (Some(Guess::No | Guess::Maybe), Ok(_)) => self
                .ended(&Denied::because(Reason::ServerUnproven).with_detail("nothing goes on without TLS")),
            (Some(Guess::No | Guess::Maybe), Err(denied)) => self.ended(&denied),
        }
    }

    /// TLS of this client, which is to be read.
    pub(super) fn to_be_read(&self, hello: &ClientHello, to: SocketAddr, passing: Passing) -> Opening {
        match Name::of(hello.server_name.as_deref(), to.ip()) {
            Some(name) => Opening::Inspect(Box::new(Meant { name, passing })),
            None => self.ended(&decision::nameless()),
        }
    }
}

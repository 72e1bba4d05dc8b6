//! Other agents at the door of a worker.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::task::spawn_local;
use toolgate_core::denial::Reason;

use super::{AppError, Worker};
use crate::deadline;
use crate::identify::{Origin, Remote};
use crate::io::Io;
use crate::limits::Limit;
use crate::netns;
use crate::peer::{self, Accepted};
use crate::proxy;
use crate::shares::{Sharer, Use};

/// Where other agents come to: listeners for each thread; `[::]`, every address of the host, is one of each family.
///
/// # Errors
/// The port is in use, or may not be bound. The agent that hands over (`succeeds`) may hold it.
pub(super) fn listen(
    address: SocketAddr,
    threads: usize,
    succeeds: bool,
) -> Result<Vec<Vec<TcpListener>>, AppError> {
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
    let is_every = address.is_ipv6() && address.ip().is_unspecified();
    let addresses = if is_every { vec![address, v4] } else { vec![address] };
    let mut of_threads: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
    for address in addresses {
        // Alone first: with SO_REUSEPORT a second binder would succeed in silence.
        let alone = if succeeds { Ok(()) } else { TcpListener::bind(address).map(drop) };
        let made = alone.and_then(|()| {
            of_threads.iter_mut().try_for_each(|own| netns::listener(address).map(|made| own.push(made)))
        });
        match made {
            Err(cause) if address.is_ipv6() && netns::is_without_ipv6(&cause) => {}
            made => made.map_err(|cause| AppError::Listen { address, cause })?,
        }
    }
    Ok(of_threads)
}

impl Worker {
    /// Another agent's connection, or of who poses as one: until it has proven who it is it may not take much.
    pub(super) fn accepted_peer(self: &Rc<Self>, stream: TcpStream, from: SocketAddr) {
        if self.handshakes.get() >= self.node.limits.handshakes_max {
            self.node.metrics.refused(Reason::Overload);
            let what = format!("a connection from {from} is closed: {} is reached", Limit::Handshakes);
            return self.node.metrics.limits.count(Limit::Handshakes, &what);
        }
        self.handshakes.set(self.handshakes.get() + 1);
        let worker = Rc::clone(self);
        worker.came();
        spawn_local(async move {
            let proven = worker.proven(stream, from).await;
            worker.handshakes.set(worker.handshakes.get() - 1);
            if let Some(accepted) = proven {
                deadline::connection(worker.serve_peer(accepted, from)).await;
            }
            worker.left();
        });
    }

    async fn proven(&self, stream: TcpStream, from: SocketAddr) -> Option<Accepted> {
        let (node, time_max) = (&*self.node, self.node.limits.handshake_time_max);
        let resources = node.resources.load_full();
        let handshake = peer::accept(stream, from, &resources, &node.svids);
        match tokio::time::timeout(time_max, handshake).await {
            Ok(Ok(accepted)) => Some(accepted),
            Ok(Err(error)) => {
                node.metrics.refused(Reason::PeerUnproven);
                tracing::warn!(%from, %error, "another agent is refused");
                None
            }
            Err(_) => {
                node.metrics.refused(Reason::PeerUnproven);
                let what = format!("{from} did not prove who it is ({})", Limit::HandshakeTime);
                node.metrics.limits.count(Limit::HandshakeTime, &what);
                None
            }
        }
    }

    async fn serve_peer(&self, accepted: Accepted, from: SocketAddr) {
        let Accepted { stream, caller, server } = accepted;
        let node = &*self.node;
        self.tethers.hold(&stream.tether);
        let serial = stream.tether.peer.serial.to_string().into();
        let share = node.shares.of(&Sharer::Peer(caller.clone()));
        let remote = Remote { caller, server, address: from, serial };
        let stream = Io::Mutual(Box::new(stream));
        match share.take(Use::Connection, 1) {
            Ok(_counted) => proxy::remote(stream, Origin::remote(remote, share), self).await,
            Err(exceeded) => {
                node.metrics.refused(Reason::Overload);
                node.metrics.limits.count(exceeded.limit, &exceeded);
                proxy::one_too_many(stream, share, &node.limits).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_family_or_of_the_host_or_one() {
        for (address, count) in [("[::]:0", 2), ("0.0.0.0:0", 1), ("127.0.0.1:0", 1)] {
            let address: SocketAddr = address.parse().unwrap();
            // A port that nobody has; both families are tried on the same.
            let port = TcpListener::bind(address).unwrap().local_addr().unwrap().port();
            let of_threads = listen(SocketAddr::new(address.ip(), port), 2, false).unwrap();
            assert_eq!(of_threads.iter().map(Vec::len).collect::<Vec<_>>(), [count; 2], "{address}");
        }
    }
}

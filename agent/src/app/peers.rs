//! Other agents at the door of a worker.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use toolgate_core::denial::Reason;

use super::{AppError, Worker};
use crate::deadline::{self, timeout};
use crate::identify::{Origin, Remote};
use crate::io::Io;
use crate::limits::Limit;
use crate::netns;
use crate::peer::lanes::Driver;
use crate::peer::{self, Accepted, Mutual, Protocol};
use crate::proxy;
use crate::shares::{Held, Share, Sharer, Use};

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

    async fn serve_peer(self: &Rc<Self>, accepted: Accepted, from: SocketAddr) {
        let Accepted { stream, caller, server } = accepted;
        self.tethers.hold(&stream.tether);
        let serial = stream.tether.peer.serial.to_string().into();
        let share = self.node.shares.of(&Sharer::Peer(caller.clone()));
        let remote = Remote { caller, server, address: from, serial };
        let origin = Arc::new(Origin::remote(remote, share));
        match stream.protocol {
            Protocol::Own => self.serve_remote(Io::Mutual(Box::new(stream)), origin).await,
            Protocol::Lanes => self.serve_lanes(stream, &origin, from).await,
        }
    }

    /// One request after another.
    async fn serve_remote(&self, io: Io, origin: Arc<Origin>) {
        match self.counted(&origin.share) {
            Some(_counted) => proxy::remote(io, origin, self).await,
            None => proxy::one_too_many(io, Arc::clone(&origin.share), &self.node.limits).await,
        }
    }

    /// The same on several lanes at once. The connection counts beside them, so that one without any counts, too.
    async fn serve_lanes(self: &Rc<Self>, stream: Mutual, origin: &Arc<Origin>, from: SocketAddr) {
        let limits = &self.node.limits;
        // Best effort: what is said to a host that is gone without a word need not wait for ever.
        let _ = SockRef::from(stream.socket()).set_tcp_user_timeout(Some(limits.client_write_max));
        let tether = Rc::clone(&stream.tether);
        let mut driver = Driver::accepting(stream);
        let Some(_counted) = self.counted(&origin.share) else {
            // What comes on it is told so, as it would be on a connection of its own.
            let telling = async {
                while let Ok(Some(lane)) = driver.next().await {
                    self.serve_lane(Io::Lane(lane, Rc::clone(&tether)), origin);
                }
            };
            let _ = timeout(limits.linger_time_max, telling).await;
            return;
        };
        let mut ending = pin!(self.ending());
        let mut is_told = false;
        loop {
            let next = tokio::select! {
                biased;
                next = timeout(limits.client_idle_max, driver.next()) => next,
                // Its next lanes are the next agent's; what is under way is served.
                () = &mut ending, if !is_told => {
                    driver.leave();
                    is_told = true;
                    continue;
                }
            };
            match next {
                Ok(Ok(Some(lane))) => self.serve_lane(Io::Lane(lane, Rc::clone(&tether)), origin),
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    return tracing::warn!(%from, %error, "a connection of another agent is over, with all its calls");
                }
                Err(_) if driver.is_idle() => return,
                Err(_) => {}
            }
        }
    }

    fn serve_lane(self: &Rc<Self>, io: Io, origin: &Arc<Origin>) {
        let (worker, origin) = (Rc::clone(self), Arc::clone(origin));
        worker.came();
        spawn_local(async move {
            deadline::connection(worker.serve_remote(io, origin)).await;
            worker.left();
        });
    }

    /// One connection, or lane, more of a caller's; `None`: one too many.
    fn counted(&self, share: &Arc<Share>) -> Option<Held> {
        let taken = share.take(Use::Connection, 1);
        taken
            .inspect_err(|exceeded| {
                self.node.metrics.refused(Reason::Overload);
                self.node.metrics.limits.count(exceeded.limit, exceeded);
            })
            .ok()
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

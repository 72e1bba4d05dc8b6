//! Idle upstream connections of one thread, last in first out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use foldhash::fast::RandomState;
use serde::Serialize;

use super::shared::Shared;
use super::{Leg, Upstream};
use crate::deadline;
use crate::limits::Limits;

struct Idle {
    upstream: Upstream,
    since: Instant,
}

impl Idle {
    /// Whether its end is still far.
    fn is_good(&self, limits: &Limits) -> bool {
        let io = &self.upstream.io;
        let idle_max = io.tether().map_or(limits.upstream_idle_max, |_| limits.peer_idle_max);
        io.takes_more() && deadline::now().into_std().duration_since(self.since) < idle_max
    }
}

/// The pool; each connection in it serves one [`Leg`].
#[derive(Default)]
pub struct Pool {
    /// What a leg is made of is configured: nobody can choose two that collide.
    idle: RefCell<HashMap<Leg, Vec<Idle>, RandomState>>,
    faults: RefCell<Vec<IdleFault>>,
    /// Connections of which those in it may be lanes.
    pub(super) shared: Shared,
}

/// A server that spoke on an idle connection, which was closed: what it said belongs to no request. As the audit has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdleFault {
    event: &'static str,
    /// Whose connection it was: nobody else's could have got it.
    caller: String,
    address: SocketAddr,
    /// How much it said, at least.
    bytes: usize,
}

impl Pool {
    /// A connection to an address that is still quiet and open. Of those that may be shared, none while the one for calls
    /// that are alone is to be made.
    pub fn checkout(&self, leg: &Leg, address: SocketAddr, limits: &Limits) -> Option<Upstream> {
        let mut pool = self.idle.borrow_mut();
        let waiting = pool.get_mut(leg)?;
        loop {
            let place = if leg.shares {
                let alone = waiting.iter().rposition(|idle| idle.upstream.is_alone_at(address));
                alone.or_else(|| {
                    let is_out = self.shared.is_alone_out(leg, address);
                    waiting.iter().rposition(|idle| is_out && idle.upstream.address == address)
                })
            } else {
                waiting.iter().rposition(|idle| idle.upstream.address == address)
            };
            let place = place?;
            let mut idle = waiting.remove(place);
            if !idle.is_good(limits) {
                continue;
            }
            match silence(&mut idle.upstream) {
                Silence::Kept => return Some(idle.upstream),
                Silence::Ended => {}
                Silence::Broken { bytes } => self.faults.borrow_mut().push(IdleFault {
                    event: "server_fault",
                    caller: leg.caller.to_string(),
                    address: idle.upstream.address,
                    bytes,
                }),
            }
        }
    }

    /// The faults that were noticed since this was asked last.
    pub fn faults(&self) -> Vec<IdleFault> {
        self.faults.take()
    }

    /// Takes a connection back whose last reply ended where it should. The one for calls that are alone has room beside all
    /// lanes: without it each such call would connect anew.
    pub fn checkin(&self, leg: Leg, mut upstream: Upstream, limits: &Limits) {
        upstream.busy = None;
        let mut pool = self.idle.borrow_mut();
        let waiting = pool.entry(leg).or_default();
        if upstream.alone.is_some() || waiting.len() < limits.upstream_idle_count_max {
            waiting.push(Idle { upstream, since: deadline::now().into_std() });
        }
    }

    /// Closes what waited too long.
    pub fn sweep(&self, limits: &Limits) {
        self.idle.borrow_mut().retain(|_, waiting| {
            waiting.retain(|idle| idle.is_good(limits));
            !waiting.is_empty()
        });
        self.shared.sweep(limits);
    }
}

/// What an idle connection did.
pub(super) enum Silence {
    /// Nothing: it can serve.
    Kept,
    /// It was closed.
    Ended,
    /// It spoke, unasked: that would be read as the next reply.
    Broken { bytes: usize },
}

/// Looks what an idle connection did.
pub(super) fn silence(upstream: &mut Upstream) -> Silence {
    let mut cx = Context::from_waker(Waker::noop());
    let Upstream { io, buffer, address, .. } = upstream;
    match buffer.poll_fill(&mut cx, io, crate::buffer::BLOCK_BYTES) {
        Poll::Pending => Silence::Kept,
        Poll::Ready(Ok(0) | Err(_)) => Silence::Ended,
        Poll::Ready(Ok(bytes)) => {
            tracing::warn!(%address, bytes, "server spoke on an idle connection: closed");
            Silence::Broken { bytes }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;

    use toolgate_core::decision::Place;
    use toolgate_core::identity::Identity;

    use super::super::shared::Alone;
    use super::*;
    use crate::io::Io;

    /// Plain connections stand in for those between agents: what is in the pool is not asked what it is.
    #[tokio::test]
    async fn a_connection_for_calls_that_are_alone_is_kept_however_many_lanes_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = || {
            let io = TcpStream::connect(address).unwrap();
            io.set_nonblocking(true).unwrap();
            Upstream::new(Io::Plain(tokio::net::TcpStream::from_std(io).unwrap()), address)
        };
        let id = |app_id| Identity::new("example.org", "default", app_id).unwrap();
        let place = Place::Local { address };
        let leg = Leg { caller: id("reader"), server: id("docs"), place, tls: None, shares: true };
        let limits = Limits { upstream_idle_count_max: 2, ..Limits::default() };
        let pool = Pool::default();
        for _ in 0..3 {
            pool.checkin(leg.clone(), upstream(), &limits);
        }
        let alone = Upstream { alone: Some(Rc::new(Alone)), ..upstream() };
        pool.checkin(leg.clone(), alone, &limits);
        let taken = pool.checkout(&leg, address, &limits).unwrap();
        assert!(taken.is_alone_at(address), "it comes before lanes");
        assert!(
            pool.checkout(&leg, address, &limits).is_none(),
            "none is made yet that the lanes are beside of"
        );
    }
}

//! Idle upstream connections of one thread, last in first out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::{Leg, Upstream};
use crate::limits::Limits;

struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// The pool; each connection in it serves one [`Leg`].
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Leg, Vec<Idle>>>,
}

impl Pool {
    /// A connection that is still quiet and open.
    pub fn checkout(&self, leg: &Leg, limits: &Limits) -> Option<Upstream> {
        let mut pool = self.idle.borrow_mut();
        let waiting = pool.get_mut(leg)?;
        while let Some(mut idle) = waiting.pop() {
            if idle.since.elapsed() < limits.upstream_idle_max && is_quiet(&mut idle.upstream) {
                return Some(idle.upstream);
            }
        }
        None
    }

    /// Takes a connection back whose last reply ended where it should.
    pub fn checkin(&self, leg: Leg, upstream: Upstream, limits: &Limits) {
        let mut pool = self.idle.borrow_mut();
        let waiting = pool.entry(leg).or_default();
        if waiting.len() < limits.upstream_idle_count_max {
            waiting.push(Idle { upstream, since: Instant::now() });
        }
    }

    /// Closes what waited too long.
    pub fn sweep(&self, limits: &Limits) {
        self.idle.borrow_mut().retain(|_, waiting| {
            waiting.retain(|idle| idle.since.elapsed() < limits.upstream_idle_max);
            !waiting.is_empty()
        });
    }
}

/// A byte while idle, or the end, makes a connection useless: the byte would be read as the next reply.
pub(super) fn is_quiet(upstream: &mut Upstream) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let Upstream { io, buffer, address, .. } = upstream;
    match buffer.poll_fill(&mut cx, io, crate::buffer::BLOCK_BYTES) {
        Poll::Pending => true,
        Poll::Ready(Ok(0) | Err(_)) => false,
        Poll::Ready(Ok(bytes)) => {
            tracing::warn!(%address, bytes, "server spoke on an idle connection: closed");
            false
        }
    }
}

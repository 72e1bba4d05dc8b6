//! What the limits refused: one counter for each limit, and a line of the log now and then.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus::{IntCounter, IntCounterVec};

use crate::limits::Limit;

/// The least time between two lines of the log about the same limit: who floods the agent must not flood its log.
const TOLD_EVERY_MS: u64 = 1_000;

struct Told {
    count: IntCounter,
    /// When the next line is due, in milliseconds since the start.
    due_ms: AtomicU64,
}

/// The counters of all limits.
pub struct Refusals {
    /// In the order of [`Limit::ALL`].
    told: Vec<Told>,
    started: Instant,
}

impl Refusals {
    pub(super) fn new(counters: &IntCounterVec) -> Self {
        let told = Limit::ALL.iter().map(|limit| Told {
            count: counters.with_label_values(&[limit.as_str()]),
            due_ms: AtomicU64::new(0),
        });
        Self { told: told.collect(), started: Instant::now() }
    }

    /// `limit` has refused something; `what` says what, and names the limit.
    pub fn count(&self, limit: Limit, what: &dyn Display) {
        let Some(told) = Limit::ALL.iter().position(|one| *one == limit).and_then(|at| self.told.get(at))
        else {
            return;
        };
        told.count.inc();
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = told.due_ms.load(Ordering::Relaxed);
        let is_mine = now >= due
            && told
                .due_ms
                .compare_exchange(due, now + TOLD_EVERY_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            let so_far = told.count.get();
            tracing::warn!(limit = limit.as_str(), so_far, "refused: {what}");
        }
    }
}

//! What is in use at once: of the whole agent, and of each captured cgroup and each caller of another node, so that none can
//! use up the others' share.
//!
//! A connection looks up its [`Share`] once. What it takes from there is counted without a lock, and given back
//! when it is dropped, whatever ends it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use toolgate_core::identity::Identity;

use crate::buffer::BLOCK_BYTES;
use crate::limits::{Limit, Limits};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Client connections.
    Connection,
    /// Event streams that are open by GET.
    Stream,
    /// Audit entries; how many there are in all is the recorder's.
    Entry,
    /// Bytes that messages hold while they wait.
    Memory,
}

/// Who takes from a share of his own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sharer {
    /// A captured cgroup, by its id.
    Cgroup(u64),
    /// A caller that another agent speaks for.
    Peer(Identity),
}

impl std::fmt::Display for Sharer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cgroup(id) => write!(f, "captured cgroup {id}"),
            Self::Peer(caller) => write!(f, "`{caller}`, from another node,"),
        }
    }
}

/// One more was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{limit} is reached: {}", self.who())]
pub struct Exceeded {
    /// Which limit.
    pub limit: Limit,
    /// Its value.
    pub max: usize,
    /// Whose share it is; `None`: everybody's.
    pub sharer: Option<Sharer>,
}

impl Exceeded {
    fn who(&self) -> String {
        match &self.sharer {
            Some(sharer) => format!("{sharer} has {} at most", self.max),
            None => format!("all together have {} at most", self.max),
        }
    }
}

type Counts = [AtomicUsize; 4];

/// The most of one use, and which limit that is.
#[derive(Debug, Clone, Copy)]
struct Max {
    limit: Limit,
    count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Maxima {
    all: Max,
    of_sharer: Max,
}

#[derive(Debug)]
struct Node {
    counts: Counts,
    maxima: [Maxima; 4],
    sharers: Mutex<HashMap<Sharer, Weak<Share>>>,
}

/// All counts of an agent.
#[derive(Debug)]
pub struct Shares(Arc<Node>);

/// The counts of one sharer. The last connection takes them along.
#[derive(Debug)]
pub struct Share {
    sharer: Sharer,
    counts: Counts,
    node: Arc<Node>,
}

/// Something that counts until it is dropped.
#[derive(Debug)]
pub struct Held {
    share: Arc<Share>,
    what: Use,
    amount: usize,
}

impl Shares {
    /// Nothing is in use.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let pair = |all, of_sharer| Maxima { all, of_sharer };
        let max = |limit, count| Max { limit, count };
        let maxima = [
            pair(
                max(Limit::Connections, limits.connections_max),
                max(Limit::ConnectionsPerCgroup, limits.connections_per_cgroup_max),
            ),
            pair(
                max(Limit::Streams, limits.streams_max),
                max(Limit::StreamsPerCgroup, limits.streams_per_cgroup_max),
            ),
            pair(
                max(Limit::AuditEntries, usize::MAX),
                max(Limit::AuditEntriesPerCgroup, limits.audit_entries_per_cgroup_max),
            ),
            pair(
                max(Limit::MemoryBytes, limits.memory_bytes_max),
                max(Limit::MemoryPerCgroupBytes, limits.memory_per_cgroup_bytes_max),
            ),
        ];
        Self(Arc::new(Node { counts: Counts::default(), maxima, sharers: Mutex::default() }))
    }

    /// Somebody's share.
    #[must_use]
    pub fn of(&self, sharer: &Sharer) -> Arc<Share> {
        let mut sharers = self.0.sharers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = sharers.get(sharer).and_then(Weak::upgrade) {
            return share;
        }
        let node = Arc::clone(&self.0);
        let share = Arc::new(Share { sharer: sharer.clone(), counts: Counts::default(), node });
        sharers.insert(sharer.clone(), Arc::downgrade(&share));
        share
    }

    /// How much is in use by all together.
    #[must_use]
    pub fn used(&self, what: Use) -> usize {
        count(&self.0.counts, what).load(Ordering::Relaxed)
    }
}

fn count(counts: &Counts, what: Use) -> &AtomicUsize {
    let [connections, streams, entries, memory] = counts;
    match what {
        Use::Connection => connections,
        Use::Stream => streams,
        Use::Entry => entries,
        Use::Memory => memory,
    }
}

impl Node {
    fn maxima(&self, what: Use) -> &Maxima {
        let [connections, streams, entries, memory] = &self.maxima;
        match what {
            Use::Connection => connections,
            Use::Stream => streams,
            Use::Entry => entries,
            Use::Memory => memory,
        }
    }
}

/// Adds where that stays within `max`.
fn add(counter: &AtomicUsize, amount: usize, max: usize) -> bool {
    let before = counter.fetch_add(amount, Ordering::Relaxed);
    let fits = before.checked_add(amount).is_some_and(|after| after <= max);
    if !fits {
        counter.fetch_sub(amount, Ordering::Relaxed);
    }
    fits
}

impl Share {
    /// Counts `amount` more.
    ///
    /// # Errors
    /// [`Exceeded`]: nothing was counted.
    pub fn take(self: &Arc<Self>, what: Use, amount: usize) -> Result<Held, Exceeded> {
        self.add(what, amount, what == Use::Memory && amount > BLOCK_BYTES)?;
        Ok(Held { share: Arc::clone(self), what, amount })
    }

    /// Counts one more, until [`Share::uncount`]: for who holds this share anyhow.
    ///
    /// # Errors
    /// [`Exceeded`]: nothing was counted.
    pub fn count(&self, what: Use) -> Result<(), Exceeded> {
        self.add(what, 1, false)
    }

    /// Counts one less, of those that [`Share::count`] counted.
    pub fn uncount(&self, what: Use) {
        self.remove(what, 1);
    }

    fn remove(&self, what: Use, amount: usize) {
        count(&self.counts, what).fetch_sub(amount, Ordering::Relaxed);
        if what != Use::Entry {
            count(&self.node.counts, what).fetch_sub(amount, Ordering::Relaxed);
        }
    }

    fn add(&self, what: Use, amount: usize, is_large: bool) -> Result<(), Exceeded> {
        let Maxima { all, of_sharer } = self.node.maxima(what);
        let within = |max: &Max| if is_large { Limits::large(max.count) } else { max.count };
        let own = count(&self.counts, what);
        if !add(own, amount, within(of_sharer)) {
            let sharer = Some(self.sharer.clone());
            return Err(Exceeded { limit: of_sharer.limit, max: of_sharer.count, sharer });
        }
        // What all together have of entries is the recorder's to count.
        if what != Use::Entry && !add(count(&self.node.counts, what), amount, within(all)) {
            own.fetch_sub(amount, Ordering::Relaxed);
            return Err(Exceeded { limit: all.limit, max: all.count, sharer: None });
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut sharers = self.node.sharers.lock().unwrap_or_else(PoisonError::into_inner);
        // A new one may have come meanwhile.
        if sharers.get(&self.sharer).is_some_and(|share| share.strong_count() == 0) {
            sharers.remove(&self.sharer); // cgroups come and go
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.remove(self.what, self.amount);
    }
}

/// Memory that one message holds while it waits.
#[derive(Debug)]
pub struct Charge {
    share: Arc<Share>,
    held: Option<Held>,
}

impl Charge {
    /// Nothing yet, of this share.
    #[must_use]
    pub fn new(share: Arc<Share>) -> Self {
        Self { share, held: None }
    }

    /// Counts as much as makes `bytes` in all.
    ///
    /// # Errors
    /// [`Exceeded`]: it holds what it held before.
    pub fn at_least(&mut self, bytes: usize) -> Result<(), Exceeded> {
        match &mut self.held {
            None if bytes > 0 => self.held = Some(self.share.take(Use::Memory, bytes)?),
            Some(held) if held.amount < bytes => {
                held.share.add(Use::Memory, bytes - held.amount, bytes > BLOCK_BYTES)?;
                held.amount = bytes;
            }
            None | Some(_) => {}
        }
        Ok(())
    }

    /// Whose it is.
    #[must_use]
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Counts nothing any more.
    pub fn release(&mut self) {
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Shares {
        Shares::new(&Limits {
            connections_max: 3,
            connections_per_cgroup_max: 2,
            memory_bytes_max: 12 * BLOCK_BYTES,
            memory_per_cgroup_bytes_max: 8 * BLOCK_BYTES,
            ..Limits::default()
        })
    }

    #[test]
    fn no_cgroup_uses_up_the_others_share() {
        let shares = shares();
        let take = |cgroup| shares.of(&Sharer::Cgroup(cgroup)).take(Use::Connection, 1);
        let (one, two) = (take(7).unwrap(), take(7).unwrap());
        let full = Exceeded { limit: Limit::ConnectionsPerCgroup, max: 2, sharer: Some(Sharer::Cgroup(7)) };
        assert_eq!(take(7).unwrap_err(), full);
        let other = take(8).unwrap();
        let all = Exceeded { limit: Limit::Connections, max: 3, sharer: None };
        assert_eq!(take(9).unwrap_err(), all);
        drop(one);
        let again = take(7).unwrap();
        assert_eq!(shares.used(Use::Connection), 3);
        drop((two, other, again));
        assert_eq!(shares.used(Use::Connection), 0);
        assert!(shares.0.sharers.lock().unwrap().is_empty());
    }

    #[test]
    fn the_last_quarter_of_the_memory_is_for_small_messages() {
        let shares = shares();
        let (one, other) = (shares.of(&Sharer::Cgroup(1)), shares.of(&Sharer::Cgroup(2)));
        let mut large = Charge::new(Arc::clone(&one));
        large.at_least(6 * BLOCK_BYTES).unwrap();
        let refused = one.take(Use::Memory, 2 * BLOCK_BYTES).unwrap_err();
        assert_eq!(refused.limit, Limit::MemoryPerCgroupBytes);
        let small: Vec<_> = (0..2).map(|_| one.take(Use::Memory, BLOCK_BYTES).unwrap()).collect();
        assert_eq!(one.take(Use::Memory, 1).unwrap_err().limit, Limit::MemoryPerCgroupBytes);
        // Eight blocks are in use, nine may be by large ones.
        assert_eq!(other.take(Use::Memory, 2 * BLOCK_BYTES).unwrap_err().limit, Limit::MemoryBytes);
        let others: Vec<_> = (0..4).map(|_| other.take(Use::Memory, BLOCK_BYTES).unwrap()).collect();
        assert_eq!(other.take(Use::Memory, 1).unwrap_err().limit, Limit::MemoryBytes);
        large.release();
        large.at_least(2 * BLOCK_BYTES).unwrap();
        drop((large, small, others));
        assert_eq!(shares.used(Use::Memory), 0);
    }
}

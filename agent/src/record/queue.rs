//! Entries on their way to the writer: a lane for each thread, so that none waits for another.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Line;

/// Lines of a lane that are kept to be used again: what comes at most while the writer gathers, and some more.
const SPARE_MAX: usize = 512;

/// What the writer writes.
pub(super) enum Item {
    /// One message.
    Message(Box<Line>),
    /// Something of the agent's own life, as JSON with its newline: no metric counts it.
    Event(Vec<u8>),
}

/// An item, and whether it holds a slot.
pub(super) type Waiting = (Item, bool);

/// Slots and request ids that a lane takes at once, where there are many: all threads count the same ones.
const SLOTS_AT_ONCE_MAX: usize = 32;
const IDS_AT_ONCE: u64 = 1_024;

/// A cache line and the one that is fetched with it: what one thread writes here, no other waits for.
#[repr(align(128))]
#[derive(Default)]
struct Apart<T>(T);

/// Entries in use, and whether the file takes them.
pub(super) struct Slots {
    used: Apart<AtomicUsize>,
    pub(super) max: usize,
    failing: AtomicBool,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { used: Apart::default(), max, failing: AtomicBool::new(false) }
    }

    /// As many at once that what a lane keeps for later hardly counts.
    fn at_once(&self) -> usize {
        (self.max / 128).clamp(1, SLOTS_AT_ONCE_MAX)
    }

    fn take(&self, count: usize) -> bool {
        let taken = self.used.0.fetch_add(count, Ordering::Relaxed) + count <= self.max;
        if !taken {
            self.free(count);
        }
        taken
    }

    fn free(&self, count: usize) {
        self.used.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub(super) fn are_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Returns what was set before.
    pub(super) fn set_failing(&self, failing: bool) -> bool {
        self.failing.swap(failing, Ordering::Relaxed)
    }
}

/// What all lanes have in common.
struct Common {
    slots: Slots,
    next_id: Apart<AtomicU64>,
    /// The writer sleeps until someone wakes it. Set before it looks at the lanes a last time: who puts something in
    /// after that look sees it, since both held the lane's lock.
    is_asleep: AtomicBool,
    closing: Mutex<bool>,
    woken: Condvar,
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one thread has for the writer. Entries hold it rather than the queue: its count is then their thread's alone.
pub(super) struct Lane {
    lines: Apart<Mutex<Lines>>,
    common: Arc<Common>,
}

#[derive(Default)]
struct Lines {
    waiting: Vec<Waiting>,
    /// What the writer is done with.
    #[expect(clippy::vec_box, reason = "a line goes from hand to hand, and is not moved")]
    spare: Vec<Box<Line>>,
    /// Slots that were taken and are not in use.
    slots: usize,
    ids: Range<u64>,
}

impl Lines {
    fn take_slot(&mut self, slots: &Slots) -> bool {
        if self.slots == 0 {
            let at_once = slots.at_once();
            self.slots = if slots.take(at_once) { at_once } else { usize::from(slots.take(1)) };
        }
        let taken = self.slots > 0;
        self.slots -= usize::from(taken);
        taken
    }

    fn free_slots(&mut self, count: usize, slots: &Slots) {
        let kept = (self.slots + count).min(slots.at_once() - 1);
        slots.free(self.slots + count - kept);
        self.slots = kept;
    }
}

impl Lane {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that says nothing yet, and has a slot; `None`: all are in use.
    pub(super) fn line(&self, fresh: impl FnOnce(u64) -> Line) -> Option<Box<Line>> {
        let mut lines = self.lines();
        if !lines.take_slot(&self.common.slots) {
            return None;
        }
        let id = lines.ids.next().unwrap_or_else(|| {
            let first = self.common.next_id.0.fetch_add(IDS_AT_ONCE, Ordering::Relaxed);
            lines.ids = first + 1..first + IDS_AT_ONCE;
            first
        });
        let spare = lines.spare.pop();
        drop(lines);
        let fresh = fresh(id);
        Some(match spare {
            Some(mut line) => {
                *line = fresh;
                line
            }
            None => Box::new(fresh),
        })
    }

    /// A slot for what has no line; false: all are in use.
    pub(super) fn take_slot(&self) -> bool {
        self.lines().take_slot(&self.common.slots)
    }

    /// What had a slot is not written.
    pub(super) fn free_slot(&self) {
        self.lines().free_slots(1, &self.common.slots);
    }

    pub(super) fn push(&self, item: Item, holds_slot: bool) {
        self.lines().waiting.push((item, holds_slot));
        let common = &*self.common;
        if common.is_asleep.load(Ordering::Relaxed) && common.is_asleep.swap(false, Ordering::Relaxed) {
            let _awaited = common.lock();
            common.woken.notify_one();
        }
    }
}

/// All lanes. Bounded by the slots that their entries hold.
pub(super) struct Queue {
    lanes: Box<[Arc<Lane>]>,
    common: Arc<Common>,
}

impl Queue {
    /// So many lanes; request ids begin with `first_id`.
    pub(super) fn new(slots: Slots, lanes: usize, first_id: u64) -> Self {
        let common = Arc::new(Common {
            slots,
            next_id: Apart(AtomicU64::new(first_id)),
            is_asleep: AtomicBool::new(false),
            closing: Mutex::default(),
            woken: Condvar::new(),
        });
        let lane = |_| Arc::new(Lane { lines: Apart::default(), common: Arc::clone(&common) });
        Self { lanes: (0..lanes.max(1)).map(lane).collect(), common }
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.common.slots
    }

    /// The lane of this thread; threads beyond their number share.
    pub(super) fn own_lane(&self) -> &Arc<Lane> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        &self.lanes[THREAD.with(|thread| *thread) % self.lanes.len()]
    }

    /// No more will come.
    pub(super) fn close(&self) {
        *self.common.lock() = true;
        self.common.woken.notify_one();
    }

    /// Sleeps so long, unless no more will come: returns whether that is so.
    pub(super) fn closes_within(&self, wait: Duration) -> bool {
        let open = |closing: &mut bool| !*closing;
        let waited = self.common.woken.wait_timeout_while(self.common.lock(), wait, open);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes what waits, once there is something: at the latest after `wait`, and `gather` after the first: more come
    /// with it under load. Returns whether no more will come.
    pub(super) fn take(&self, batch: &mut Batch, wait: Duration, gather: Duration) -> bool {
        let common = &*self.common;
        common.is_asleep.store(true, Ordering::Relaxed);
        if !self.has_waiting() {
            let asleep = |closing: &mut bool| !*closing && common.is_asleep.load(Ordering::Relaxed);
            let waited = common.woken.wait_timeout_while(common.lock(), wait, asleep);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        common.is_asleep.store(false, Ordering::Relaxed);
        let closing = self.closes_within(if self.has_waiting() { gather } else { Duration::ZERO });
        batch.0.resize_with(self.lanes.len(), Vec::new);
        for (lane, taken) in self.lanes.iter().zip(&mut batch.0) {
            taken.append(&mut lane.lines().waiting);
        }
        closing
    }

    fn has_waiting(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.lines().waiting.is_empty())
    }

    /// What was taken is done with: its slots are free, its lines may be used again.
    pub(super) fn give_back(&self, batch: &mut Batch) {
        for (lane, taken) in self.lanes.iter().zip(&mut batch.0) {
            let slots = taken.iter().filter(|(_, holds_slot)| *holds_slot).count();
            let mut lines = lane.lines();
            lines.free_slots(slots, &self.common.slots);
            let room = SPARE_MAX.saturating_sub(lines.spare.len());
            let done = taken.drain(..).filter_map(|(item, _)| match item {
                Item::Message(mut line) => {
                    line.leave_place();
                    Some(line)
                }
                Item::Event(_) => None,
            });
            lines.spare.extend(done.take(room));
        }
    }
}

/// What the writer took, lane by lane.
#[derive(Default)]
pub(super) struct Batch(Vec<Vec<Waiting>>);

impl Batch {
    /// All of it.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.0.iter().flatten().map(|(item, _)| item)
    }

    /// How much that is.
    pub(super) fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lanes_keep_for_later_hardly_counts_and_never_exceeds_the_limit() {
        for max in [1, 2, 127, 128, 300, 4_096, 100_000] {
            let queue = Queue::new(Slots::new(max), 2, 0);
            let (one, other, slots) = (&queue.lanes[0], &queue.lanes[1], queue.slots());
            let mut taken = usize::from(other.take_slot());
            while one.take_slot() {
                taken += 1;
            }
            // The rest is what the other keeps.
            assert!((max - slots.at_once() + 1..=max).contains(&taken), "{taken} of {max}");
            (0..taken).for_each(|_| one.free_slot());
            let kept = slots.used.0.load(Ordering::Relaxed);
            assert!(kept <= 2 * (slots.at_once() - 1), "{kept} of {max} are kept");
            assert!(slots.at_once() <= max.div_ceil(128), "{max}");
        }
    }
}

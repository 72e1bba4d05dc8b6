//! Entries on their way to the writer: a lane for each thread, so that none waits for another.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use toolgate_core::trace::TraceId;

use super::Line;
use crate::identify::Origin;
use crate::shares::Held;

/// Lines of a lane that are kept to be used again: what comes at most while the writer gathers, and some more.
const SPARE_MAX: usize = 1_024;

/// What the writer writes.
pub(super) enum Item {
    /// One message.
    Message(Box<Line>),
    /// Something of the agent's own life, as JSON with its newline: no metric counts it.
    Event(Vec<u8>),
}

/// An item, and whether it holds a slot.
pub(super) type Waiting = (Item, bool);

/// Entries in use, and whether the file takes them.
pub(super) struct Slots {
    used: AtomicUsize,
    pub(super) max: usize,
    failing: AtomicBool,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max, failing: AtomicBool::new(false) }
    }

    pub(super) fn take(&self) -> bool {
        let taken = self.used.fetch_add(1, Ordering::Relaxed) < self.max;
        if !taken {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    pub(super) fn free(&self, count: usize) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }

    pub(super) fn are_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Returns what was set before.
    pub(super) fn set_failing(&self, failing: bool) -> bool {
        self.failing.swap(failing, Ordering::Relaxed)
    }
}

/// What one thread has for the writer.
#[derive(Default)]
struct Lane {
    waiting: Vec<Waiting>,
    /// What the writer is done with.
    #[expect(clippy::vec_box, reason = "a line goes from hand to hand, and is not moved")]
    spare: Vec<Box<Line>>,
}

/// All lanes. Bounded by the slots that their entries hold.
pub(super) struct Queue {
    lanes: Box<[Mutex<Lane>]>,
    /// The writer sleeps until someone wakes it. Set before it looks at the lanes a last time: who puts something in
    /// after that look sees it, since both held the lane's lock.
    is_asleep: AtomicBool,
    closing: Mutex<bool>,
    woken: Condvar,
    pub(super) slots: Slots,
}

impl Queue {
    pub(super) fn new(slots: Slots, lanes: usize) -> Self {
        Self {
            lanes: (0..lanes.max(1)).map(|_| Mutex::default()).collect(),
            is_asleep: AtomicBool::new(false),
            closing: Mutex::default(),
            woken: Condvar::new(),
            slots,
        }
    }

    /// The lane of this thread; threads beyond their number share.
    fn own_lane(&self) -> MutexGuard<'_, Lane> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        let lane = THREAD.with(|thread| *thread) % self.lanes.len();
        self.lanes[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that says nothing yet.
    pub(super) fn line(
        &self,
        id: (u64, TraceId),
        origin: Arc<Origin>,
        generation: u64,
        place: Held,
    ) -> Box<Line> {
        let spare = self.own_lane().spare.pop();
        let fresh = Line::new(id, origin, generation, place);
        match spare {
            Some(mut line) => {
                *line = fresh;
                line
            }
            None => Box::new(fresh),
        }
    }

    pub(super) fn push(&self, item: Item, holds_slot: bool) {
        self.own_lane().waiting.push((item, holds_slot));
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::Relaxed) {
            let _awaited = self.lock();
            self.woken.notify_one();
        }
    }

    /// No more will come.
    pub(super) fn close(&self) {
        *self.lock() = true;
        self.woken.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps so long, unless no more will come: returns whether that is so.
    pub(super) fn closes_within(&self, wait: Duration) -> bool {
        let open = |closing: &mut bool| !*closing;
        let (closing, _) =
            self.woken.wait_timeout_while(self.lock(), wait, open).unwrap_or_else(PoisonError::into_inner);
        *closing
    }

    /// Takes what waits, once there is something: at the latest after `wait`, and `gather` after the first: more come
    /// with it under load. Returns whether no more will come.
    pub(super) fn take(&self, batch: &mut Batch, wait: Duration, gather: Duration) -> bool {
        self.is_asleep.store(true, Ordering::Relaxed);
        if !self.has_waiting() {
            let asleep = |closing: &mut bool| !*closing && self.is_asleep.load(Ordering::Relaxed);
            let waited = self.woken.wait_timeout_while(self.lock(), wait, asleep);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        self.is_asleep.store(false, Ordering::Relaxed);
        let closing = self.closes_within(if self.has_waiting() { gather } else { Duration::ZERO });
        batch.0.resize_with(self.lanes.len(), Vec::new);
        for (lane, taken) in self.lanes.iter().zip(&mut batch.0) {
            taken.append(&mut lane.lock().unwrap_or_else(PoisonError::into_inner).waiting);
        }
        closing
    }

    fn has_waiting(&self) -> bool {
        let has =
            |lane: &Mutex<Lane>| !lane.lock().unwrap_or_else(PoisonError::into_inner).waiting.is_empty();
        self.lanes.iter().any(has)
    }

    /// What was taken is done with: its slots are free, its lines may be used again.
    pub(super) fn give_back(&self, batch: &mut Batch) {
        for (lane, taken) in self.lanes.iter().zip(&mut batch.0) {
            let slots = taken.iter().filter(|(_, holds_slot)| *holds_slot).count();
            self.slots.free(slots);
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let room = SPARE_MAX.saturating_sub(lane.spare.len());
            let lines = taken.drain(..).filter_map(|(item, _)| match item {
                Item::Message(mut line) => {
                    line.leave_place();
                    Some(line)
                }
                Item::Event(_) => None,
            });
            lane.spare.extend(lines.take(room));
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

//! The heartbeat: tells the programs in the kernel that captured connections are answered.
//!
//! It beats as long as every worker thread makes progress. An agent that is killed, stopped or starved, or of which one
//! thread hangs, beats no more; then `capture.agent_loss` says what becomes of captured connects. All of it is
//! CLOCK_MONOTONIC, on both sides: a clock that is set changes nothing, and a suspended host does not age.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::AppError;
use super::systemd::Watchdog;
use crate::capture::Kernel;

/// How often the agent beats.
const BEAT_EVERY: Duration = Duration::from_millis(250);

/// An agent that did not beat for so long is lost. Until then captured connects wait in the listeners' backlog.
pub(super) const AGE_MAX: Duration = Duration::from_secs(2);

/// How often a worker shows that it makes progress.
pub(super) const TICK_EVERY: Duration = Duration::from_millis(100);

/// A worker's own sign of life.
#[derive(Debug, Clone, Default)]
pub(super) struct Tick(Arc<AtomicU64>);

impl Tick {
    /// The worker runs its loop.
    pub(super) fn made(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The signs of life of all workers.
#[derive(Debug, Default)]
pub struct Pulse {
    workers: Mutex<Vec<(Tick, u64)>>,
    missing: AtomicBool,
    busy: AtomicBool,
}

impl Pulse {
    /// A worker that will make progress from now on.
    pub(super) fn worker(&self) -> Tick {
        let tick = Tick::default();
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push((tick.clone(), 0));
        tick
    }

    /// A worker had something to do for a connection.
    pub(super) fn worked(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Whether some worker had, since this was last asked.
    pub(super) fn was_busy(&self) -> bool {
        self.busy.swap(false, Ordering::Relaxed)
    }

    /// Whether every worker made progress since this was last true.
    fn is_there(&self) -> bool {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let all = workers.iter().all(|(tick, seen)| tick.0.load(Ordering::Relaxed) != *seen);
        if all {
            for (tick, seen) in workers.iter_mut() {
                *seen = tick.0.load(Ordering::Relaxed);
            }
        }
        all
    }

    /// Whether a worker made none for so long that captured connects are lost.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.missing.load(Ordering::Relaxed)
    }
}

/// The thread that beats, until it is dropped.
pub(super) struct Heart {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    /// # Errors
    /// No thread.
    pub(super) fn start(pulse: Arc<Pulse>, kernel: Arc<Kernel>) -> Result<Self, AppError> {
        let (stop, stopped) = channel();
        let beat = move || {
            let mut watchdog = Watchdog::new();
            let mut silent = Duration::ZERO;
            while stopped.recv_timeout(BEAT_EVERY) == Err(RecvTimeoutError::Timeout) {
                silent = if pulse.is_there() { Duration::ZERO } else { silent + BEAT_EVERY };
                if silent.is_zero() {
                    watchdog.alive();
                    if let Err(error) = kernel.beat() {
                        tracing::error!(%error, "the programs cannot be told that the agent is there");
                    }
                }
                let missing = silent >= AGE_MAX;
                if missing != pulse.missing.swap(missing, Ordering::Relaxed) {
                    log(missing);
                }
            }
        };
        let thread = std::thread::Builder::new().name("toolgate-heart".to_owned()).spawn(beat);
        let thread = thread.map_err(|cause| AppError::Start { what: "start the heartbeat", cause })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

fn log(missing: bool) {
    if missing {
        tracing::error!("a worker thread makes no progress: the agent counts as lost (capture.agent_loss)");
    } else {
        tracing::info!("every worker thread makes progress again");
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_beats_only_while_every_worker_makes_progress() {
        let pulse = Pulse::default();
        assert!(pulse.is_there(), "none has started: nobody waits for one");
        let (one, other) = (pulse.worker(), pulse.worker());
        one.made();
        assert!(!pulse.is_there(), "the other did nothing");
        other.made();
        assert!(pulse.is_there(), "both did, though not between the same two looks");
        assert!(!pulse.is_there(), "nothing since");
        one.made();
        one.made();
        assert!(!pulse.is_there());
        other.made();
        assert!(pulse.is_there());
    }
}

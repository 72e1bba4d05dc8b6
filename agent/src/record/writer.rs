//! The writer thread: entries -> JSON lines in the audit file, metrics, and what `status` shows.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::file::AuditFile;
use super::json::Clock;
use super::line::Shown;
use super::marks::Mark;
use super::queue::{Batch, Item, Queue};
use super::{AuditPlan, Metrics, Phase};
use crate::limits::Limit;

/// Lines that `status` shows.
const RECENT_MAX: usize = 20;
/// How long the first line of a batch waits for others, at most: each batch costs the CPU that it is written on a pause.
const GATHER_MAX: Duration = Duration::from_millis(20);
/// The same as a part of `audit.sync`, which a line may wait in all.
const GATHER_SHARE: u32 = 5;
/// Of the text's memory between two batches.
const TEXT_BYTES_KEPT: usize = 1 << 20;
/// Between two tries to write after one failed.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Why the audit cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened for appending.
    #[error("cannot open audit file `{}`: {cause}; {}", path.display(), next_step(cause))]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The key of argument digests cannot be used.
    #[error("cannot use key `{}`: {problem}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No mark of this agent.
    #[error("cannot note below `{}` that this agent writes the audit: {cause}", folder.display())]
    Mark {
        /// The state directory.
        folder: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No thread.
    #[error("cannot start the audit thread: {cause}")]
    Thread {
        /// What the kernel said.
        cause: io::Error,
    },
}

fn next_step(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::ENXIO) => "nobody reads that pipe, or it is a socket: start its reader first",
        Some(_) | None => "set `audit.file` to a path that root can write",
    }
}

/// The last entries, each as its line of JSON.
pub type Recent = Arc<Mutex<VecDeque<String>>>;

/// The running writer.
pub struct Writer {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
    pub(super) mark: Arc<Mark>,
    /// Counters and histograms of what was written.
    pub metrics: Arc<Metrics>,
    /// The last entries.
    pub recent: Recent,
}

impl Writer {
    pub(super) fn start(plan: &AuditPlan, queue: Arc<Queue>, mark: Arc<Mark>) -> Result<Self, AuditError> {
        let file = AuditFile::open(plan, plan.sync - plan.sync / GATHER_SHARE)?;
        let metrics = Arc::new(Metrics::new());
        let recent = Recent::default();
        let mut work = Work {
            file,
            text: Vec::new(),
            clock: Clock::default(),
            gather: GATHER_MAX.min(plan.sync / GATHER_SHARE),
            deny_on_failure: plan.deny_on_failure,
            queue: Arc::clone(&queue),
            metrics: Arc::clone(&metrics),
            recent: Arc::clone(&recent),
        };
        let thread = std::thread::Builder::new()
            .name("toolgate-audit".to_owned())
            .spawn(move || work.run())
            .map_err(|cause| AuditError::Thread { cause })?;
        Ok(Self { queue, thread, mark, metrics, recent })
    }

    /// Writes what is left, and ends.
    pub fn finish(self) {
        self.queue.close();
        if self.thread.join().is_err() {
            return tracing::error!("the audit thread panicked: its last entries may be missing");
        }
        self.mark.remove();
    }
}

struct Work {
    file: AuditFile,
    text: Vec<u8>,
    clock: Clock,
    gather: Duration,
    deny_on_failure: bool,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    recent: Recent,
}

impl Work {
    fn run(&mut self) {
        let mut batch = Batch::default();
        loop {
            let closing = self.queue.take(&mut batch, self.file.sync_in(), self.gather);
            let count = batch.count();
            for (index, item) in batch.items().enumerate() {
                let start = self.text.len();
                match item {
                    Item::Message(line) => {
                        let mut write = |shown: &Shown| line.write(shown, &mut self.clock, &mut self.text);
                        match line.phase {
                            // Counted when it ends.
                            Phase::Opened => write(&Shown::of(&line.labels)),
                            Phase::Whole | Phase::Closed => {
                                self.metrics.count(&line.labels, line.duration, write);
                            }
                        }
                    }
                    Item::Event(text) => self.text.extend_from_slice(text),
                }
                if count - index <= RECENT_MAX {
                    self.show(&self.text[start..]);
                }
            }
            if !self.write() {
                self.file.give_up(&mut self.text);
                self.metrics.audit_lost.inc_by(count as u64);
                tracing::error!(messages = count, "audit lines lost: the file cannot be written");
            }
            self.queue.give_back(&mut batch);
            // A slow disk makes large batches.
            self.text.shrink_to(TEXT_BYTES_KEPT);
            if closing {
                return;
            }
        }
    }

    /// Writes the text. While that fails, messages are denied and it is tried again; false: given up, since messages
    /// may pass without a record, or because this is the end.
    fn write(&mut self) -> bool {
        while let Err(error) = self.file.append(&mut self.text) {
            // Said once, and that it is over once.
            let was_failing = self.queue.slots().set_failing(true);
            self.metrics.audit_failures.inc();
            if error.kind() == io::ErrorKind::TimedOut {
                self.metrics.limits.count(Limit::AuditWrite, &error);
            }
            if !was_failing {
                tracing::error!(%error, "cannot write the audit file");
            }
            if !self.deny_on_failure || self.queue.closes_within(RETRY_EVERY) {
                return false;
            }
        }
        if self.queue.slots().set_failing(false) {
            tracing::info!("the audit file can be written again");
        }
        true
    }

    fn show(&self, text: &[u8]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(String::from_utf8_lossy(text.trim_ascii_end()).into_owned());
    }
}

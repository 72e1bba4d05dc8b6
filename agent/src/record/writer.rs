//! The writer thread: entries -> JSON lines in the audit file, metrics, and what `status` shows.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::file::AuditFile;
use super::marks::Mark;
use super::{AuditPlan, Line, Metrics, Phase, Slots};
use crate::limits::Limit;

/// Lines that `status` shows.
const RECENT_MAX: usize = 20;
/// How long the first line of a batch waits for others.
const GATHER_FOR: Duration = Duration::from_millis(2);
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
    /// The node's HMAC key cannot be used.
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

/// What the writer writes.
pub(super) enum Item {
    /// One message.
    Message(Box<Line>),
    /// Something of the agent's own life, as JSON with its newline: no metric counts it.
    Event(Vec<u8>),
}

/// Entries on their way to the writer. Bounded by the slots that they hold.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    pub(super) slots: Slots,
}

#[derive(Default)]
struct Waiting {
    /// Each with whether it holds a slot.
    lines: Vec<(Item, bool)>,
    closing: bool,
}

impl Queue {
    pub(super) fn new(slots: Slots) -> Self {
        Self { waiting: Mutex::default(), arrived: Condvar::new(), slots }
    }

    pub(super) fn push(&self, line: Item, holds_slot: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.lines.push((line, holds_slot));
        // One wake for a batch: the writer takes all that came until it looks.
        if waiting.lines.len() == 1 {
            self.arrived.notify_one();
        }
    }

    fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.arrived.notify_one();
    }

    /// Whether no more will come, as far as that is known after `wait`.
    fn closes_within(&self, wait: Duration) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |waiting: &mut Waiting| !waiting.closing;
        let (waiting, _) =
            self.arrived.wait_timeout_while(waiting, wait, open).unwrap_or_else(PoisonError::into_inner);
        waiting.closing
    }

    /// Takes all that waits; at the latest after `wait`. The flag: no more will come.
    fn take(&self, wait: Duration) -> (Vec<(Item, bool)>, bool) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.closing;
        let (waiting, _) =
            self.arrived.wait_timeout_while(waiting, wait, nothing).unwrap_or_else(PoisonError::into_inner);
        // More come with the first under load: one write and one wake for all of them.
        let gather = if waiting.lines.is_empty() { Duration::ZERO } else { GATHER_FOR };
        let open = |waiting: &mut Waiting| !waiting.closing;
        let (mut waiting, _) =
            self.arrived.wait_timeout_while(waiting, gather, open).unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut waiting.lines), waiting.closing)
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
        let file = AuditFile::open(plan)?;
        let metrics = Arc::new(Metrics::new());
        let recent = Recent::default();
        let mut work = Work {
            file,
            text: Vec::new(),
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
    deny_on_failure: bool,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    recent: Recent,
}

impl Work {
    fn run(&mut self) {
        loop {
            let (lines, closing) = self.queue.take(self.file.sync_in());
            for (index, (line, _)) in lines.iter().enumerate() {
                let start = self.text.len();
                match line {
                    Item::Message(line) => {
                        line.write(&mut self.text);
                        if line.phase != Phase::Opened {
                            self.metrics.count(line);
                        }
                    }
                    Item::Event(text) => self.text.extend_from_slice(text),
                }
                if lines.len() - index <= RECENT_MAX {
                    self.show(&self.text[start..]);
                }
            }
            if !self.write() {
                self.file.give_up(&mut self.text);
                self.metrics.audit_lost.inc_by(lines.len() as u64);
                tracing::error!(messages = lines.len(), "audit lines lost: the file cannot be written");
            }
            self.queue.slots.free(lines.iter().filter(|(_, holds_slot)| *holds_slot).count());
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
            let was_failing = self.queue.slots.set_failing(true);
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
        if self.queue.slots.set_failing(false) {
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

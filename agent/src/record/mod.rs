//! Stage 7, record: one entry for each message, opened before it is decided, closed exactly once.
//!
//! An [`Entry`] takes its slot before anything is forwarded; where there is none, or the audit cannot be written, the
//! message is denied. It is handed to the writer when it is dropped, so no way out of the path can forget it. Formatting,
//! metrics and the file are the writer thread's.

mod digest;
mod file;
mod json;
mod line;
mod marks;
mod metrics;
mod name;
mod queue;
mod refusals;
mod writer;

pub use digest::Digester;
use line::Place;
pub use line::{Direction, Line, Phase, Verdict};
pub use metrics::Metrics;
pub use refusals::Refusals;
pub use writer::{AuditError, Recent, Writer};

use std::fmt::Display;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use toolgate_core::decision::{Denied, Permitted};
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Call, Message, Method};
use toolgate_core::trace::TraceId;

use crate::deadline;
use crate::identify::Origin;
use crate::limits::Limit;
use crate::parse::{Asked, Request};
use crate::shares::Exceeded;
use marks::Mark;
use name::Name;
use queue::{Item, Lane, Queue, Slots};
use serde::Serialize;

/// No entry can be opened: the message must be denied (`audit.on_failure: deny`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSlot {
    /// `audit_entries_max` entries are open or wait for the writer.
    #[error("{} is reached: all {entries_max} entries are in use", Limit::AuditEntries)]
    Full {
        /// The limit.
        entries_max: usize,
    },
    /// The caller's cgroup has its share of them.
    #[error(transparent)]
    Share(#[from] Exceeded),
    /// The last write failed, and the next did not succeed yet.
    #[error("the audit file cannot be written")]
    Failing,
}

impl NoSlot {
    /// The limit that refused it.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Full { .. } => Some(Limit::AuditEntries),
            Self::Share(exceeded) => Some(exceeded.limit),
            Self::Failing => None,
        }
    }
}

/// Where entries are opened. Shared by all threads.
pub struct Recorder {
    queue: Arc<Queue>,
    /// Of this agent's traces; with a request's id it makes the trace of those that come without.
    traces: u64,
    digester: Digester,
    metrics: Arc<Metrics>,
    deny_on_failure: bool,
    mark: Arc<Mark>,
    sync: Duration,
}

impl Recorder {
    /// A recorder in front of `queue`.
    fn new(plan: &AuditPlan, queue: Arc<Queue>, digester: Digester, writer: &Writer) -> Self {
        Self {
            queue,
            traces: RandomState::new().hash_one(SystemTime::now()),
            digester,
            metrics: Arc::clone(&writer.metrics),
            deny_on_failure: plan.deny_on_failure,
            mark: Arc::clone(&writer.mark),
            sync: plan.sync,
        }
    }

    /// Opens the entry of one message, or of one connection that carries none.
    ///
    /// # Errors
    /// [`NoSlot`]: deny the message.
    pub fn open(&self, origin: &Arc<Origin>, generation: u64) -> Result<Entry, NoSlot> {
        // First the caller's share: one that has none left must not take from all.
        let lane = self.queue.own_lane();
        let opened = Place::take(origin).map_err(NoSlot::Share).and_then(|place| {
            self.takes_more()?;
            let fresh = |id| Line::new((id, self.trace(id)), place, generation);
            lane.line(fresh).ok_or_else(|| self.full())
        });
        let line = match opened {
            Ok(line) => Some(line),
            Err(no_slot) if self.deny_on_failure => return Err(no_slot),
            // `audit.on_failure: dangerous_allow`: it passes without a record.
            Err(_) => {
                self.metrics.audit_lost.inc();
                None
            }
        };
        Ok(Entry { line, started: deadline::now().into_std(), lane: Arc::clone(lane) })
    }

    fn trace(&self, id: u64) -> TraceId {
        TraceId::new(u128::from(self.traces) << 64 | u128::from(id))
    }

    fn takes_more(&self) -> Result<(), NoSlot> {
        let is_failing = self.deny_on_failure && self.queue.slots().are_failing();
        if is_failing { Err(NoSlot::Failing) } else { Ok(()) }
    }

    fn full(&self) -> NoSlot {
        NoSlot::Full { entries_max: self.queue.slots().max }
    }

    /// Writes a line of the agent's own life: what the operator did that changes what the audit sees.
    ///
    /// # Errors
    /// [`NoSlot`]: it is not recorded, and should not be done.
    pub fn event(&self, event: &impl Serialize) -> Result<(), NoSlot> {
        let lane = self.queue.own_lane();
        let taken =
            self.takes_more().and_then(|()| lane.take_slot().then_some(()).ok_or_else(|| self.full()));
        let holds_slot = taken.is_ok();
        if self.deny_on_failure {
            taken?;
        }
        let time = shown(SystemTime::now());
        let mut text = Vec::new();
        // Strings and numbers always serialise, and a Vec takes all.
        let _ = serde_json::to_writer(&mut text, &Timed { time, event });
        text.push(b'\n');
        lane.push(Item::Event(text), holds_slot);
        Ok(())
    }

    /// Writes a line where agents died since the last look: what they had not written by then is missing. A line is
    /// written when its message ends; what was under way at the death has none.
    fn note_deaths(&self, since: SystemTime) {
        let gap = Gap { event: "audit_gap", missing_since: shown(since) };
        let noted = match self.mark.remove_dead() {
            Ok(0) => return,
            Ok(agents) => {
                tracing::warn!(agents, since = %gap.missing_since, "an agent died: audit lines may be missing");
                self.event(&gap).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = noted {
            tracing::error!(%error, "whether audit lines are missing is not recorded");
        }
    }

    /// The agent that handed over to this one has ended. It may have died.
    pub fn predecessor_ended(&self) {
        self.note_deaths(SystemTime::now() - self.sync);
    }

    /// The agent that was to take over has failed. It had nothing to write.
    pub fn successor_failed(&self) {
        if let Err(error) = self.mark.remove_dead() {
            tracing::warn!(%error, "the next agent will take one that failed to start for one that died");
        }
    }

    /// The digest of a call's arguments, as the audit shows it.
    #[must_use]
    pub fn digest(&self, call: &Call<'_>) -> Option<[u8; 32]> {
        call.arguments.map(|arguments| self.digester.digest(arguments.text().as_bytes()))
    }
}

/// A line of the audit.
#[derive(Serialize)]
struct Gap {
    event: &'static str,
    /// Until the time of this line.
    missing_since: String,
}

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

#[derive(Serialize)]
struct Timed<'e, E> {
    time: String,
    #[serde(flatten)]
    event: &'e E,
}

/// The record of one message. What is not said of it before it is dropped did not happen.
pub struct Entry {
    /// Present until drop; never, where it could not be opened and need not be.
    line: Option<Box<Line>>,
    started: Instant,
    lane: Arc<Lane>,
}

impl Entry {
    fn set(&mut self, change: impl FnOnce(&mut Line)) {
        if let Some(line) = self.line.as_mut() {
            change(line);
        }
    }

    /// When it was opened.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How the client may name this message when it asks its operator.
    #[must_use]
    pub fn request_id(&self) -> String {
        self.line.as_ref().map(|line| line.request_id()).unwrap_or_default()
    }

    /// The trace that it is a part of, and what it is called there; `None`: it is not recorded.
    #[must_use]
    pub fn trace(&self) -> Option<(TraceId, u64)> {
        self.line.as_ref().map(|line| line.trace())
    }

    /// Who asks, once that is known.
    pub fn caller(&mut self, caller: &Identity) {
        self.set(|line| line.labels.caller = Some(caller.clone()));
    }

    /// Which declared server is asked; undeclared where this is never said.
    pub fn target(&mut self, server: &Identity) {
        self.set(|line| line.labels.target = Some(server.clone()));
    }

    /// It came in TLS that was read, by this name.
    pub fn inspected(&mut self, name: &Arc<str>) {
        self.set(|line| line.inspected = Some(Arc::clone(name)));
    }

    /// What is asked where it is no JSON-RPC message: `GET stream`, `connection`.
    pub fn method(&mut self, method: &'static str) {
        self.set(|line| line.labels.method = method);
    }

    /// What is asked of a declared server.
    pub fn asked(&mut self, asked: &Asked<'_>, recorder: &Recorder) {
        let request = &asked.request;
        if let Some(trace) = asked.trace {
            self.set(|line| line.traced(trace));
        }
        match asked.message() {
            Some(message) => self.message(message, request.body.len(), recorder),
            None if asked.is_other_path() => self.method("http"),
            None => self.bodiless(request),
        }
    }

    fn bodiless(&mut self, request: &Request<'_>) {
        match request.head.method {
            "GET" => self.method("stream"),
            "DELETE" => self.method("session_end"),
            _ => {} // a body that cannot be read
        }
    }

    /// The tool whose call made the task that is asked about.
    pub fn tool(&mut self, tool: &str) {
        self.set(|line| line.labels.tool = Some(Name::new(tool)));
    }

    /// MCP to an undeclared server; `None`: it cannot be read.
    pub fn shadow(&mut self, message: Option<&Message<'_>>, request: &Request<'_>, recorder: &Recorder) {
        match message {
            Some(message) => self.message(message, request.body.len(), recorder),
            None => self.bodiless(request),
        }
    }

    fn message(&mut self, message: &Message<'_>, bytes: usize, recorder: &Recorder) {
        self.set(|line| {
            line.request_bytes = bytes as u64;
            match message {
                Message::Request(call) | Message::Notification(call) => {
                    line.call(call, recorder.digest(call));
                }
                Message::Response(_) => line.labels.method = "response",
            }
        });
    }

    /// It was denied, and the client is told with `status`.
    pub fn denied(&mut self, denied: &Denied, status: u16) {
        self.set(|line| {
            line.labels.verdict = Verdict::Deny;
            line.labels.reason = Some(denied.reason);
            line.rules = denied.rules.clone();
            line.detail.clone_from(&denied.detail);
            line.shadow.clone_from(&denied.shadow);
            line.status = status;
        });
    }

    /// It was refused or failed for `reason`, and the client is told with `status`.
    pub fn refused(&mut self, reason: Reason, status: u16, detail: impl Into<String>) {
        self.set(|line| {
            if line.labels.verdict == Verdict::Undecided {
                line.labels.verdict = Verdict::Deny;
            }
            line.labels.reason = Some(reason);
            line.detail = Some(detail.into());
            line.status = status;
        });
    }

    /// It was permitted, or only observed.
    pub fn permitted<T>(&mut self, permitted: &Permitted<T>) {
        self.set(|line| {
            line.shadow = permitted.shadow().cloned();
            match permitted.observed() {
                None => {
                    line.labels.verdict = Verdict::Permit;
                    line.rules = permitted.rules().into();
                }
                Some(denied) => {
                    line.labels.verdict = Verdict::Observe;
                    line.labels.reason = Some(denied.reason);
                    line.rules = denied.rules.clone();
                }
            }
        });
    }

    /// It was permitted, and what it names is not approved: with `pins: warn` that is recorded alone.
    pub fn passed_pins(&mut self, reason: Reason) {
        self.set(|line| {
            line.detail = Some(format!("pins: {}", reason.as_str()));
            if line.labels.verdict == Verdict::Permit {
                line.labels.verdict = Verdict::Observe;
                line.labels.reason = Some(reason);
            }
        });
    }

    /// More for its reader.
    pub fn noted(&mut self, more: impl Display) {
        self.set(|line| {
            let before = line.detail.take().map(|detail| detail + "; ").unwrap_or_default();
            line.detail = Some(format!("{before}{more}"));
        });
    }

    /// The reply, as far as it came.
    pub fn replied(&mut self, status: u16, bytes: u64) {
        self.set(|line| {
            line.status = status;
            line.response_bytes = bytes;
        });
    }

    /// Its answer, which came on a stream of its own.
    pub fn answered(&mut self, bytes: u64) {
        self.set(|line| line.response_bytes = bytes);
    }

    /// It was permitted, and failed after that.
    pub fn failed(&mut self, reason: Reason, bytes: u64, detail: String) {
        self.set(|line| {
            line.labels.reason = Some(reason);
            line.response_bytes = bytes;
            line.detail = Some(detail);
        });
    }

    /// A request that the server sent to the caller.
    pub fn server_request(&mut self, method: &str) {
        self.set(|line| {
            line.labels.direction = Direction::FromServer;
            line.labels.method = Method::from_name(method).as_str();
            line.method_name = Some(Name::new(method));
        });
    }

    /// Bytes that nobody read, both ways.
    pub fn relayed(&mut self, sent: u64, received: u64) {
        self.set(|line| {
            line.request_bytes = sent;
            line.response_bytes = received;
        });
    }

    /// This message belongs to an entry that is open already: nothing is written.
    pub fn forget(mut self) {
        if self.line.take().is_some() {
            self.lane.free_slot();
        }
    }

    /// A long stream: writes that it began; its end is written when this entry is dropped.
    pub fn opened(&mut self) {
        let lane = Arc::clone(&self.lane);
        self.set(|line| {
            let mut opened = line.clone();
            opened.phase = Phase::Opened;
            line.phase = Phase::Closed;
            lane.push(Item::Message(Box::new(opened)), false);
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(mut line) = self.line.take() else { return };
        if line.labels.verdict == Verdict::Undecided {
            line.labels.verdict = Verdict::Deny;
            line.labels.reason = Some(Reason::ClientLeft);
        }
        line.duration = deadline::now().into_std().saturating_duration_since(self.started);
        self.lane.push(Item::Message(line), true);
    }
}

/// Where and how the audit is written.
#[derive(Debug, Clone)]
pub struct AuditPlan {
    /// The file of JSON lines.
    pub file: std::path::PathBuf,
    /// The longest time that a written line is not yet on disk.
    pub sync: Duration,
    /// Whether messages are denied while the file cannot be written.
    pub deny_on_failure: bool,
    /// Where the key of argument digests is kept.
    pub state_directory: std::path::PathBuf,
    /// Entries in use at once.
    pub entries_max: usize,
    /// How long a pipe may take nothing.
    pub write_time_max: Duration,
}

/// Starts the writer thread.
///
/// # Errors
/// [`AuditError`] names the file that cannot be opened, and why.
pub fn start(plan: &AuditPlan) -> Result<(Recorder, Writer), AuditError> {
    let digester = Digester::open(&plan.state_directory)?;
    // A lane for each worker, and one for the operator's thread.
    let lanes = 1 + std::thread::available_parallelism().map_or(1, NonZero::get);
    // Request ids go on from the clock, so that a restart repeats none.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first_id = u64::try_from(since_epoch.as_micros()).unwrap_or_default();
    let queue = Arc::new(Queue::new(Slots::new(plan.entries_max), lanes, first_id));
    // What was written last is not on disk for as long as a sync may take; without a file nothing was ever written.
    let last = std::fs::metadata(&plan.file).and_then(|file| file.modified());
    let mark = |cause| AuditError::Mark { folder: plan.state_directory.clone(), cause };
    let mark = Arc::new(Mark::make(&plan.state_directory).map_err(mark)?);
    let writer = Writer::start(plan, Arc::clone(&queue), mark)?;
    let recorder = Recorder::new(plan, queue, digester, &writer);
    recorder.note_deaths(last.unwrap_or_else(|_| SystemTime::now()) - plan.sync);
    Ok((recorder, writer))
}

//! An upgrade under way: the next agent starts beside this one.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::handover::{Estate, HandoverError, Line, Successor};
use super::{AppError, Node, systemd};

/// Where the outcome is told.
type Outcome = oneshot::Sender<Result<u32, String>>;

/// A next agent that starts.
pub(super) struct Attempt {
    task: JoinHandle<Result<Successor, HandoverError>>,
    /// The same socket as its line: closed, the start ends.
    line: Line,
}

impl Attempt {
    /// # Errors
    /// No socket.
    pub(super) fn start(binary: PathBuf, estate: Estate) -> Result<Self, HandoverError> {
        let (line, its_end): (Line, OwnedFd) = Line::pair()?;
        let ours = line.clone_of()?;
        tracing::info!(binary = %binary.display(), "upgrade: the next agent starts");
        let task = tokio::task::spawn_blocking(move || Successor::start(&binary, ours, its_end, &estate));
        Ok(Self { task, line })
    }
}

/// At most one attempt.
#[derive(Default)]
pub(super) struct Takeover(Option<(Attempt, Outcome)>);

impl Takeover {
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Begins with `attempt`, unless that could not be made. Whether it has.
    pub(super) fn begin(&mut self, attempt: Result<Attempt, AppError>, outcome: Outcome) -> bool {
        match attempt {
            Ok(attempt) => self.0 = Some((attempt, outcome)),
            Err(error) => refuse(outcome, error.to_string()),
        }
        !self.is_idle()
    }

    /// Returns when the next agent is attached, or has failed.
    pub(super) async fn attached(&mut self) -> Attached {
        let Some((attempt, _)) = &mut self.0 else { return std::future::pending().await };
        let started = match (&mut attempt.task).await {
            Ok(started) => started.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        Attached { started, outcome: self.0.take().map(|(_, outcome)| outcome) }
    }

    /// This agent is to end: the next one must not go on without it.
    pub(super) async fn give_up(&mut self) {
        if let Some((attempt, outcome)) = self.0.take() {
            attempt.line.close();
            // Whatever became of it is dropped, and killed by that.
            let _ = attempt.task.await;
            let _ = outcome.send(Err("the agent ends".to_owned()));
        }
    }
}

/// Says why there is no attempt.
pub(super) fn refuse(outcome: Outcome, why: String) {
    // Who asked has left: then nobody misses it.
    let _ = outcome.send(Err(why));
}

/// What became of an attempt.
pub(super) struct Attached {
    started: Result<Successor, String>,
    outcome: Option<Outcome>,
}

impl Attached {
    /// Gives the next agent the bindings and the word. True: this one accepts nothing more from now on.
    pub(super) fn take_over(self, node: &Node) -> bool {
        let given =
            self.started.and_then(|successor| give(successor, node).map_err(|error| error.to_string()));
        match &given {
            Ok(pid) => tracing::info!(pid, "upgrade: the next agent has taken over"),
            Err(error) => tracing::error!("upgrade failed, this agent goes on: {error}"),
        }
        let is_over = given.is_ok();
        // Who asked has left: then nobody misses it.
        let _ = self.outcome.map(|outcome| outcome.send(given));
        is_over
    }
}

/// The next agent, as it is told of ids before the replies that bring them to their callers.
struct Listener {
    successor: Successor,
    /// One that does not hear is not waited for twice.
    hears: AtomicBool,
}

impl Listener {
    fn tell(&self, say: impl FnOnce(&Successor) -> Result<(), HandoverError>) {
        if self.hears.load(Ordering::Relaxed)
            && let Err(error) = say(&self.successor)
        {
            self.hears.store(false, Ordering::Relaxed);
            tracing::warn!(%error, "the next agent does not know of new sessions, tasks and events");
        }
    }
}

fn give(successor: Successor, node: &Node) -> Result<u32, HandoverError> {
    let pid = successor.pid();
    let listener = Arc::new(Listener { successor, hears: AtomicBool::new(true) });
    let [bound, streamed, passed] = [(); 3].map(|()| Arc::clone(&listener));
    let bindings = node.bindings.export(Box::new(move |binding| {
        bound.tell(|successor| successor.bind(std::slice::from_ref(binding)));
    }));
    let streams = node.bindings.events.export(Box::new(move |stream| {
        streamed.tell(|successor| successor.give(std::slice::from_ref(stream)));
    }));
    let (secret, given) = node.bindings.given.export(Box::new(move |secret, one| {
        passed.tell(|successor| successor.pass(secret, std::slice::from_ref(&one)));
    }));
    let its = &listener.successor;
    let ids = its.bind(&bindings).and_then(|()| its.give(&streams)).and_then(|()| its.pass(secret, &given));
    let told = ids.and_then(|()| its.over());
    if let Err(error) = told {
        // Held there it would go on, and attach.
        node.bindings.export_no_more();
        node.bindings.events.export_no_more();
        node.bindings.given.export_no_more();
        return Err(error);
    }
    systemd::main_process_is(pid);
    Ok(pid)
}

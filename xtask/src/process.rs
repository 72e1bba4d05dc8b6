//! Processes that the task starts: each ends with the task, whichever way that ends.
//!
//! A signal to the task is passed on to every process it started. Whatever waits for one of them then sees its end,
//! returns an error, and the guards on the way out do the rest: nothing is left half done.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How many processes the task runs at once, at most.
const PROCESSES_MAX: usize = 12;
/// How long a process may take to say that it is ready, or to end when asked to.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a process that fails may take to say why.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);
/// Lines of a process that are kept for an error message.
const LAST_LINES_MAX: usize = 12;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Process ids of what runs now; 0: free.
static RUNNING: [AtomicI32; PROCESSES_MAX] = [const { AtomicI32::new(0) }; PROCESSES_MAX];

/// From now on Ctrl-C and SIGTERM end what was started, and thereby the task, in order.
pub(crate) fn end_in_order() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(interrupted), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler calls nothing but atomics and kill(2), which are async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot install a signal handler")?;
    }
    Ok(())
}

extern "C" fn interrupted(_signal: i32) {
    INTERRUPTED.store(true, Ordering::SeqCst);
    for slot in &RUNNING {
        let pid = slot.load(Ordering::SeqCst);
        if pid != 0 {
            let _gone_already = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

/// An error once a signal came: long work asks between its steps.
pub(crate) fn not_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// Was the task told to end?
pub(crate) fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// A running process, both its outputs read line by line. Dropped: it is ended, and waited for.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    slot: &'static AtomicI32,
    lines: Receiver<String>,
    /// The last lines it wrote.
    last: VecDeque<String>,
}

impl Process {
    /// Starts it, in a process group of its own: a terminal's Ctrl-C reaches it through the task alone. A task that is
    /// killed takes it along.
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        Self::started(name, command.stdin(Stdio::null()))
    }

    /// The same with an input that [`Process::ask`] writes to.
    pub(crate) fn start_to_ask(name: &'static str, command: &mut Command) -> Result<Self> {
        Self::started(name, command.stdin(Stdio::piped()))
    }

    fn started(name: &'static str, command: &mut Command) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        not_interrupted()?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // SAFETY: between fork and exec nothing is called but prctl(2), which is async-signal-safe.
        unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGTERM).map_err(Into::into)) };
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (sender, lines) = channel();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            read_lines(stdout, sender.clone());
            read_lines(stderr, sender);
        }
        let pid = i32::try_from(child.id()).context("a process id above 2^31")?;
        let Some(slot) = RUNNING
            .iter()
            .find(|slot| slot.compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst).is_ok())
        else {
            let _ended = child.kill().and_then(|()| child.wait());
            bail!("more than {PROCESSES_MAX} processes");
        };
        let input = child.stdin.take();
        let process = Self { name, child, input, slot, lines, last: VecDeque::new() };
        // A signal between the start and the slot has missed this one.
        not_interrupted()?;
        Ok(process)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it writes a line that contains `words`.
    pub(crate) fn wait_for(&mut self, words: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.next_line(until) {
                Ok(line) if line.contains(words) => return Ok(()),
                Ok(_other) => {}
                Err(error) => {
                    not_interrupted()?;
                    bail!("{} did not get ready ({error}):\n{}", self.name, self.said());
                }
            }
        }
    }

    /// Writes it a line, and waits for the next that it writes.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
        not_interrupted()?;
        let until = Instant::now() + PATIENCE;
        let input = self.input.as_mut().with_context(|| format!("{} has no input", self.name))?;
        let asked = writeln!(input, "{line}").context("its input is closed");
        let answered = asked.and_then(|()| self.next_line(until));
        answered.map_err(|error| {
            // What it said last may come a moment after it closed its input.
            while self.next_line(Instant::now() + LAST_WORDS_MAX).is_ok() {}
            anyhow!("{} did not answer ({error}):\n{}", self.name, self.said())
        })
    }

    /// Waits for its end, whose lines are its result.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        let until = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        while let Ok(line) = self.next_line(until) {
            lines.push(line);
        }
        let status = self.end()?;
        not_interrupted()?;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", self.name, self.said());
        }
        Ok(lines)
    }

    /// The same as `stop`, and the last lines that it wrote.
    pub(crate) fn stop_and_tell(mut self) -> Result<String> {
        let _gone_already = kill(Pid::from_raw(self.slot.load(Ordering::SeqCst)), Signal::SIGTERM);
        let until = Instant::now() + PATIENCE;
        while self.next_line(until).is_ok() {}
        self.end()?;
        Ok(self.said())
    }

    /// Asks it to end, waits until it has; a process that does not listen is killed.
    pub(crate) fn stop(mut self) -> Result<ExitStatus> {
        let _gone_already = kill(Pid::from_raw(self.slot.load(Ordering::SeqCst)), Signal::SIGTERM);
        let until = Instant::now() + PATIENCE;
        while self.next_line(until).is_ok() {}
        self.end()
    }

    fn next_line(&mut self, until: Instant) -> Result<String> {
        let line =
            self.lines.recv_timeout(until.saturating_duration_since(Instant::now())).map_err(|error| {
                match error {
                    RecvTimeoutError::Timeout => anyhow!("no answer within {PATIENCE:?}"),
                    RecvTimeoutError::Disconnected => anyhow!("it ended"),
                }
            })?;
        if self.last.len() == LAST_LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(line.clone());
        Ok(line)
    }

    fn said(&self) -> String {
        self.last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }

    /// Its outputs are closed or our patience is at its end: take it away for good.
    fn end(&mut self) -> Result<ExitStatus> {
        let pid = self.slot.load(Ordering::SeqCst);
        if pid != 0 {
            // Closed outputs mean that it is about to end; only one that kept silent too long is still running.
            if let Err(RecvTimeoutError::Timeout) = self.lines.recv_timeout(Duration::ZERO) {
                let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            // Its slot is freed before its pid is: the signal handler never meets a pid that has a new owner.
            waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                .with_context(|| format!("cannot wait for {}", self.name))?;
            self.slot.store(0, Ordering::SeqCst);
        }
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = self.slot.load(Ordering::SeqCst);
        if pid != 0 && i32::try_from(self.child.id()) == Ok(pid) {
            let _gone_already = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let until = Instant::now() + PATIENCE;
            while self.next_line(until).is_ok() {}
            let _reported_elsewhere = self.end();
        }
    }
}

fn read_lines(from: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

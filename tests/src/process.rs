//! A started process, its output line by line.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{PATIENCE, wait};

/// A running process. Dropped: it is told to end, then killed, then waited for.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Lines>,
    ended: Option<ExitStatus>,
}

/// What a process wrote so far, both outputs in the order of arrival.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    /// Outputs that are still open.
    open: usize,
}

impl Process {
    /// Starts it with pipes at its outputs, and at its input unless `command` says otherwise before.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped());
        Self::start_with_stdin(command)
    }

    /// The same with the input that `command` has.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_with_stdin(command: &mut Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec nothing is called but prctl(2), which is async-signal-safe.
        unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGTERM).map_err(Into::into)) };
        let mut child =
            command.spawn().with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
        let lines = Arc::new(Lines::default());
        let stdin = child.stdin.take();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            lines.lock().open = 2;
            read(stdout, Arc::clone(&lines));
            read(stderr, Arc::clone(&lines));
        }
        Ok(Self { child, stdin, lines, ended: None })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its input.
    ///
    /// # Errors
    /// Its input is closed.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).context("cannot write to it")
    }

    /// Waits for a line that contains `words`, from line `from` on, and returns it with its number.
    ///
    /// # Errors
    /// It ended or kept silent; with what it said instead.
    pub fn line_from(&self, from: usize, words: &str) -> Result<(usize, String)> {
        self.line_within(PATIENCE, from, words)
    }

    /// The same, for what takes longer than anything else that a test waits for.
    ///
    /// # Errors
    /// As `line_from`.
    pub fn line_within(&self, patience: Duration, from: usize, words: &str) -> Result<(usize, String)> {
        let deadline = Instant::now() + patience;
        let mut state = self.lines.lock();
        loop {
            let found = state.lines.iter().enumerate().skip(from).find(|(_, line)| line.contains(words));
            if let Some((number, line)) = found {
                return Ok((number, line.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.open == 0 || left.is_zero() {
                bail!("no line with `{words}`; it said:\n{}", state.lines.join("\n"));
            }
            state = self.lines.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line that contains `words`.
    ///
    /// # Errors
    /// As `line_from`.
    pub fn line(&self, words: &str) -> Result<String> {
        Ok(self.line_from(0, words)?.1)
    }

    /// How many lines it wrote so far.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines.lock().lines.len()
    }

    /// All it wrote so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.lines.lock().lines.join("\n")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Its number may have a new owner.
        ensure!(self.ended.is_none(), "it has ended");
        let pid = Pid::from_raw(i32::try_from(self.id()).context("a process id above 2^31")?);
        kill(pid, signal).context("cannot send it a signal")
    }

    /// Ends its input, and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn close(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        self.end()
    }

    /// Waits for its end, and for the end of its outputs.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let status =
            wait::until("the end of a process", || self.child.try_wait().context("cannot wait for it"))?;
        self.ended = Some(status);
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lines.lock();
        while state.open > 0 && Instant::now() < deadline {
            state =
                self.lines.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        if self.ended.is_none() && matches!(self.child.try_wait(), Ok(None)) {
            let _ended_meanwhile = self.signal(Signal::SIGTERM);
            if self.end().is_err() {
                let _ended_meanwhile = self.child.kill();
                let _reaped = self.child.wait();
            }
        }
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(from: impl Read + Send + 'static, to: Arc<Lines>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            to.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
            to.changed.notify_all();
        }
        to.lock().open -= 1;
        to.changed.notify_all();
    });
}

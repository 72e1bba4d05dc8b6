//! The next agent, as the running one sees it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Message, unexpected};
use super::{ANSWER_TIME_MAX, Estate, HandoverError, Line, START_TIME_MAX, VERSION};
use crate::bindings::Binding;
use crate::events::Stream;
use crate::given::{Key, Passed};

/// The flag that tells a process that its standard input is a predecessor.
const FLAG: &str = "--handover";
/// From the end of its socket to its own end.
const END_TIME_MAX: Duration = Duration::from_secs(2);
/// How often its end is looked for meanwhile.
const END_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bindings of one message: an id has 512 bytes at most, and so has the tool that it keeps; escaped they may have six
/// times as many.
const BINDINGS_MAX: usize = 16;
/// Streams of one message, in the same way: each with some hundreds of ids' digests.
const STREAMS_MAX: usize = 4;
/// Of what callers come back with, in the same way: two digests, a method and two numbers, all of one length or less.
const GIVEN_MAX: usize = 256;

/// The successor as its predecessor sees it: attached, and waiting for the word. Dropped before [`Successor::over`] it
/// is killed.
pub(in crate::app) struct Successor {
    child: Mutex<Option<Child>>,
    line: Line,
}

impl Successor {
    /// Starts `binary` with this process's own arguments, passes `estate` on, and waits until it is attached. Blocks.
    ///
    /// # Errors
    /// [`HandoverError`]: it is gone then, and nothing has changed.
    pub(in crate::app) fn start(
        binary: &Path,
        line: Line,
        its_end: OwnedFd,
        estate: &Estate,
    ) -> Result<Self, HandoverError> {
        let mut command = Command::new(binary);
        command.args(std::env::args_os().skip(1).filter(|argument| argument != FLAG)).arg(FLAG);
        // Of this process; the service manager does not name the next one there.
        command.env_remove("WATCHDOG_PID").stdin(Stdio::from(its_end));
        let child = command.spawn();
        let child = child.map_err(|cause| HandoverError::Start { binary: binary.to_owned(), cause })?;
        // Its end of the socket stays open in `command` as long as that lives.
        drop(command);
        let successor = Self { child: Mutex::new(Some(child)), line };
        match successor.hand_over(estate) {
            Ok(()) => Ok(successor),
            Err(error) => Err(successor.explained(error)),
        }
    }

    /// It may not even have read what it was given: how it ended says more.
    fn explained(&self, error: HandoverError) -> HandoverError {
        let is_broken = |cause: &io::Error| cause.kind() != io::ErrorKind::TimedOut;
        if matches!(&error, HandoverError::Channel { cause } if is_broken(cause)) {
            return self.ended().unwrap_or(error);
        }
        error
    }

    fn hand_over(&self, estate: &Estate) -> Result<(), HandoverError> {
        let line = &self.line;
        line.say(&Message::Lock { version: VERSION }, &[estate.lock.as_fd()])?;
        for (role, descriptor) in &estate.listeners {
            line.say(&Message::Listener { role: role.clone() }, &[descriptor.as_fd()])?;
        }
        if let Some(authority) = &estate.inspection {
            line.say(&Message::Inspection { authority: authority.clone() }, &[])?;
        }
        line.say(&Message::Whole { port: estate.port }, &[])?;
        line.patience(Some(START_TIME_MAX))?;
        self.expect(|answer| matches!(answer, Message::Attached))
    }

    fn expect(&self, is_expected: impl Fn(&Message) -> bool) -> Result<(), HandoverError> {
        match self.line.hear()? {
            Some((answer, _)) if is_expected(&answer) => Ok(()),
            Some((Message::Failed { error }, _)) => Err(HandoverError::Refused { error }),
            Some((other, _)) => Err(unexpected(&other)),
            None => Err(HandoverError::Channel { cause: io::ErrorKind::UnexpectedEof.into() }),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended, if it has closed its end because it ends.
    fn ended(&self) -> Option<HandoverError> {
        let mut child = self.child();
        let deadline = Instant::now() + END_TIME_MAX;
        while Instant::now() < deadline {
            if let Some(status) = child.as_mut()?.try_wait().ok()? {
                return Some(HandoverError::Ended { status });
            }
            std::thread::sleep(END_LOOK_EVERY);
        }
        None
    }

    /// Its process id.
    pub(in crate::app) fn pid(&self) -> u32 {
        self.child().as_ref().map(Child::id).unwrap_or_default()
    }

    /// Sends it bindings.
    pub(in crate::app) fn bind(&self, bindings: &[Binding]) -> Result<(), HandoverError> {
        for some in bindings.chunks(BINDINGS_MAX) {
            self.line.say(&Message::Sessions { bindings: some.to_vec() }, &[])?;
        }
        Ok(())
    }

    /// Sends it what was given on event streams.
    pub(in crate::app) fn give(&self, streams: &[Stream]) -> Result<(), HandoverError> {
        for some in streams.chunks(STREAMS_MAX) {
            self.line.say(&Message::Streams { streams: some.to_vec() }, &[])?;
        }
        Ok(())
    }

    /// Sends it what callers come back with.
    pub(in crate::app) fn pass(&self, secret: Key, given: &[Passed]) -> Result<(), HandoverError> {
        for some in given.chunks(GIVEN_MAX) {
            self.line.say(&Message::Given { secret, given: some.to_vec() }, &[])?;
        }
        Ok(())
    }

    /// Gives it the word. When it has taken it, it is the agent, and outlives this process.
    ///
    /// # Errors
    /// [`HandoverError`]: this process still is the agent.
    pub(in crate::app) fn over(&self) -> Result<(), HandoverError> {
        let taken = || {
            self.line.say(&Message::Over, &[])?;
            self.line.patience(Some(ANSWER_TIME_MAX))?;
            self.expect(|answer| matches!(answer, Message::Taken))
        };
        taken().map_err(|error| self.explained(error))?;
        *self.child() = None;
        Ok(())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            // Ended by itself is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::MESSAGE_BYTES_MAX;
    use super::*;

    #[test]
    fn who_neither_takes_nor_answers_holds_nobody_up() {
        let (line, _its_end) = Line::pair().unwrap();
        // As one that was started, and is stopped.
        let successor = Successor { child: Mutex::default(), line };
        let begun = Instant::now();
        let unanswered = successor.over().unwrap_err();
        let is_late = |error| matches!(error, HandoverError::Channel { cause } if cause.kind() == io::ErrorKind::TimedOut);
        assert!(is_late(unanswered));
        let message = Message::Failed { error: "x".repeat(MESSAGE_BYTES_MAX / 2) };
        let full = (0..1_000).find_map(|_| successor.line.say(&message, &[]).err());
        assert!(full.is_some_and(is_late), "it takes all that");
        assert!(begun.elapsed() < 4 * ANSWER_TIME_MAX, "{:?}", begun.elapsed());
    }
}

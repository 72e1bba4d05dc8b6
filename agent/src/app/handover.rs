//! The hand-over from a running agent to the next: the next one is started beside it as its child, gets its sockets and
//! its lock, attaches, and takes over when it is ready. Nobody is refused meanwhile: the listeners, with all that wait in
//! them, are the same sockets.
//!
//! Both talk over a Unix socket at the child's standard input, one JSON message a datagram, descriptors attached:
//! predecessor: `lock`, `listener`..., `whole`; successor: `attached`, or `failed`; predecessor: `sessions`..., `over`;
//! successor, of which nothing can fail any more: `taken`, or `failed`; from then on the successor serves, the predecessor
//! accepts no more, and `sessions` go on as long as it drains.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::AgentLock;
use crate::capture::Cookie;
use crate::netns::Listeners;
use crate::sessions::{Binding, Sessions};

/// The flag that tells a process that its standard input is a predecessor.
const FLAG: &str = "--handover";
/// Spoken by both; another number is another language.
const VERSION: u32 = 2;
/// From the start of the successor until it is attached.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Until the other end takes a message, or answers one that needs no work.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// From the end of its socket to its own end.
const END_TIME_MAX: Duration = Duration::from_secs(2);
/// How often its end is looked for meanwhile.
const END_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Descriptors of one message: the kernel takes 253 (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 64;
/// Bindings of one message: a session id has 512 bytes at most.
const BINDINGS_MAX: usize = 64;

/// Why there is no hand-over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The binary.
    #[error("cannot start `{}`: {cause}", binary.display())]
    Start {
        /// Its path.
        binary: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The successor said why not.
    #[error("the new agent does not start: {error}")]
    Refused {
        /// Its words.
        error: String,
    },
    /// It ended without a word.
    #[error("the new agent ended before it was ready ({status}); the log has its words")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// The other end speaks another language, or none.
    #[error("{problem} in the hand-over; stop this agent and start the other one instead")]
    Language {
        /// What was not understood.
        problem: String,
    },
    /// The port of the listeners is compiled into nothing, but known to every connection that waits.
    #[error(
        "listen.outbound cannot change from {from} to {to} while captured connections wait; restart the agent instead"
    )]
    Port {
        /// The running agent's.
        from: u16,
        /// The new configuration's.
        to: u16,
    },
    /// The socket between the two.
    #[error("the two agents cannot talk: {cause}")]
    Channel {
        /// What the kernel said; `TimedOut`: nothing came.
        cause: io::Error,
    },
}

/// What a descriptor is that is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Captured connections at home.
    Outbound,
    /// Captured connections in another network namespace.
    Namespace(Cookie),
    /// `listen.admin`
    Admin(PathBuf),
    /// `listen.metrics`
    Metrics(SocketAddr),
    /// `listen.ready`
    Ready(SocketAddr),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
enum Message {
    Lock { version: u32 },
    Listener { role: Role },
    Whole { port: u16 },
    Attached,
    Failed { error: String },
    Sessions { bindings: Vec<Binding> },
    Over,
    Taken,
}

/// What the predecessor passes on.
pub(super) struct Estate {
    pub(super) lock: OwnedFd,
    pub(super) port: u16,
    pub(super) listeners: Vec<(Role, OwnedFd)>,
}

/// What the successor got.
pub struct Heritage {
    port: u16,
    /// Captured connections at home.
    outbound: Vec<TcpListener>,
    /// Captured connections elsewhere.
    namespaces: BTreeMap<Cookie, Vec<TcpListener>>,
    others: Vec<(Role, OwnedFd)>,
}

/// All of it, and from whom.
pub(super) struct Inherited {
    pub(super) predecessor: Predecessor,
    pub(super) lock: AgentLock,
    pub(super) heritage: Heritage,
}

impl Heritage {
    /// The port of the listeners is that of all connections that wait in them.
    ///
    /// # Errors
    /// [`HandoverError::Port`]
    pub(super) fn check_port(&self, port: u16) -> Result<(), HandoverError> {
        if port == self.port { Ok(()) } else { Err(HandoverError::Port { from: self.port, to: port }) }
    }

    /// The listeners at home, and those of each other namespace.
    pub(super) fn listeners(self) -> (Listeners, BTreeMap<Cookie, Listeners>) {
        let others = self.namespaces.into_iter().map(|(cookie, all)| (cookie, Listeners::sorted(all)));
        (Listeners::sorted(self.outbound), others.collect())
    }

    /// A listener for that role, if the predecessor had it at the same place.
    fn take(&mut self, role: &Role) -> Option<OwnedFd> {
        let at = self.others.iter().position(|(given, _)| given == role)?;
        Some(self.others.swap_remove(at).1)
    }

    /// As a Unix listener.
    pub(crate) fn take_unix(&mut self, role: &Role) -> Option<UnixListener> {
        self.take(role).map(UnixListener::from)
    }

    /// As a TCP listener.
    pub(crate) fn take_tcp(&mut self, role: &Role) -> Option<TcpListener> {
        self.take(role).map(TcpListener::from)
    }
}

/// One end of the socket between the two.
pub(super) struct Line(OwnedFd);

impl Line {
    /// This process's end, and the other, which is the successor's standard input.
    pub(super) fn pair() -> Result<(Self, OwnedFd), HandoverError> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, its) = pair.map_err(|errno| HandoverError::Channel { cause: errno.into() })?;
        Ok((Self::new(ours)?, its))
    }

    /// Who does not take what is said to it holds nobody up for long.
    fn new(end: OwnedFd) -> Result<Self, HandoverError> {
        let limited = SockRef::from(&end).set_write_timeout(Some(ANSWER_TIME_MAX));
        limited.map_err(|cause| HandoverError::Channel { cause })?;
        Ok(Self(end))
    }

    /// The same end once more.
    pub(super) fn clone_of(&self) -> Result<Self, HandoverError> {
        self.0.try_clone().map(Self).map_err(|cause| HandoverError::Channel { cause })
    }

    /// Nobody hears anything more at either end.
    pub(super) fn close(&self) {
        // Closed by the other end already is as good.
        let _ = SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }

    fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let failed = |cause| HandoverError::Channel { cause };
        let text = serde_json::to_vec(message).map_err(|error| failed(error.into()))?;
        let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let attached = [ControlMessage::ScmRights(&raw)];
        let attached = if raw.is_empty() { &attached[..0] } else { &attached[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&text)], attached, flags, None) {
            Err(nix::Error::EAGAIN) => Err(failed(io::ErrorKind::TimedOut.into())),
            sent => sent.map(drop).map_err(|errno| failed(errno.into())),
        }
    }

    /// `None`: the other end has gone.
    fn hear(&self) -> Result<Option<(Message, Vec<OwnedFd>)>, HandoverError> {
        let failed = |cause| HandoverError::Channel { cause };
        let mut text = vec![0; MESSAGE_BYTES_MAX];
        let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let mut buffers = [IoSliceMut::new(&mut text)];
        let heard = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Err(failed(io::ErrorKind::TimedOut.into())),
                Err(nix::Error::ECONNRESET) => return Ok(None),
                heard => break heard.map_err(|errno| failed(errno.into()))?,
            }
        };
        let mut descriptors = Vec::new();
        for attached in heard.cmsgs().map_err(|errno| failed(errno.into()))? {
            if let ControlMessageOwned::ScmRights(given) = attached {
                // SAFETY: the kernel has just made these descriptors for us alone.
                descriptors.extend(given.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        let (bytes, cut) = (heard.bytes, heard.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
        if bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(text.get(..bytes).unwrap_or_default());
        match message {
            Ok(message) if !cut => Ok(Some((message, descriptors))),
            Ok(_) => Err(HandoverError::Language { problem: "a message was cut".to_owned() }),
            Err(error) => Err(HandoverError::Language { problem: error.to_string() }),
        }
    }

    fn patience(&self, length: Option<Duration>) -> Result<(), HandoverError> {
        SockRef::from(&self.0).set_read_timeout(length).map_err(|cause| HandoverError::Channel { cause })
    }
}

fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Language { problem: format!("an unexpected `{message:?}`") }
}

/// The successor as its predecessor sees it: attached, and waiting for the word. Dropped before [`Successor::over`] it
/// is killed.
pub(super) struct Successor {
    child: Mutex<Option<Child>>,
    line: Line,
}

impl Successor {
    /// Starts `binary` with this process's own arguments, passes `estate` on, and waits until it is attached. Blocks.
    ///
    /// # Errors
    /// [`HandoverError`]: it is gone then, and nothing has changed.
    pub(super) fn start(
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
    pub(super) fn pid(&self) -> u32 {
        self.child().as_ref().map(Child::id).unwrap_or_default()
    }

    /// Sends it session bindings.
    pub(super) fn bind(&self, bindings: &[Binding]) -> Result<(), HandoverError> {
        for some in bindings.chunks(BINDINGS_MAX) {
            self.line.say(&Message::Sessions { bindings: some.to_vec() }, &[])?;
        }
        Ok(())
    }

    /// Gives it the word. When it has taken it, it is the agent, and outlives this process.
    ///
    /// # Errors
    /// [`HandoverError`]: this process still is the agent.
    pub(super) fn over(&self) -> Result<(), HandoverError> {
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

/// The predecessor as its successor sees it.
#[derive(Clone)]
pub(super) struct Predecessor(Arc<Line>);

impl Predecessor {
    /// The one at this process's standard input, and what it passes on. Blocks.
    ///
    /// # Errors
    /// [`HandoverError`]: this process was not started by an agent.
    pub(super) fn meet() -> Result<Inherited, HandoverError> {
        let failed = |cause| HandoverError::Channel { cause };
        let line = Line::new(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)?;
        line.patience(Some(START_TIME_MAX))?;
        let gone = || HandoverError::Channel { cause: io::ErrorKind::UnexpectedEof.into() };
        let lock = match line.hear()?.ok_or_else(gone)? {
            (Message::Lock { version: VERSION }, mut descriptors) => {
                descriptors.pop().map(AgentLock::inherited).ok_or_else(gone)?
            }
            (other, _) => return Err(unexpected(&other)),
        };
        let (mut outbound, mut namespaces, mut others) =
            (Vec::new(), BTreeMap::<_, Vec<_>>::new(), Vec::new());
        loop {
            match line.hear()?.ok_or_else(gone)? {
                (Message::Listener { role: Role::Outbound }, descriptors) => {
                    outbound.extend(descriptors.into_iter().map(TcpListener::from));
                }
                (Message::Listener { role: Role::Namespace(cookie) }, descriptors) => {
                    let listeners = descriptors.into_iter().map(TcpListener::from);
                    namespaces.entry(cookie).or_default().extend(listeners);
                }
                (Message::Listener { role }, descriptors) => {
                    others.extend(descriptors.into_iter().map(|descriptor| (role.clone(), descriptor)));
                }
                (Message::Whole { port }, _) => {
                    let heritage = Heritage { port, outbound, namespaces, others };
                    return Ok(Inherited { predecessor: Self(Arc::new(line)), lock, heritage });
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
    }

    /// This process gives up; `error` says why.
    pub(super) fn give_up(&self, error: &str) {
        // It has gone itself: then nobody waits for the reason.
        let _ = self.0.say(&Message::Failed { error: error.to_owned() }, &[]);
    }

    /// Says that all is attached, and waits for the word; the predecessor's sessions are known then. One that died
    /// meanwhile has nothing more to say. Blocks.
    ///
    /// # Errors
    /// [`HandoverError`]
    pub(super) fn wait_for_its_word(&self, sessions: &Sessions) -> Result<(), HandoverError> {
        // Died: the next line says so.
        let _ = self.0.say(&Message::Attached, &[]);
        self.0.patience(Some(ANSWER_TIME_MAX))?;
        loop {
            match self.0.hear()? {
                Some((Message::Sessions { bindings }, _)) => sessions.import(&bindings),
                Some((Message::Over, _)) | None => return Ok(()),
                Some((other, _)) => return Err(unexpected(&other)),
            }
        }
    }

    /// Takes the word: from now on this process is the agent.
    ///
    /// # Errors
    /// [`HandoverError`]: the predecessor still is.
    pub(super) fn taken(&self) -> Result<(), HandoverError> {
        match self.0.say(&Message::Taken, &[]) {
            Err(HandoverError::Channel { cause }) if cause.kind() == io::ErrorKind::TimedOut => {
                Err(HandoverError::Channel { cause })
            }
            // Died: then there is nobody else.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes over what the predecessor still binds while it drains. Returns at its end. Blocks.
    pub(super) fn follow(&self, sessions: &Sessions) {
        if let Err(error) = self.0.patience(None) {
            tracing::warn!(%error, "the last sessions of the agent before may be lost");
        }
        loop {
            match self.0.hear() {
                Ok(Some((Message::Sessions { bindings }, _))) => sessions.import(&bindings),
                Ok(Some((other, _))) => tracing::warn!(error = %unexpected(&other), "hand-over"),
                Ok(None) => return,
                Err(error) => {
                    return tracing::warn!(%error, "the last sessions of the agent before may be lost");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
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

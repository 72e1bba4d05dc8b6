//! What an attempt is told, and what it says of itself.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

/// Where an attempt was stopped, and by what.
#[derive(Debug)]
pub(crate) struct Stopped {
    step: &'static str,
    error: io::Error,
}

/// What came of an attempt: what it got, or where it was stopped.
pub(crate) type Tried = Result<String, Stopped>;

/// The words of the command line: `NAME=VALUE` each.
#[derive(Debug)]
pub(crate) struct Ask {
    words: HashMap<String, String>,
}

impl Stopped {
    /// By an errno.
    pub(crate) fn from_errno(step: &'static str, number: i32) -> Self {
        Self { step, error: io::Error::from_raw_os_error(number) }
    }

    /// Nothing came, in time.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self.error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    }

    /// One line: `refused ERRNO at STEP`.
    pub(crate) fn line(&self) -> String {
        match self.error.raw_os_error() {
            Some(number) => format!("refused {:?} at {}", Errno::from_raw(number), self.step),
            None => format!("refused {} at {}", self.error, self.step),
        }
    }
}

/// Names the step that an error stopped.
pub(crate) trait At<T> {
    fn at(self, step: &'static str) -> Result<T, Stopped>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, Stopped> {
        self.map_err(|error| Stopped { step, error: error.into() })
    }
}

/// A step that fails for what it saw.
pub(crate) fn stopped(step: &'static str, why: impl Into<String>) -> Stopped {
    Stopped { step, error: io::Error::other(why.into()) }
}

impl Ask {
    /// Of the command line behind the attempt's name.
    pub(crate) fn read(words: impl Iterator<Item = String>) -> Result<Self> {
        let split = |word: String| {
            let (name, value) = word.split_once('=').with_context(|| format!("`{word}` is no NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        Ok(Self { words: words.map(split).collect::<Result<_>>()? })
    }

    /// A word that the attempt needs.
    pub(crate) fn word(&self, name: &str) -> Result<&str, Stopped> {
        self.find(name).ok_or_else(|| stopped("start", format!("no `{name}=` given")))
    }

    /// A word that changes the attempt.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        self.words.get(name).map(String::as_str)
    }

    /// A number, 0 where it is not given.
    pub(crate) fn number(&self, name: &str) -> Result<u32, Stopped> {
        self.find(name).map_or(Ok(0), |text| {
            text.parse().map_err(|_| stopped("start", format!("`{name}={text}` is no number")))
        })
    }

    /// The server that is to be reached.
    pub(crate) fn to(&self) -> Result<SocketAddr, Stopped> {
        self.address("to")
    }

    /// An address.
    pub(crate) fn address(&self, name: &str) -> Result<SocketAddr, Stopped> {
        let text = self.word(name)?;
        // With a scope, as in `[fe80::1%3]:80`, too.
        text.parse().map_err(|_| stopped("start", format!("`{name}={text}` is no address")))
    }

    /// The tool that is called: the name of this attempt, for the audit and the server.
    pub(crate) fn tool(&self) -> Result<&str, Stopped> {
        self.word("tool")
    }

    /// Puts this process into the captured cgroup.
    pub(crate) fn join(&self) -> Result<(), Stopped> {
        enter(self.word("inside")?)
    }

    /// Takes it out again, as root may.
    pub(crate) fn leave(&self) -> Result<(), Stopped> {
        enter(self.word("outside")?)
    }

    /// This program once more, with another attempt and the same words.
    pub(crate) fn again(&self, attempt: &str) -> Result<Command, Stopped> {
        let mut command = Command::new(std::env::current_exe().at("exe")?);
        command.arg(attempt);
        command.args(self.words.iter().map(|(name, value)| OsString::from(format!("{name}={value}"))));
        Ok(command)
    }
}

/// Moves this process into a cgroup.
pub(crate) fn enter(directory: &str) -> Result<(), Stopped> {
    fs::write(format!("{directory}/cgroup.procs"), "0").at("join")
}

/// Waits for a helper that is to end by itself.
pub(crate) fn ended(mut child: Child) -> Result<(), Stopped> {
    child.wait().at("wait").map(|_status| ())
}

/// This process as the host counts: `/proc` is the host's.
pub(crate) fn host_pid() -> Result<u32, Stopped> {
    let own = fs::read_link("/proc/self").at("pid")?;
    own.to_string_lossy().parse().map_err(|_| stopped("pid", "`/proc/self` is no number"))
}

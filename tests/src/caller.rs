//! A captured process that connects where it is told: the connection is its own, the bytes are the test's.

use std::io::{IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::{Connection, PATIENCE, Process};

/// Bytes of an answer, at most.
const ANSWER_BYTES_MAX: usize = 512;

/// A running `connector`, in the cgroup that its command put it in.
#[derive(Debug)]
pub struct Caller {
    channel: UnixStream,
    process: Process,
}

/// A connection that a caller made.
#[derive(Debug)]
pub struct Connected {
    /// The socket.
    pub stream: TcpStream,
    /// The peer, as the captured process sees it.
    pub peer: SocketAddr,
}

impl Caller {
    /// Starts the connector behind `prefix`, e.g. `toolgate exec ... --`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut prefix: Command) -> Result<Self> {
        let (channel, its_end) = UnixStream::pair().context("cannot make a socket pair")?;
        channel.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout")?;
        prefix.arg(connector()).stdin(OwnedFd::from(its_end));
        let process = Process::start_with_stdin(&mut prefix)?;
        Ok(Self { channel, process })
    }

    /// One that is not captured: the twin of each test's caller.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn outside() -> Result<Self> {
        let mut plain = Command::new("env");
        plain.arg("--");
        Self::start(plain)
    }

    /// Connects, and returns the connection with the peer's address as the caller sees it.
    ///
    /// # Errors
    /// The connection is refused, or the caller is gone.
    pub fn connect(&mut self, to: SocketAddr) -> Result<Connected> {
        writeln!(self.channel, "{to}")
            .with_context(|| format!("the caller is gone, which said: {}", self.process.said()))?;
        let mut text = [0_u8; ANSWER_BYTES_MAX];
        let mut space = cmsg_space!([RawFd; 1]);
        let mut buffers = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(
            self.channel.as_raw_fd(),
            &mut buffers,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .with_context(|| format!("no answer from the caller, which said: {}", self.process.said()))?;
        let bytes = message.bytes;
        let mut descriptor = None;
        for attached in message.cmsgs().context("a broken message")? {
            if let ControlMessageOwned::ScmRights(descriptors) = attached {
                descriptor = descriptors.first().copied();
            }
        }
        let answer = String::from_utf8_lossy(text.get(..bytes).unwrap_or_default()).into_owned();
        match (answer.trim_end().strip_prefix('+'), descriptor) {
            (Some(peer), Some(descriptor)) => {
                // SAFETY: the kernel has just made this descriptor for us alone.
                let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
                Ok(Connected {
                    stream: TcpStream::from(owned),
                    peer: peer.parse().context("not an address")?,
                })
            }
            _refused if answer.is_empty() => bail!("the caller ended: {}", self.process.said()),
            _refused => bail!("{}", answer.trim_end().trim_start_matches('-')),
        }
    }

    /// Connects for HTTP.
    ///
    /// # Errors
    /// As `connect`.
    pub fn http(&mut self, to: SocketAddr) -> Result<Connection> {
        Connection::new(self.connect(to)?.stream, to)
    }

    /// Makes another program of it, which must be a connector too: its next answer is that program's.
    ///
    /// # Errors
    /// The caller is gone.
    pub fn exec(&mut self, program: &Path) -> Result<()> {
        writeln!(self.channel, "exec {}", program.display()).context("the caller is gone")?;
        let mut answer = [0; ANSWER_BYTES_MAX];
        let bytes = self.channel.read(&mut answer).context("no answer from the caller")?;
        ensure!(answer.starts_with(b"executing"), "it said: {}", String::from_utf8_lossy(&answer[..bytes]));
        Ok(())
    }

    /// Its process id: `toolgate exec` becomes the command.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// The connector's binary.
#[must_use]
pub fn connector() -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let folder = this.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    folder.join("connector")
}

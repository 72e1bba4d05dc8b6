//! Who has connected to the socket: what the kernel kept of that moment, and nothing that the process says.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::UnixStream;
use toolgate_core::workload::Process;

/// Why nobody is known to be there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestError {
    /// It has no process id here, or none any more.
    #[error("who connected is no process of this host, or has ended")]
    Gone,
    /// Without it a process id that is used again would be taken for who connected.
    #[error("this kernel does not tell whose the connection is (SO_PEERPIDFD, Linux 6.5)")]
    Kernel,
    /// The kernel.
    #[error("cannot tell who connected: {0}")]
    Io(#[from] io::Error),
}

/// The process that connected. Whoever else holds the connection now is taken for it, until it ends.
#[derive(Debug)]
pub(crate) struct Attested {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pidfd: OwnedFd,
}

impl Attested {
    pub(crate) fn of(stream: &UnixStream) -> Result<Self, AttestError> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().filter(|pid| *pid > 0).ok_or(AttestError::Gone)?;
        let pidfd = peer_pidfd(stream)?;
        Ok(Self { pid, uid: credentials.uid(), pidfd })
    }

    /// Its own descriptor, which is readable from its end on.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// What selectors speak of. What it ran when it connected is not known: it may have executed something else since.
    pub(crate) fn process(&self) -> Result<Process, AttestError> {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid));
        // Only now: a process id is nobody else's as long as its process lives.
        if !self.is_alive()? {
            return Err(AttestError::Gone);
        }
        let text = text?;
        let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"));
        let cgroup = cgroup.filter(|path| path.starts_with('/') && !path.starts_with("/.."));
        let cgroup = cgroup.ok_or(AttestError::Gone)?.to_owned();
        Ok(Process { cgroup, uid: self.uid, exe: None })
    }

    fn is_alive(&self) -> io::Result<bool> {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut ended, PollTimeout::ZERO)? == 0)
    }
}

/// A descriptor of the very process that connected, whoever has its id now (SO_PEERPIDFD).
fn peer_pidfd(stream: &UnixStream) -> Result<OwnedFd, AttestError> {
    let mut pidfd: libc::c_int = -1;
    let mut bytes = libc::socklen_t::try_from(size_of_val(&pidfd)).unwrap_or_default();
    // SAFETY: the kernel writes at most `bytes` into `pidfd`; both live until the call returns.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut bytes,
        )
    };
    if got == 0 && pidfd >= 0 {
        // SAFETY: the kernel has just made it, for nobody else.
        return Ok(unsafe { OwnedFd::from_raw_fd(pidfd) });
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) => Err(AttestError::Kernel),
        Some(libc::ESRCH | libc::EINVAL | libc::ENODATA) => Err(AttestError::Gone),
        Some(_) | None => Err(error.into()),
    }
}

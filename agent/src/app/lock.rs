//! One agent for each host: its programs and pins are the host's.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Where the agent says that it runs. Not configurable: two configurations make no two hosts.
const LOCK_FILE: &str = "/run/toolgate/agent.lock";

/// Why the agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one runs.
    #[error(
        "an agent runs on this host already (pid {pid}); stop that one first, or let it hand over: `toolgate upgrade`"
    )]
    Running {
        /// Its process id, as it wrote it.
        pid: String,
    },
    /// The lock file cannot be used.
    #[error("cannot use lock file `{LOCK_FILE}`: {cause}; the agent needs root")]
    File {
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Held while the agent runs. The lock is the open file's: the kernel releases it when the last process that holds the
/// descriptor has ended, so that an agent passes it on without letting go.
#[derive(Debug)]
pub struct AgentLock(File);

impl AgentLock {
    /// Takes the host's lock.
    ///
    /// # Errors
    /// [`LockError::Running`] names the process that holds it.
    pub fn take() -> Result<Self, LockError> {
        let failed = |cause| LockError::File { cause };
        let path = Path::new(LOCK_FILE);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        // Who may open it may lock it, and keep the agent from starting.
        let options = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let mut file = options.map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                let mut lock = Self(file);
                lock.sign()?;
                Ok(lock)
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                Err(LockError::Running { pid: pid.trim().to_owned() })
            }
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// The lock of the agent that hands over. It stays that one's, too, until it has ended.
    pub(super) fn inherited(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }

    /// Writes this process into the file, for whoever asks who runs.
    ///
    /// # Errors
    /// [`LockError::File`].
    pub(super) fn sign(&mut self) -> Result<(), LockError> {
        let pid = format!("{}\n", std::process::id());
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(pid.as_bytes())
        };
        write(&mut self.0).map_err(|cause| LockError::File { cause })
    }
}

impl AsFd for AgentLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The process id of the agent that runs on this host, if one does.
///
/// # Errors
/// [`LockError::File`] where that cannot be told.
pub fn holder() -> Result<Option<String>, LockError> {
    if !Path::new(LOCK_FILE).exists() {
        return Ok(None);
    }
    match AgentLock::take() {
        Ok(_) => Ok(None),
        Err(LockError::Running { pid }) => Ok(Some(pid)),
        Err(error) => Err(error),
    }
}

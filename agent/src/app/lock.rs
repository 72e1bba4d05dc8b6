//! One agent for each host: its programs and pins are the host's.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where the agent says that it runs. Not configurable: two configurations make no two hosts.
const LOCK_FILE: &str = "/run/toolgate/agent.lock";

/// Why the agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one runs.
    #[error("an agent runs on this host already (pid {pid}); stop that one first")]
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

/// Held while the agent runs; the kernel releases it with the process, however that ends.
#[derive(Debug)]
pub struct AgentLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl AgentLock {
    /// Takes the host's lock.
    ///
    /// # Errors
    /// [`LockError::Running`] names the process that holds it.
    pub fn take() -> Result<Self, LockError> {
        let file = |cause| LockError::File { cause };
        let path = Path::new(LOCK_FILE);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(file)?;
        }
        let options =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        match Flock::lock(options.map_err(file)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let pid = format!("{}\n", std::process::id());
                let write = |lock: &mut File| {
                    lock.set_len(0)?;
                    lock.rewind()?;
                    lock.write_all(pid.as_bytes())
                };
                write(&mut lock).map_err(file)?;
                Ok(Self(lock))
            }
            Err((mut held, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                held.read_to_string(&mut pid).map_err(file)?;
                Err(LockError::Running { pid: pid.trim().to_owned() })
            }
            Err((_, errno)) => Err(file(errno.into())),
        }
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

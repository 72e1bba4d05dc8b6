//! The cgroup below which `toolgate exec` starts programs.

use std::io;
use std::path::PathBuf;

use toolgate_core::workload::EXEC_CGROUP;

use super::AppError;
use crate::capture::{CaptureError, cgroup};

fn path() -> Result<PathBuf, CaptureError> {
    Ok(cgroup::mount()?.join(EXEC_CGROUP))
}

/// There while the agent runs.
#[derive(Debug)]
pub struct ExecRoot(());

impl ExecRoot {
    /// Makes the cgroup, if it is not there.
    ///
    /// # Errors
    /// No cgroup2, or no right to make one.
    pub fn make() -> Result<Self, AppError> {
        let path = path().map_err(AppError::Capture)?;
        match std::fs::create_dir(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                Err(AppError::ExecRoot { path, cause })
            }
            Ok(()) | Err(_) => Ok(Self(())),
        }
    }
}

impl Drop for ExecRoot {
    fn drop(&mut self) {
        remove();
    }
}

/// Removes what is below it and empty: the kernel refuses the rest.
pub fn sweep() {
    let Ok(path) = path() else { return };
    for made in std::fs::read_dir(path).into_iter().flatten().flatten() {
        // Busy while a program runs in it; a file of the kernel's otherwise.
        let _ = std::fs::remove_dir(made.path());
    }
}

/// Removes it, unless a program still runs in it: then the next agent, or `toolgate detach`, does. Whether it did.
pub fn remove() -> bool {
    sweep();
    path().is_ok_and(|path| std::fs::remove_dir(path).is_ok())
}

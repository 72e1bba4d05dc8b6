//! The cgroup below which `toolgate exec` starts programs.

use std::io;
use std::path::{Path, PathBuf};

use toolgate_core::workload::EXEC_CGROUP;

use super::{AppError, canary};
use crate::capture::{CaptureError, cgroup};

fn path() -> Result<PathBuf, CaptureError> {
    Ok(cgroup::mount()?.join(EXEC_CGROUP))
}

/// There while the agent runs.
#[derive(Debug)]
pub struct ExecRoot {
    is_ours: bool,
}

impl ExecRoot {
    /// Makes the cgroup, if it is not there. Only one that is ours is removed at the end.
    ///
    /// # Errors
    /// No cgroup2, or no right to make one.
    pub fn make(is_ours: bool) -> Result<Self, AppError> {
        let path = path().map_err(AppError::Capture)?;
        match std::fs::create_dir(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                Err(AppError::ExecRoot { path, cause })
            }
            Ok(()) | Err(_) => Ok(Self { is_ours }),
        }
    }

    /// It is this process's from now on, or another's.
    pub fn own(&mut self, is_ours: bool) {
        self.is_ours = is_ours;
    }
}

impl Drop for ExecRoot {
    fn drop(&mut self) {
        if self.is_ours {
            remove();
        }
    }
}

/// Removes what is below it and empty: the kernel refuses the rest.
pub fn sweep() {
    let Ok(path) = path() else { return };
    for made in std::fs::read_dir(path).into_iter().flatten().flatten() {
        // A canary may be about to enter its own.
        if made.file_name() != canary::CGROUP {
            remove_tree(&made.path());
        }
    }
}

/// With what programs made below: systemd-nspawn puts its container into a cgroup of its own.
fn remove_tree(cgroup: &Path) {
    // Of a file of the kernel's there is nothing to be read.
    for below in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&below.path());
        }
    }
    // Busy while a program runs in it.
    let _ = std::fs::remove_dir(cgroup);
}

/// Removes it, unless a program still runs in it: then the next agent, or `toolgate detach`, does. Whether it did.
pub fn remove() -> bool {
    sweep();
    path().is_ok_and(|path| {
        canary::remove(&path.join(canary::CGROUP));
        std::fs::remove_dir(path).is_ok()
    })
}

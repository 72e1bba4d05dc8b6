//! The cgroup below which `toolgate exec` starts programs.

use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use toolgate_core::workload::EXEC_CGROUP;

use crate::capture::{CaptureError, cgroup};

fn path() -> Result<PathBuf, CaptureError> {
    Ok(cgroup::mount()?.join(EXEC_CGROUP))
}

/// Makes it, if it is not there.
///
/// # Errors
/// No cgroup2, or no right to make one.
pub fn make() -> anyhow::Result<()> {
    let path = path()?;
    match std::fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error)
            .with_context(|| format!("cannot make cgroup `{}`; the agent needs root", path.display())),
        Ok(()) | Err(_) => Ok(()),
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

/// Removes it, unless a program still runs in it.
pub fn remove() {
    sweep();
    if let Ok(path) = path() {
        // Busy: the next agent, or `toolgate detach`, removes it.
        let _ = std::fs::remove_dir(path);
    }
}

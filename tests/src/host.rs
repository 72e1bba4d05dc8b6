//! One agent a host: tests that start one, or attach programs, take turns, also across test binaries.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};

static TURN: Mutex<()> = Mutex::new(());

/// This test's turn on the host; the next begins when it is dropped.
#[derive(Debug)]
pub struct Host {
    _in_this_process: MutexGuard<'static, ()>,
    _in_all_processes: File,
}

impl Host {
    /// Waits for this test's turn. Fails without root: a privileged test never skips.
    ///
    /// # Errors
    /// No root; the lock file cannot be made.
    pub fn turn() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this test needs root: run `cargo xtask test`");
        // A test that failed in its turn has left nothing behind: guards clean up.
        let in_this_process = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::env::temp_dir().join("toolgate-tests.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open `{}`", path.display()))?;
        file.lock().context("cannot take this host's lock")?;
        Ok(Self { _in_this_process: in_this_process, _in_all_processes: file })
    }
}

/// For what would harm a host: an error anywhere but inside a virtual machine of `cargo xtask vm`.
///
/// # Errors
/// It is a host.
pub fn in_guest() -> Result<()> {
    let first = std::fs::read("/proc/1/cmdline").context("cannot read what the first process is")?;
    let guest = String::from_utf8_lossy(&first).contains("\0vm-guest");
    ensure!(guest, "this test is for a virtual machine: run `cargo xtask vm`");
    Ok(())
}

/// Where cgroup2 is mounted.
///
/// # Errors
/// It is not mounted.
pub fn cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
    let found = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
        [_device, folder, "cgroup2", ..] => Some(PathBuf::from(folder)),
        _other => None,
    });
    found.context("cgroup2 is not mounted")
}

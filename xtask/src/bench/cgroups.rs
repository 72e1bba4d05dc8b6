//! The cgroups that the callers' connections are of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::stage::CALLERS;

/// Who is named in the agent's configuration, below the root of its cgroups.
pub(super) const CGROUPS: &str = "toolgate-bench";

/// Where cgroup2 is mounted.
pub(super) fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
    let root = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
        [_device, folder, "cgroup2", ..] => Some(PathBuf::from(folder)),
        _other => None,
    });
    root.context("cgroup2 is not mounted")
}

/// The callers' cgroups. Dropped: they are removed, once they are empty.
pub(super) struct Cgroups {
    folder: PathBuf,
    /// `cgroup.procs` of each.
    pub(super) procs: Vec<PathBuf>,
    /// The same of the cgroup that the bench is in.
    pub(super) home: PathBuf,
}

impl Cgroups {
    /// `host`: the root of all cgroups of the host that they are of.
    pub(super) fn make(host: &Path) -> Result<Self> {
        let root = cgroup2()?;
        let own = fs::read_to_string("/proc/self/cgroup").context("cannot read `/proc/self/cgroup`")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("in no cgroup")?;
        let home = root.join(own).join("cgroup.procs");
        let folder = host.join(CGROUPS);
        let mut made = Self { folder: folder.clone(), procs: Vec::new(), home };
        made.remove_all()?; // of a bench that was killed
        for caller in 0..CALLERS {
            let cgroup = folder.join(format!("c{caller}"));
            fs::create_dir_all(&cgroup).with_context(|| format!("cannot make `{}`", cgroup.display()))?;
            made.procs.push(cgroup.join("cgroup.procs"));
        }
        Ok(made)
    }

    pub(super) fn remove(self) -> Result<()> {
        self.remove_all()
    }

    fn remove_all(&self) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        for caller in 0..CALLERS {
            let cgroup = self.folder.join(format!("c{caller}"));
            if cgroup.exists() {
                fs::remove_dir(&cgroup).with_context(|| format!("cannot remove `{}`", cgroup.display()))?;
            }
        }
        fs::remove_dir(&self.folder).with_context(|| format!("cannot remove `{}`", self.folder.display()))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _reported_by_strike = self.remove_all();
    }
}

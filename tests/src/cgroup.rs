//! A cgroup of a test's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{cgroup2, wait};

/// Removed when dropped; the processes that it holds are gone by then.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Below the cgroup2 root, with a name of this test process.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        Self::at(cgroup2()?.join(format!("toolgate-test-{}-{name}", std::process::id())))
    }

    /// Below this one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn below(&self, name: &str) -> Result<Self> {
        Self::at(self.0.join(name))
    }

    /// Takes over one that somebody else made.
    #[must_use]
    pub fn made_by_another(path: PathBuf) -> Self {
        Self(path)
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        Ok(Self(path))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// As the configuration names it: below the cgroup2 root.
    ///
    /// # Errors
    /// cgroup2 is not mounted.
    pub fn name(&self) -> Result<String> {
        Ok(self.0.strip_prefix(cgroup2()?)?.display().to_string())
    }

    /// Its id, as the kernel records it.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<u64> {
        Ok(toolgate::capture::cgroup::id(&self.0)?)
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// It has ended.
    pub fn add(&self, process: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).context("cannot enter a cgroup")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has ended leaves its cgroup a moment later.
        let _reported_by_the_next_test =
            wait::until("an empty cgroup", || Ok(fs::remove_dir(&self.0).is_ok().then_some(())));
    }
}

//! How many process ids the host has, as a test needs it.

use std::fs;

use anyhow::{Context as _, Result};

const PATH: &str = "/proc/sys/kernel/pid_max";

/// Put back when dropped.
#[derive(Debug)]
pub struct PidMax(String);

impl PidMax {
    /// Sets the first number that no process gets. Those that have higher ones already keep them.
    ///
    /// # Errors
    /// No root.
    pub fn set(max: u32) -> Result<Self> {
        let before = fs::read_to_string(PATH).context("cannot read `kernel.pid_max`")?;
        fs::write(PATH, max.to_string()).context("cannot set `kernel.pid_max`")?;
        Ok(Self(before))
    }
}

impl Drop for PidMax {
    fn drop(&mut self) {
        let _told_by_later_tests = fs::write(PATH, &self.0);
    }
}

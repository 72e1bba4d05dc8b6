//! A setting of the kernel's, as a test needs it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

/// Put back when dropped, and when this process is killed: by another one, which waits for the end of its input.
#[derive(Debug)]
pub(crate) struct Setting(Child);

impl Setting {
    /// Writes `value` to a file below `/proc/sys`. What is the network namespace's is that of this thread's.
    ///
    /// # Errors
    /// No root, or no such value.
    pub(crate) fn set(path: &str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", "read _; echo \"$1\" > \"$0\"", path, before.trim()]);
        // In a process group of its own: what ends a test from a terminal does not end it.
        let keeper = keeper.stdin(Stdio::piped()).process_group(0).spawn();
        let setting = Self(keeper.context("cannot start `sh`")?);
        fs::write(path, value).with_context(|| format!("cannot set `{path}`"))?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _told_by_later_tests = self.0.wait();
    }
}

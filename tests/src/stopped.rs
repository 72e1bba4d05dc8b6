//! Threads that stand still while the other ones of their process go on (ptrace(2)).

use std::fs;
use std::marker::PhantomData;

use anyhow::{Context as _, Result, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// They go on when it is dropped. That is for the thread that stopped them to do.
#[derive(Debug)]
pub struct Stopped {
    threads: Vec<Pid>,
    _not_sent: PhantomData<*const ()>,
}

impl Stopped {
    /// Stops all threads of a process whose name is one.
    ///
    /// # Errors
    /// There is none; or no root.
    pub fn threads(process: u32, is_one: impl Fn(&str) -> bool) -> Result<Self> {
        let mut stopped = Self { threads: Vec::new(), _not_sent: PhantomData };
        for task in fs::read_dir(format!("/proc/{process}/task")).context("the process has ended")? {
            let task = task.context("the process has ended")?;
            if !is_one(fs::read_to_string(task.path().join("comm")).context("a thread has ended")?.trim()) {
                continue;
            }
            let thread = Pid::from_raw(task.file_name().to_string_lossy().parse().context("no number")?);
            ptrace::seize(thread, ptrace::Options::empty()).context("cannot hold a thread")?;
            stopped.threads.push(thread);
            ptrace::interrupt(thread).context("cannot stop a thread")?;
            waitpid(thread, Some(WaitPidFlag::__WALL)).context("cannot wait for a thread")?;
        }
        ensure!(!stopped.threads.is_empty(), "no thread has such a name");
        Ok(stopped)
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for &thread in &self.threads {
            let _ended_meanwhile = ptrace::detach(thread, None);
        }
    }
}

//! What an agent's process holds on to: for tests that show that nothing is left.

use std::fs;

use anyhow::{Context as _, Result};

use crate::Agent;

/// Counts from `/proc/PID`, at one moment: while something is under way there may be some more.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    /// What it holds now.
    ///
    /// # Errors
    /// It is gone.
    pub fn by(agent: &Agent) -> Result<Self> {
        let count = |what: &str| -> Result<usize> {
            let folder = format!("/proc/{}/{what}", agent.process().id());
            Ok(fs::read_dir(&folder).with_context(|| format!("cannot read `{folder}`"))?.count())
        };
        Ok(Self { descriptors: count("fd")?, threads: count("task")? })
    }

    /// Whether nothing was added: `before` may have been counted while something else was under way.
    #[must_use]
    pub fn is_within(self, before: Self) -> bool {
        self.descriptors <= before.descriptors && self.threads <= before.threads
    }
}

//! The load generator, as it is told what to do. The other side: `tool/generator.rs`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::hosts::Host;
use crate::process::Process;

/// What it is told, a line of JSON each.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order<'o> {
    Open(Open<'o>),
    Run { millis: u64, anew: bool },
    Hold { count: usize, streams: bool },
    Listen { count: usize, read: bool },
    Hear { millis: u64 },
    Close,
}

impl Order<'_> {
    /// As it is told.
    pub(super) fn text(&self) -> Result<String> {
        serde_json::to_string(self).context("an order is no JSON")
    }
}

/// Connections to be opened, and what is asked on them.
#[derive(Serialize)]
pub(super) struct Open<'o> {
    pub(super) address: SocketAddr,
    /// What is asked for by App ID.
    pub(super) app_id: Option<&'o str>,
    pub(super) kind: &'o str,
    pub(super) bytes: usize,
    pub(super) connections: usize,
    /// `cgroup.procs` of those that they are opened from, in turn.
    pub(super) from: &'o [PathBuf],
    pub(super) home: &'o Path,
    pub(super) warm_up_millis: u64,
}

/// What it answers.
#[derive(Deserialize, Clone, Copy)]
pub(super) struct Done {
    pub(super) requests: u32,
    pub(super) p50_ns: f64,
    pub(super) p99_ns: f64,
    pub(super) per_second: f64,
}

/// The running load generator.
pub(super) struct Load(Process);

impl Load {
    /// `None`: on this host.
    pub(super) fn start(host: Option<&Host>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
        command.arg("bench-generate");
        if let Some(host) = host {
            command = host.networked(&command);
        }
        Process::start_to_ask("the load generator", &mut command).map(Self)
    }

    pub(super) fn obey(&mut self, order: &Order<'_>) -> Result<Done> {
        self.obey_text(&order.text()?)
    }

    /// The same with an order that is text already.
    pub(super) fn obey_text(&mut self, order: &str) -> Result<Done> {
        let answer = self.0.ask(order)?;
        serde_json::from_str(&answer).with_context(|| format!("the load generator says: {answer}"))
    }
}

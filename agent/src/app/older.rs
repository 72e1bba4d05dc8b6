//! Looks for connections that are older than the capture of their cgroup, once for each cgroup.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Node, plan};
use crate::config::Existing;
use crate::existing::{self, Search};

/// Connections that are named in the log; the others are only counted.
const NAMED_MAX: usize = 5;

/// The cgroups that were looked at.
pub(super) struct Older {
    known: HashSet<u64>,
    agents: Vec<u32>,
}

impl Older {
    /// `is_heir`: another agent, the parent, hands over to this one; its connections to servers are its own.
    pub(super) fn new(is_heir: bool) -> Self {
        let parent = is_heir.then(std::os::unix::process::parent_id);
        Self { known: HashSet::new(), agents: std::iter::once(std::process::id()).chain(parent).collect() }
    }

    /// Looks at what is captured since the last call. On a thread of its own: it reads all of `/proc` that it needs.
    pub(super) fn look(&mut self, node: &Arc<Node>) {
        let resources = node.resources.load();
        let planned = plan::plan(&node.agent, &resources, node.mode, &node.namespaces, &node.names);
        // `follow` has told of it.
        let Ok(mut plan) = planned else { return };
        let present: HashSet<u64> = plan.cgroups.iter().map(|cgroup| cgroup.id).collect();
        plan.cgroups.retain(|cgroup| !self.known.contains(&cgroup.id));
        self.known = present;
        if plan.cgroups.is_empty() {
            return;
        }
        let (node, agents) = (Arc::clone(node), self.agents.clone());
        tokio::task::spawn_blocking(move || {
            let end = node.agent.capture.existing == Existing::End;
            let bypassed = node.bypasses.names();
            let search = Search {
                plan: &plan,
                listener_port: node.agent.listen.outbound,
                agents: &agents,
                bypassed: &bypassed,
                end,
            };
            match search.run() {
                Ok(found) => report(&node, &found),
                Err(error) => tracing::error!(%error, "connections older than their capture are not known"),
            }
        });
    }
}

fn report(node: &Node, found: &[existing::Older]) {
    if found.is_empty() {
        return;
    }
    let result = |one: &existing::Older| match &one.ended {
        None => "reported",
        Some(Ok(())) => "ended",
        Some(Err(_)) => "not_ended",
    };
    for of in ["reported", "ended", "not_ended"] {
        let count = found.iter().filter(|one| result(one) == of).count();
        if count > 0 {
            node.metrics.older_found(of, count);
        }
    }
    tracing::warn!(
        connections = found.len(),
        "found connections of captured processes that are older than their capture: nothing is seen of them"
    );
    for one in found.iter().take(NAMED_MAX) {
        let (pid, result) = (one.pid.unwrap_or_default(), result(one));
        tracing::warn!(cgroup = %one.cgroup, pid, from = %one.local, to = %one.remote, result, "older than its capture");
    }
    let unsupported = |one: &existing::Older| matches!(&one.ended, Some(Err(error)) if error.kind() == std::io::ErrorKind::Unsupported);
    if found.iter().any(unsupported) {
        tracing::error!(
            "capture.existing: end: this kernel ends no connections (CONFIG_INET_DIAG_DESTROY); restart the captured units"
        );
    }
}

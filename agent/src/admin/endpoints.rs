//! The endpoints of servers, as an operator is shown them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;
use toolgate_core::decision::{Place, Server};

use crate::app::Node;
use crate::forward::{candidates_now, refusal};
use crate::names::Question;
use crate::replicas::State;

/// One endpoint, or a name that leads nowhere.
#[derive(Serialize)]
pub(super) struct Endpoint {
    address: String,
    /// `well`, `left_out`, `tried`, `refused` or `unresolved`; `only`: the only one, whose health nobody needs; `uncalled` yet.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_left: Option<u64>,
    /// Calls that it has not answered yet, where a server has several.
    outstanding: usize,
    ejections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// All of a server that is not local.
pub(super) fn all(server: &Server, node: &Node) -> Vec<Endpoint> {
    let plain = |address: String, state| Endpoint {
        address,
        state,
        seconds_left: None,
        outstanding: 0,
        ejections: 0,
        reason: None,
    };
    let now = Instant::now();
    let mut all = Vec::new();
    let candidates = candidates_now(server.endpoints(), &node.names);
    let is_only = candidates.len() == 1;
    let unwatched = if is_only { "only" } else { "uncalled" };
    for candidate in candidates {
        let address = candidate.address;
        let refused = match &server.place {
            Place::External(external) => refusal(external, address, &node.namespaces),
            Place::Local { .. } | Place::Peer { .. } => None,
        };
        let mut one = plain(address.to_string(), if refused.is_some() { "refused" } else { unwatched });
        one.reason = refused.map(|why| why.to_string());
        let watched = node.replicas.at(&server.identity, address).filter(|_| refused.is_none() && !is_only);
        if let Some(replica) = watched {
            let shown = replica.shown(now);
            (one.outstanding, one.ejections) = (shown.outstanding, shown.ejections);
            one.reason = one.reason.or(shown.reason.map(|reason| reason.to_string()));
            match shown.state {
                State::Well => one.state = "well",
                State::Ejected { left } => {
                    (one.state, one.seconds_left) = ("left_out", Some(left.as_secs()));
                }
                State::Probed => one.state = "tried",
            }
        }
        all.push(one);
    }
    // Each once: a name may stand there with several ports.
    let questions: BTreeSet<Question> = server.endpoints().iter().filter_map(Question::of).collect();
    for question in questions {
        let Some(known) = node.names.known(&question) else { continue };
        let (state, reason) = match (&known.error, known.beyond) {
            (Some(error), _) => ("unresolved", error.to_string()),
            (None, 0) => continue,
            (None, beyond) => {
                ("refused", format!("{beyond} more addresses are not used (addresses_per_name_max)"))
            }
        };
        all.push(Endpoint { reason: Some(reason), ..plain(question.to_string(), state) });
    }
    all
}

/// Of servers that are not local.
pub(super) fn metrics(out: &mut String, node: &Node) {
    let resources = node.resources.load();
    let servers = resources.servers.iter().filter(|server| !server.endpoints().is_empty());
    let all: Vec<_> = servers.map(|server| (&server.identity, all(server, node))).collect();
    if all.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP toolgate_endpoint_up Whether endpoints of servers with several answer, as calls tell\n# TYPE toolgate_endpoint_up gauge"
    );
    for (server, endpoints) in &all {
        for Endpoint { address, state, .. } in endpoints {
            if matches!(*state, "only" | "uncalled") {
                continue;
            }
            let up = u8::from(*state == "well");
            let _ = writeln!(out, "toolgate_endpoint_up{{target=\"{server}\",endpoint=\"{address}\"}} {up}");
        }
    }
    let _ = writeln!(
        out,
        "# HELP toolgate_endpoint_ejections_total How often endpoints were left out for failing\n# TYPE toolgate_endpoint_ejections_total counter"
    );
    for (server, endpoints) in &all {
        for Endpoint { address, ejections, .. } in endpoints {
            let _ = writeln!(
                out,
                "toolgate_endpoint_ejections_total{{target=\"{server}\",endpoint=\"{address}\"}} {ejections}"
            );
        }
    }
}

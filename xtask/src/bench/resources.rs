//! What the agents are told: the server, who may do what there, and each caller by its cgroup.

use std::net::SocketAddr;

use super::cgroups::CGROUPS;
use super::stage::CALLERS;

/// The App ID of the server.
pub(super) const SERVER: &str = "upstream";

/// Of an agent that has both ends.
pub(super) fn of_one(server: SocketAddr) -> String {
    of_server(server) + &workloads()
}

/// Of the agent in front of the server.
pub(super) fn of_server(server: SocketAddr) -> String {
    declared(&format!("local: {{ address: \"{server}\" }}")) + &policy("server")
}

/// Of the agent that captures the callers; `endpoint` is the other one.
pub(super) fn of_callers(server: SocketAddr, endpoint: SocketAddr) -> String {
    let place = format!("peer: {{ address: \"{server}\", endpoints: [\"{endpoint}\"] }}");
    declared(&place) + &policy("caller") + &workloads()
}

/// The App IDs of the callers.
pub(super) fn callers() -> String {
    (0..CALLERS).map(caller).collect::<Vec<_>>().join(",")
}

/// A Workload by its cgroup.
pub(super) fn workload(name: &str, cgroup: &str) -> String {
    format!(
        "---
apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: {name} }}
spec: {{ selectors: {{ cgroup: {cgroup} }} }}
"
    )
}

fn caller(number: usize) -> String {
    format!("caller-{number}")
}

fn workloads() -> String {
    (0..CALLERS).map(|number| workload(&caller(number), &format!("{CGROUPS}/c{number}"))).collect()
}

fn declared(place: &str) -> String {
    format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: {SERVER} }}
spec:
  {place}
  path: /mcp
"
    )
}

fn policy(at: &str) -> String {
    format!(
        "---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: bench }}
spec:
  at: {at}
  rules:
  - name: echo
    effect: allow
    callers: [\"caller-*\"]
    servers: [{SERVER}]
    tools: [echo]
    arguments: {{ message: {{ type: string, max_length: 1000000 }} }}
  - name: store
    effect: allow
    callers: [\"caller-*\"]
    servers: [{SERVER}]
    tools: [store]
"
    )
}

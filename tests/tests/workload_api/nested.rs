//! An agent whose SVIDs come from another agent's socket.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, resources, text};
use toolgate_tests::{Agent, Connection, Host, Netns, Node, Server, Setup, free_address, wait};

/// Lives so short that several end during a test.
const SHORT: &str = "identity: { svid_ttl: 6s, issuing_ttl: 60s, root_ttl: 300s, overlap: 5s }\n";

/// A host with a server, whose socket gives SVIDs to the agent of another one.
struct Nested {
    servers: Agent,
    callers: Node,
    address: SocketAddr,
    _server: Server,
}

fn nested(workload: &str) -> Result<Nested> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let [here, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(here, 0))?;
    let address = server.address;
    let peer = SocketAddr::new(here, free_address()?.port());
    // The other agent is the only process of root's that asks.
    let own = format!("{}\n---\napiVersion: toolgate/v1\nkind: Workload\n{workload}\n", resources(address));
    let setup =
        Setup { resources: &own, peer: Some(peer), workload_api: true, more: SHORT, ..Setup::default() };
    let servers = Agent::start_in(host, setup)?;
    let of_callers = format!(
        "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: docs }}\n\
         spec: {{ peer: {{ address: \"{address}\", endpoints: [\"{peer}\"] }} }}\n"
    );
    let socket = super::socket(&servers);
    let more = format!("identity: {{ source: workload-api, socket: \"unix://{}\" }}\n", socket.display());
    let callers = Node::start(netns, Setup { resources: &of_callers, more: &more, ..Setup::default() })?;
    Ok(Nested { servers, callers, address, _server: server })
}

#[test]
fn an_agent_has_its_svids_from_another_agents_socket_and_calls_go_on_while_they_are_renewed() -> Result<()> {
    let nested = nested("metadata: { name: nested }\nspec: { selectors: { user: 0 }, agent_for: [reader] }")?;
    let mut caller = nested.callers.caller("reader")?;
    let mut connection = Connection::new(caller.connect(nested.address)?.stream, nested.address)?;
    let mut calls = 0;
    let lines = wait::until("calls by three SVIDs", || {
        calls += 1;
        let answered = connection.post(&call(calls, "echo", &json!({ "message": "x" })))?;
        ensure!(answered.status == 200 && !answered.text().contains("error"), "{}", answered.text());
        let lines = nested.servers.audit(usize::try_from(calls)?)?;
        let serials: BTreeSet<&str> = lines.iter().map(|line| text(line, "caller/svid")).collect();
        Ok((serials.iter().filter(|serial| !serial.is_empty()).count() >= 3).then_some(lines))
    })?;
    ensure!(lines.iter().all(|line| text(line, "decision") != "deny"), "{lines:#?}");
    Ok(())
}

#[test]
fn what_a_process_has_itself_opens_no_way_to_another_agent() -> Result<()> {
    // The Workload is the caller that policy permits: its process gets the caller's SVID, and is no agent.
    let nested = nested("metadata: { name: reader }\nspec: { selectors: { user: 0 } }")?;
    let mut caller = nested.callers.caller("reader")?;
    let mut connection = Connection::new(caller.connect(nested.address)?.stream, nested.address)?;
    let answered = connection.post(&call(1, "echo", &json!({ "message": "x" })))?;
    ensure!(answered.status == 502, "{} {}", answered.status, answered.text());
    nested.servers.process().line("is held by a process itself")?;
    Ok(())
}

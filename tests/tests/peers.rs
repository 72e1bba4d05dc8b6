//! Two hosts, an agent on each: from a caller on one to a server on the other it is mutual TLS, and both agents decide.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use toolgate::peer::server_name;
use toolgate_core::identity::Identity;
use toolgate_tests::scene::{call, resources, text};
use toolgate_tests::{Agent, Connection, Host, Netns, Node, Server, Setup, Sniffer, free_address, toolgate};

/// A word that must not be seen between the hosts.
const MARKER: &str = "a-word-that-only-the-two-ends-may-see";

/// A token by which a node of that name joins the agent's authority, for callers of these App IDs.
fn token(agent: &Agent, node: &str, app_ids: &str) -> Result<String> {
    let mut command = toolgate();
    command.args(["ca", "token", "--node", node, "--app-ids", app_ids, "--config"]).arg(agent.config());
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A host with a server and an authority, and another with callers, which has joined it.
struct Hosts {
    callers: Node,
    servers: Agent,
    server: Server,
}

impl Hosts {
    fn set(policy_of_callers: &str, more: &str) -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [here, _] = netns.link()?;
        let server = Server::at(SocketAddr::new(here, 0))?;
        let [peer, authority] = [free_address()?, free_address()?].map(|at| SocketAddr::new(here, at.port()));
        let of_servers = resources(server.address);
        let (peers, nodes) = (Some(peer), Some(authority));
        let setup = Setup { resources: &of_servers, peer: peers, authority: nodes, more, ..Setup::default() };
        let servers = Agent::start_in(host, setup)?;
        let address = server.address;
        let of_callers = format!(
            "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: docs }}\n\
             spec: {{ peer: {{ address: \"{address}\", endpoints: [\"{peer}\"] }} }}\n{policy_of_callers}"
        );
        let token = token(&servers, "callers", "reader,writer")?;
        let setup = Setup { resources: &of_callers, token: &token, ..Setup::default() };
        let callers = Node::start(netns, setup)?;
        Ok(Self { callers, servers, server })
    }
}

/// The first lines of messages, which the operator's own acts stand between.
fn decided(agent: &Agent, count: usize) -> Result<Vec<Value>> {
    let is_message = |line: &&Value| line.get("decision").is_some();
    let what = format!("{count} decided messages");
    let lines = agent.audit_until(&what, |lines| lines.iter().filter(is_message).count() >= count)?;
    Ok(lines.iter().filter(is_message).cloned().collect())
}

#[test]
fn a_caller_on_one_host_calls_a_server_on_the_other() -> Result<()> {
    let hosts = Hosts::set("", "")?;
    let wire = Sniffer::on(hosts.callers.netns.device())?;
    let mut caller = hosts.callers.caller("reader")?;
    let mut connection = Connection::new(caller.connect(hosts.server.address)?.stream, hosts.server.address)?;
    let answered = connection.post(&call(1, "echo", &json!({ "message": MARKER })))?;
    assert_eq!(answered.status, 200);
    let reached = hosts.server.request()?;
    assert!(String::from_utf8_lossy(&reached.body).contains(MARKER));
    let denied = connection.post(&call(2, "delete_everything", &json!({})))?;
    assert!(denied.text().contains("policy does not permit this"), "{}", denied.text());

    // What the handshake says in the clear shows that something was seen.
    wire.sees(server_name(&Identity::new("example.org", "default", "docs")?).as_bytes())?;
    assert!(!wire.saw(MARKER.as_bytes()), "it was on the wire");
    let there = decided(&hosts.servers, 2)?;
    let tools: Vec<_> = there.iter().map(|line| (text(line, "tool"), text(line, "decision"))).collect();
    assert_eq!(tools, [("echo", "permit"), ("delete_everything", "deny")]);
    for line in &there {
        assert_eq!(text(line, "caller/spiffe_id"), "spiffe://example.org/ns/default/reader");
        assert!(line.pointer("/caller/pid").is_none(), "{line}");
    }
    let here = decided(&hosts.callers.agent, 2)?;
    assert!(here.iter().all(|line| text(line, "decision") == "permit"), "{here:#?}");
    let traces =
        |lines: &[Value]| lines.iter().map(|line| text(line, "trace_id").to_owned()).collect::<Vec<_>>();
    assert_eq!(traces(&here), traces(&there), "both agents' lines are of one trace");
    assert_ne!(text(&here[0], "trace_id"), text(&here[1], "trace_id"));
    Ok(())
}

#[test]
fn without_tls_the_same_would_be_seen() -> Result<()> {
    let _host = Host::turn()?;
    let netns = Netns::new()?;
    let [here, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(here, 0))?;
    let wire = Sniffer::on(netns.device())?;
    let mut connection =
        netns.within(|| Ok(Connection::new(TcpStream::connect(server.address)?, server.address)?))?;
    connection.post(&call(1, "echo", &json!({ "message": MARKER })))?;
    wire.sees(MARKER.as_bytes())
}

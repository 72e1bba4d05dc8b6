//! Two hosts, an agent on each: from a caller on one to a server on the other it is mutual TLS, and both agents decide.

mod attacks;
mod clocks;
mod direct;
mod hosts;
mod impostors;
mod lanes;
mod life;
mod outages;
mod rules;
mod upgrades;

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use toolgate::peer::server_name;
use toolgate_core::identity::Identity;
use toolgate_tests::scene::{call, text};
use toolgate_tests::{Connection, Host, Netns, SdkClient, SdkServer, Server, Sniffer};

use hosts::{Hosts, Wishes, decided};

/// A word that must not be seen between the hosts.
const MARKER: &str = "a-word-that-only-the-two-ends-may-see";

#[test]
fn a_caller_on_one_host_calls_a_server_on_the_other() -> Result<()> {
    let hosts = Hosts::set()?;
    let wire = Sniffer::on(hosts.callers.netns.device())?;
    let mut caller = hosts.callers.caller("reader")?;
    let mut connection = Connection::new(caller.connect(hosts.address)?.stream, hosts.address)?;
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
        assert_eq!(text(line, "direction"), "inbound", "{line}");
    }
    let here = decided(&hosts.callers.agent, 2)?;
    assert!(here.iter().all(|line| text(line, "decision") == "permit"), "{here:#?}");
    assert!(here.iter().all(|line| text(line, "direction") == "outbound"), "{here:#?}");
    hosts.servers.counts("toolgate_requests_total", &["direction=\"inbound\""], 2.0)?;
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
        netns.within(|| Connection::new(TcpStream::connect(server.address)?, server.address))?;
    connection.post(&call(1, "echo", &json!({ "message": MARKER })))?;
    wire.sees(MARKER.as_bytes())
}

#[test]
fn an_unmodified_python_client_notices_nothing() -> Result<()> {
    notices_nothing(SdkClient::start)
}

#[test]
fn an_unmodified_typescript_client_notices_nothing() -> Result<()> {
    notices_nothing(SdkClient::typescript)
}

fn notices_nothing(client: fn(Command, &str) -> Result<SdkClient>) -> Result<()> {
    let start = |here| SdkServer::at(here).map(|server| (server.address, server));
    let policy = "---
apiVersion: toolgate/v1
kind: Policy
metadata: { name: outgoing }
spec:
  at: caller
  rules:
  - { name: no-files, effect: deny, callers: [\"*\"], servers: [docs], tools: [read_file] }
  - { name: the-rest, effect: allow, callers: [\"*\"], servers: [docs], tools: [\"*\"] }
";
    let mut hosts = Hosts::with(start, Wishes { policy_of_callers: policy, ..Wishes::default() })?;
    let mut client = client(hosts.callers.exec("reader"), &hosts.server.url())?;
    client.call("add", &json!({ "a": 1, "b": 2 }))?;
    assert_eq!(client.answer("result")?, "3");
    // The server's end has a rule for it, and the caller's end none; and the other way round.
    client.call("read_file", &json!({ "path": "/srv/docs/a" }))?;
    let denied = client.answer("error")?;
    assert!(denied.as_str().is_some_and(|text| text.contains("policy does not permit")), "{denied}");
    client.call("add", &json!({ "a": 1, "b": 2000 }))?;
    let denied = client.answer("error")?;
    assert!(denied.as_str().is_some_and(|text| text.contains("these arguments")), "{denied}");
    assert_eq!(client.tools()?, ["echo", "add", "slow_count"], "what both ends show");
    client.call("slow_count", &json!({ "steps": 2 }))?;
    for step in 1..=2 {
        // Each is seen before the server is let go on to the next.
        assert_eq!(client.answer("progress")?.as_f64(), Some(f64::from(step)));
        hosts.server.release()?;
    }
    assert_eq!(client.answer("result")?, "counted to 2");
    assert_eq!(hosts.server.calls()?, ["add", "slow_count"]);
    Ok(())
}

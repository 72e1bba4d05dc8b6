//! Who calls is told by the kernel alone.

use std::net::TcpStream;

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::netns::in_cgroup;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Caller, Cgroup, Connection, Host, Server, Setup, free_address};

use crate::rig::{Stage, ask, is_dapr_error};

/// All that has ever said who calls, to Dapr or to proxies; each names `reader`.
const FORGED: &str = "dapr-caller-app-id: reader\r\ndapr-caller-namespace: default\r\nDapr-Callee-App-Id: docs\r\n\
    dapr_caller_app_id: reader\r\nx-toolgate-caller: reader\r\nX-Forwarded-Client-Cert: URI=spiffe://example.org/ns/default/reader\r\n\
    X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\ndapr-api-token: the-token-of-reader\r\n";
const APP: &str = "dapr-app-id: docs\r\n";

#[test]
fn no_header_makes_another_caller() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let body = call(1, "echo", &json!({}));
    let headers = format!("{APP}{FORGED}");
    let (_stranger, mut connection) = stage.caller("stranger")?;
    let reply = ask(&mut connection, stage.door, ("POST", "/mcp"), &headers, &body)?;
    ensure!(!is_result(&reply)? && reply.text().contains("policy does not permit"), "{}", reply.text());
    ensure!(stage.scene.server.requests_now().is_empty());
    // Who may is not kept from it by them, and they stay here.
    let (_reader, mut connection) = stage.caller("reader")?;
    ensure!(is_result(&ask(&mut connection, stage.door, ("POST", "/mcp"), &headers, &body)?)?);
    let arrived = stage.scene.server.request()?.head.to_lowercase();
    for word in ["dapr", "toolgate", "forwarded", "spiffe", "token"] {
        ensure!(!arrived.contains(word), "{arrived}");
    }
    let lines = stage.scene.agent.audit(2)?;
    let callers: Vec<_> = lines.iter().map(|line| text(line, "caller/app_id")).collect();
    assert_eq!(callers, ["stranger", "reader"]);
    Ok(())
}

#[test]
fn who_is_not_captured_is_told_so() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    for (method, target) in
        [("POST", "/mcp"), ("POST", "/v1.0/invoke/docs/method/mcp"), ("GET", "/v1.0/healthz")]
    {
        let mut outside = Connection::new(TcpStream::connect(stage.door)?, stage.door)?;
        let body = if method == "POST" { call(1, "echo", &json!({})) } else { Vec::new() };
        let reply = ask(&mut outside, stage.door, (method, target), &format!("{APP}{FORGED}"), &body)?;
        is_dapr_error(&reply, 403, "this process is not captured")?;
    }
    ensure!(stage.scene.server.requests_now().is_empty());
    stage.scene.agent.counts("toolgate_connections_refused_total", &["reason=\"no_record\""], 3.0)
}

#[test]
fn who_is_captured_and_no_workload_is_denied() -> Result<()> {
    let host = Host::turn()?;
    let (cgroup, door, server) = (Cgroup::new("nobody.slice")?, free_address()?, Server::start()?);
    let capture = format!("{{ cgroups: [\"{}\"] }}", cgroup.name()?);
    let resources = toolgate_tests::scene::resources(server.address);
    let setup = Setup { capture: &capture, resources: &resources, invoke: Some(door), ..Setup::default() };
    let agent = toolgate_tests::Agent::start_in(host, setup)?;
    let mut caller = Caller::start(in_cgroup(&cgroup))?;
    let mut connection = caller.http(door)?;
    let reply = ask(
        &mut connection,
        door,
        ("POST", "/mcp"),
        &format!("{APP}{FORGED}"),
        &call(1, "echo", &json!({})),
    )?;
    ensure!(reply.text().contains("not a known workload") && !is_result(&reply)?, "{}", reply.text());
    let mut connection = caller.http(door)?;
    is_dapr_error(
        &ask(&mut connection, door, ("GET", "/v1.0/metadata"), "", b"")?,
        403,
        "not a known workload",
    )?;
    ensure!(server.requests_now().is_empty());
    let lines = agent.audit(2)?;
    ensure!(lines.iter().all(|line| text(line, "reason") == "unidentified_caller"), "{lines:#?}");
    Ok(())
}

/// A web page in a captured browser, which had its own name resolve to loopback, may ask what it likes: but by that name.
#[test]
fn another_host_than_the_door_itself_is_refused() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let port = stage.door.port();
    for host in [
        format!("evil.example:{port}"),
        "evil.example".to_owned(),
        "localhost:1".to_owned(),
        "docs".to_owned(),
    ] {
        let (_caller, mut connection) = stage.caller("reader")?;
        let headers = format!("Host: {host}\r\n");
        let target = "/v1.0/invoke/docs/method/mcp";
        let reply =
            ask(&mut connection, stage.door, ("POST", target), &headers, &call(1, "echo", &json!({})))?;
        is_dapr_error(&reply, 403, "Host header")?;
    }
    ensure!(stage.scene.server.requests_now().is_empty());
    Ok(())
}

#[test]
fn what_is_no_http_is_closed() -> Result<()> {
    let stage = Stage::set(Setup {
        capture: "{ unrecognised: pass, undeclared: dangerous_allow }",
        ..Setup::default()
    })?;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"hello\r\n"] {
        let (_caller, mut connection) = stage.caller("reader")?;
        connection.send(bytes)?;
        ensure!(connection.rest().unwrap_or_default().is_empty());
    }
    let lines = stage.scene.agent.audit(2)?;
    ensure!(lines.iter().all(|line| text(line, "reason") == "opaque"), "{lines:#?}");
    Ok(())
}

//! A session is of the revision that its server has opened it in, whether its requests say so or not.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{initialize, message, resources, text};
use toolgate_tests::{Agent, Connection, Peer, Scene, Setup};

/// Opens a session in that revision: its header line.
fn open(scene: &Scene, client: &mut Connection, revision: &str) -> Result<String> {
    scene.server.answers("initialize", "", &json!({ "protocolVersion": revision, "capabilities": {} }));
    let opened = client.post(&initialize())?;
    scene.server.request()?;
    Ok(format!("Mcp-Session-Id: {}\r\n", opened.header("mcp-session-id").context("no session")?))
}

fn says(revision: &str) -> String {
    if revision.is_empty() { String::new() } else { format!("MCP-Protocol-Version: {revision}\r\n") }
}

#[test]
fn what_a_session_may_say_is_of_its_revision() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut client) = scene.reader()?;
    let tasks = message(1, "tasks/list", &json!({}));
    let tools = message(1, "tools/list", &json!({}));
    /// The session's revision, the header, the message, and the audit's reason.
    type Row<'r> = (&'r str, &'r str, &'r [u8], &'r str);
    let table: [Row<'_>; 13] = [
        ("2025-11-25", "", &tasks, "permitted"),
        ("2025-11-25", "2025-11-25", &tasks, "permitted"),
        ("2025-03-26", "", &tasks, "method_unknown"),
        ("2025-03-26", "", &tools, "permitted"),
        ("2025-06-18", "2025-06-18", &tools, "permitted"),
        ("2025-06-18", "", &tools, "permitted"),
        ("2025-06-18", "2025-11-25", &tools, "revision_mismatch"),
        ("2025-06-18", "2025-11-25", &tasks, "revision_mismatch"),
        ("2025-11-25", "2025-03-26", &tools, "revision_mismatch"),
        ("2025-11-25", "1999-01-01", &tools, "revision_mismatch"),
        // Of one that is not known here nothing is known.
        ("2025-01-01", "", &tasks, "permitted"),
        ("2025-01-01", "2025-01-01", &tasks, "permitted"),
        ("2025-01-01", "2025-11-25", &tasks, "permitted"),
    ];
    for (of, header, body, reason) in table {
        let row = format!("{of}, {header:?}: {reason}");
        let session = open(&scene, &mut client, of)?;
        client.request("POST", &(session + &says(header)), body)?;
        let reply = client.reply()?;
        let expected = if reason == "revision_mismatch" { 400 } else { 200 };
        ensure!(reply.status == expected, "{row}: {}{}", reply.head, reply.text());
        let is_error = reply.message()?.get("error").is_some();
        ensure!(is_error == (reason != "permitted"), "{row}: {}", reply.text());
        ensure!(scene.server.requests_now().len() == usize::from(!is_error), "{row}");
        let is_it = |line: &Value| text(line, "reason") == reason;
        scene.agent.audit_until(&row, |lines| lines.last().is_some_and(is_it))?;
    }
    Ok(())
}

#[test]
fn streams_and_ends_are_of_the_sessions_revision() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut client) = scene.reader()?;
    let session = open(&scene, &mut client, "2025-06-18")?;
    for method in ["GET", "DELETE"] {
        client.request(method, &(session.clone() + &says("2025-11-25")), b"")?;
        ensure!(client.reply()?.status == 400, "{method}");
    }
    ensure!(scene.server.requests_now().is_empty());
    client.request("DELETE", &(session + &says("2025-06-18")), b"")?;
    ensure!(client.reply()?.status == 200, "its twin");
    Ok(())
}

/// Elicitation came with 2025-06-18.
#[test]
fn what_a_server_asks_on_a_stream_is_of_the_sessions_revision() -> Result<()> {
    for (revision, passes) in [("2025-03-26", false), ("2025-06-18", true)] {
        let peer = Peer::start()?;
        let rule = "  - { name: asked, effect: allow, callers: [reader], servers: [docs], server_requests: [elicitation] }\n";
        elicits(&(resources(peer.address) + rule), &peer, revision, passes)?;
    }
    Ok(())
}

/// Opens a session by an event stream, and a GET stream in it, on which the server elicits.
fn elicits(resources: &str, peer: &Peer, revision: &str, passes: bool) -> Result<()> {
    let agent = Agent::start(Setup { resources, ..Setup::default() })?;
    let mut caller = agent.caller("reader")?;
    let mut client = caller.http(peer.address)?;
    client.request("POST", "", &initialize())?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    let opened = json!({ "jsonrpc": "2.0", "id": 0, "result": { "protocolVersion": revision } });
    let event = format!("data: {opened}\n\n");
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nMcp-Session-Id: s\r\nConnection: close\r\n";
    server.send(format!("{head}Content-Length: {}\r\n\r\n{event}", event.len()).as_bytes())?;
    client.reply()?;
    client.request("GET", "Mcp-Session-Id: s\r\n", b"")?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    let asks = json!({ "jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {} });
    let note = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": {} });
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    server.send(format!("{head}data: {asks}\n\ndata: {note}\n\n").as_bytes())?;
    client.head()?;
    let expected = if passes { asks } else { note };
    ensure!(client.event()? == Some(format!("data: {expected}\n\n")), "{revision}");
    Ok(())
}

#[test]
fn the_next_agent_knows_the_revision_too() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut caller, mut client) = scene.reader()?;
    let session = open(&scene, &mut client, "2025-03-26")?;
    scene.agent.upgrade(&[])?;
    let mut client = caller.http(scene.server.address)?;
    for (header, status) in [("2025-11-25", 400), ("2025-03-26", 200)] {
        client.request("POST", &(session.clone() + &says(header)), &message(1, "tools/list", &json!({})))?;
        ensure!(client.reply()?.status == status, "{header}");
    }
    Ok(())
}

//! Streams and sessions: events go one by one, a session belongs to who got it, and who leaves is noticed.

use anyhow::{Context as _, Result};
use serde_json::json;
use toolgate_tests::scene::{call, initialize, is_result, resources, text};
use toolgate_tests::{Agent, Connection, Scene, SdkClient, SdkServer, Setup};

/// Opens a session and returns its header line.
fn session(scene: &Scene, connection: &mut Connection) -> Result<String> {
    let reply = connection.post(&initialize())?;
    scene.server.request()?;
    let id = reply.header("mcp-session-id").context("no session")?;
    Ok(format!("Mcp-Session-Id: {id}\r\n"))
}

#[test]
fn events_arrive_one_by_one() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    connection.request("POST", "", &call(1, "stream", &json!({})))?;
    scene.server.request()?;
    let head = connection.head()?;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    for method in [
        "progress",
        "message",
        "progress",
        "tools/list_changed",
        "resources/list_changed",
        "prompts/list_changed",
        "resources/updated",
        "cancelled",
        "elicitation/complete",
        "progress",
    ] {
        let params = json!({ "progressToken": 1, "progress": 1, "requestId": 7 });
        let method = format!("notifications/{method}");
        let event = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        // The next one is sent when this one has arrived: whatever held events back would wait for ever.
        scene.server.send_event(&event)?;
        assert_eq!(connection.event()?, Some(format!("event: message\ndata: {event}\n\n")));
    }
    let result = json!({ "jsonrpc": "2.0", "id": 1, "result": { "content": [] } });
    scene.server.send_event(&result)?;
    assert!(connection.event()?.context("the stream ended")?.contains("\"result\""));
    scene.server.end_stream()?;
    assert_eq!(connection.event()?, None);
    scene.nothing_reached_the_server(&mut connection).context("the connection is of use after a stream")
}

#[test]
fn an_event_in_pieces_arrives_whole() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    connection.request("POST", "", &call(1, "stream", &json!({})))?;
    scene.server.request()?;
    assert_eq!(connection.head()?.status, 200);
    let event = "id: 5\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\ndata: \"id\":1,\"result\":{}}\n\n";
    for piece in event.as_bytes().chunks(5) {
        scene.server.send_raw(piece)?;
    }
    scene.server.end_stream()?;
    let mut whole = Vec::new();
    while let Some(chunk) = connection.chunk()? {
        whole.extend(chunk);
    }
    assert_eq!(String::from_utf8_lossy(&whole), event);
    Ok(())
}

#[test]
fn a_servers_own_request_is_withheld_unless_policy_is_only_observed() -> Result<()> {
    let request =
        |id: u64, method: &str| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": {} });
    let shown = |message: &serde_json::Value| Some(format!("event: message\ndata: {message}\n\n"));
    for (observe, decision) in [(false, "deny"), (true, "observe")] {
        let scene = Scene::with("", observe)?;
        let (_caller, mut connection) = scene.reader()?;
        connection.request("POST", "", &call(1, "stream", &json!({})))?;
        scene.server.request()?;
        assert_eq!(connection.head()?.status, 200);
        let methods = ["sampling/createMessage", "elicitation/create", "roots/list", "of/its_own"];
        for method in methods {
            scene.server.send_event(&request(7, method))?;
            scene.server.send_event(&request(8, "ping"))?;
            if observe {
                assert_eq!(connection.event()?, shown(&request(7, method)), "{method}");
            }
            // What is withheld does not hold back what follows.
            assert_eq!(connection.event()?, shown(&request(8, "ping")), "{method}, observe: {observe}");
        }
        scene.server.end_stream()?;
        assert_eq!(connection.event()?, None);

        let lines = scene.agent.audit(1 + methods.len())?;
        let from_server = |line: &&serde_json::Value| text(line, "direction") == "from_server";
        let lines: Vec<_> = lines.iter().filter(from_server).collect();
        let told: Vec<_> = lines.iter().map(|line| text(line, "method")).collect();
        assert_eq!(told, methods, "one line for each, none for `ping`: {lines:#?}");
        for line in lines {
            let said = ["decision", "reason", "caller/app_id", "target"].map(|field| text(line, field));
            assert_eq!(said, [decision, "server_request", "reader", "docs"], "{line}");
        }
    }
    Ok(())
}

#[test]
fn the_official_sdk_sees_progress_at_the_pace_of_the_server() -> Result<()> {
    let mut server = SdkServer::start()?;
    let resources = resources(server.address);
    let agent = Agent::start(Setup { resources: &resources, ..Setup::default() })?;
    let mut client = SdkClient::start(agent.exec("reader"), &server.url())?;
    client.call("slow_count", &json!({ "steps": 3 }))?;
    for step in 1..=3 {
        assert_eq!(client.answer("progress")?, json!(f64::from(step)));
        server.release()?;
    }
    assert_eq!(client.answer("result")?, "counted to 3");
    Ok(())
}

#[test]
fn a_client_that_leaves_is_noticed_by_the_server() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    connection.request("POST", "", &call(1, "stream", &json!({})))?;
    let streaming = scene.server.request()?.connection;
    assert_eq!(connection.head()?.status, 200);
    drop(connection);
    assert_eq!(scene.server.left()?, streaming);
    Ok(())
}

/// SDKs leave as soon as they have what they asked for.
#[test]
fn a_client_that_leaves_with_its_answer_has_been_served() -> Result<()> {
    let event = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "" } });
    let result = json!({ "jsonrpc": "2.0", "id": 1, "result": { "content": [] } });
    for (last, reason) in [(&event, "client_left"), (&result, "permitted")] {
        let scene = Scene::set()?;
        let (_caller, mut connection) = scene.reader()?;
        connection.request("POST", "", &call(1, "stream", &json!({})))?;
        let streaming = scene.server.request()?.connection;
        connection.head()?;
        scene.server.send_event(last)?;
        connection.event()?;
        scene.server.send_raw(b"data: of the next")?;
        drop(connection);
        assert_eq!(scene.server.left()?, streaming);
        let line = scene.agent.audit(1)?.remove(0);
        assert_eq!((text(&line, "tool"), text(&line, "reason")), ("stream", reason), "{last}");
    }
    Ok(())
}

#[test]
fn a_caller_that_dies_is_noticed_by_the_server() -> Result<()> {
    let mut server = SdkServer::start()?;
    let resources = resources(server.address);
    let agent = Agent::start(Setup { resources: &resources, ..Setup::default() })?;
    let mut client = SdkClient::start(agent.exec("reader"), &server.url())?;
    client.call("slow_count", &json!({ "steps": 1 }))?;
    client.answer("progress")?;
    drop(client);
    server.release()?;
    agent.audit_until("the end of the call", |lines| {
        lines.iter().any(|line| text(line, "tool") == "slow_count")
    })?;
    Ok(())
}

#[test]
fn a_session_belongs_to_who_got_it() -> Result<()> {
    let scene = Scene::set()?;
    let (_reader, mut own) = scene.reader()?;
    let header = session(&scene, &mut own)?;
    let body = call(1, "echo", &json!({}));

    own.request("POST", &header, &body)?;
    assert!(is_result(&own.reply()?)?, "its own session serves");
    assert_eq!(scene.server.request()?.body, body);

    let mut writer = scene.caller("writer")?;
    for (app_id, header) in [("writer", header.as_str()), ("reader", "Mcp-Session-Id: made-up\r\n")] {
        let mut caller = scene.caller(app_id)?;
        for method in ["POST", "GET", "DELETE"] {
            let mut foreign = caller.http(scene.server.address)?;
            foreign.request(method, header, if method == "POST" { &body } else { b"" })?;
            assert_eq!(foreign.head()?.status, 404, "{app_id} {method}");
            scene.nothing_reached_the_server(&mut own).with_context(|| format!("{app_id} {method}"))?;
        }
    }
    // Its twin: without that session the same caller is served.
    assert!(is_result(&writer.http(scene.server.address)?.post(&body)?)?);
    let lines = scene.agent.audit_until("what was denied", |lines| {
        lines.iter().filter(|line| text(line, "decision") == "deny").count() == 6
    })?;
    let denied = lines.iter().filter(|line| text(line, "decision") == "deny");
    let told: Vec<_> = denied.map(|line| text(line, "reason")).collect();
    assert_eq!(told, [["session_hijack"; 3], ["unknown_session"; 3]].concat());
    Ok(())
}

#[test]
fn the_stream_and_the_end_of_ones_own_session_are_served() -> Result<()> {
    let scene = Scene::set()?;
    let (mut caller, mut connection) = scene.reader()?;
    let header = session(&scene, &mut connection)?;

    let mut stream = caller.http(scene.server.address)?;
    stream.request("GET", &header, b"")?;
    assert_eq!(scene.server.request()?.method(), "GET");
    assert_eq!(stream.head()?.status, 200);
    let event = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
    scene.server.send_event(&event)?;
    assert_eq!(stream.event()?, Some(format!("event: message\ndata: {event}\n\n")));

    connection.request("DELETE", &header, b"")?;
    assert_eq!(connection.reply()?.status, 200);
    assert_eq!(scene.server.request()?.method(), "DELETE");

    connection.request("POST", &header, &call(1, "echo", &json!({})))?;
    assert_eq!(connection.reply()?.status, 404, "an ended session is nobody's");
    Ok(())
}

#[test]
fn each_message_is_recorded_once_whoever_vanishes() -> Result<()> {
    let scene = Scene::set()?;
    let stream = |id| call(id, "stream", &json!({}));
    // The client leaves in mid-stream.
    let (mut caller, mut connection) = scene.reader()?;
    connection.request("POST", "", &stream(1))?;
    let streaming = scene.server.request()?.connection;
    connection.head()?;
    drop(connection);
    assert_eq!(scene.server.left()?, streaming);
    // The client leaves in the middle of its own message.
    let mut connection = caller.http(scene.server.address)?;
    let host = scene.server.address;
    connection
        .send(format!("POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{").as_bytes())?;
    drop(connection);
    // The server breaks off in mid-stream: the client is told by the missing last chunk.
    let mut connection = caller.http(scene.server.address)?;
    connection.request("POST", "", &stream(2))?;
    scene.server.request()?;
    connection.head()?;
    scene.server.break_stream()?;
    assert!(connection.event().is_err(), "a broken stream must not look like a whole one");
    // All is well.
    let mut connection = caller.http(scene.server.address)?;
    connection.post(&call(3, "echo", &json!({})))?;

    let lines = scene.agent.audit(4)?;
    let mut ids: Vec<_> = lines.iter().map(|line| text(line, "request_id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), lines.len()), (4, 4), "{lines:#?}");
    Ok(())
}

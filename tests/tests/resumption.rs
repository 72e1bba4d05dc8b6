//! A stream that broke is resumed by whose it was, and owes what it owed; nobody else names its events.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, initialize, message, resources, text};
use toolgate_tests::{Agent, Caller, Connection, Scene, SdkClient, SdkServer, Setup};

const STREAM: &str = "X-Variant: stream\r\n";

/// Opens a session and returns its header line.
fn session(scene: &Scene, caller: &mut Caller) -> Result<String> {
    let reply = caller.http(scene.server.address)?.post(&initialize())?;
    scene.server.request()?;
    let id = reply.header("mcp-session-id").context("no session")?;
    Ok(format!("Mcp-Session-Id: {id}\r\n"))
}

fn progress(step: u64) -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progress": step } })
}

/// An event with that id.
fn event(id: &str, message: &Value) -> String {
    format!("id: {id}\nevent: message\ndata: {message}\n\n")
}

/// Sends a request that is answered by a stream, which primes the client and breaks.
fn broken(scene: &Scene, caller: &mut Caller, session: &str, body: &[u8], id: &str) -> Result<()> {
    let mut connection = caller.http(scene.server.address)?;
    connection.request("POST", &format!("{session}{STREAM}"), body)?;
    scene.server.request()?;
    assert_eq!(connection.head()?.status, 200);
    let priming = format!("id: {id}\nretry: 10\ndata: \n\n");
    scene.server.send_raw(priming.as_bytes())?;
    assert_eq!(connection.event()?, Some(priming), "it primes the client");
    scene.server.break_stream()?;
    assert!(connection.event().is_err());
    Ok(())
}

/// Resumes after that event; the status that the client gets.
fn resume(scene: &Scene, caller: &mut Caller, session: &str, last: &str) -> Result<(Connection, u16)> {
    let mut connection = caller.http(scene.server.address)?;
    connection.request("GET", &format!("{session}Last-Event-ID: {last}\r\n"), b"")?;
    let status = connection.head()?.status;
    if status == 200 {
        let arrived = scene.server.request()?;
        assert_eq!((arrived.method(), arrived.header("last-event-id")), ("GET", Some(last)));
    }
    Ok((connection, status))
}

#[test]
fn a_broken_stream_goes_on_where_it_is_resumed() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let session = session(&scene, &mut reader)?;
    broken(&scene, &mut reader, &session, &call(7, "stream", &json!({})), "a-1")?;
    let (mut resumed, status) = resume(&scene, &mut reader, &session, "a-1")?;
    assert_eq!(status, 200);
    let rest = [event("a-2", &progress(1)), event("a-3", &progress(2))];
    for event in &rest {
        scene.server.send_raw(event.as_bytes())?;
        assert_eq!(resumed.event()?.as_ref(), Some(event));
    }
    scene.server.break_stream()?;
    assert!(resumed.event().is_err());
    // Twice broken: an id of the resumed stream, and not its last.
    let (mut resumed, status) = resume(&scene, &mut reader, &session, "a-2")?;
    assert_eq!(status, 200);
    let answer = event("a-4", &json!({ "jsonrpc": "2.0", "id": 7, "result": { "content": [] } }));
    for event in [&rest[1], &answer] {
        scene.server.send_raw(event.as_bytes())?;
        assert_eq!(resumed.event()?.as_ref(), Some(event));
    }
    scene.server.end_stream()?;
    assert_eq!(resumed.event()?, None);
    scene.nothing_reached_the_server(&mut resumed).context("the connection is of use after that")
}

#[test]
fn an_event_is_named_by_who_got_it_alone() -> Result<()> {
    let scene = Scene::set()?;
    let (mut reader, mut writer) = (scene.caller("reader")?, scene.caller("writer")?);
    let own = session(&scene, &mut reader)?;
    let (again, others) = (session(&scene, &mut reader)?, session(&scene, &mut writer)?);
    broken(&scene, &mut reader, &own, &call(7, "stream", &json!({})), "a-1")?;
    let mut witness = reader.http(scene.server.address)?;
    let table = [
        ("writer", others.as_str(), "a-1", "event_hijack"),
        ("writer", others.as_str(), "made-up", "unknown_event"),
        ("writer", "", "a-1", "event_hijack"),
        ("writer", own.as_str(), "a-1", "session_hijack"),
        ("reader", again.as_str(), "a-1", "unknown_event"),
        ("reader", own.as_str(), "a-2", "unknown_event"),
    ];
    for (whose, session, last, reason) in table {
        let caller = if whose == "reader" { &mut reader } else { &mut writer };
        let (_, status) = resume(&scene, caller, session, last)?;
        let expected = if reason == "session_hijack" { 404 } else { 400 };
        assert_eq!(status, expected, "{session} {last}: {reason}");
        scene.nothing_reached_the_server(&mut witness).context(reason)?;
    }
    let (_, status) = resume(&scene, &mut reader, &own, "a-1")?;
    assert_eq!(status, 200, "its twin");
    let lines = scene.agent.audit(4 + 2 * table.len())?;
    let streams = lines.iter().filter(|line| text(line, "method") == "stream");
    let denied = streams.filter(|line| text(line, "decision") == "deny");
    let told: Vec<_> = denied.map(|line| text(line, "reason")).collect();
    assert_eq!(told, table.map(|(_, _, _, reason)| reason));
    Ok(())
}

#[test]
fn a_resumed_stream_owes_one_answer() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let session = session(&scene, &mut reader)?;
    let answer = |id: u64| json!({ "jsonrpc": "2.0", "id": id, "result": { "secret": 1 } });
    for (sent, refused) in [(vec![8], 8), (vec![7, 7], 7)] {
        broken(&scene, &mut reader, &session, &call(7, "stream", &json!({})), "a-1")?;
        let (mut resumed, _) = resume(&scene, &mut reader, &session, "a-1")?;
        scene.server.send_event(&progress(1))?;
        resumed.event()?;
        let mut told = Vec::new();
        for id in &sent {
            scene.server.send_event(&answer(*id))?;
        }
        while let Some(event) = resumed.event()? {
            told.push(event);
        }
        let passed = told.iter().filter(|event| event.contains("secret")).count();
        assert_eq!(passed, sent.len() - 1, "{refused}: {told:?}");
        assert_eq!(told.len(), 1, "an answer, or an error in its place: {told:?}");
    }
    // What is owed on a stream that answers nothing stays nothing.
    let mut connection = reader.http(scene.server.address)?;
    connection.request("GET", &session, b"")?;
    scene.server.request()?;
    connection.head()?;
    scene.server.send_raw(event("g-1", &progress(1)).as_bytes())?;
    connection.event()?;
    scene.server.break_stream()?;
    let (mut resumed, status) = resume(&scene, &mut reader, &session, "g-1")?;
    assert_eq!(status, 200);
    scene.server.send_event(&progress(2))?;
    resumed.event()?;
    scene.server.send_event(&answer(7))?;
    assert_eq!(resumed.event()?, None);
    Ok(())
}

#[test]
fn a_list_that_is_owed_is_filtered_where_it_comes() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let session = session(&scene, &mut reader)?;
    broken(&scene, &mut reader, &session, &message(3, "tools/list", &json!({})), "l-1")?;
    let (mut resumed, _) = resume(&scene, &mut reader, &session, "l-1")?;
    let tools = ["echo", "delete_everything"].map(|name| json!({ "name": name, "inputSchema": {} }));
    let list = json!({ "jsonrpc": "2.0", "id": 3, "result": { "tools": tools } });
    scene.server.send_raw(event("l-2", &list).as_bytes())?;
    let shown = resumed.event()?.context("no list")?;
    assert!(shown.contains("echo") && !shown.contains("delete_everything"), "{shown}");
    Ok(())
}

/// The request that it answers is not kept. From its cursor on the server is asked in the caller's place as ever.
#[test]
fn of_a_list_whose_stream_broke_one_empty_page_is_shown() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let session = session(&scene, &mut reader)?;
    let page = |next: &str| json!({ "tools": [{ "name": "delete_everything" }], "nextCursor": next });
    broken(&scene, &mut reader, &session, &message(3, "tools/list", &json!({})), "l-1")?;
    let (mut resumed, _) = resume(&scene, &mut reader, &session, "l-1")?;
    scene.server.send_event(&json!({ "jsonrpc": "2.0", "id": 3, "result": page("b") }))?;
    let shown = resumed.event()?.context("no list")?;
    assert!(shown.contains(r#""tools":[]"#) && shown.contains(r#""nextCursor":"b""#), "{shown}");
    scene.server.answers("tools/list", "", &page("c"));
    let mut connection = reader.http(scene.server.address)?;
    connection.request("POST", &session, &message(4, "tools/list", &json!({ "cursor": "b" })))?;
    let told = connection.reply()?.message()?;
    let asked = scene.server.requests_now();
    let cursors: Vec<_> =
        asked.iter().map(|request| request.json()["params"]["cursor"].to_string()).collect();
    assert_eq!(cursors, [r#""b""#, r#""c""#]);
    assert_eq!(told["error"]["code"], json!(-31403), "a list without end is the server's fault: {told}");
    Ok(())
}

#[test]
fn a_task_that_is_owed_is_bound_where_it_comes() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let session = session(&scene, &mut reader)?;
    broken(&scene, &mut reader, &session, &call(7, "echo", &json!({})), "t-1")?;
    let (mut resumed, _) = resume(&scene, &mut reader, &session, "t-1")?;
    let task =
        json!({ "jsonrpc": "2.0", "id": 7, "result": { "task": { "taskId": "t", "status": "working" } } });
    scene.server.send_raw(event("t-2", &task).as_bytes())?;
    resumed.event()?;
    let get = message(8, "tasks/get", &json!({ "taskId": "t" }));
    let reply = reader.http(scene.server.address)?.post(&get)?;
    assert!(reply.message()?.get("result").is_some(), "{}", reply.text());
    Ok(())
}

#[test]
fn a_stream_that_an_upgrade_cuts_is_resumed_at_the_next_agent() -> Result<()> {
    let mut scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let session = session(&scene, &mut reader)?;
    let mut writer = scene.caller("writer")?;
    let others = self::session(&scene, &mut writer)?;
    broken(&scene, &mut reader, &session, &call(7, "stream", &json!({})), "a-1")?;
    let mut open = reader.http(scene.server.address)?;
    open.request("POST", &session, &call(9, "stream", &json!({})))?;
    scene.server.request()?;
    open.head()?;
    scene.agent.upgrade(&[])?;
    // Given by the agent that drains, while the next one serves.
    scene.server.send_raw(event("b-1", &progress(1)).as_bytes())?;
    assert_eq!(open.event()?, Some(event("b-1", &progress(1))));
    scene.server.break_stream()?;
    for (last, id) in [("a-1", 7), ("b-1", 9)] {
        let (_, status) = resume(&scene, &mut writer, &others, last)?;
        assert_eq!(status, 400, "{last}");
        let (mut resumed, status) = resume(&scene, &mut reader, &session, last)?;
        assert_eq!(status, 200, "{last}");
        let answer = json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [] } });
        scene.server.send_event(&answer)?;
        assert_eq!(resumed.event()?, Some(format!("event: message\ndata: {answer}\n\n")));
        scene.server.end_stream()?;
        assert_eq!(resumed.event()?, None);
    }
    Ok(())
}

#[test]
fn the_official_sdk_gets_the_rest_of_a_stream_that_its_server_closed() -> Result<()> {
    let mut server = SdkServer::resumable()?;
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

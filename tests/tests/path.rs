//! The request path: what is permitted arrives as it was sent, what is denied never arrives, and both are recorded.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, initialize, is_result, message, text};
use toolgate_tests::{Scene, SdkClient, SdkServer, Setup, scene};

/// A message, and whether it is let through: `Ok` or the reason of the denial.
type Case = (&'static str, &'static str, Vec<u8>, Result<(), &'static str>);

fn cases() -> Vec<Case> {
    let path = |path: &str| call(1, "read_file", &json!({ "path": path }));
    let sum = |a: Value, b: Value| call(1, "add", &json!({ "a": a, "b": b }));
    vec![
        ("a permitted tool", "reader", call(1, "echo", &json!({ "text": "a" })), Ok(())),
        ("a tool without rule", "reader", call(1, "delete_everything", &json!({})), Err("no_rule")),
        ("a tool nobody has", "reader", call(1, "no_such_tool", &json!({})), Err("no_rule")),
        ("a tool of another caller's rule", "writer", sum(json!(1), json!(1)), Err("no_rule")),
        ("a caller without rule", "stranger", call(1, "echo", &json!({ "text": "a" })), Err("no_rule")),
        ("arguments within bounds", "reader", sum(json!(1), json!(100)), Ok(())),
        ("an argument too large", "reader", sum(json!(1), json!(101)), Err("arguments_refused")),
        ("an argument of another type", "reader", sum(json!("1"), json!(1)), Err("arguments_refused")),
        ("an argument missing", "reader", call(1, "add", &json!({ "a": 1 })), Err("arguments_refused")),
        (
            "an argument nobody named",
            "reader",
            call(1, "echo", &json!({ "other": [1, { "deep": true }] })),
            Ok(()),
        ),
        ("a path inside", "reader", path("/srv/docs/a/../b.txt"), Ok(())),
        ("a path outside", "reader", path("/srv/docs/../../etc/passwd"), Err("arguments_refused")),
        ("a path that a deny rule names", "reader", path("/srv/docs/secret/key"), Err("denied_by_rule")),
        ("the handshake", "reader", initialize(), Ok(())),
        ("a ping", "reader", message(1, "ping", &json!({})), Ok(())),
        ("the handshake of one who may nothing", "stranger", initialize(), Err("no_rule")),
        ("a list of one who may nothing", "stranger", message(1, "tools/list", &json!({})), Err("no_rule")),
        (
            "a resource without rule",
            "reader",
            message(1, "resources/read", &json!({ "uri": "a:b" })),
            Err("no_rule"),
        ),
        ("an unknown method", "reader", message(1, "tools/destroy", &json!({})), Err("method_unknown")),
    ]
}

#[test]
fn a_denied_call_never_reaches_the_server_and_a_permitted_one_does() -> Result<()> {
    let scene = Scene::set()?;
    let (_witness, mut witness) = scene.reader()?;
    let mut recorded = 0;
    for (name, app_id, body, expected) in cases() {
        let mut caller = scene.caller(app_id)?;
        let reply = caller.http(scene.server.address)?.post(&body).with_context(|| name.to_owned())?;
        if expected.is_ok() {
            assert_eq!(scene.server.request().context(name)?.body, body, "{name}");
        } else {
            scene.nothing_reached_the_server(&mut witness).context(name)?;
        }
        assert_eq!(is_result(&reply)?, expected.is_ok(), "{name}: {}", reply.text());

        // The witness's call came after it.
        let more = if expected.is_ok() { 1 } else { 2 };
        let lines = scene.agent.audit(recorded + more)?;
        let line = lines.get(recorded).context("no audit line")?;
        recorded += more;
        let decision = if expected.is_ok() { "permit" } else { "deny" };
        assert_eq!(text(line, "decision"), decision, "{name}: {line}");
        if let Err(reason) = expected {
            assert_eq!(text(line, "reason"), reason, "{name}: {line}");
        }
        assert_eq!((text(line, "caller/app_id"), text(line, "target")), (app_id, "docs"), "{name}: {line}");
        assert_eq!(line.pointer("/caller/pid"), Some(&json!(caller.id())), "{name}: {line}");
        let sent: Value = serde_json::from_slice(&body)?;
        assert_eq!(text(line, "method"), text(&sent, "method"), "{name}: {line}");
    }
    Ok(())
}

#[test]
fn a_denial_is_answered_as_the_table_says() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let denied = connection.post(&call(7, "delete_everything", &json!({})))?;
    let message = denied.message()?;
    assert_eq!((denied.status, message.get("id")), (200, Some(&json!(7))));
    assert_eq!(message.pointer("/result/isError"), Some(&json!(true)));
    let line = scene.agent.audit(1)?.pop().context("no audit line")?;
    assert!(text(&message, "result/content/0/text").contains(text(&line, "request_id")), "{message} {line}");

    let denied = connection.post(&scene::message(8, "resources/read", &json!({ "uri": "a:b" })))?;
    assert_eq!(denied.message()?.pointer("/error/code"), Some(&json!(-31403)));

    let notification = json!({ "jsonrpc": "2.0", "method": "notifications/of_mine" }).to_string();
    let dropped = connection.post(notification.as_bytes())?;
    assert_eq!((dropped.status, dropped.text().as_str()), (202, ""));
    // All on one connection: a denial does not end it.
    scene.nothing_reached_the_server(&mut connection)
}

#[test]
fn a_permitted_body_arrives_byte_for_byte() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let long =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"a":"{}"}}}}"#, "x".repeat(300_000));
    let bodies: [&[u8]; 5] = [
        br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#,
        b" { \"params\" : {\"arguments\":{\"big\":12345678901234567890, \"e\":1.50e+02},\"name\":\"ec\\u0068o\"},\r\n\t\"method\":\"tools/call\",\"id\":\"\\u00e9\", \"jsonrpc\":\"2.0\" } \n",
        "{\"jsonrpc\":\"2.0\",\"id\":-5,\"method\":\"ping\",\"params\":{\"é\":\"\u{1f600}\",\"_meta\":{\"a/b\":null}}}".as_bytes(),
        br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        long.as_bytes(),
    ];
    for body in bodies {
        let name = String::from_utf8_lossy(body.get(..60).unwrap_or(body)).into_owned();
        connection.request("POST", "X-Other: kept  as it is\r\n", body)?;
        assert!(connection.reply()?.status < 300, "{name}");
        let arrived = scene.server.request()?;
        assert!(arrived.body == body, "{name}: {}", String::from_utf8_lossy(&arrived.body));
        assert_eq!(arrived.header("x-other"), Some("kept  as it is"), "{name}");
    }
    Ok(())
}

#[test]
fn a_body_may_come_in_pieces() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let body = call(1, "echo", &json!({ "text": "in pieces" }));
    let host = scene.server.address;
    connection.send(
        format!("POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes(),
    )?;
    for piece in body.chunks(7) {
        connection.send(format!("{:x}\r\n", piece.len()).as_bytes())?;
        connection.send(piece)?;
        connection.send(b"\r\n")?;
    }
    connection.send(b"0\r\n\r\n")?;
    assert!(is_result(&connection.reply()?)?);
    assert_eq!(scene.server.request()?.body, body);
    Ok(())
}

#[test]
fn broken_requests_are_refused_and_never_reach_the_server() -> Result<()> {
    let scene = Scene::set()?;
    let (_witness, mut witness) = scene.reader()?;
    let mut caller = scene.caller("reader")?;
    let host = scene.server.address;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
    let post = |headers: &str, body: &str| {
        format!("POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{headers}\r\n{body}")
    };
    let with_length = |body: &str| post(&format!("Content-Length: {}\r\n", body.len()), body);
    let length = body.len();
    let cases: [(&str, String, u16, &str); 9] = [
        ("a batch", with_length(&format!("[{body}]")), 400, "batch"),
        (
            "a key twice",
            with_length(r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#),
            400,
            "malformed_message",
        ),
        (
            "a key twice, once escaped",
            with_length(r#"{"jsonrpc":"2.0","id":1,"\u0069d":2,"method":"ping"}"#),
            400,
            "malformed_message",
        ),
        ("no JSON", with_length("hello"), 400, "malformed_message"),
        (
            "two framings",
            post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), body),
            400,
            "malformed_http",
        ),
        (
            "two lengths",
            post(&format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"), body),
            400,
            "malformed_http",
        ),
        (
            "a compressed body",
            post(&format!("Content-Length: {length}\r\nContent-Encoding: gzip\r\n"), body),
            415,
            "malformed_http",
        ),
        (
            "no host",
            format!("POST /mcp HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"),
            400,
            "malformed_http",
        ),
        ("a body too large", post("Content-Length: 99999999999\r\n", ""), 413, "too_large"),
    ];
    for (name, bytes, status, reason) in cases {
        let mut connection = caller.http(host)?;
        connection.send(bytes.as_bytes())?;
        assert_eq!(connection.reply().context(name)?.status, status, "{name}");
        scene.nothing_reached_the_server(&mut witness).context(name)?;
        refused_for(&scene, reason).context(name)?;
    }
    Ok(())
}

/// Waits until the last refusal that the audit tells of is `reason`'s.
fn refused_for(scene: &Scene, reason: &str) -> Result<()> {
    let refusal = |lines: &[Value]| {
        let last = lines.iter().rfind(|line| text(line, "decision") == "deny");
        last.is_some_and(|line| text(line, "reason") == reason)
    };
    scene.agent.audit_until(&format!("a refusal for {reason}"), refusal).map(drop)
}

#[test]
fn headers_must_say_what_the_message_says() -> Result<()> {
    let scene = Scene::set()?;
    let (mut caller, mut witness) = scene.reader()?;
    let body = call(1, "echo", &json!({ "region": "eu" }));
    let told = "Mcp-Method: tools/call\r\n";
    let stateless = "MCP-Protocol-Version: 2026-07-28\r\n";
    let cases: [(String, Option<i64>); 15] = [
        (format!("{told}Mcp-Name: echo\r\n{stateless}"), None),
        (format!("{told}{stateless}"), Some(-32020)),
        (format!("Mcp-Name: echo\r\n{stateless}"), Some(-32020)),
        ("Mcp-Param-Region: eu\r\n".to_owned(), None),
        ("Mcp-Param-Region: us\r\n".to_owned(), Some(-32020)),
        (format!("{told}Mcp-Name: =?base64?ZWNobw==?=\r\n"), None),
        ("Mcp-Method: tools/list\r\n".to_owned(), Some(-32020)),
        (format!("{told}Mcp-Name: add\r\n"), Some(-32020)),
        (format!("{told}mcp-name: =?base64?YWRk?=\r\n"), Some(-32020)),
        (format!("{told}Mcp-Name: echo\r\nMcp-Name: add\r\n"), Some(-32600)),
        (format!("{told}{told}"), Some(-32600)),
        ("Mcp_Name: add\r\n".to_owned(), Some(-32600)),
        ("mcp_session_id: of-another\r\n".to_owned(), Some(-32600)),
        ("Content_Type: text/plain\r\n".to_owned(), Some(-32600)),
        ("MCP-Protocol-Version: 2025-11-25\r\n".repeat(2), Some(-32600)),
    ];
    for (headers, refused) in cases {
        let mut connection = caller.http(scene.server.address)?;
        connection.request("POST", &headers, &body)?;
        let reply = connection.reply().with_context(|| headers.clone())?;
        let code = reply.message()?.pointer("/error/code").and_then(Value::as_i64);
        assert_eq!((reply.status, code), (if refused.is_some() { 400 } else { 200 }, refused), "{headers}");
        match refused {
            None => assert_eq!(scene.server.request()?.body, body, "{headers}"),
            Some(-32020) => refused_for(&scene, "header_mismatch").with_context(|| headers.clone())?,
            Some(_) => refused_for(&scene, "malformed_http").with_context(|| headers.clone())?,
        }
        scene.nothing_reached_the_server(&mut witness).context(headers)?;
    }
    Ok(())
}

#[test]
fn the_last_event_of_a_stream_is_not_told_to_the_server() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let body = call(1, "echo", &json!({}));
    connection.request("POST", "Last-Event-ID: of-another-stream\r\nX-Mine: kept\r\n", &body)?;
    assert!(is_result(&connection.reply()?)?);
    let arrived = scene.server.request()?;
    assert_eq!((arrived.header("last-event-id"), arrived.header("x-mine")), (None, Some("kept")));
    Ok(())
}

#[test]
fn other_paths_of_a_declared_server_are_not_served() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let host = scene.server.address;
    for (path, status) in
        [("/", 403), ("/mcp/", 403), ("/admin", 403), ("/.well-known/oauth-protected-resource", 404)]
    {
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        assert_eq!(connection.reply()?.status, status, "{path}");
    }
    scene.nothing_reached_the_server(&mut connection)
}

#[test]
fn a_caller_cannot_state_its_identity() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let names = [
        "dapr-caller-app-id",
        "Dapr_Caller_Namespace",
        "X-Toolgate-Caller",
        "x_toolgate_app_id",
        "X-Forwarded-For",
        "X_Forwarded_Host",
        "X-Forwarded-Client-Cert",
        "Forwarded",
    ];
    let headers: String = names.iter().map(|name| format!("{name}: admin\r\n")).collect();
    connection.request("POST", &format!("{headers}X-Mine: kept\r\n"), &call(1, "echo", &json!({})))?;
    assert!(is_result(&connection.reply()?)?);
    let arrived = scene.server.request()?;
    assert!(!arrived.head.contains("admin"), "{}", arrived.head);
    assert_eq!(arrived.header("x-mine"), Some("kept"));
    Ok(())
}

#[test]
fn the_list_shows_what_the_caller_may() -> Result<()> {
    let scene = Scene::set()?;
    for (app_id, expected) in
        [("reader", &["echo", "add", "read_file", "stream"][..]), ("writer", &["echo", "stream"])]
    {
        let mut caller = scene.caller(app_id)?;
        let reply =
            caller.http(scene.server.address)?.post(&message(1, "tools/list", &json!({})))?.message()?;
        let tools = reply.pointer("/result/tools").and_then(Value::as_array).context("no tools")?;
        let names: Vec<_> = tools.iter().map(|tool| text(tool, "name")).collect();
        assert_eq!(names, expected, "{app_id}");
        assert_eq!(
            reply.pointer("/result/nextCursor"),
            Some(&json!("next")),
            "{app_id}: what is no tool is kept"
        );
    }
    Ok(())
}

#[test]
fn the_client_sees_the_peer_it_asked_for() -> Result<()> {
    let scene = Scene::set()?;
    let connected = scene.caller("reader")?.connect(scene.server.address)?;
    assert_eq!(connected.peer, scene.server.address);
    Ok(())
}

#[test]
fn what_happened_is_counted() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    for tool in ["echo", "echo", "delete_everything"] {
        connection.post(&call(1, tool, &json!({})))?;
    }
    let labels =
        |tool, decision| [r#"caller="reader""#, r#"target="docs""#, r#"method="tools/call""#, tool, decision];
    let counts = |tool, decision, value| {
        scene.agent.counts("toolgate_requests_total{", &labels(tool, decision), value)
    };
    counts(r#"tool="echo""#, r#"decision="permit""#, 2.0)?;
    counts(r#"decision="deny""#, r#"reason="no_rule""#, 1.0)?;
    assert!(scene.agent.metric("toolgate_kernel_events_total{", &[])? > 0.0);
    Ok(())
}

#[test]
fn the_official_sdk_meets_the_policy_and_its_twin_outside_does_not() -> Result<()> {
    let server = SdkServer::start()?;
    let resources = scene::resources(server.address);
    let agent = toolgate_tests::Agent::start(Setup { resources: &resources, ..Setup::default() })?;
    let mut captured = SdkClient::start(agent.exec("reader"), &server.url())?;
    // Of its own: a declared server's port accepts the agent alone.
    let its_server = SdkServer::start()?;
    let mut outside = SdkClient::outside(&its_server.url())?;

    captured.call("echo", &json!({ "text": "hello" }))?;
    assert_eq!(captured.answer("result")?, "hello");
    captured.call("add", &json!({ "a": 1, "b": 1000 }))?;
    assert!(captured.answer("error")?.as_str().is_some_and(|said| said.contains("these arguments")));
    assert_eq!(captured.tools()?, ["echo", "add", "read_file", "slow_count"]);
    assert_eq!(server.calls()?, ["echo"], "the denied call reached the server");

    outside.call("add", &json!({ "a": 1, "b": 1000 }))?;
    assert_eq!(outside.answer("result")?, "1001");
    assert_eq!(its_server.calls()?, ["add"]);
    Ok(())
}

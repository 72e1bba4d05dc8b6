//! What comes on the stream, and what is recorded of it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::text;

use crate::rig::{ENDPOINT, Rig, answer, call, legacy, say};

/// The last line of the audit that is of this method and tool.
fn line(rig: &Rig, method: &str, tool: &str) -> Result<Value> {
    let is_it = |line: &&Value| text(line, "method") == method && text(line, "tool") == tool;
    let lines = rig.agent.audit_until("its line", |lines| lines.iter().any(|line| is_it(&line)))?;
    Ok(lines.iter().rfind(is_it).cloned().unwrap_or_default())
}

fn told(line: &Value) -> String {
    let [decision, reason] = ["decision", "reason"].map(|field| text(line, field));
    format!("{decision} {reason} {}", line["status"])
}

#[test]
fn what_is_sent_to_the_endpoint_is_answered_on_the_stream() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    for step in 1..=3 {
        let params = json!({ "progress": step, "progressToken": 1 });
        reader.hears(&json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": params }))?;
    }
    let so_far = rig.agent.audit(0)?;
    ensure!(so_far.is_empty(), "its line is written when its answer has passed: {so_far:#?}");
    reader.hears(&answer(&json!(1)))?;
    let permitted = line(&rig, "tools/call", "echo")?;
    assert_eq!(told(&permitted), "permit permitted 202");
    ensure!(
        permitted["response_bytes"].as_u64().unwrap_or_default() > 50,
        "those of the answer: {permitted}"
    );
    // The answer may come before the request is accepted.
    let mut server = rig.arrives(&mut reader, &call(&json!("a"), "stream"))?;
    reader.hears(&answer(&json!("a")))?;
    crate::rig::accept(&mut server)?;
    assert_eq!(reader.posts.reply()?.status, 202);
    assert_eq!(told(&line(&rig, "tools/call", "stream")?), "permit permitted 202");
    Ok(())
}

#[test]
fn what_is_denied_is_said_on_the_stream_between_events() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let add = json!({ "name": "add", "arguments": { "a": 1, "b": 1000 } });
    let add = json!({ "jsonrpc": "2.0", "id": "s", "method": "tools/call", "params": add });
    let read = json!({ "uri": "file:///etc/shadow" });
    let read = json!({ "jsonrpc": "2.0", "id": 3, "method": "resources/read", "params": read });
    for (message, reason, is_result) in [
        (call(&json!(1), "delete_everything"), "no_rule", true),
        (add, "arguments_refused", true),
        (read, "no_rule", false),
    ] {
        // In the middle of an event of the server's.
        let event = format!("data: {}\n\n", answer(&json!("late")));
        let (first, rest) = event.split_at(9);
        rig.accepted(&mut reader, &call(&json!("late"), "echo"))?;
        say(&mut reader.server, first)?;
        let reply = rig.refused(&mut reader, &message)?;
        assert_eq!((reply.status, &*reply.text()), (202, ""));
        let denial = reader.message()?;
        ensure!(denial["id"] == message["id"], "{denial}");
        ensure!((denial.pointer("/result/isError") == Some(&json!(true))) == is_result, "{denial}");
        ensure!((denial.pointer("/error/code") == Some(&json!(-31403))) != is_result, "{denial}");
        say(&mut reader.server, rest)?;
        assert_eq!(reader.message()?, answer(&json!("late")));
        let tool = message.pointer("/params/name").and_then(Value::as_str).unwrap_or_default();
        let method = message["method"].as_str().unwrap_or_default();
        assert_eq!(told(&line(&rig, method, tool)?), format!("deny {reason} 202"));
    }
    // Nothing is said of what is no request.
    let told = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": {} });
    assert_eq!(rig.refused(&mut reader, &told)?.status, 202);
    rig.accepted(&mut reader, &call(&json!(4), "echo"))?;
    reader.hears(&answer(&json!(4)))
}

/// By the rules that held when it was asked for, however long its stream is open.
#[test]
fn a_list_shows_what_the_caller_may() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let tools = ["echo", "delete_everything", "add"].map(|name| json!({ "name": name, "inputSchema": {} }));
    let deny = "  - { name: no, effect: deny, callers: [reader], servers: [docs], tools: [echo] }\n";
    for (id, rules, expected) in [(1, None, "echo add"), (2, Some(deny), "add")] {
        if let Some(rules) = rules {
            rig.agent.write_resources(&legacy(&rig.peer, rules))?;
            rig.agent.counts("toolgate_generation", &[], 2.0)?;
        }
        let list = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/list" });
        rig.accepted(&mut reader, &list)?;
        reader.say(&json!({ "jsonrpc": "2.0", "id": id, "result": { "tools": tools } }))?;
        let shown = reader.message()?;
        let names = shown["result"]["tools"].as_array().into_iter().flatten();
        let names: Vec<_> = names.filter_map(|tool| tool["name"].as_str()).collect();
        assert_eq!(names.join(" "), expected);
    }
    Ok(())
}

#[test]
fn pins_hold_back_what_a_list_on_the_stream_shows() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    // From now on, on a stream that is older.
    let pinned = legacy(&rig.peer, "").replace("transport: sse", "transport: sse\n  pins: enforce");
    rig.agent.write_resources(&pinned)?;
    rig.agent.counts("toolgate_generation", &[], 2.0)?;
    rig.accepted(&mut reader, &json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }))?;
    reader.say(&json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": [{ "name": "echo" }] } }))?;
    assert_eq!(reader.message()?["result"]["tools"], json!([]));
    assert_eq!(text(&line(&rig, "tools/list", "")?, "detail"), "not shown, not approved: 1");
    assert_eq!(rig.refused(&mut reader, &call(&json!(2), "echo"))?.status, 202);
    assert_eq!(told(&line(&rig, "tools/call", "echo")?), "deny not_approved 202");
    Ok(())
}

#[test]
fn a_message_is_of_the_revision_that_was_agreed_on() -> Result<()> {
    let rig = Rig::set("", "")?;
    for (agreed, passes) in
        [(None, false), (Some("2024-11-05"), false), (Some("2025-11-25"), true), (Some("draft"), true)]
    {
        let endpoint = format!("{ENDPOINT}{}", agreed.unwrap_or_default());
        let mut reader = rig.session("reader", &endpoint)?;
        if let Some(version) = agreed {
            let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {} });
            let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
            rig.accepted(&mut reader, &initialize)?;
            let result = json!({ "protocolVersion": version, "capabilities": {}, "serverInfo": {} });
            reader.hears(&json!({ "jsonrpc": "2.0", "id": 0, "result": result }))?;
        }
        // There are tasks in 2025-11-25 only.
        let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tasks/list" });
        if passes {
            rig.accepted(&mut reader, &list)?;
        } else {
            assert_eq!(rig.refused(&mut reader, &list)?.status, 202, "{agreed:?}");
            ensure!(reader.message()?["error"].is_object(), "{agreed:?}");
            assert_eq!(told(&line(&rig, "tasks/list", "")?), "deny method_unknown 202");
        }
    }
    Ok(())
}

#[test]
fn the_server_asks_on_the_stream_and_is_answered_at_its_endpoint() -> Result<()> {
    let rules =
        "  - { name: asked, effect: allow, callers: [reader], servers: [docs], server_requests: [roots] }\n";
    let rig = Rig::set(rules, "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let mut second = rig.session("reader", "/messages/?session_id=second")?;
    let asks = |id: &str, method: &str| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": {} });
    reader.say(&asks("withheld", "sampling/createMessage"))?;
    reader.hears(&asks("roots", "roots/list"))?;
    let says = |id: &str| json!({ "jsonrpc": "2.0", "id": id, "result": { "roots": [] } });
    for (name, session, id) in [
        ("what was withheld", &mut reader, "withheld"),
        ("in another session of the same caller", &mut second, "roots"),
    ] {
        assert_eq!(rig.refused(session, &says(id))?.status, 202, "{name}");
        assert_eq!(told(&line(&rig, "response", "")?), "deny unexpected_response 202", "{name}");
    }
    rig.accepted(&mut reader, &says("roots"))?;
    assert_eq!(rig.refused(&mut reader, &says("roots"))?.status, 202, "once");
    let withheld = line(&rig, "sampling/createMessage", "")?;
    assert_eq!((text(&withheld, "direction"), text(&withheld, "decision")), ("from_server", "deny"));
    Ok(())
}

/// What an answer asks within it is a matter of policy: of that request alone.
#[test]
fn an_answer_that_asks_for_what_no_rule_permits_is_replaced() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    rig.accepted(&mut reader, &call(&json!(2), "echo"))?;
    let asks = json!({ "a": { "method": "sampling/createMessage", "params": {} } });
    let asks = json!({ "resultType": "input_required", "inputRequests": asks });
    reader.say(&json!({ "jsonrpc": "2.0", "id": 1, "result": asks }))?;
    let told = reader.message()?;
    ensure!(told["id"] == json!(1) && told.pointer("/result/isError") == Some(&json!(true)), "{told}");
    reader.hears(&answer(&json!(2)))
}

#[test]
fn a_request_that_was_cancelled_waits_no_more_and_may_be_answered() -> Result<()> {
    let rig = Rig::set("", "{ pending_per_stream_max: 2 }")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let cancels = |id: u64| json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
    for id in 0..5 {
        rig.accepted(&mut reader, &call(&json!(id), "echo"))?;
        rig.accepted(&mut reader, &cancels(id))?;
    }
    let cancelled = line(&rig, "tools/call", "echo")?;
    assert_eq!(text(&cancelled, "detail"), "cancelled by its caller");
    reader.hears(&answer(&json!(4)))
}

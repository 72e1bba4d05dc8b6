//! Changes in mid-request: the agent ends, or its resources change, while requests run.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, message, resources, text};
use toolgate_tests::{Agent, Peer, Scene, Setup, wait};

#[test]
fn what_runs_is_finished_and_what_is_new_is_turned_away_when_the_agent_ends() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut caller, mut idle) = scene.reader()?;
    assert!(is_result(&idle.post(&call(1, "echo", &json!({})))?)?);
    scene.server.request()?;
    let mut stream = caller.http(scene.server.address)?;
    stream.request("GET", "", b"")?;
    scene.server.request()?;
    assert_eq!(stream.head()?.status, 200);
    let mut running = caller.http(scene.server.address)?;
    running.request("POST", "", &call(2, "stream", &json!({})))?;
    scene.server.request()?;
    assert_eq!(running.head()?.status, 200);

    scene.agent.process().signal(Signal::SIGTERM)?;
    wait::until("a new request to be turned away", || {
        // Closed cleanly, the connection may be before the answer is asked for.
        let Ok(reply) = idle.post(&call(3, "echo", &json!({}))) else { return Ok(Some(())) };
        if reply.status == 200 {
            return Ok(None);
        }
        assert_eq!((reply.status, reply.header("retry-after").is_some()), (503, true), "{}", reply.head);
        assert_eq!(idle.rest()?, b"", "closed after it");
        Ok(Some(()))
    })?;
    let result = json!({ "jsonrpc": "2.0", "id": 2, "result": { "content": [] } });
    scene.server.send_event(&result)?;
    assert_eq!(running.event()?, Some(format!("event: message\ndata: {result}\n\n")));
    scene.server.end_stream()?;
    assert_eq!(running.event()?, None, "the running one is whole");

    // Nobody waits for the end of the stream.
    let status = scene.agent.stop_after_signal()?;
    let said = scene.agent.process().said();
    assert!(status.success() && !said.contains("cut off"), "{said}");
    assert!(stream.event().is_err(), "a stream that was cut has no end");
    let lines = scene.agent.audit(3)?;
    let of = |method: &str, tool: &str| {
        lines.iter().filter(|line| text(line, "method") == method && text(line, "tool") == tool).count()
    };
    assert_eq!((of("tools/call", "stream"), of("stream", "")), (1, 1), "{lines:#?}");
    Ok(())
}

#[test]
fn a_request_that_never_ends_is_cut_off_and_the_agent_still_ends() -> Result<()> {
    let mut scene = Scene::set()?;
    let (_caller, mut running) = scene.reader()?;
    running.request("POST", "", &call(1, "stream", &json!({})))?;
    scene.server.request()?;
    assert_eq!(running.head()?.status, 200);
    let status = scene.agent.stop()?;
    assert!(status.success());
    let line = scene.agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!((text(&line, "tool"), text(&line, "decision")), ("stream", "permit"), "{line}");
    assert!(running.event().is_err(), "a reply that was cut has no end");
    Ok(())
}

/// Names in the reply of `tools/list`.
fn names(reply: &Value) -> Vec<&str> {
    let tools =
        reply.pointer("/result/tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    tools.iter().map(|tool| text(tool, "name")).collect()
}

#[test]
fn a_running_request_keeps_the_resources_that_it_was_decided_by() -> Result<()> {
    let peer = Peer::start()?;
    let first = resources(peer.address);
    let agent = Agent::start(Setup { resources: &first, ..Setup::default() })?;
    let mut caller = agent.caller("reader")?;
    let tools = ["echo", "delete_everything"].map(|name| json!({ "name": name, "inputSchema": {} }));
    let list = json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": tools } }).to_string();
    let length = list.len();
    let reply = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{list}"
    );

    let mut running = caller.http(peer.address)?;
    running.request("POST", "", &message(1, "tools/list", &json!({})))?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    agent.write_resources(&first.replace("[echo, stream, slow_count]", "[delete_everything]"))?;
    agent.process().line("configuration reloaded")?;
    server.send(reply.as_bytes())?;
    assert_eq!(names(&running.reply()?.message()?), ["echo"], "by the resources of its time");

    let mut next = caller.http(peer.address)?;
    next.request("POST", "", &message(1, "tools/list", &json!({})))?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    server.send(reply.as_bytes())?;
    assert_eq!(names(&next.reply()?.message()?), ["delete_everything"], "by the new ones");

    let lines = agent.audit(2)?;
    let generations: Vec<_> = lines.iter().filter_map(|line| line.get("generation")?.as_u64()).collect();
    assert!(matches!(generations[..], [old, new] if new == old + 1), "{lines:#?}");
    Ok(())
}

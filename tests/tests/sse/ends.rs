//! What becomes of who waits for an answer when a stream ends.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::text;

use crate::rig::{ENDPOINT, Rig, Session, answer, call};

/// Two calls that wait, one of which the server has not accepted yet.
fn waiting(rig: &Rig) -> Result<(Session, toolgate_tests::Connection)> {
    let mut reader = rig.session("reader", ENDPOINT)?;
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    let post = rig.arrives(&mut reader, &call(&json!(2), "stream"))?;
    Ok((reader, post))
}

/// The calls' lines; `reason` is of each.
fn recorded(rig: &Rig, reason: &str) -> Result<()> {
    let calls = |lines: &[Value]| -> Vec<Value> {
        lines.iter().filter(|line| text(line, "method") == "tools/call").cloned().collect()
    };
    let lines = rig.agent.audit_until("both calls", |lines| calls(lines).len() == 2)?;
    for line in calls(&lines) {
        ensure!(text(&line, "decision") == "permit" && text(&line, "reason") == reason, "{line}");
        ensure!(text(&line, "detail").starts_with("no answer: "), "{line}");
    }
    Ok(())
}

/// What each of them is told, and the end of the stream.
fn told(reader: &mut Session) -> Result<()> {
    let mut ids = vec![];
    while let Some(event) = reader.stream.event()? {
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_default();
        let message: Value = serde_json::from_str(data)?;
        ensure!(message["error"]["code"] == json!(-31403), "{message}");
        ids.extend(message["id"].as_u64());
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    Ok(())
}

#[test]
fn who_waits_is_told_when_the_server_ends_the_stream() -> Result<()> {
    for (name, last) in [("in order", &b"0\r\n\r\n"[..]), ("in the middle of an event", b"6\r\ndata: \r\n")] {
        let rig = Rig::set("", "")?;
        let (mut reader, mut post) = waiting(&rig)?;
        reader.server.send(last)?;
        reader.server.finish()?;
        told(&mut reader)?;
        crate::rig::accept(&mut post)?;
        assert_eq!(reader.posts.reply()?.status, 202, "{name}");
        recorded(&rig, "server_fault")?;
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_its_stream_leaves_its_requests() -> Result<()> {
    let rig = Rig::set("", "")?;
    let (reader, mut post) = waiting(&rig)?;
    let Session { stream, mut server, mut posts, caller, .. } = reader;
    drop(stream);
    ensure!(server.rest().is_ok_and(|rest| rest.is_empty()), "the server is told");
    crate::rig::accept(&mut post)?;
    assert_eq!(posts.reply()?.status, 202);
    recorded(&rig, "client_left")?;
    drop(caller);
    Ok(())
}

/// Streams end with their agent: who waits has half of its last time to be answered, and is told then.
#[test]
fn a_stream_ends_with_its_agent() -> Result<()> {
    let mut rig = Rig::set("", "{ drain_time_max: 4s }")?;
    let (mut reader, mut post) = waiting(&rig)?;
    let mut idle = rig.session("writer", "/idle")?;
    crate::rig::accept(&mut post)?;
    assert_eq!(reader.posts.reply()?.status, 202);
    rig.agent.upgrade(&[])?;
    assert_eq!(idle.stream.event()?, None, "nobody waits there");
    reader.hears(&answer(&json!(2)))?;
    let last = reader.message()?;
    ensure!(last["id"] == json!(1) && last["error"].is_object(), "{last}");
    assert_eq!(reader.stream.event()?, None);
    ensure!(rig.agent.stop_after_signal()?.success(), "the one before ends by itself");
    // The next agent knows neither stream nor endpoint.
    reader.posts = reader.caller.http(rig.peer.address)?;
    assert_eq!(rig.refused(&mut reader, &call(&json!(3), "echo"))?.status, 404);
    let mut anew = rig.session("reader", "/anew")?;
    rig.accepted(&mut anew, &call(&json!(1), "echo"))?;
    anew.hears(&answer(&json!(1)))
}

//! Which endpoints there are, and whose.

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::text;
use toolgate_tests::wait;

use crate::rig::{ENDPOINT, Rig, Session, answer, begin, call, request, say};

/// Sends a permitted call to somebody's endpoint, which must look like one that is not there.
fn unknown(rig: &Rig, session: &mut Session, target: &str, reason: &str) -> Result<()> {
    let own = std::mem::replace(&mut session.endpoint, target.to_owned());
    let reply = rig.refused(session, &call(&json!(1), "echo"))?;
    session.endpoint = own;
    ensure!(reply.status == 404, "{target}: {}{}", reply.head, reply.text());
    ensure!(
        reply.message()?["error"]["message"].to_string().contains("no such endpoint"),
        "{}",
        reply.text()
    );
    let is_it = |line: &serde_json::Value| text(line, "reason") == reason && line["status"] == json!(404);
    rig.agent.audit_until(reason, |lines| lines.last().is_some_and(is_it))?;
    Ok(())
}

#[test]
fn an_endpoint_is_good_for_whose_stream_named_it_while_that_is_open() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let mut writer = rig.session("writer", "/s/writer")?;
    unknown(&rig, &mut writer, ENDPOINT, "endpoint_hijack")?;
    for target in ["/messages/?session_id=0f8fad5c", "/messages/", "/sse", "/s/writer?", "/"] {
        unknown(&rig, &mut writer, target, "unknown_endpoint")?;
    }
    rig.accepted(&mut writer, &call(&json!(1), "echo"))?;
    writer.hears(&answer(&json!(1)))?;
    // Nobody's when its stream has ended, by either end.
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    reader.server.send(b"0\r\n\r\n")?;
    while reader.stream.event()?.is_some() {}
    for session in [&mut writer, &mut reader] {
        unknown(&rig, session, ENDPOINT, "unknown_endpoint")?;
    }
    let Session { caller, stream, mut posts, .. } = writer;
    drop(stream);
    wait::until("the end of the stream", || {
        posts.send(&request("POST /s/writer", &rig, call(&json!(2), "echo").to_string().as_bytes()))?;
        if let Some(mut server) = rig.peer.accept_now()? {
            crate::rig::accept(&mut server)?;
        }
        Ok((posts.reply()?.status == 404).then_some(()))
    })?;
    drop(caller);
    Ok(())
}

#[test]
fn an_endpoint_may_be_written_in_every_way_that_all_clients_read_alike() -> Result<()> {
    let rig = Rig::set("", "")?;
    let address = rig.peer.address;
    let localhost = format!("http://localhost:{}/m?s=1", address.port());
    for (named, target) in [
        ("/m/1", "/m/1"),
        ("m?s=1", "/m?s=1"),
        ("?s=1", "/sse?s=1"),
        (&format!("http://{address}/m?s=2"), "/m?s=2"),
        (&localhost, "/m?s=1"),
        (&format!("//{address}/m?s=3"), "/m?s=3"),
    ] {
        let mut reader = rig.session("reader", named)?;
        reader.endpoint = target.to_owned();
        rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
        reader.hears(&answer(&json!(1)))?;
    }
    Ok(())
}

#[test]
fn who_may_nothing_opens_no_stream() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut stranger = rig.agent.caller("stranger")?;
    let mut client = stranger.http(rig.peer.address)?;
    for (start, status) in [
        ("GET /sse", 405),
        ("GET /sse?x=1", 405),
        ("GET /other", 403),
        ("GET /.well-known/oauth-protected-resource", 404),
        ("DELETE /sse", 405),
        ("POST /sse", 404),
    ] {
        let body =
            if start.starts_with("POST") { call(&json!(1), "echo").to_string() } else { String::new() };
        client.send(&request(start, &rig, body.as_bytes()))?;
        let reply = client.reply()?;
        ensure!(reply.status == status, "{start}: {}", reply.head);
        if reply.header("connection") == Some("close") {
            client = stranger.http(rig.peer.address)?;
        }
    }
    ensure!(rig.peer.accept_now()?.is_none(), "something reached the server");
    Ok(())
}

/// A server that gives two open streams the same endpoint is at fault: nobody could tell whose an answer is.
#[test]
fn no_two_open_streams_have_the_same_endpoint() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    for app_id in ["writer", "reader"] {
        let mut other = rig.agent.caller(app_id)?;
        let (mut stream, mut server) = rig.get(&mut other)?;
        begin(&mut server)?;
        say(&mut server, &format!("event: endpoint\ndata: {ENDPOINT}\n\n"))?;
        let refused = stream.head()?;
        ensure!(refused.status == 502 || stream.event()?.is_none(), "{app_id}: {}", refused.text);
        let is_it = |line: &serde_json::Value| text(line, "detail").contains("has the same one");
        rig.agent.audit_until("a server's fault", |lines| lines.last().is_some_and(is_it))?;
    }
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    reader.hears(&answer(&json!(1)))
}

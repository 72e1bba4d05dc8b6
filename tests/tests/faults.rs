//! What fails beside the agent: servers that go, an audit that cannot be written. Each has one answer, in bounded time.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{Agent, Peer, Scene, Setup, wait};

#[test]
fn a_server_that_goes_down_between_two_requests_is_said_so_once() -> Result<()> {
    for (name, body) in [
        ("nothing", ""),
        ("a body", "Content-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello"),
        ("JSON", "Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"),
    ] {
        let agent = Agent::start(Setup { capture: "{ unrecognised: pass }", ..Setup::default() })?;
        let peer = Peer::start()?;
        let mut client = agent.caller("reader")?.http(peer.address)?;
        let request = match body {
            "" => "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            body => format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"),
        };
        client.send(request.as_bytes())?;
        let mut server = peer.accept()?;
        server.through("\r\n\r\n")?;
        server.exactly(body.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len()))?;
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        assert_eq!(client.reply()?.text(), "ok", "{name}");

        drop((server, peer));
        client.send(request.as_bytes())?;
        let said = String::from_utf8_lossy(&client.rest().context(name)?).into_owned();
        assert!(said.starts_with("HTTP/1.1 502 "), "{name}: {said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{name}: {said}");
    }
    Ok(())
}

/// A server whose queue is full: the kernel drops the SYN of the next connection, which waits in vain.
#[test]
fn a_server_that_does_not_accept_is_given_up_in_time() -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("no socket")?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).context("cannot bind")?;
    socket.listen(0).context("cannot listen")?;
    let address = socket.local_addr()?.as_socket().context("no address")?;
    let _in_the_queue = TcpStream::connect(address).context("cannot fill the queue")?;
    let agent = Agent::start(Setup { resources: &resources(address), ..Setup::default() })?;
    let mut client = agent.caller("reader")?.http(address)?;
    assert_eq!(client.post(&call(1, "echo", &json!({})))?.status, 504);
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!((text(&line, "decision"), text(&line, "reason")), ("permit", "server_timeout"), "{line}");
    Ok(())
}

#[test]
fn without_a_record_no_message_passes_and_the_agent_still_ends() -> Result<()> {
    let mut scene = Scene::with_setup(Setup { audit: "{ file: /dev/full }", ..Setup::default() })?;
    let (mut caller, mut connection) = scene.reader()?;
    // The first ones are sent before anybody knows that they cannot be written.
    wait::until("the first denial", || {
        let reply = connection.post(&call(1, "echo", &json!({})))?;
        ensure!(matches!(reply.status, 200 | 503), "{}", reply.text());
        Ok((reply.status == 503).then_some(()))
    })?;
    let _before_that = scene.server.requests_now();
    for again in 0..3 {
        let reply = caller.http(scene.server.address)?.post(&call(2, "echo", &json!({})))?;
        assert_eq!(reply.status, 503, "{again}: {}", reply.text());
    }
    assert_eq!(scene.server.requests_now().len(), 0);
    assert!(scene.agent.metric("toolgate_audit_write_failures_total", &[])? > 0.0);
    let refused = scene.agent.metric("toolgate_connections_refused_total", &["audit_unavailable"])?;
    assert!(refused >= 4.0, "{refused}");
    assert!(scene.agent.stop()?.success(), "{}", scene.agent.process().said());
    Ok(())
}

#[test]
fn messages_pass_without_a_record_where_that_is_allowed_and_are_counted() -> Result<()> {
    let audit = "{ file: /dev/full, on_failure: dangerous_allow }";
    let mut scene = Scene::with_setup(Setup { audit, ..Setup::default() })?;
    let (_caller, mut connection) = scene.reader()?;
    for lost in [1.0, 2.0, 3.0] {
        assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
        scene.agent.counts("toolgate_audit_lost_total ", &[], lost)?;
    }
    // Policy is not relaxed.
    assert!(!is_result(&connection.post(&call(1, "delete_everything", &json!({})))?)?);
    assert!(scene.agent.stop()?.success(), "{}", scene.agent.process().said());
    Ok(())
}

#[test]
fn a_client_that_leaves_while_its_server_works_ends_the_servers_work() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut caller = agent.caller("reader")?;
    let begun = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    for (count, name, said) in [(1, "before the reply", ""), (2, "in the middle of it", begun)] {
        let mut client = caller.http(peer.address)?;
        client.request("POST", "", &call(1, "echo", &json!({})))?;
        let mut server = peer.accept()?;
        server.through("\r\n\r\n")?;
        server.send(said.as_bytes())?;
        if !said.is_empty() {
            assert_eq!(client.head()?.status, 200, "{name}");
        }
        drop(client);
        server.rest().context(name)?;
        let line = agent.audit(count)?.pop().context("no audit line")?;
        assert_eq!(
            (text(&line, "decision"), text(&line, "reason")),
            ("permit", "client_left"),
            "{name}: {line}"
        );
    }
    Ok(())
}

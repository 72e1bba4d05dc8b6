//! What fails beside the agent: servers that go, an audit that cannot be written. Each has one answer, in bounded time.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use toolgate_ebpf_common::{AF_INET, LOOPBACK4};
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{Agent, Peer, PortRange, Scene, Setup, pinned, wait};

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
    let held = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let begun = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    for (count, name, said) in [
        (1, "before the reply", ""),
        (2, "in the middle of it", held),
        (3, "in the middle of a stream", begun),
    ] {
        let mut client = caller.http(peer.address)?;
        client.request("POST", "", &call(1, "echo", &json!({})))?;
        let mut server = peer.accept()?;
        server.through("\r\n\r\n")?;
        server.send(said.as_bytes())?;
        if said == begun {
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

/// `SO_NETNS_COOKIE` (asm-generic/socket.h), since 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

fn netns_cookie() -> Result<u64> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("no socket")?;
    let (mut cookie, mut size) = (0_u64, 8);
    // SAFETY: both pointers lead to live variables, and the size is that of the first.
    let got = unsafe {
        let place = std::ptr::from_mut(&mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut size)
    };
    ensure!(got == 0, "no namespace cookie: {}", std::io::Error::last_os_error());
    Ok(cookie)
}

/// The program that gives a connection its record is taken away, and what lets its SYN through is put there by hand.
#[test]
fn a_connection_without_a_record_is_closed_and_counted() -> Result<()> {
    const RECORD_BYTES: usize = 96;
    let scene = Scene::set()?;
    let (mut caller, mut before) = scene.reader()?;
    assert!(is_result(&before.post(&call(1, "echo", &json!({})))?)?);
    scene.server.request()?;
    // Nothing but the pin keeps it attached.
    std::fs::remove_file(pinned::directory()?.join("links/sock_ops")).context("no such link")?;
    let mut connections = pinned::map::<32, RECORD_BYTES>("CONNECTIONS")?;
    let (cookie, listener) = (netns_cookie()?, scene.agent.outbound.port());
    let ports = 61_200..61_232_u16;
    let range = PortRange::set(&format!("{} {}", ports.start, ports.end - 1))?;
    for port in ports {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&cookie.to_ne_bytes());
        key[8..24].copy_from_slice(&LOOPBACK4);
        key[24..26].copy_from_slice(&port.to_ne_bytes());
        key[26..28].copy_from_slice(&listener.to_ne_bytes());
        key[28..30].copy_from_slice(&AF_INET.to_ne_bytes());
        connections.insert(key, [1; RECORD_BYTES], 0).context("cannot let a SYN through")?;
    }
    let connected = caller.http(scene.server.address);
    drop(range);
    // It is closed before it is read, so what was sent may be answered by a reset.
    let mut unknown = connected?;
    let _closed_already = unknown.request("POST", "", &call(2, "echo", &json!({})));
    let said = unknown.rest().unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&said), "");
    scene.agent.counts("toolgate_connections_refused_total", &["no_record"], 1.0)?;
    assert_eq!(scene.server.requests_now().len(), 0);
    Ok(())
}

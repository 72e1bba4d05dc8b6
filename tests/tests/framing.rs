//! Where a message ends: replies without bodies, requests that are answered early, connections that change their protocol.

use anyhow::{Context as _, Result};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{Agent, Peer, Scene, Setup};

/// How a client of a declared server may not speak, and the status that tells it. The codec's own tests have many more of
/// each (`agent/core/tests/http1_heads.rs`).
const REFUSED: &[(&str, &str, u16)] = &[
    ("HTTP/1.0", "POST /mcp HTTP/1.0\r\nHost: HOST\r\nContent-Length: 2\r\n\r\n{}", 505),
    ("h2c by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("a bare LF", "POST /mcp HTTP/1.1\nHost: HOST\nContent-Length: 2\n\n{}", 400),
    ("a bare LF behind a header", "POST /mcp HTTP/1.1\r\nHost: HOST\nContent-Length: 2\r\n\r\n{}", 400),
    ("a folded header", "POST /mcp HTTP/1.1\r\nHost: HOST\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("a space before a colon", "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length : 2\r\n\r\n{}", 400),
    ("the absolute form", "POST http://HOST/mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("CONNECT", "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n", 501),
    ("an encoded slash", "POST /%2fmcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("a dotted path", "POST /a/../mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\n{}", 400),
    (
        "an encoded dotted path",
        "POST /a/%2e%2e/mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\n{}",
        400,
    ),
    (
        "two framings",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        400,
    ),
    (
        "two lengths, in other cases",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\ncontent-length: 3\r\n\r\n{}",
        400,
    ),
    (
        "a length with an underscore",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nContent_Length: 3\r\n\r\n{}",
        400,
    ),
    (
        "chunks within gzip",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        501,
    ),
    (
        "a compressed body",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        415,
    ),
    (
        "another expectation",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nExpect: a\r\nContent-Length: 2\r\n\r\n{}",
        417,
    ),
    ("a broken chunk", "POST /mcp HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}", 400),
];

#[test]
fn what_others_may_read_otherwise_is_refused_and_closed() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut caller = agent.caller("reader")?;
    for &(name, said, status) in REFUSED {
        let mut client = caller.http(peer.address)?;
        client.send(said.replace("HOST", &peer.address.to_string()).as_bytes())?;
        assert_eq!(client.reply().context(name)?.status, status, "{name}");
        assert_eq!(client.rest().context(name)?, b"", "{name}: closed after it");
        assert!(peer.accept_now()?.is_none(), "{name}: it reached the server");
    }
    Ok(())
}

/// Chunks with extensions and trailers come in, an expectation is answered, interim replies come back: one request with one
/// length goes to the server, one reply to the client.
#[test]
fn one_framing_leaves_whatever_came() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut client = agent.caller("reader")?.http(peer.address)?;
    let body = call(1, "echo", &json!({}));
    let head = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nTrailer: X-Late\r\nExpect: 100-continue";
    client.send(format!("POST /mcp HTTP/1.1\r\nHost: {}\r\n{head}\r\n\r\n", peer.address).as_bytes())?;
    assert_eq!(client.head()?.status, 100, "the agent wants the body");
    let (first, last) = body.split_at(10);
    client.send(
        &[b"a;name=\"value\"\r\n", first, format!("\r\n{:X}\r\n", last.len()).as_bytes(), last].concat(),
    )?;
    client.send(b"\r\n0;end\r\nX-Late: 1\r\nContent-Length: 9\r\n\r\n")?;

    let mut server = peer.accept()?;
    let head = server.through("\r\n\r\n")?.to_lowercase();
    let length = format!("content-length: {}\r\n", body.len());
    assert_eq!((head.matches("content-length").count(), head.contains(&length)), (1, true), "{head}");
    for gone in ["transfer-encoding", "trailer", "x-late", "expect"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    assert_eq!(server.exactly(body.len())?, body);

    server.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
    let result = json!({ "jsonrpc": "2.0", "id": 1, "result": { "content": [] } }).to_string();
    let (first, last) = result.split_at(7);
    let chunks = format!("7;a=b\r\n{first}\r\n{:x}\r\n{last}\r\n0\r\nX-Late: 1\r\n\r\n", last.len());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    server.send(format!("{head}{chunks}").as_bytes())?;
    let reply = client.reply()?;
    assert_eq!((reply.status, reply.text()), (200, result), "{}", reply.head);
    let head = reply.head.to_lowercase();
    let framings = head.matches("content-length").count() + head.matches("transfer-encoding").count();
    assert_eq!(framings, 1, "{head}");
    Ok(())
}

/// An agent that lets pass what is not MCP.
fn passing() -> Result<Agent> {
    Agent::start(Setup { capture: "{ unrecognised: pass }", ..Setup::default() })
}

#[test]
fn a_reply_without_body_keeps_its_length_and_the_next_one_its_place() -> Result<()> {
    let agent = passing()?;
    let peer = Peer::start()?;
    let mut client = agent.caller("reader")?.http(peer.address)?;
    let mut server = peer.accept()?;
    for (method, headers, status) in [
        ("HEAD", "", "200 OK"),
        ("GET", "If-None-Match: \"a\"\r\n", "304 Not Modified"),
        ("HEAD", "", "404 Not Found"),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes())?;
        assert!(server.through("\r\n\r\n")?.starts_with(method), "{method} {status}");
        server.send(format!("HTTP/1.1 {status}\r\nContent-Length: 1234\r\n\r\n").as_bytes())?;
        let head = client.head()?;
        assert_eq!(head.header("content-length"), Some("1234"), "{method} {status}: {}", head.text);
        assert!(status.starts_with(&head.status.to_string()), "{method} {status}: {}", head.text);
    }
    client.send(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n")?;
    server.through("\r\n\r\n")?;
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast")?;
    assert_eq!(client.reply()?.text(), "last");
    Ok(())
}

#[test]
fn a_chunked_request_and_the_next_one_behind_it_get_their_replies_in_order() -> Result<()> {
    let agent = passing()?;
    let mut caller = agent.caller("reader")?;
    // JSON may be MCP and is read whole; anything else is streamed.
    for content_type in ["text/plain", "application/json"] {
        let peer = Peer::start()?;
        let mut client = caller.http(peer.address)?;
        let post = format!(
            "POST /a HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"
        );
        client.send(format!("{post}HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())?;
        let mut server = peer.accept()?;
        let head = server.through("\r\n\r\n")?;
        assert!(head.starts_with("POST /a "), "{content_type}: {head}");
        let body = if toolgate_tests::http::header(&head, "transfer-encoding").is_some() {
            server.through("0\r\n\r\n")?
        } else {
            server.through("2]")?
        };
        assert!(body.contains("[1,") && !body.contains("HEAD"), "{content_type}: {body}");
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")?;
        assert!(server.through("\r\n\r\n")?.starts_with("HEAD /b "), "{content_type}");
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")?;

        assert_eq!(client.reply()?.text(), "ok", "{content_type}");
        assert_eq!(client.head()?.header("content-length"), Some("7"), "{content_type}");
        client.send(b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n")?;
        assert!(server.through("\r\n\r\n")?.starts_with("GET /c "), "{content_type}");
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast")?;
        assert_eq!(client.reply()?.text(), "last", "{content_type}");
    }
    Ok(())
}

#[test]
fn what_is_left_of_a_body_that_was_answered_early_is_never_a_request() -> Result<()> {
    let agent = passing()?;
    let mut caller = agent.caller("reader")?;
    // More than the kernel holds for a connection (net.ipv4.tcp_wmem, tcp_rmem).
    let body = "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(500_000);
    let length = body.len();
    for (name, server_closes) in [("a server that waits", false), ("a server that closes", true)] {
        let peer = Peer::start()?;
        let mut client = caller.http(peer.address)?;
        let head = format!(
            "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
        );
        client.send_meanwhile([head.as_bytes(), body.as_bytes()].concat())?;
        let mut server = peer.accept()?;
        assert!(server.through("\r\n\r\n")?.starts_with("PUT /a "), "{name}");
        server.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")?;
        let server = (!server_closes).then_some(server);

        let said = String::from_utf8_lossy(&client.rest().context(name)?).into_owned();
        // Closed with unread bytes, a reset may overtake the server's answer: then it is a fault of the server's.
        let expected: &[&str] = if server_closes { &["413", "502"] } else { &["413"] };
        let status = said.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or_default();
        assert!(expected.contains(&status), "{name}: {said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{name}: one answer to one request: {said}");
        assert!(peer.accept_now()?.is_none(), "{name}: something else was sent to the server");
        drop(server);
    }
    Ok(())
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\n";
const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn a_connection_that_becomes_a_websocket_carries_bytes_both_ways() -> Result<()> {
    let agent = passing()?;
    let peer = Peer::start()?;
    let mut client = agent.caller("reader")?.http(peer.address)?;
    client.send(format!("GET /chat HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes())?;
    let mut server = peer.accept()?;
    let head = server.through("\r\n\r\n")?;
    assert_eq!(toolgate_tests::http::header(&head, "upgrade"), Some("websocket"), "{head}");
    // The server speaks at once, in the same segment.
    server.send(&[SWITCHING, b"\x81\x05hello"].concat())?;
    assert_eq!(client.head()?.status, 101);
    assert_eq!(client.exactly(7)?, b"\x81\x05hello");
    for frame in [&b"\x81\x82abcdQQ"[..], b"POST /mcp HTTP/1.1\r\n\r\n", b"\x88\x80abcd"] {
        client.send(frame)?;
        assert_eq!(server.exactly(frame.len())?, frame);
        server.send(frame)?;
        assert_eq!(client.exactly(frame.len())?, frame);
    }
    client.finish()?;
    assert_eq!(server.rest()?, b"");
    drop(server);
    assert_eq!(client.rest()?, b"");
    Ok(())
}

#[test]
fn a_declared_server_never_becomes_anything_else() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut caller = agent.caller("reader")?;
    let http2 = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n";
    for (count, method, upgrade, body) in
        [(1, "GET", http2, Vec::new()), (2, "POST", UPGRADE, call(1, "echo", &json!({})))]
    {
        let mut client = caller.http(peer.address)?;
        client.request(method, upgrade, &body)?;
        let mut server = peer.accept()?;
        let head = server.through("\r\n\r\n")?.to_lowercase();
        assert!(!head.contains("upgrade"), "{method}: {head}");
        server.send(&[SWITCHING, b"anything"].concat())?;
        assert_eq!(client.reply()?.status, 502, "{method}");
        let line = agent.audit(count)?.pop().context("no audit line")?;
        assert_eq!(text(&line, "reason"), "server_fault", "{method}: {line}");
    }
    Ok(())
}

#[test]
fn a_name_as_long_as_a_body_is_cut_in_the_audit_and_no_label() -> Result<()> {
    const BYTES_MAX: usize = 300;
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let long = "x".repeat(1 << 20);
    let bodies = [
        call(1, &long, &json!({})),
        toolgate_tests::scene::message(2, &long, &json!({})),
        toolgate_tests::scene::message(3, "resources/read", &json!({ "uri": format!("a:{long}") })),
        call(4, "read_file", &json!({ "path": format!("/{long}") })),
    ];
    let count = bodies.len();
    for body in bodies {
        assert!(!is_result(&connection.post(&body)?)?);
    }
    for line in scene.agent.audit(count)? {
        for (field, value) in line.as_object().context("no object")? {
            assert!(value.to_string().len() <= BYTES_MAX, "{field}: {} bytes", value.to_string().len());
        }
    }
    let metrics = scene.agent.metrics()?;
    assert!(metrics.lines().all(|line| line.len() <= 2 * BYTES_MAX), "{metrics}");
    scene.nothing_reached_the_server(&mut connection)
}

//! What goes to no declared server: MCP is denied or recorded, everything else follows `unrecognised`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, message, text};
use toolgate_tests::{PATIENCE, Scene, Server};

/// A server of some other protocol. It says `banner` first, then answers a line by the same line.
struct Plain {
    address: SocketAddr,
    /// The lines that reached it.
    lines: Receiver<String>,
}

impl Plain {
    fn start(banner: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
        let address = listener.local_addr()?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let _the_client_left = Self::serve(stream, banner, |line| sender.send(line).is_ok());
                });
            }
        });
        Ok(Self { address, lines })
    }

    fn serve(mut stream: TcpStream, banner: &str, tell: impl Fn(String) -> bool) -> std::io::Result<()> {
        stream.write_all(banner.as_bytes())?;
        let mut line = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            line.extend(byte);
            if byte == *b"\n" {
                stream.write_all(&line)?;
                if !tell(String::from_utf8_lossy(&line).into_owned()) {
                    break;
                }
                line.clear();
            }
        }
        Ok(())
    }
}

#[test]
fn what_is_not_mcp_passes_also_where_the_server_speaks_first() -> Result<()> {
    let scene = Scene::with("{ unrecognised: pass }", false)?;
    let mut caller = scene.caller("reader")?;
    for (banner, line) in [("220 hello\r\n", "EHLO me\n"), ("", "*1 PING\n")] {
        let plain = Plain::start(banner)?;
        let mut connection = caller.http(plain.address)?;
        assert_eq!(connection.exactly(banner.len())?, banner.as_bytes(), "{line}");
        connection.send(line.as_bytes())?;
        assert_eq!(connection.exactly(line.len())?, line.as_bytes());
        assert_eq!(plain.lines.recv_timeout(PATIENCE)?, line);
    }
    // HTTP that is not MCP.
    let web = Server::start()?;
    let mut connection = caller.http(web.address)?;
    connection.send(format!("GET /a HTTP/1.1\r\nHost: {}\r\n\r\n", web.address).as_bytes())?;
    assert_eq!(connection.head()?.status, 200);
    assert!(web.request()?.head.starts_with("GET /a HTTP/1.1\r\n"));
    Ok(())
}

#[test]
fn what_is_not_mcp_can_be_denied_also_where_the_server_speaks_first() -> Result<()> {
    let scene = Scene::with("{ unrecognised: deny }", false)?;
    let mut caller = scene.caller("reader")?;
    for (banner, line) in
        [("220 hello\r\n", ""), ("", "*1 PING\n"), ("", "GET / HTTP/1.1\r\nHost: a\r\n\r\n")]
    {
        let plain = Plain::start(banner)?;
        let mut connection = caller.http(plain.address)?;
        connection.send(line.as_bytes())?;
        let said = String::from_utf8_lossy(&connection.rest()?).into_owned();
        let expected = if line.starts_with("GET") { "HTTP/1.1 403" } else { "" };
        assert!(said.starts_with(expected) && !said.contains("hello"), "{line}: {said}");
        assert!(plain.lines.try_recv().is_err(), "{line} reached the server");
    }
    let lines = scene.agent.audit(3)?;
    assert!(lines.iter().all(|line| text(line, "reason") == "unrecognised"), "{lines:#?}");
    // The twin outside is not concerned.
    let plain = Plain::start("220 hello\r\n")?;
    assert_eq!(toolgate_tests::Caller::outside()?.http(plain.address)?.exactly(5)?, b"220 h");
    Ok(())
}

#[test]
fn a_large_transfer_passes_unharmed_both_ways() -> Result<()> {
    let scene = Scene::with("{ unrecognised: pass }", false)?;
    let plain = Plain::start("")?;
    let mut connection = scene.caller("reader")?.http(plain.address)?;
    for size in [1, 100_000, 3_000_000] {
        let line = [vec![b'x'; size], b"\n".to_vec()].concat();
        connection.send(&line)?;
        assert!(connection.exactly(line.len())? == line, "{size}");
    }
    Ok(())
}

#[test]
fn mcp_to_an_undeclared_server_is_denied() -> Result<()> {
    let scene = Scene::set()?;
    let shadow = Server::start()?;
    let reply = scene.caller("reader")?.http(shadow.address)?.post(&call(1, "echo", &json!({})))?;
    assert!(!is_result(&reply)?, "{}", reply.text());
    let line = scene.agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!((text(&line, "decision"), text(&line, "reason")), ("deny", "undeclared"));
    assert_eq!(shadow.requests_now().len(), 0);
    Ok(())
}

#[test]
fn mcp_in_disguise_to_an_undeclared_server_is_denied_and_other_json_passes() -> Result<()> {
    let scene = Scene::with("{ unrecognised: pass }", false)?;
    let shadow = Server::start()?;
    let mut caller = scene.caller("reader")?;
    let plain = String::from_utf8(call(1, "echo", &json!({})))?;
    let wide = |unit: fn(u16) -> [u8; 2]| plain.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let escaped =
        r#"{"\u006a\u0073\u006f\u006e\u0072\u0070\u0063":"2.0","id":1,"id":2,"method":"\u0070ing"}"#;
    let large = json!({ "text": "what is a jsonrpc batch?".repeat(20_000) }).to_string();
    let cases: [(&str, Vec<u8>, bool); 7] = [
        ("UTF-16, little end first", wide(u16::to_le_bytes), false),
        ("UTF-16, big end first", wide(u16::to_be_bytes), false),
        ("with a byte order mark", [b"\xef\xbb\xbf", plain.as_bytes()].concat(), false),
        ("a batch", format!("[{plain}]").into_bytes(), false),
        ("escaped, with a key twice", escaped.as_bytes().to_vec(), false),
        ("JSON of another kind", large.into_bytes(), true),
        ("lines of JSON", b"{\"a\":1}\n{\"a\":\"\\u00e9\"}\n".to_vec(), true),
    ];
    for (name, body, passes) in cases {
        let mut connection = caller.http(shadow.address)?;
        connection.request("POST", "", &body)?;
        let status = connection.head().context(name)?.status;
        assert_eq!(status != 403, passes, "{name}: {status}");
        if passes {
            assert!(shadow.request()?.body == body, "{name}");
        }
        assert_eq!(shadow.requests_now().len(), 0, "{name}");
    }
    Ok(())
}

#[test]
fn mcp_to_an_undeclared_server_passes_where_that_is_allowed() -> Result<()> {
    for (capture, observe, decision) in
        [("{ undeclared: dangerous_allow }", false, "permit"), ("", true, "observe")]
    {
        let scene = Scene::with(capture, observe)?;
        let shadow = Server::start()?;
        let body = call(1, "delete_everything", &json!({}));
        let reply = scene.caller("nobody-special")?.http(shadow.address)?.post(&body)?;
        assert!(is_result(&reply)?, "{capture}: {}", reply.text());
        assert_eq!(shadow.request()?.body, body, "{capture}");
        let line = scene.agent.audit(1)?.pop().context("no audit line")?;
        assert_eq!((text(&line, "decision"), text(&line, "tool")), (decision, "delete_everything"), "{line}");
    }
    Ok(())
}

#[test]
fn observing_lets_pass_and_records_what_would_have_been_denied() -> Result<()> {
    let scene = Scene::with("", true)?;
    let (_caller, mut connection) = scene.reader()?;
    let body = call(1, "delete_everything", &json!({}));
    assert!(is_result(&connection.post(&body)?)?);
    assert_eq!(scene.server.request()?.body, body);
    let line = scene.agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!((text(&line, "decision"), text(&line, "reason")), ("observe", "no_rule"), "{line}");
    let all = connection.post(&message(2, "tools/list", &json!({})))?.message()?;
    let tools = all.pointer("/result/tools").and_then(|tools| tools.as_array().map(Vec::len));
    assert_eq!(tools, Some(toolgate_tests::server::TOOLS.len()), "the list is whole as well");
    // Wire rules are not relaxed.
    connection.request("POST", "", b"[]")?;
    assert_eq!(connection.reply()?.status, 400);
    Ok(())
}

#[test]
fn a_host_that_is_not_the_servers_is_denied() -> Result<()> {
    let scene = Scene::set()?;
    let mut caller = scene.caller("reader")?;
    let port = scene.server.address.port();
    let body = call(1, "echo", &json!({}));
    for (host, served) in [
        (format!("127.0.0.1:{port}"), true),
        (format!("localhost:{port}"), true),
        (format!("evil.example:{port}"), false),
        ("127.0.0.1:1".to_owned(), false),
    ] {
        let mut connection = caller.http(scene.server.address)?;
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.send(&[head.as_bytes(), &body].concat())?;
        assert_eq!(is_result(&connection.reply()?)?, served, "{host}");
    }
    let reasons: Vec<_> = scene.agent.audit(4)?.iter().map(|line| text(line, "reason").to_owned()).collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "host_mismatch").count(), 2, "{reasons:?}");
    Ok(())
}

#[test]
fn tls_to_a_declared_server_is_opaque_and_denied() -> Result<()> {
    let scene = Scene::set()?;
    let mut connection = scene.caller("reader")?.http(scene.server.address)?;
    // The head of a TLS 1.3 record with a ClientHello.
    connection.send(&[0x16, 3, 1, 0, 4, 1, 0, 0, 0])?;
    assert_eq!(connection.rest()?, b"", "closed cleanly");
    let line = scene.agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!(text(&line, "reason"), "opaque");
    assert_eq!(scene.server.connections(), 0);
    Ok(())
}

#[test]
fn a_server_that_is_not_there_is_said_so() -> Result<()> {
    let server = Server::start()?;
    let address = server.address;
    let resources = toolgate_tests::scene::resources(address);
    let setup = toolgate_tests::Setup { resources: &resources, ..Default::default() };
    let agent = toolgate_tests::Agent::start(setup)?;
    drop(server);
    let reply = agent.caller("reader")?.http(address)?.post(&call(1, "echo", &json!({})))?;
    assert_eq!(reply.status, 502);
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!((text(&line, "reason"), line.get("status")), ("server_unreachable", Some(&json!(502))));
    Ok(())
}

//! What is spoken to a server outside.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Front, SdkClient, SdkServer, Server, Setup, Sniffer};

use crate::stage::{NAME, Outside, PUBLIC, exec, reader};

/// A word that must not be seen on the way.
const MARKER: &str = "a-word-that-only-the-two-ends-may-see";
const HTTPS: &str = "{ url: \"https://docs.example.com/mcp\", http_port: 80, ca_file: CA }";

#[test]
fn a_client_that_speaks_plain_http_reaches_the_server_over_tls() -> Result<()> {
    let mut outside = Outside::new()?;
    let (server, front) = outside.behind_tls(PUBLIC[0])?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent(HTTPS, Setup::default())?;
    let wire = Sniffer::on(outside.netns.device())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let body = call(1, "echo", &json!({ "text": MARKER }));
    assert!(is_result(&connection.post(&body)?)?);
    let reached = server.request()?;
    assert_eq!((reached.body, reached.head.contains("Host: docs.example.com\r\n")), (body, true));
    assert_eq!(front.named.recv()?, NAME);
    let denied = connection.post(&call(2, "delete_everything", &json!({})))?;
    assert!(denied.text().contains("policy does not permit this"), "{}", denied.text());
    assert!(is_result(&connection.post(&call(3, "echo", &json!({})))?)?);
    assert_eq!(server.connections(), 1, "it is kept");
    // What the handshake says in the clear shows that something was seen.
    wire.sees(NAME.as_bytes())?;
    assert!(!wire.saw(MARKER.as_bytes()), "it was on the wire");
    let lines = agent.audit(3)?;
    let shown: Vec<_> = lines.iter().map(|line| (text(line, "target"), text(line, "decision"))).collect();
    assert_eq!(shown, [("docs", "permit"), ("docs", "deny"), ("docs", "permit")], "{lines:#?}");
    Ok(())
}

#[test]
fn an_unmodified_client_notices_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    // A process ends with the thread that started it, so it is not started outside: only its TLS is there.
    let server = SdkServer::at(outside.here())?;
    let at = SocketAddr::new(PUBLIC[0].into(), 443);
    let _front = outside.netns.within(|| Front::at(at, server.address, &outside.authority, NAME))?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent(HTTPS, Setup::default())?;
    let mut client = SdkClient::start(exec(&agent, "reader"), &format!("http://{NAME}/mcp"))?;
    client.call("add", &json!({ "a": 1, "b": 2 }))?;
    assert_eq!(client.answer("result")?, "3");
    client.call("add", &json!({ "a": 1, "b": 2000 }))?;
    let denied = client.answer("error")?;
    assert!(denied.as_str().is_some_and(|text| text.contains("these arguments")), "{denied}");
    assert_eq!(server.calls()?, ["add"]);
    Ok(())
}

#[test]
fn tls_1_2_is_spoken_where_there_is_no_other() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.netns.within(Server::start)?;
    let at = SocketAddr::new(PUBLIC[0].into(), 443);
    let _front = outside.netns.within(|| Front::tls12(at, server.address, &outside.authority, NAME))?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent(HTTPS, Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    Ok(())
}

/// A server that does not prove who it is gets nothing of a call, and the audit says what is wrong.
fn is_unproven(
    front: impl FnOnce(&Outside, SocketAddr, SocketAddr) -> Result<Front> + Send,
    external: &str,
    why: &str,
) -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.netns.within(Server::start)?;
    let front = outside.netns.within(|| front(&outside, (PUBLIC[0], 443).into(), server.address))?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent(&external.replace("PIN", &front.pin), Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let reply = connection.post(&call(1, "echo", &json!({ "text": MARKER })))?;
    assert_eq!(reply.status, 502, "{}", reply.text());
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!(text(&line, "reason"), "server_unproven", "{line}");
    assert!(text(&line, "detail").contains(why), "{line}");
    assert_eq!(server.requests_now().len(), 0, "it reached the server");
    Ok(())
}

#[test]
fn whom_the_system_believes_is_believed() -> Result<()> {
    let mut outside = Outside::new()?;
    let (server, _front) = outside.behind_tls(PUBLIC[0])?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    // As OpenSSL has it, in the place of the system's own.
    let authority = outside.authority_file().display().to_string();
    let environment = [("SSL_CERT_FILE", authority.as_str())];
    let external = "{ url: \"https://docs.example.com/mcp\", http_port: 80 }";
    let agent = outside.agent(external, Setup { environment: &environment, ..Setup::default() })?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?, "{:#?}", agent.audit(1)?);
    server.request()?;
    Ok(())
}

#[test]
fn a_server_that_nobody_vouches_for_gets_nothing() -> Result<()> {
    let front = |outside: &Outside, at, to| Front::at(at, to, &outside.authority, NAME);
    let external = "{ url: \"https://docs.example.com/mcp\", http_port: 80 }";
    is_unproven(front, external, "name its CA by `ca_file`")
}

#[test]
fn a_server_of_another_name_gets_nothing() -> Result<()> {
    let front = |outside: &Outside, at, to| Front::at(at, to, &outside.authority, "other.example.com");
    is_unproven(front, HTTPS, "not valid for name \"docs.example.com\"")
}

#[test]
fn a_server_whose_certificate_is_over_gets_nothing() -> Result<()> {
    let front = |outside: &Outside, at, to| Front::expired(at, to, &outside.authority, NAME);
    is_unproven(front, HTTPS, "the server needs a new one")
}

#[test]
fn a_server_without_the_pinned_key_gets_nothing() -> Result<()> {
    let front = |outside: &Outside, at, to| Front::at(at, to, &outside.authority, NAME);
    let other = "0".repeat(64);
    let external = HTTPS.replace("ca_file: CA", &format!("ca_file: CA, pins: [\"{other}\"]"));
    is_unproven(front, &external, "is none of the Server's `pins`")
}

#[test]
fn one_of_the_pinned_keys_is_enough() -> Result<()> {
    let mut outside = Outside::new()?;
    let (_server, front) = outside.behind_tls(PUBLIC[0])?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let pins = format!("ca_file: CA, pins: [\"{}\", \"{}\"]", "0".repeat(64), front.pin);
    let agent = outside.agent(&HTTPS.replace("ca_file: CA", &pins), Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    Ok(())
}

#[test]
fn a_server_without_tls_is_reached_in_the_clear() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.server(PUBLIC[0], 8080)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent("{ url: \"http://docs.example.com:8080/mcp\" }", Setup::default())?;
    let (_caller, connection) = reader(&agent, PUBLIC[0], 8080)?;
    let mut connection = connection.naming("docs.example.com:8080");
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    assert!(server.request()?.head.contains("Host: docs.example.com:8080\r\n"));
    Ok(())
}

#[test]
fn where_the_server_does_not_say_so_plain_http_is_not_for_it() -> Result<()> {
    let mut outside = Outside::new()?;
    let (server, _front) = outside.behind_tls(PUBLIC[0])?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent("{ url: \"https://docs.example.com/mcp\", ca_file: CA }", Setup::default())?;
    let (_caller, connection) = reader(&agent, PUBLIC[0], 443)?;
    let reply = connection.naming("docs.example.com:443").post(&call(1, "echo", &json!({})))?;
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert_eq!(text(&agent.audit(1)?[0], "reason"), "undeclared");
    assert_eq!(server.connections(), 0);
    Ok(())
}

//! What becomes of a connection that is read when its server is another by then.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use toolgate_tests::scene::{call, text};
use toolgate_tests::{PATIENCE, Peer, http};

use crate::{Stage, sees};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// TLS with `localhost`, for who believes this authority.
fn tls(stream: TcpStream, authority: &Path) -> Result<Tls> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    stream.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("localhost")?;
    Ok(StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, stream))
}

/// A call on a connection that stays open: its whole answer.
fn answer(tls: &mut Tls, port: u16) -> Result<String> {
    let body = String::from_utf8(call(1, "echo", &json!({})))?;
    write!(
        tls,
        "POST /mcp HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    loop {
        let mut some = [0; 4096];
        let count = tls.read(&mut some).context("the answer broke off")?;
        ensure!(count > 0, "it ended: {answer}");
        answer += std::str::from_utf8(&some[..count])?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
        let length = http::header(head, "content-length").context("no length")?.parse::<usize>()?;
        if body.len() >= length {
            return Ok(answer);
        }
    }
}

#[test]
fn a_connection_ends_whose_server_has_moved_to_another_node() -> Result<()> {
    let stage = Stage::set()?;
    let agent = stage.inspecting("")?;
    let address = stage.docs_front.address;
    let mut caller = agent.caller("reader")?;
    let authority = agent.config().join("inspect/authority.pem");
    let mut tls = tls(caller.connect(address)?.stream, &authority)?;
    sees(&answer(&mut tls, address.port())?, &["200 OK", "echo done"])?;
    // What came in TLS must not go on in the clear within another agent's.
    let other = Peer::start()?;
    let moved = stage.resources("deny", true).replacen(
        &format!("local: {{ address: \"{address}\" }}, opaque: deny"),
        &format!("peer: {{ address: \"{address}\", endpoints: [\"{}\"] }}", other.address),
        1,
    );
    let before = agent.process().lines();
    agent.write_resources(&moved)?;
    agent.process().line_from(before, "configuration reloaded")?;
    sees(&answer(&mut tls, address.port())?, &["403 Forbidden", "Connection: close"])?;
    ensure!(tls.read(&mut [0])? == 0, "it goes on");
    let line = agent.audit(2)?.pop().context("no line")?;
    ensure!((text(&line, "decision"), text(&line, "reason")) == ("deny", "undeclared"), "{line:#}");
    ensure!(text(&line, "detail").contains("not declared any more as it was"), "{line:#}");
    ensure!(stage.docs.requests_now().len() == 1 && other.accept_now()?.is_none(), "somebody was asked");
    Ok(())
}

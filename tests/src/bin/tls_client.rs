//! A client on rustls, which believes whom the system does (`rustls-native-certs`): posts its second argument to the URL that is
//! its first (`https://HOST:PORT/PATH`), and prints the answer as it came.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

fn main() -> Result<()> {
    let [url, body] = <[String; 2]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .ok()
        .context("two arguments: URL, body")?;
    let (authority, path) =
        url.strip_prefix("https://").and_then(|rest| rest.split_once('/')).context("no URL")?;
    let (host, _port) = authority.rsplit_once(':').context("no port")?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())?;
    let mut tls = StreamOwned::new(
        ClientConnection::new(Arc::new(config), name)?,
        TcpStream::connect(authority).context("cannot connect")?,
    );
    write!(
        tls,
        "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nAccept: application/json, \
         text/event-stream\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    while !is_whole(&answer) {
        let mut some = [0; 4096];
        match tls.read(&mut some).context("the answer broke off")? {
            0 => break,
            count => answer.extend_from_slice(&some[..count]),
        }
    }
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Whether all that its head promises has come.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = toolgate_tests::http::header(head, "content-length").and_then(|length| length.parse().ok());
    length.is_none_or(|length: usize| body.len() >= length)
}

//! `opaque: allow` of a server outside: TLS that its clients speak themselves passes by the name in it, however it comes, and where
//! no name can be read nothing passes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::{self, hpke};
use rustls::crypto::hpke::Hpke as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::json;
use toolgate_tests::scene::{call, text};
use toolgate_tests::{PATIENCE, Setup};

use crate::stage::{NAME, Outside, PUBLIC};

const OPAQUE: &str = "{ url: \"https://docs.example.com/mcp\", ca_file: CA }\n  opaque: allow";
/// Of a TLS record.
const HEADER_BYTES: usize = 5;

/// What the first message of a client names.
#[derive(Clone, Copy)]
enum Names {
    Server,
    Another,
    Nobody,
    /// The server, and perhaps another in what is encrypted (ECH): browsers send that also where there is none.
    Encrypted,
}

/// How the first message is sent.
type Sends = fn(&mut TcpStream, &[u8]) -> std::io::Result<()>;

fn whole(stream: &mut TcpStream, hello: &[u8]) -> std::io::Result<()> {
    stream.write_all(hello)
}

/// Each part is a segment, as Nagle is off.
fn segments(stream: &mut TcpStream, hello: &[u8]) -> std::io::Result<()> {
    // Less than a record's header, less than the name, all.
    let (begin, rest) = hello.split_at(3);
    let (middle, end) = rest.split_at(40);
    [begin, middle, end].into_iter().try_for_each(|part| stream.write_all(part))
}

/// The same message in records of so many bytes.
fn in_records(hello: &[u8], bytes: usize) -> Vec<u8> {
    let (header, message) = hello.split_at(HEADER_BYTES);
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap_or_default().to_be_bytes();
        [&header[..3], &length, part].concat()
    };
    message.chunks(bytes).flat_map(record).collect()
}

fn records(stream: &mut TcpStream, hello: &[u8]) -> std::io::Result<()> {
    stream.write_all(&in_records(hello, hello.len() / 2))
}

fn records_in_segments(stream: &mut TcpStream, hello: &[u8]) -> std::io::Result<()> {
    segments(stream, &in_records(hello, 30))
}

fn half(stream: &mut TcpStream, hello: &[u8]) -> std::io::Result<()> {
    stream.write_all(&hello[..hello.len() / 2])?;
    stream.shutdown(Shutdown::Write)
}

fn behind_an_empty_record(stream: &mut TcpStream, hello: &[u8]) -> std::io::Result<()> {
    stream.write_all(&[&hello[..3], &[0, 0], hello].concat())
}

/// What its client gets of a call within TLS, or nothing.
fn answer(mut tcp: TcpStream, names: Names, sends: Sends, authority: &str) -> Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = match names {
        Names::Encrypted => {
            let suite = hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
            let (key, _) = suite.generate_key_pair()?;
            builder.with_ech(EchMode::Grease(EchGreaseConfig::new(suite, key)))?
        }
        Names::Server | Names::Another | Names::Nobody => builder.with_safe_default_protocol_versions()?,
    };
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let name = match names {
        Names::Server | Names::Encrypted => ServerName::try_from(NAME)?,
        Names::Another => ServerName::try_from("other.example.com")?,
        Names::Nobody => ServerName::from(std::net::IpAddr::from(PUBLIC[0])),
    };
    let mut tls = ClientConnection::new(Arc::new(config), name)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut hello = Vec::new();
    tls.write_tls(&mut hello)?;
    // Who is refused may learn of it while it sends.
    let _refused = sends(&mut tcp, &hello);
    let body = String::from_utf8(call(1, "delete_everything", &json!({})))?;
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    let _refused = write!(
        stream,
        "POST /mcp HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // The server keeps it open: all of the answer comes at once.
    let mut answer = vec![0; 1 << 14];
    let count = stream.read(&mut answer).unwrap_or_default();
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[test]
fn tls_to_a_server_outside_passes_by_the_name_in_it_however_it_comes() -> Result<()> {
    let mut outside = Outside::new()?;
    let (server, front) = outside.behind_tls(PUBLIC[0])?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent(OPAQUE, Setup::default())?;
    let passes = ["opaque", "docs", "permit", "permitted"];
    let denied = ["connection", "undeclared", "deny", "opaque"];
    // A name that is no Server's is as any TLS to nobody declared: `unrecognised` says what becomes of it.
    let beyond = ["connection", "undeclared", "permit", "permitted"];
    let table: [(&str, &str, Names, Sends, [&str; 4]); 11] = [
        ("whole", "reader", Names::Server, whole, passes),
        ("in segments", "reader", Names::Server, segments, passes),
        ("in two records", "reader", Names::Server, records, passes),
        ("in records that are cut", "reader", Names::Server, records_in_segments, passes),
        (
            "who may nothing there",
            "stranger",
            Names::Server,
            whole,
            ["connection", "docs", "deny", "no_rule"],
        ),
        ("another name", "reader", Names::Another, whole, beyond),
        ("no name", "reader", Names::Nobody, whole, denied),
        ("a name that may hide another", "reader", Names::Encrypted, whole, denied),
        ("the same in two records", "reader", Names::Encrypted, records, denied),
        ("half of it", "reader", Names::Server, half, denied),
        ("behind an empty record", "reader", Names::Server, behind_an_empty_record, denied),
    ];
    for (at, (case, who, names, sends, expected)) in table.into_iter().enumerate() {
        let mut caller = agent.caller(who)?;
        let connected = caller.connect((PUBLIC[0], 443).into())?.stream;
        let said = answer(connected, names, sends, &outside.authority.pem)?;
        let does_pass = expected == passes;
        ensure!(said.contains("delete_everything done") == does_pass, "{case}: {said}");
        ensure!(front.named.try_iter().count() == usize::from(does_pass), "{case}: its TLS was completed");
        ensure!(server.requests_now().len() == usize::from(does_pass), "{case}: it reached the server");
        let line = agent.audit(at + 1)?.pop().context("no line")?;
        let told = ["method", "target", "decision", "reason"].map(|field| text(&line, field));
        ensure!(told == expected, "{case}: {line:#}");
    }
    Ok(())
}

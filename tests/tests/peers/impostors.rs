//! Who has a key and certificates of its own, and poses as an agent: at the port for agents, and in a server's place. The keys that it
//! signs with are the authority's own, taken from its folder, or those of another authority of the same name.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};
use serde_json::{Value, json};
use toolgate::peer::server_name;
use toolgate_core::identity::Identity;
use toolgate_tests::scene::{call, text};
use toolgate_tests::{Agent, Connection, PATIENCE};

use crate::hosts::{Hosts, declared};

/// What agents say to each other that they speak.
const PROTOCOL: &[u8] = b"toolgate/1";
pub(crate) const READER: &str = "spiffe://example.org/ns/default/reader";
const DOCS: &str = "spiffe://example.org/ns/default/docs";
const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A key that signs SVIDs, and its certificate.
pub(crate) struct Signer {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// The one that an agent's authority signs with, key and all.
    pub(crate) fn stolen(agent: &Agent) -> Result<Self> {
        let folder = agent.config().join("store/ca");
        let state: Value = serde_json::from_slice(&fs::read(folder.join("authority.json"))?)?;
        let mut issuing = state["issuing"].as_array().context("no issuing certificate")?.iter();
        let active = issuing.find(|one| text(one, "stage") == "active").context("none signs")?;
        let certificate = CertificateDer::from_pem_slice(text(active, "certificate").as_bytes())?;
        Self::of(certificate, &folder.join(format!("issuing-{}.key", text(active, "id"))))
    }

    fn of(certificate: CertificateDer<'static>, key: &Path) -> Result<Self> {
        let key = KeyPair::from_pem(&fs::read_to_string(key)?)?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, certificate })
    }

    /// A root of one's own, which says that it is of the same trust domain.
    fn own() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.into();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }
}

/// What an impostor shows.
pub(crate) struct Shown(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Shown {
    /// An SVID as the authority makes them, for whom and when its signer likes.
    pub(crate) fn of(id: &str, signer: &Signer, [begins, ends]: [SystemTime; 2]) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        (params.not_before, params.not_after) = (begins.into(), ends.into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &signer.issuer)?.into();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Self(vec![leaf, signer.certificate.clone()], key))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Believes every server.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A connection to the port for agents, as the agent of a caller has it, for this protocol.
pub(crate) fn connected(
    hosts: &Hosts,
    Shown(chain, key): Shown,
    protocol: &[u8],
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = server_name(&Identity::new("example.org", "default", "docs")?);
    let tls = ClientConnection::new(Arc::new(config), ServerName::try_from(name)?)?;
    let peer = hosts.peer;
    let tcp = hosts.callers.netns.within(move || Ok(TcpStream::connect(peer)?))?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    Ok(StreamOwned::new(tls, tcp))
}

/// What is answered to a call by who comes to the port for agents, as the agent of a caller would; nothing: it was refused.
fn visits(hosts: &Hosts, shown: Shown) -> Result<String> {
    let mut stream = connected(hosts, shown, PROTOCOL)?;
    let body = call(1, "echo", &json!({}));
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Accept: application/json, text/event-stream\r\nConnection: close\r\n\r\n",
        hosts.address,
        body.len()
    );
    let mut answer = Vec::new();
    // Who is refused learns of it while it writes or while it reads.
    let _refused = stream.write_all(&[head.as_bytes(), &body].concat());
    let _refused = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// TLS in a server's place, for one connection: what its caller's agent said to it.
fn answers(at: SocketAddr, Shown(chain, key): Shown) -> Result<(SocketAddr, Receiver<Vec<u8>>)> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let tls = ServerConnection::new(Arc::new(config))?;
    let listener = TcpListener::bind(at)?;
    let address = listener.local_addr()?;
    let (told, hears) = channel();
    std::thread::spawn(move || {
        let (tcp, _) = listener.accept()?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(tls, tcp);
        let mut heard = vec![0; 1 << 16];
        let count = stream.read(&mut heard).unwrap_or_default();
        heard.truncate(count);
        // The test may have ended.
        let _ = told.send(heard);
        Ok::<_, std::io::Error>(())
    });
    Ok((address, hears))
}

/// What is tried at either end, who it says that it is, what of it is wrong, and the agent's words for that; none: it is believed.
type Row<'r> = (&'static str, &'static str, &'r Signer, [SystemTime; 2], Option<&'static str>);

#[test]
fn who_comes_with_a_key_of_its_own_is_refused_and_nothing_reaches_the_server() -> Result<()> {
    let hosts = Hosts::set()?;
    let (right, other, now) = (Signer::stolen(&hosts.servers)?, Signer::own()?, SystemTime::now());
    let today = [now - HOUR, now + HOUR];
    let table: [Row<'_>; 7] = [
        ("no workload", "spiffe://example.org/reader", &right, today, Some("is not of the form")),
        (
            "another trust domain",
            "spiffe://example.net/ns/default/reader",
            &right,
            today,
            Some("trust domain `example.net`"),
        ),
        ("another root", READER, &other, today, Some("signed by no root of trust domain")),
        ("over", READER, &right, [now - DAY, now - HOUR], Some("ended")),
        ("not begun", READER, &right, [now + HOUR, now + DAY], Some("begins")),
        ("another caller", "spiffe://example.org/ns/default/stranger", &right, today, None),
        ("the caller", READER, &right, today, None),
    ];
    let (mut refused, mut told) = (0.0, 0);
    for (case, id, signer, validity, why) in table {
        let answer = visits(&hosts, Shown::of(id, signer, validity)?)?;
        let (reached, is_caller) = (hosts.server.requests_now().len(), case == "the caller");
        ensure!(reached == usize::from(is_caller), "{case}: {reached} calls reached the server: {answer}");
        if let Some(why) = why {
            ensure!(answer.is_empty(), "{case}: {answer}");
            refused += 1.0;
            let (at, line) = hosts.servers.process().line_from(told, "another agent is refused")?;
            ensure!(line.contains(why), "{case}: {line}");
            told = at + 1;
        } else {
            // Who proves to be another is that one: policy has the word.
            ensure!(answer.contains("policy does not permit this") != is_caller, "{case}: {answer}");
        }
    }
    hosts.servers.counts("toolgate_connections_refused_total", &["reason=\"peer_unproven\""], refused)
}

#[test]
fn who_answers_in_a_servers_place_gets_nothing_of_a_call() -> Result<()> {
    let hosts = Hosts::set()?;
    let (right, other, now) = (Signer::stolen(&hosts.servers)?, Signer::own()?, SystemTime::now());
    let today = [now - HOUR, now + HOUR];
    let table: [Row<'_>; 7] = [
        ("another server", "spiffe://example.org/ns/default/other", &right, today, Some("answered where")),
        ("the caller itself", READER, &right, today, Some("answered where")),
        (
            "another trust domain",
            "spiffe://example.net/ns/default/docs",
            &right,
            today,
            Some("trust domain `example.net`"),
        ),
        ("another root", DOCS, &other, today, Some("signed by no root of trust domain")),
        ("over", DOCS, &right, [now - DAY, now - HOUR], Some("ended")),
        ("not begun", DOCS, &right, [now + HOUR, now + DAY], Some("begins")),
        ("the server", DOCS, &right, today, None),
    ];
    for (at, (case, id, signer, validity, why)) in table.into_iter().enumerate() {
        let shown = Shown::of(id, signer, validity)?;
        let (there, heard) = answers(SocketAddr::new(hosts.peer.ip(), 0), shown)?;
        let agent = &hosts.callers.agent;
        let before = agent.process().lines();
        agent.write_resources(&declared(hosts.address, there))?;
        agent.process().line_from(before, "configuration reloaded")?;
        let (_caller, mut connection) = hosts.caller("reader")?;
        connection.request("POST", "", &call(1, "echo", &json!({})))?;
        let heard = heard.recv_timeout(PATIENCE).with_context(|| format!("{case}: nobody came"))?;
        ensure!(heard.is_empty() == why.is_some(), "{case}: {}", String::from_utf8_lossy(&heard));
        let Some(why) = why else { continue };
        is_unproven(&hosts, &mut connection, at, why).context(case)?;
    }
    ensure!(hosts.server.requests_now().is_empty(), "something reached the server");
    Ok(())
}

/// The call has failed, and its line, the one after `before`, says why.
fn is_unproven(hosts: &Hosts, connection: &mut Connection, before: usize, why: &str) -> Result<()> {
    let reply = connection.reply()?;
    ensure!(reply.status == 502, "{}", reply.text());
    let line = hosts.callers.agent.audit(before + 1)?.remove(before);
    ensure!(text(&line, "reason") == "peer_unproven", "{line:#}");
    ensure!(text(&line, "detail").contains(why), "{line:#}");
    Ok(())
}

//! Both ends against others: whoever is not exactly who is meant gets nowhere.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, NamedGroup, ServerConfig, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use toolgate_core::spiffe::SpiffeId;

use super::*;
use crate::ca::{Authority, Holder, IssuedTo, Lives, Plan};
use crate::config::{AgentConfig, Resources, load_resources};
use crate::svid::{Revoked, Source, Svids, Trust, provider};

const PROTOCOL: &[u8] = b"toolgate/1";
const HOUR: Duration = Duration::from_secs(3600);
const DOCS: &str = "spiffe://example.org/ns/default/docs";
const AGENT: &str = "spiffe://example.org/ns/default/agent";
const SERVER: &str = "apiVersion: toolgate/v1\nkind: Server\nmetadata: { name: docs }\nspec: { local: { address: \"127.0.0.1:1\" } }\n";

fn authority(folder: &Path) -> Authority {
    let [svid, issuing, root, overlap] = [24, 24 * 30, 24 * 365, 48].map(|hours| HOUR * hours);
    let skew = Duration::from_secs(60);
    let lives = Lives { svid, issuing, root, overlap, skew, root_is_credential: false };
    let (state_directory, trust_domain) = (folder.to_owned(), "example.org".to_owned());
    Authority::open(Plan { state_directory, trust_domain, lives, credentials: None }, SystemTime::now())
        .unwrap()
}

fn identity(id: &str) -> Identity {
    SpiffeId::parse(id).unwrap().identity().unwrap()
}

/// A chain with its key.
struct Shown(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Shown {
    fn issued(by: &Authority, id: &str, now: SystemTime) -> Self {
        Self::held_by(Holder::Agent, by, id, now)
    }

    fn held_by(holder: Holder, by: &Authority, id: &str, now: SystemTime) -> Self {
        let key = KeyPair::generate().unwrap();
        let issued =
            by.issue(&SpiffeId::parse(id).unwrap(), IssuedTo { holder, node: None }, &key, now).unwrap();
        Self(issued.chain, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

/// A node with an authority, and another authority of the same name.
struct Scene {
    svids: Svids,
    resources: Resources,
    own: Authority,
    foreign: Authority,
    _folders: [tempfile::TempDir; 3],
}

impl Scene {
    fn new() -> Self {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        std::fs::write(folders[2].path().join("docs.yaml"), SERVER).unwrap();
        let resources = load_resources(folders[2].path(), &AgentConfig::default()).unwrap();
        let svids = Svids::start(Source::Embedded(Box::new(authority(folders[0].path())))).unwrap();
        let (own, foreign) = (authority(folders[0].path()), authority(folders[1].path()));
        Self { svids, resources, own, foreign, _folders: folders }
    }

    /// What becomes of a client that connects as it likes.
    async fn visit(
        &self,
        config: ClientConfig,
        name: &str,
    ) -> (Result<Accepted, AcceptError>, Option<(HandshakeKind, NamedGroup)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let visiting = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (here, from) = listener.accept().await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let visitor = TlsConnector::from(Arc::new(config)).connect(name, visiting);
        let (accepted, visitor) = tokio::join!(accept(here, from, &self.resources, &self.svids), visitor);
        // A session that it could resume would come with the first bytes.
        let kind = match visitor {
            Ok(mut visitor) => {
                let _ = visitor.write_all(b"x").await;
                let _ = tokio::time::timeout(Duration::from_millis(1), visitor.read_u8()).await;
                let tls = visitor.get_ref().1;
                tls.handshake_kind().zip(tls.negotiated_key_exchange_group().map(|group| group.name()))
            }
            Err(_) => None,
        };
        (accepted, kind)
    }

    /// What becomes of our connection to who answers as it likes.
    async fn called(&self, shows: Shown, protocol: &[u8]) -> Result<Mutual, ConnectError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let io = TcpStream::connect(address).await.unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(shows.0, shows.1)
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        let (there, _) = listener.accept().await.unwrap();
        let answering = TlsAcceptor::from(Arc::new(config)).accept(there);
        let (agent, docs) = (identity(AGENT), identity(DOCS));
        let (connected, _) =
            tokio::join!(connect(io, address, &agent, &docs, &Protocol::ALL, &self.svids), answering);
        connected
    }
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
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn visitor(shows: Option<Shown>, protocol: &[u8]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match shows {
        Some(Shown(chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

#[tokio::test]
async fn two_agents_know_each_other() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let io = TcpStream::connect(address).await.unwrap();
    let (there, from) = listener.accept().await.unwrap();
    let (agent, docs) = (identity(AGENT), identity(DOCS));
    let connecting = connect(io, address, &agent, &docs, &Protocol::ALL, &scene.svids);
    let (ours, theirs) = tokio::join!(connecting, accept(there, from, &scene.resources, &scene.svids));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    assert_eq!((&theirs.caller, &theirs.server), (&agent, &docs));
    assert_eq!((ours.protocol, theirs.stream.protocol), (Protocol::Lanes, Protocol::Lanes), "both know them");
    assert_eq!(ours.tether.identity, docs);
    // More than one record, both ways.
    let large: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    let mut back = vec![0; large.len()];
    let sending = async {
        ours.write_all(&large).await.unwrap();
        ours.flush().await.unwrap();
    };
    let ((), read) = tokio::join!(sending, theirs.stream.read_exact(&mut back));
    read.unwrap();
    assert_eq!(back, large);
    theirs.stream.shutdown().await.unwrap();
    assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0, "it said close_notify");
}

#[tokio::test]
async fn who_comes_must_prove_who_it_is() {
    let scene = Scene::new();
    let (own, foreign, now) = (&scene.own, &scene.foreign, SystemTime::now());
    let shown = |by, id, now| Some(Shown::issued(by, id, now));
    let docs = server_name(&identity(DOCS));
    let other = server_name(&identity("spiffe://example.org/ns/default/other"));
    type Case<'c> = (&'c str, Option<Shown>, &'c str, &'c [u8], Option<&'c str>);
    let table: Vec<Case<'_>> = vec![
        ("a caller", shown(own, AGENT, now), &docs, PROTOCOL, None),
        ("a caller with lanes", shown(own, AGENT, now), &docs, b"toolgate/2", None),
        ("no certificate", None, &docs, PROTOCOL, Some("peer sent no certificates")),
        (
            "another root",
            shown(foreign, AGENT, now),
            &docs,
            PROTOCOL,
            Some("signed by no root of trust domain"),
        ),
        ("over", shown(own, AGENT, now - HOUR * 25), &docs, PROTOCOL, Some("ended")),
        ("not begun", shown(own, AGENT, now + HOUR), &docs, PROTOCOL, Some("begins")),
        (
            "no workload",
            shown(own, "spiffe://example.org/agent", now),
            &docs,
            PROTOCOL,
            Some("is not of the form"),
        ),
        (
            "a process by itself",
            Some(Shown::held_by(Holder::Process, own, AGENT, now)),
            &docs,
            PROTOCOL,
            Some("is held by a process itself"),
        ),
        ("another server", shown(own, AGENT, now), &other, PROTOCOL, Some("not behind this agent")),
        ("a guessed name", shown(own, AGENT, now), "docs", PROTOCOL, Some("not behind this agent")),
        (
            "another protocol",
            shown(own, AGENT, now),
            &docs,
            b"h2",
            Some("peer doesn't support any known protocol"),
        ),
    ];
    for (name, shows, server, protocol, expected) in table {
        let (accepted, _) = scene.visit(visitor(shows, protocol), server).await;
        let said = accepted.map(|accepted| accepted.caller).map_err(|error| error.to_string());
        match expected {
            None => assert_eq!(said, Ok(identity(AGENT)), "{name}"),
            Some(words) => {
                let error = said.expect_err(name);
                assert!(error.contains(words), "{name}: {error}");
            }
        }
    }
}

/// Shows the one certificate, and from a moment on the other: for rustls it is the same visitor, who may resume.
#[derive(Debug)]
struct Changing(ArcSwap<CertifiedKey>);

impl ResolvesClientCert for Changing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Shown {
    fn certified(self) -> CertifiedKey {
        CertifiedKey::from_der(self.0, self.1, &provider()).unwrap()
    }
}

#[tokio::test]
async fn no_session_is_resumed_whoever_has_it() {
    let scene = Scene::new();
    let name = server_name(&identity(DOCS));
    let other = "spiffe://example.org/ns/default/other";
    let shown = |id| Shown::issued(&scene.own, id, SystemTime::now()).certified();
    let changing = Arc::new(Changing(ArcSwap::from_pointee(shown(AGENT))));
    let mut config = visitor(None, PROTOCOL);
    config.client_auth_cert_resolver = Arc::clone(&changing) as Arc<_>;
    for id in [AGENT, AGENT, other, AGENT] {
        changing.0.store(Arc::new(shown(id)));
        let (accepted, shaken) = scene.visit(config.clone(), &name).await;
        assert_eq!(accepted.unwrap().caller, identity(id));
        assert!(
            matches!(shaken, Some((HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest, _))),
            "{shaken:?}"
        );
    }
}

#[tokio::test]
async fn keys_are_exchanged_by_what_no_quantum_computer_breaks_where_both_ends_know_it() {
    let scene = Scene::new();
    let name = server_name(&identity(DOCS));
    for (known, expected) in [
        (provider().kx_groups.clone(), NamedGroup::X25519MLKEM768),
        (vec![kx_group::X25519], NamedGroup::X25519),
    ] {
        let shown = Shown::issued(&scene.own, AGENT, SystemTime::now()).certified();
        let knows = CryptoProvider { kx_groups: known, ..aws_lc_rs::default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(knows))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let (_, shaken) = scene.visit(config, &name).await;
        assert_eq!(shaken.map(|(_, group)| group), Some(expected));
    }
}

#[tokio::test]
async fn who_answers_must_be_who_was_meant() {
    let scene = Scene::new();
    let (own, foreign, now) = (&scene.own, &scene.foreign, SystemTime::now());
    let other = "spiffe://example.org/ns/default/other";
    let table = [
        ("the server", Shown::issued(own, DOCS, now), PROTOCOL, None),
        ("the server, with lanes", Shown::issued(own, DOCS, now), b"toolgate/2", None),
        ("another server", Shown::issued(own, other, now), PROTOCOL, Some("answered where")),
        ("the caller itself", Shown::issued(own, AGENT, now), PROTOCOL, Some("answered where")),
        (
            "a process by itself",
            Shown::held_by(Holder::Process, own, DOCS, now),
            PROTOCOL,
            Some("is held by a process itself"),
        ),
        ("another root", Shown::issued(foreign, DOCS, now), PROTOCOL, Some("signed by no root")),
        ("over", Shown::issued(own, DOCS, now - HOUR * 25), PROTOCOL, Some("ended")),
        ("not begun", Shown::issued(own, DOCS, now + HOUR), PROTOCOL, Some("begins")),
        ("another protocol", Shown::issued(own, DOCS, now), b"h2".as_slice(), Some("no mutual TLS")),
    ];
    for (name, shows, protocol, expected) in table {
        let said = scene.called(shows, protocol).await;
        match (expected, said) {
            (None, Ok(mutual)) => assert_eq!(mutual.protocol.name(), protocol, "{name}"),
            (Some(words), Err(error)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (_, said) => panic!("{name}: {:?}", said.map(drop)),
        }
    }
}

#[tokio::test]
async fn a_connection_ends_with_what_opened_it() {
    let scene = Scene::new();
    let trusting = || Trust::clone(&scene.svids.trust());
    let revoking = |change: &dyn Fn(&mut Revoked)| {
        let mut revoked = Revoked { trust_domain: "example.org".into(), ..Revoked::default() };
        change(&mut revoked);
        Trust { revoked: Arc::new(revoked), ..trusting() }
    };
    let docs = SpiffeId::parse(DOCS).unwrap();
    let other = SpiffeId::parse(AGENT).unwrap();
    let now = SystemTime::now();
    let table = [
        ("nothing", trusting(), now, None),
        ("another is revoked", revoking(&|it| it.ids.extend([other.clone()])), now, None),
        ("it is revoked", revoking(&|it| it.ids.extend([docs.clone()])), now, Some(Cut::Revoked)),
        ("soon over", trusting(), now + HOUR * 23, None),
        ("over", trusting(), now + HOUR * 25, Some(Cut::Over)),
    ];
    for (name, trust, now, expected) in table {
        let mut mutual =
            scene.called(Shown::issued(&scene.own, DOCS, SystemTime::now()), PROTOCOL).await.unwrap();
        let tethers = Tethers::default();
        tethers.hold(&mutual.tether);
        tethers.look(now, &trust);
        assert_eq!(mutual.tether.cut(), expected, "{name}");
        assert_eq!(mutual.tether.takes_more(), expected.is_none(), "{name}");
        if expected.is_some() {
            assert!(!matches!(mutual.read(&mut [0; 1]).await, Ok(1..)), "{name}");
        }
        assert_eq!(tethers.is_empty(), expected.is_some(), "{name}");
        drop(mutual);
        tethers.look(SystemTime::now(), &trusting());
        assert!(tethers.is_empty(), "{name}: nothing is held of what is gone");
    }
}

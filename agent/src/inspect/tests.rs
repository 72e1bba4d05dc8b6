use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::ahead::Ahead;
use crate::config::embedded;

fn inspection(folder: &std::path::Path, exclude: &[&str], kept: Option<Kept>) -> Inspection {
    let (mut agent, _) = embedded();
    agent.listen.admin = folder.join("admin.sock");
    agent.capture.tls_exclude = exclude.iter().map(|name| Excluded::Name((*name).to_owned())).collect();
    let limits = Limits { inspected_names_max: 2, ..Limits::default() };
    Inspection::start(&agent, &limits, kept).unwrap()
}

fn roots(inspection: &Inspection) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(inspection.authority().0.as_bytes()).unwrap()).unwrap();
    roots
}

fn name(text: &str) -> ServerName<'static> {
    Name::of(Some(text), "192.0.2.1".parse().unwrap()).unwrap().name
}

/// Whether a client that believes the authority takes what is shown for `shown` as `meant`.
fn is_believed(inspection: &Inspection, shown: &str, meant: &str) -> bool {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(inspection)), provider());
    let certified = inspection.certified(&name(shown)).unwrap();
    let leaf = &certified.cert[0];
    verifier.build().unwrap().verify_server_cert(leaf, &[], &name(meant), &[], UnixTime::now()).is_ok()
}

#[test]
fn what_is_shown_is_good_for_its_host_alone_and_never_for_one_that_is_excluded() {
    let folder = tempfile::tempdir().unwrap();
    let inspection = inspection(folder.path(), &["bank.example"], None);
    let table = [
        ("docs.example", "docs.example", true),
        ("docs.example", "other.example", false),
        ("192.0.2.7", "192.0.2.7", true),
        ("192.0.2.7", "192.0.2.8", false),
        ("bank.example", "bank.example", false),
        ("api.bank.example", "api.bank.example", false),
        ("notbank.example", "notbank.example", true),
    ];
    for (shown, meant, expected) in table {
        assert_eq!(is_believed(&inspection, shown, meant), expected, "{shown} as {meant}");
    }
}

#[test]
fn the_next_agent_has_the_same_authority_and_one_that_is_started_anew_another() {
    let folder = tempfile::tempdir().unwrap();
    let first = inspection(folder.path(), &[], None);
    let next = inspection(folder.path(), &[], Some(first.kept()));
    assert_eq!(first.authority(), next.authority());
    assert!(is_believed(&next, "docs.example", "docs.example"));
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&first)), provider());
    let of_next = next.certified(&name("docs.example")).unwrap();
    let verified = verifier.build().unwrap().verify_server_cert(
        &of_next.cert[0],
        &[],
        &name("docs.example"),
        &[],
        UnixTime::now(),
    );
    assert!(verified.is_ok(), "clients go on as they are: {verified:?}");
    let anew = inspection(folder.path(), &[], None);
    assert_ne!(first.authority().1, anew.authority().1);
    let written = std::fs::read_to_string(folder.path().join("inspect/authority.pem")).unwrap();
    assert_eq!(written, anew.authority().0);
    let bundle = std::fs::read_to_string(folder.path().join("inspect/bundle.pem")).unwrap();
    assert!(bundle.ends_with(&written) && !format!("{bundle}{:?}", first.kept()).contains("PRIVATE"));
}

#[test]
fn what_is_shown_is_kept_for_the_last_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let inspection = inspection(folder.path(), &[], None);
    let shown = |text: &str| inspection.certified(&name(text)).unwrap();
    let first = shown("a.example");
    assert!(Arc::ptr_eq(&first, &shown("A.example")));
    for number in 0..8 {
        shown(&format!("{number}.example"));
    }
    assert!(inspection.leaves.lock().unwrap().len() <= 2);
    assert!(!Arc::ptr_eq(&first, &shown("a.example")));
}

/// How a client behaves.
#[derive(Debug, Clone, Copy)]
enum Behaves {
    Believes,
    BelievesOthers,
    Leaves,
    SpeaksOldTls,
    SpeaksSomethingElse,
    OffersHttp2Alone,
}

async fn behave(behaves: Behaves, mut io: TcpStream, authority: RootCertStore) {
    let mut roots = RootCertStore::empty();
    let mut protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut versions = vec![&rustls::version::TLS13, &rustls::version::TLS12];
    match behaves {
        Behaves::Believes => roots = authority,
        Behaves::SpeaksOldTls => (roots, versions) = (authority, vec![&rustls::version::TLS12]),
        Behaves::OffersHttp2Alone => (roots, protocols) = (authority, vec![b"h2".to_vec()]),
        Behaves::BelievesOthers => {}
        Behaves::Leaves => {
            // A first message as it was on the wire, and no more.
            let config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let mut hello = Vec::new();
            rustls::ClientConnection::new(Arc::new(config), name("docs.example"))
                .unwrap()
                .write_tls(&mut hello)
                .unwrap();
            io.write_all(&hello).await.unwrap();
            io.read_u8().await.unwrap();
            return;
        }
        Behaves::SpeaksSomethingElse => {
            io.write_all(&[22, 3, 1, 0, 4, 2, 0, 0, 0]).await.unwrap();
            let _its_end = io.read_u8().await;
            return;
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols;
    if let Ok(mut tls) = TlsConnector::from(Arc::new(config)).connect(name("docs.example"), io).await {
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        tls.write_all(b"x").await.unwrap();
    }
}

#[tokio::test]
async fn who_does_not_believe_it_is_told_apart_from_what_fails() {
    let folder = tempfile::tempdir().unwrap();
    let inspection = inspection(folder.path(), &[], None);
    let table = [
        (Behaves::Believes, "ok"),
        (Behaves::SpeaksOldTls, "ok"),
        (Behaves::BelievesOthers, "untrusting"),
        (Behaves::Leaves, "left"),
        (Behaves::SpeaksSomethingElse, "failed"),
        (Behaves::OffersHttp2Alone, "failed"),
    ];
    for (behaves, expected) in table {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let client = tokio::spawn(behave(behaves, io, roots(&inspection)));
        let (io, _) = listener.accept().await.unwrap();
        let certified = inspection.certified(&name("docs.example")).unwrap();
        let accepted = tokio::time::timeout(Duration::from_secs(10), accept(Ahead::new(io), certified));
        let got = match accepted.await.unwrap() {
            Ok(mut tls) => {
                assert_eq!(tls.read_u8().await.unwrap(), b'x');
                "ok"
            }
            Err(AcceptError::Untrusting { .. }) => "untrusting",
            Err(AcceptError::Left) => "left",
            Err(AcceptError::Failed(_) | AcceptError::Setup(_)) => "failed",
        };
        assert_eq!(got, expected, "{behaves:?}");
        client.await.unwrap();
    }
}

#[test]
fn clients_that_do_not_believe_it_are_counted_within_bounds() {
    let limits = Limits { discovered_max: 8, ..Limits::default() };
    let untrusting = Untrusting::new(&limits);
    let saw = |caller: &str, host: &str, at: u64| {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        untrusting.saw(caller.to_owned(), &host.into(), format!("at {host}"), at);
    };
    saw("a", "docs.example", 1);
    saw("a", "docs.example", 2);
    for at in 0..100 {
        saw("greedy", &format!("{at}.example"), at);
    }
    let all = untrusting.all();
    assert_eq!((all.len(), all[0].connections, &*all[0].host), (2, 2, "docs.example"));
    assert_eq!((&*all[0].last, &*all[1].host), ("1970-01-01T00:00:02Z", "99.example"));
    for caller in 0..100 {
        saw(&format!("c{caller}"), "x", 1_000 + caller);
    }
    assert_eq!(untrusting.all().len(), 8);
}

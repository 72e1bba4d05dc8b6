//! TLS to servers that no agent stands in front of: 1.2 and 1.3, with whom the system or the Server's own file believes, and
//! the Server's pins; and that of servers whose clients' TLS is read here, in these clients' place.

use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use sha2::Digest as _;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use toolgate_core::decision::{ClientCertificate, External, Host, Proof};
use toolgate_core::workload::Sha256;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{ForwardError, Upstream};
use crate::ahead::Ahead;
use crate::deadline::timeout;
use crate::inspect::provider;
use crate::io::Io;
use crate::limits::Limits;

/// What is spoken within TLS (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// Why TLS does not stand.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate, or what it says.
    #[error("{cause}{}", advice(cause))]
    Handshake {
        /// What happened.
        cause: io::Error,
    },
    /// Nobody to believe, or cryptography that cannot be set up.
    #[error("TLS cannot be set up: {0}; install `ca-certificates`, or name the server's CA by `ca_file`")]
    Setup(#[from] Error),
    /// The thread that reads the system's certificates.
    #[error("the system's certificates cannot be read: {0}")]
    Reading(#[from] tokio::task::JoinError),
    /// The name in SNI.
    #[error("the name of the server cannot be sent: {0}")]
    Name(#[from] InvalidDnsNameError),
}

/// The next step, where what happened tells it.
fn advice(cause: &io::Error) -> &'static str {
    let inner = cause.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; nobody whom this host believes has signed its certificate: name its CA by `ca_file`, or `capture.tls_roots` where \
             TLS is read"
        }
        Some(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "; the server needs a new one, or this host's clock is wrong",
        Some(Error::InvalidMessage(_)) => "; does it speak TLS at this port?",
        Some(_) | None => "",
    }
}

/// The alert that a server sent, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{alert}; {advice}")]
pub struct CertificateRefused {
    alert: Error,
    advice: &'static str,
}

/// What a server says of the certificate that it was shown, or was not: in TLS 1.3 that comes when all else stands.
pub(super) fn of_certificate(error: io::Error, io: &Io) -> io::Error {
    use rustls::AlertDescription as Alert;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(
            alert @ Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::DecryptError
                | Alert::AccessDenied,
            ),
        ) => {
            let advice = match io {
                Io::Mutual(_) | Io::Lane(..) => {
                    "the agent there does not believe the caller's SVID: was this node revoked, has it another authority, or is a \
                     clock wrong?"
                }
                Io::Plain(_) | Io::Tls(_) => {
                    "the server asks who speaks: name what its owner gave by `certificate_file` and `key_file`, or an \
                     HTTPEndpoint's `clientTLS`"
                }
            };
            io::Error::new(error.kind(), CertificateRefused { alert: alert.clone(), advice })
        }
        Some(_) | None => error,
    }
}

/// What TLS to external servers is set up with, made for each Server when it is first called: until then no certificate is
/// read and no cryptography is loaded.
#[derive(Default)]
pub struct Connectors {
    externals: Mutex<Vec<(Arc<External>, Arc<ClientConfig>)>>,
    /// Of clients whose TLS is read.
    inspected: Mutex<Option<Arc<ClientConfig>>>,
    /// Whom those believe besides the system's.
    roots: Arc<[Box<[u8]>]>,
}

impl Connectors {
    /// None is made yet. `roots`: whom clients whose TLS is read believe besides the system's.
    #[must_use]
    pub fn new(roots: Arc<[Box<[u8]>]>) -> Self {
        Self { roots, ..Self::default() }
    }

    /// Makes TLS of a connection in the place of a client whose TLS is read: the server must be who that client means.
    ///
    /// # Errors
    /// [`TlsError`]: nothing may be said over it.
    pub(super) async fn connect_for(
        &self,
        io: Ahead,
        name: &ServerName<'static>,
    ) -> Result<TlsStream<Ahead>, TlsError> {
        let known = self.inspected.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = match known {
            Some(config) => config,
            None => {
                let roots = Arc::clone(&self.roots);
                let made = Arc::new(tokio::task::spawn_blocking(move || inspected_config(&roots)).await??);
                let mut known = self.inspected.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(known.get_or_insert(made))
            }
        };
        let connected = TlsConnector::from(config).connect(name.clone(), io).await;
        connected.map(TlsStream::Client).map_err(|cause| TlsError::Handshake { cause })
    }

    /// Makes TLS of a connection to an external server.
    ///
    /// # Errors
    /// [`TlsError`]: nothing may be said over it.
    pub(super) async fn connect(
        &self,
        io: TcpStream,
        external: &Arc<External>,
        proof: &Proof,
    ) -> Result<TlsStream<Ahead>, TlsError> {
        let name = match &external.host {
            Host::Name(name) => ServerName::try_from(name.to_string())?,
            Host::Address(address) => ServerName::IpAddress((*address).into()),
        };
        let connector = TlsConnector::from(self.config(external, proof).await?);
        let connected = connector.connect(name, Ahead::new(io)).await;
        connected.map(TlsStream::Client).map_err(|cause| TlsError::Handshake { cause })
    }

    /// The same for all of a Server's connections, so that its sessions are resumed.
    async fn config(&self, external: &Arc<External>, proof: &Proof) -> Result<Arc<ClientConfig>, TlsError> {
        let known = |all: &[(Arc<External>, Arc<ClientConfig>)]| {
            all.iter().find(|(one, _)| Arc::ptr_eq(one, external)).map(|(_, config)| Arc::clone(config))
        };
        if let Some(config) = known(&self.externals.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(config);
        }
        let proof = proof.clone();
        // The system's certificates are hundreds of files: no other connection waits for them.
        let config = Arc::new(tokio::task::spawn_blocking(move || client_config(&proof)).await??);
        let mut all = self.externals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known(&all) {
            return Ok(config);
        }
        // Those of resources that are no more: nobody else holds them.
        all.retain(|(one, _)| Arc::strong_count(one) > 1);
        all.push((Arc::clone(external), Arc::clone(&config)));
        Ok(config)
    }
}

impl Upstream {
    /// TLS in the place of a client that means `name`.
    pub(super) async fn secured(
        self,
        name: &ServerName<'static>,
        connectors: &Connectors,
        limits: &Limits,
    ) -> Result<Self, ForwardError> {
        let Self { io, buffer, address, .. } = self;
        let Io::Plain(plain) = io else { return Err(ForwardError::Nowhere) };
        let limit = limits.handshake_time_max;
        let shaken = timeout(limit, connectors.connect_for(Ahead::after(plain, buffer), name)).await;
        let tls = shaken.map_err(|_| ForwardError::HandshakeTimeout { address, limit })?;
        let server = || format!("`{}`", name.to_str()).into();
        let tls =
            tls.map_err(|cause| ForwardError::Tls { server: server(), address, cause: Box::new(cause) })?;
        Ok(Self::new(Io::Tls(Box::new(tls)), address))
    }
}

fn inspected_config(roots: &[Box<[u8]>]) -> Result<ClientConfig, Error> {
    let roots: Vec<_> = roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
    let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(roots, provider())?;
    speaking_to(Arc::new(verifier), None)
}

fn client_config(proof: &Proof) -> Result<ClientConfig, Error> {
    let verifier = Pinned { pins: Arc::clone(&proof.pins), inner: verifier(proof)? };
    speaking_to(Arc::new(verifier), proof.shown.as_deref())
}

/// HTTP/1.1 to those alone whom this believes. `shown`: to those of them that ask who speaks.
fn speaking_to(
    verifier: Arc<dyn ServerCertVerifier>,
    shown: Option<&ClientCertificate>,
) -> Result<ClientConfig, Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some(ClientCertificate { chain, key }) => {
            let chain = chain.iter().map(|one| CertificateDer::from(one.to_vec())).collect();
            let key = PrivateKeyDer::try_from(key.reveal().to_vec());
            config.with_client_auth_cert(chain, key.map_err(|why| Error::General(why.to_owned()))?)?
        }
    };
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(config)
}

fn verifier(proof: &Proof) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let Some(own) = &proof.roots else {
        return Ok(Arc::new(rustls_platform_verifier::Verifier::new(provider())?));
    };
    let mut roots = RootCertStore::empty();
    for root in own.iter() {
        roots.add(CertificateDer::from(root.to_vec()))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    verifier.map(|verifier| verifier as Arc<_>).map_err(|error| Error::Other(OtherError(Arc::new(error))))
}

/// Whom the inner one believes, if its certificate has one of these keys. The certificate's own key alone: anybody can send
/// another's along.
#[derive(Debug)]
struct Pinned {
    pins: Arc<[Sha256]>,
    inner: Arc<dyn ServerCertVerifier>,
}

/// The key of a certificate is none of those that the Server names.
#[derive(Debug)]
struct OtherKey(Sha256);

impl fmt::Display for OtherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its public key (SHA-256 {}) is none of the Server's `pins`", self.0)
    }
}

impl std::error::Error for OtherKey {}

impl Pinned {
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let (_, certificate) =
            X509Certificate::from_der(leaf).map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let key = Sha256(sha2::Sha256::digest(certificate.tbs_certificate.subject_pki.raw).into());
        if self.pins.contains(&key) { Ok(()) } else { Err(Error::Other(OtherError(Arc::new(OtherKey(key))))) }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(leaf, rest, name, ocsp, now)?;
        self.check(leaf).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

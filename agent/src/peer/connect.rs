//! The caller's end: connects for a caller to the agent in front of a server.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use arc_swap::Guard;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use super::prove::{ProofError, Prover};
use super::stream::Mutual;
use super::{Protocol, Tether, server_name};
use crate::ahead::Ahead;
use crate::svid::{SvidError, Svids, provider};

/// Why there is no connection to the agent of a server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The caller has no SVID.
    #[error("the caller has no SVID: {0}")]
    Svid(#[from] SvidError),
    /// Who answered is not who was meant.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The other end broke it off.
    #[error("no mutual TLS: {0}; the other agent's log says whether it refused")]
    Tls(#[from] io::Error),
    /// It speaks TLS, and no protocol of ours.
    #[error("who answers there is no agent of this version")]
    Protocol,
    /// TLS cannot be set up.
    #[error("mutual TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// The name in SNI.
    #[error("the name of the server cannot be sent: {0}")]
    Name(#[from] InvalidDnsNameError),
}

/// Shows one certificate to whoever asks.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Makes mutual TLS of a connection to the agent of `server`, in the name of `caller`: for the first of these protocols that the
/// other end speaks.
///
/// # Errors
/// [`ConnectError`]: nothing may be said over it.
pub async fn connect(
    io: TcpStream,
    address: SocketAddr,
    caller: &Identity,
    server: &Identity,
    protocols: &[Protocol],
    svids: &Svids,
) -> Result<Mutual, ConnectError> {
    let own = svids.obtain(caller).await?;
    let expected = SpiffeId::from(server);
    let prover = Prover::new(Arc::clone(&Guard::into_inner(svids.trust())), Some(expected));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(prover.verifier())
        .with_client_cert_resolver(Arc::new(Shows(Arc::clone(&own.certified))));
    config.resumption = Resumption::disabled();
    config.alpn_protocols = Protocol::names(protocols);
    let name = ServerName::try_from(server_name(server))?;
    let socket = io.as_fd().try_clone_to_owned()?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, Ahead::new(io)).await;
    let proven = match (connected, prover.outcome()) {
        (Ok(tls), Some(Ok(proven))) => (tls, proven),
        (_, Some(Err(error))) => return Err(error.into()),
        (Err(error), _) => return Err(error.into()),
        (Ok(_), None) => return Err(ConnectError::Protocol),
    };
    let (tls, proven) = proven;
    let protocol = Protocol::named(tls.get_ref().1.alpn_protocol()).ok_or(ConnectError::Protocol)?;
    Ok(Mutual::new(TlsStream::Client(tls), protocol, Tether::new(&own, proven, address, socket)))
}

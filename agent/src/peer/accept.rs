//! The server's end: another agent comes for one of the servers here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use arc_swap::Guard;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use toolgate_core::identity::Identity;

use super::prove::{ProofError, Prover};
use super::stream::Mutual;
use super::{Protocol, Tether, server_name};
use crate::ahead::Ahead;
use crate::config::Resources;
use crate::svid::{SvidError, Svids, provider};

/// Why another agent, or who poses as one, is refused.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It asks for a server that is not here.
    #[error("it asks for a server that is not behind this agent ({name})")]
    NoServer {
        /// How it named it; see [`server_name`].
        name: String,
    },
    /// The server has no SVID.
    #[error("the server has no SVID: {0}")]
    Svid(#[from] SvidError),
    /// It proved nothing, or not enough.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// It broke it off, or speaks no TLS 1.3.
    #[error("no mutual TLS: {0}")]
    Tls(#[from] io::Error),
    /// It speaks TLS, and no protocol of ours.
    #[error("it is no agent of this version")]
    Protocol,
    /// TLS cannot be set up.
    #[error("mutual TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// Another agent's connection, both ends proven.
pub struct Accepted {
    /// The connection.
    pub stream: Mutual,
    /// Who calls, as its SVID says.
    pub caller: Identity,
    /// Whom it asks for.
    pub server: Identity,
}

/// Shows one certificate to whoever asks.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Makes mutual TLS of a connection that was accepted.
///
/// # Errors
/// [`AcceptError`]: nothing of it may be believed.
pub async fn accept(
    io: TcpStream,
    address: SocketAddr,
    resources: &Resources,
    svids: &Svids,
) -> Result<Accepted, AcceptError> {
    let socket = io.as_fd().try_clone_to_owned()?;
    let started = LazyConfigAcceptor::new(Acceptor::default(), Ahead::new(io)).await?;
    let named = started.client_hello().server_name().unwrap_or_default().to_owned();
    let is_it = |identity: &&Identity| server_name(identity) == named;
    let server = resources.local_servers().map(|server| &server.identity).find(is_it);
    let server = server.ok_or(AcceptError::NoServer { name: named })?;
    let own = svids.obtain(server).await?;
    let prover = Prover::new(Arc::clone(&Guard::into_inner(svids.trust())), None);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(prover.verifier())
        .with_cert_resolver(Arc::new(Shows(Arc::clone(&own.certified))));
    // A resumed session would not show the caller's SVID again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = Protocol::names(&Protocol::ALL);
    let accepted = started.into_stream(Arc::new(config)).await;
    let (tls, proven) = match (accepted, prover.outcome()) {
        (Ok(tls), Some(Ok(proven))) => (tls, proven),
        (_, Some(Err(error))) => return Err(error.into()),
        (Err(error), _) => return Err(error.into()),
        (Ok(_), None) => return Err(AcceptError::Protocol),
    };
    let protocol = Protocol::named(tls.get_ref().1.alpn_protocol()).ok_or(AcceptError::Protocol)?;
    let caller = proven.1.clone();
    let tether = Tether::new(&own, proven, address, socket);
    let stream = Mutual::new(TlsStream::Server(tls), protocol, tether);
    Ok(Accepted { stream, caller, server: server.clone() })
}

//! TLS with a client whose TLS is read, and why it does not come about.

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, Error, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::ahead::Ahead;

/// What is spoken within (RFC 7301): a client that would rather speak HTTP/2 speaks this.
const HTTP_1_1: &[u8] = b"http/1.1";

/// Of TLS 1.2 too, which agents do not speak among themselves.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The cryptography of TLS with clients, and of their servers.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// Why there is no TLS with a client.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It does not believe what it is shown.
    #[error("it refused the certificate: {}", alert(*says))]
    Untrusting {
        /// Its words.
        says: AlertDescription,
    },
    /// It left when it was shown a certificate.
    #[error("it left without a word when it was shown the certificate")]
    Left,
    /// Anything else.
    #[error("{0}")]
    Failed(io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] Error),
}

/// What an alert says.
fn alert(says: AlertDescription) -> String {
    if says == AlertDescription::EncryptedClientHelloRequired {
        return "it takes that of a server that knows its encrypted name (ECH) alone".to_owned();
    }
    format!("alert {}", says.as_str().unwrap_or("unknown"))
}

/// Makes TLS of a client's connection, its first message in front of it, as the server that `certified` shows.
///
/// # Errors
/// [`AcceptError`]
pub async fn accept(io: Ahead, certified: Arc<CertifiedKey>) -> Result<TlsStream<Ahead>, AcceptError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // Each connection is one name's: what another was told of it says nothing.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    let accepted = TlsAcceptor::from(Arc::new(config)).accept(io).await;
    accepted.map(TlsStream::Server).map_err(told)
}

/// Its first message was read before: it has been shown the certificate, or TLS says itself what is wrong.
fn told(error: io::Error) -> AcceptError {
    use AlertDescription as Alert;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let is_end = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    match inner {
        Some(Error::AlertReceived(
            says @ (Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::AccessDenied
            | Alert::BadCertificateStatusResponse
            | Alert::EncryptedClientHelloRequired),
        )) => AcceptError::Untrusting { says: *says },
        None if is_end => AcceptError::Left,
        Some(_) | None => AcceptError::Failed(error),
    }
}

//! TLS between SPIFFE identities: 1.3 only, nothing resumed, and each end proven by [`verify`].

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use toolgate_core::spiffe::SpiffeId;

use super::{Peer, Role, Trust, VerifyError, verify};

/// Whom to believe, asked at each handshake with what was shown.
type Believed = dyn Fn(&[CertificateDer<'_>]) -> Result<Arc<Trust>, VerifyError> + Send + Sync;

/// Proves the other end, and that it is who was expected.
pub(crate) struct PeerVerifier {
    believed: Box<Believed>,
    /// The exact ID; `None`: the caller looks at who it is.
    expected: Option<SpiffeId>,
    /// Whether a client must show something.
    is_mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// The cryptography of all TLS here.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl PeerVerifier {
    pub(crate) fn new(
        believed: impl Fn(&[CertificateDer<'_>]) -> Result<Arc<Trust>, VerifyError> + Send + Sync + 'static,
        expected: Option<SpiffeId>,
        is_mandatory: bool,
    ) -> Self {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Self { believed: Box::new(believed), expected, is_mandatory, algorithms }
    }

    fn proven(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Peer, Error> {
        let chain: Vec<_> = std::iter::once(leaf.clone()).chain(rest.iter().cloned()).collect();
        let now: SystemTime = UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        let proven = (self.believed)(&chain).and_then(|trust| verify(&chain, &trust, role, now));
        let proven = proven.and_then(|peer| match &self.expected {
            Some(expected) if *expected != peer.id => {
                Err(VerifyError::Unexpected { id: peer.id, expected: expected.clone() })
            }
            Some(_) | None => Ok(peer),
        });
        proven.map_err(|error| Error::General(error.to_string()))
    }

    fn signed(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not spoken here.
fn no_tls12() -> Error {
    PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.proven(leaf, rest, Role::Server, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.proven(leaf, rest, Role::Client, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

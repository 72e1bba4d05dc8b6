//! Holds the other end to its SVID, where rustls asks for it.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use super::PROVIDER;
use crate::svid::{Peer, Role, Trust, VerifyError, verify};

/// Why the other end is not who it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It proved nothing.
    #[error(transparent)]
    Unproven(#[from] VerifyError),
    /// It proved to be another.
    #[error(
        "`{is}` answered where `{expected}` was expected: `peer.endpoints` leads to another server's agent"
    )]
    Another {
        /// Who was expected.
        expected: SpiffeId,
        /// Who it is.
        is: SpiffeId,
    },
    /// It is neither a workload nor a server.
    #[error("`{id}` is not of the form `spiffe://<trust domain>/ns/<namespace>/<app id>`")]
    NoIdentity {
        /// Who it is.
        id: SpiffeId,
    },
}

/// Proves one connection's other end, and keeps what it proved or why it did not: rustls has no room for either.
#[derive(Debug)]
pub(super) struct Prover {
    trust: Arc<Trust>,
    /// The only one that will do; `None`: whoever is trusted.
    expected: Option<SpiffeId>,
    outcome: OnceLock<Result<(Peer, Identity), ProofError>>,
}

impl Prover {
    pub(super) fn new(trust: Arc<Trust>, expected: Option<SpiffeId>) -> Arc<Self> {
        Arc::new(Self { trust, expected, outcome: OnceLock::new() })
    }

    /// What came out; `None`: the other end has shown nothing yet.
    pub(super) fn outcome(&self) -> Option<Result<(Peer, Identity), ProofError>> {
        self.outcome.get().cloned()
    }

    fn prove(&self, chain: &[CertificateDer<'_>], role: Role) -> Result<(), Error> {
        let proven = verify(chain, &self.trust, role, SystemTime::now())
            .map_err(ProofError::from)
            .and_then(|peer| self.is_meant(peer));
        match self.outcome.get_or_init(|| proven) {
            Ok(_) => Ok(()),
            Err(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn is_meant(&self, peer: Peer) -> Result<(Peer, Identity), ProofError> {
        if let Some(expected) = self.expected.as_ref().filter(|expected| **expected != peer.id) {
            return Err(ProofError::Another { expected: expected.clone(), is: peer.id });
        }
        match peer.id.identity() {
            Some(identity) => Ok((peer, identity)),
            None => Err(ProofError::NoIdentity { id: peer.id }),
        }
    }
}

fn chain<'c>(leaf: &CertificateDer<'c>, rest: &[CertificateDer<'c>]) -> Vec<CertificateDer<'c>> {
    std::iter::once(leaf).chain(rest).cloned().collect()
}

impl ServerCertVerifier for Prover {
    /// The name in SNI says nothing: the SPIFFE ID is what counts.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.prove(&chain(leaf, rest), Role::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Prover {
    /// Agents have one certificate for each caller, and know which.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.prove(&chain(leaf, rest), Role::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

//! Holds the other end to its SVID.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error};
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use crate::svid::{Peer, PeerVerifier, Role, Trust, VerifyError, verify};

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
    /// No agent stands behind it.
    #[error(
        "the SVID of `{id}` is held by a process itself (`listen.workload_api` of its node): agents speak with agents alone here"
    )]
    Process {
        /// Whose it is.
        id: SpiffeId,
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

    /// What asks it during the handshake.
    pub(super) fn verifier(self: &Arc<Self>) -> Arc<PeerVerifier> {
        let prover = Arc::clone(self);
        Arc::new(PeerVerifier::new(move |chain, role, now| prover.prove(chain, role, now)))
    }

    /// What came out; `None`: the other end has shown nothing yet.
    pub(super) fn outcome(&self) -> Option<Result<(Peer, Identity), ProofError>> {
        self.outcome.get().cloned()
    }

    fn prove(&self, chain: &[CertificateDer<'_>], role: Role, now: SystemTime) -> Result<(), Error> {
        let proven = verify(chain, &self.trust, role, now)
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
        if peer.is_process {
            return Err(ProofError::Process { id: peer.id });
        }
        match peer.id.identity() {
            Some(identity) => Ok((peer, identity)),
            None => Err(ProofError::NoIdentity { id: peer.id }),
        }
    }
}

//! Why there is no SVID, and why a peer's is not believed.

use std::io;
use std::time::SystemTime;

use toolgate_core::identity::Identity;
use toolgate_core::spiffe::{InvalidSpiffeId, SpiffeId};

use super::join::JoinError;
use super::workload_api::ProviderError;
use crate::ca::{CaError, NodeError};

/// Why a workload or server of this node has no SVID.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The thread that owns them.
    #[error("cannot start the thread that renews SVIDs: {cause}")]
    Thread {
        /// What the kernel said.
        cause: io::Error,
    },
    /// It has ended.
    #[error("the thread that renews SVIDs has ended; restart the agent")]
    Gone,
    /// Another trust domain than the authority's.
    #[error("`{identity}` is of trust domain `{}`, and SVIDs are issued here for `{ours}`", identity.trust_domain())]
    Foreign {
        /// Who was to have one.
        identity: Identity,
        /// The authority's trust domain.
        ours: String,
    },
    /// Its key cannot be used.
    #[error("the new key of `{identity}` cannot be used: {cause}")]
    Key {
        /// Whose.
        identity: Identity,
        /// What is wrong.
        cause: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {cause}")]
    Tls {
        /// What rustls said.
        cause: String,
    },
    /// A node is not answered as it wishes.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// This agent has joined another's authority.
    #[error("this agent is no authority (identity.source: join): ask it of the one at {authority}")]
    NoAuthority {
        /// Where it is.
        authority: String,
    },
    /// This agent has its SVIDs of somebody else.
    #[error("this agent is no authority (identity.source: workload-api): ask it of who serves `{socket}`")]
    NotAnAuthority {
        /// Where it has them from.
        socket: String,
    },
    /// The Workload API that this agent has its SVIDs from.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// It has not joined, or its authority does not answer.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] CaError),
}

/// Why a peer's certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// None was shown.
    #[error("it showed no certificate")]
    None,
    /// It is no certificate.
    #[error("its certificate cannot be read: {cause}")]
    Unreadable {
        /// What is wrong.
        cause: String,
    },
    /// Not exactly one URI in its names (X509-SVID, 2).
    #[error("its certificate has {count} URIs, and an SVID has exactly one")]
    NotOneId {
        /// How many there are.
        count: usize,
    },
    /// The URI is no SPIFFE ID.
    #[error(transparent)]
    Id(#[from] InvalidSpiffeId),
    /// It names a trust domain, and nobody in it.
    #[error("`{id}` names a trust domain, not a workload")]
    NoPath {
        /// The ID.
        id: SpiffeId,
    },
    /// It may sign others, or may not sign a handshake (X509-SVID, 4).
    #[error("the certificate of `{id}` is no leaf for TLS: {problem}")]
    Usage {
        /// Whose it says that it is.
        id: SpiffeId,
        /// What is wrong.
        problem: &'static str,
    },
    /// No bundle.
    #[error("trust domain `{}` of `{id}` is not known here: it is neither ours nor federated", id.trust_domain())]
    UnknownTrustDomain {
        /// Whose it says that it is.
        id: SpiffeId,
    },
    /// Signed by nobody in the bundle.
    #[error(
        "`{id}` is signed by no root of trust domain `{}` that is known here: another authority of that name signed it, or its \
         root is gone; `toolgate ca status` on both ends shows the roots", id.trust_domain()
    )]
    Issuer {
        /// Whose it says that it is.
        id: SpiffeId,
    },
    /// Somebody else, however well proven.
    #[error("it is `{id}`, and not `{expected}`")]
    Unexpected {
        /// Who it is.
        id: SpiffeId,
        /// Who was to be there.
        expected: SpiffeId,
    },
    /// Not the authority that a token names.
    #[error(
        "it shows no root with the token's fingerprint: it is another authority, or its root was changed since the token was \
         made; `toolgate ca token` makes another"
    )]
    Unpinned,
    /// Over.
    #[error(
        "the SVID of `{id}` ended {}, and this clock says {}: it was not renewed, or a clock is wrong",
        shown(not_after),
        shown(now)
    )]
    Expired {
        /// Whose it says that it is.
        id: SpiffeId,
        /// When it ended.
        not_after: SystemTime,
        /// This node's clock.
        now: SystemTime,
    },
    /// Not begun.
    #[error(
        "the SVID of `{id}` begins {}, and this clock says {}: a clock is wrong",
        shown(not_before),
        shown(now)
    )]
    NotYetValid {
        /// Whose it says that it is.
        id: SpiffeId,
        /// When it begins.
        not_before: SystemTime,
        /// This node's clock.
        now: SystemTime,
    },
    /// Revoked.
    #[error("`{id}` was revoked")]
    Revoked {
        /// Whose it says that it is.
        id: SpiffeId,
    },
    /// Anything else that a chain can have.
    #[error("the chain of `{id}` does not hold: {cause}")]
    Chain {
        /// Whose it says that it is.
        id: SpiffeId,
        /// What is wrong.
        cause: String,
    },
}

fn shown(time: &SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(*time)
}

//! What a node and its authority say to each other: JSON over HTTP over TLS, certificates in PEM.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Holder;
use crate::svid::JwtKey;

/// The authority's own name below the trust domain: no workload has that form.
pub(crate) const AUTHORITY_PATH: &str = "/toolgate/authority";
/// Before a node's name.
pub(crate) const NODE_PATH: &str = "/toolgate/node/";
/// The most bytes of a request or an answer.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;

pub(crate) const JOIN: &str = "/v1/join";
pub(crate) const RENEW: &str = "/v1/renew";
pub(crate) const SVID: &str = "/v1/svid";
pub(crate) const JWT: &str = "/v1/jwt";
pub(crate) const TRUST: &str = "/v1/trust";

/// `POST /v1/join`, without a client certificate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRequest {
    pub(crate) node: String,
    pub(crate) secret: String,
    /// The node's key, proven by its signature.
    pub(crate) csr: String,
}

/// `POST /v1/renew`, by the node's certificate.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenewRequest {
    pub(crate) csr: String,
}

/// `POST /v1/svid`, by the node's certificate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SvidRequest {
    /// `app` or `app.namespace`.
    pub(crate) app_id: String,
    pub(crate) csr: String,
    #[serde(default, skip_serializing_if = "Holder::is_agent")]
    pub(crate) holder: Holder,
}

/// What was issued.
#[derive(Serialize, Deserialize)]
pub(crate) struct IssuedAnswer {
    /// Leaf first, without the root.
    pub(crate) chain: String,
}

/// `POST /v1/jwt`, by the node's certificate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JwtRequest {
    /// `app` or `app.namespace`.
    pub(crate) app_id: String,
    pub(crate) audience: Vec<String>,
}

/// What was signed.
#[derive(Serialize, Deserialize)]
pub(crate) struct JwtAnswer {
    pub(crate) token: String,
}

/// `GET /v1/trust`, by the node's certificate.
#[derive(Serialize, Deserialize)]
pub(crate) struct TrustAnswer {
    pub(crate) roots: Vec<String>,
    /// What verifies JWT-SVIDs.
    #[serde(default)]
    pub(crate) jwt_keys: Vec<JwtKey>,
    pub(crate) revoked: Signed,
}

/// A list that whoever holds it can prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signed {
    /// [`RevokedList`] as it was signed.
    pub(crate) list: String,
    /// ECDSA P-256 with SHA-256 over [`SIGNED_AS`] and the list, ASN.1, in hexadecimal digits.
    pub(crate) signature: String,
    /// Of the authority, leaf first.
    pub(crate) chain: String,
}

/// Nothing else that the authority signs begins so.
pub(crate) const SIGNED_AS: &str = "toolgate revocations 1\n";

/// What was revoked.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RevokedList {
    pub(crate) trust_domain: String,
    pub(crate) number: u64,
    pub(crate) serials: Vec<String>,
    pub(crate) nodes: Vec<String>,
}

/// What `toolgate ca token` prints and a node joins by.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct JoinToken {
    pub(crate) trust_domain: String,
    pub(crate) node: String,
    pub(crate) secret: String,
    /// SHA-256 of the authority's root.
    pub(crate) root: String,
    /// `host:port`
    pub(crate) authority: String,
}

const TOKEN_BEGINS: &str = "toolgate-join-1";

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, node, secret, root, authority } = self;
        write!(f, "{TOKEN_BEGINS}/{trust_domain}/{node}/{secret}/{root}/{authority}")
    }
}

impl JoinToken {
    /// Reads it; `None`: it is none, or cut off.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('/').map(str::to_owned);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        if next()? != TOKEN_BEGINS {
            return None;
        }
        let token =
            Self { trust_domain: next()?, node: next()?, secret: next()?, root: next()?, authority: next()? };
        let is_whole = token.root.len() == 64 && token.authority.contains(':') && parts.next().is_none();
        is_whole.then_some(token)
    }
}

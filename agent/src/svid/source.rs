//! Where SVIDs come from: this node's own authority, the one that it has joined, or a Workload API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use super::join::Joined;
use super::workload_api::{Given, Provider};
use super::{SvidError, Trust};
use crate::ca::wire::{JoinRequest, JwtRequest, SvidRequest};
use crate::ca::{Authority, Holder, Issued, IssuedTo, Level, NodeError};

/// Who issues.
pub enum Source {
    /// This node's own authority.
    Embedded(Box<Authority>),
    /// The authority that this node has joined, or will join.
    Joined(Box<Joined>),
    /// Somebody else's Workload API: what it gives is all there is.
    WorkloadApi(Box<Provider>),
}

/// What an operator asks of the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// What there is.
    Status,
    /// Rotate now.
    Rotate(Level),
    /// All of it in one text, under `backup`.
    Backup,
    /// Let a node join: its `token`.
    Token {
        /// Its name.
        node: String,
        /// What it may have SVIDs of.
        app_ids: Vec<String>,
        /// How long it may take to join.
        ttl: Duration,
        /// Where it finds this authority, `host:port`.
        address: String,
    },
    /// Who has joined.
    Nodes,
    /// Revoke a node, or a certificate by its serial number.
    Revoke(String),
}

/// What a node asks of its authority. Its name is that of its certificate.
#[derive(Debug)]
pub(crate) enum NodeAsk {
    Join(JoinRequest),
    Renew { node: String, csr: String },
    Svid { node: String, wanted: SvidRequest },
    Jwt { node: String, wanted: JwtRequest },
    Trust { node: String },
}

/// What an authority shows of itself.
pub(crate) struct Own {
    pub(crate) certified: CertifiedKey,
    pub(crate) renew_at: SystemTime,
}

impl Source {
    /// Whom it says to believe.
    #[must_use]
    pub(super) fn trust(&self) -> Trust {
        match self {
            Self::Embedded(authority) => {
                let bundle = Arc::clone(authority.bundle());
                let own = || authority.trust_domain().into();
                let bundles = BTreeMap::from([(own(), bundle)]);
                let jwt_keys = BTreeMap::from([(own(), authority.jwt_bundle())]);
                Trust { generation: 1, bundles, jwt_keys, revoked: Arc::new(authority.revoked()) }
            }
            Self::Joined(joined) => joined.trust(),
            Self::WorkloadApi(provider) => provider.trust(),
        }
    }

    fn trust_domain(&self) -> &str {
        match self {
            Self::Embedded(authority) => authority.trust_domain(),
            Self::Joined(joined) => joined.trust_domain(),
            Self::WorkloadApi(provider) => provider.trust_domain(),
        }
    }

    /// Has an SVID issued, with a key that was never anywhere else; or finds the one that was given.
    pub(super) async fn issue(
        &mut self,
        identity: &Identity,
        holder: Holder,
        now: SystemTime,
    ) -> Result<(Issued, PrivateKeyDer<'static>), SvidError> {
        if identity.trust_domain() != self.trust_domain() {
            let (identity, ours) = (identity.clone(), self.trust_domain().to_owned());
            return Err(SvidError::Foreign { identity, ours });
        }
        let new_key = || crate::ca::new_key().map_err(|error| SvidError::Authority(error.into()));
        let (issued, key) = match self {
            Self::Embedded(authority) => {
                let key = new_key()?;
                (authority.issue(&SpiffeId::from(identity), IssuedTo { node: None, holder }, &key, now)?, key)
            }
            Self::Joined(joined) => {
                let key = new_key()?;
                (joined.issue(identity, holder, &key, now).await?, key)
            }
            Self::WorkloadApi(provider) => return Ok(provider.find(identity).await?),
        };
        Ok((issued, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }

    /// Has a JWT-SVID signed.
    pub(super) async fn jwt(
        &mut self,
        identity: &Identity,
        audience: Vec<String>,
        now: SystemTime,
    ) -> Result<String, SvidError> {
        match self {
            Self::Embedded(authority) => Ok(authority.jwt_svid(&SpiffeId::from(identity), &audience, now)?),
            Self::Joined(joined) => Ok(joined.jwt(identity, audience, now).await?),
            Self::WorkloadApi(provider) => {
                Err(SvidError::NotAnAuthority { socket: provider.socket().to_owned() })
            }
        }
    }

    /// All that there is, where that is told; `None`: it issues what it is asked for.
    pub(super) fn given(&self) -> Option<Vec<Given>> {
        match self {
            Self::Embedded(_) | Self::Joined(_) => None,
            Self::WorkloadApi(provider) => Some(provider.given()),
        }
    }

    /// Returns when it has something to say before it is looked at again.
    pub(super) async fn stirs(&mut self) {
        match self {
            Self::Embedded(_) | Self::Joined(_) => std::future::pending().await,
            Self::WorkloadApi(provider) => provider.stirs().await,
        }
    }

    /// Does what is due. True: it is believed otherwise now.
    pub(super) async fn look(&mut self, now: SystemTime) -> Result<bool, SvidError> {
        match self {
            Self::Embedded(authority) => Ok(authority.rotate(now)?),
            Self::Joined(joined) => Ok(joined.look(now).await?),
            Self::WorkloadApi(provider) => {
                provider.look()?;
                Ok(false)
            }
        }
    }

    /// When what the node itself is known by at its authority is to be renewed, and ends.
    pub(super) fn own_life(&self) -> Option<(SystemTime, SystemTime)> {
        match self {
            Self::Embedded(_) => None,
            Self::Joined(joined) => joined.own_life(),
            Self::WorkloadApi(_) => None,
        }
    }

    fn authority(&mut self) -> Result<&mut Authority, SvidError> {
        match self {
            Self::Embedded(authority) => Ok(authority),
            Self::Joined(joined) => Err(SvidError::NoAuthority { authority: joined.authority() }),
            Self::WorkloadApi(provider) => {
                Err(SvidError::NotAnAuthority { socket: provider.socket().to_owned() })
            }
        }
    }

    pub(super) fn status(&self) -> Result<Value, SvidError> {
        match self {
            Self::Embedded(authority) => {
                let mut status = authority.status(SystemTime::now())?;
                status["source"] = "embedded".into();
                Ok(status)
            }
            Self::Joined(joined) => Ok(joined.status()),
            Self::WorkloadApi(provider) => Ok(provider.status()),
        }
    }

    /// What an operator asks, besides the status.
    pub(super) fn operate(&mut self, operation: Operation, now: SystemTime) -> Result<Value, SvidError> {
        if operation == Operation::Status {
            return self.status();
        }
        let authority = self.authority()?;
        match operation {
            Operation::Status => Ok(Value::Null),
            Operation::Backup => Ok(json!({ "backup": authority.backup(now)? })),
            Operation::Rotate(level) => {
                authority.rotate_now(level, now)?;
                self.status()
            }
            Operation::Token { node, app_ids, ttl, address } => {
                let token = authority.token((&node, &app_ids), ttl, address, now)?;
                let until = humantime::format_rfc3339_seconds(now + ttl).to_string();
                Ok(json!({ "token": token.to_string(), "node": node, "app_ids": app_ids, "until": until }))
            }
            Operation::Nodes => Ok(authority.nodes(now)),
            Operation::Revoke(what) => {
                authority.revoke(&what, now)?;
                Ok(authority.nodes(now))
            }
        }
    }

    /// What a node asks.
    pub(super) fn node(&mut self, ask: NodeAsk, now: SystemTime) -> Result<Value, SvidError> {
        let authority = self.authority()?;
        let issued = match ask {
            NodeAsk::Join(wanted) => authority.join(&wanted, now),
            NodeAsk::Renew { node, csr } => authority.renew(&node, &csr, now),
            NodeAsk::Svid { node, wanted } => authority.node_svid(&node, &wanted, now),
            NodeAsk::Jwt { node, wanted } => {
                let signed = authority.node_jwt(&node, &wanted, now).map_err(SvidError::Node)?;
                return Ok(json!(signed));
            }
            NodeAsk::Trust { node } => {
                let trust = authority.trust_answer(&node, now).map_err(SvidError::Node)?;
                return Ok(json!(trust));
            }
        };
        issued.map(|issued| json!(issued)).map_err(|error: NodeError| error.into())
    }

    /// What it shows to nodes.
    pub(super) fn own(&mut self, now: SystemTime) -> Result<Own, SvidError> {
        let own = self.authority()?.own(now)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
        let key = any_ecdsa_type(&key).map_err(|error| SvidError::Tls { cause: error.to_string() })?;
        Ok(Own { certified: CertifiedKey::new(own.chain.clone(), key), renew_at: own.renew_at })
    }
}

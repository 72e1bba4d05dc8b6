//! What the operator asks of the authority.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::unix::UCred;

use super::{Context, exec};
use crate::ca::Level;
use crate::record::NoSlot;
use crate::svid::{Operation, SvidError};

/// What `toolgate ca` asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityRequest {
    /// What there is.
    Status,
    /// A rotation now.
    Rotate(Level),
    /// All of it in one text.
    Backup,
    /// A node may join.
    Token {
        /// Its name.
        node: String,
        /// What it may have SVIDs of.
        app_ids: Vec<String>,
        /// How long it may take to join.
        ttl: Duration,
        /// Where it finds the authority; `None`: where that listens.
        address: Option<String>,
    },
    /// Who has joined.
    Nodes,
    /// A node, or a serial number, is not believed any more.
    Revoke(String),
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error(transparent)]
    Svids(#[from] SvidError),
    #[error(
        "no node could join: this agent does not listen for any; write `listen: {{ authority: ADDRESS:15012 }}` into toolgate.yaml, \
         with an address that nodes reach"
    )]
    DoesNotListen,
    #[error("it cannot be recorded, and is not done: {0}")]
    Audit(#[from] NoSlot),
}

/// A line of the audit.
#[derive(Serialize)]
struct Event<'e> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<Level>,
    /// The node, or the serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'e str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    app_ids: &'e [String],
    by: &'e str,
}

/// Whoever changes it, or takes it away, is in the audit first.
pub(super) async fn answer(
    wanted: AuthorityRequest,
    peer: UCred,
    context: &Context,
) -> Result<Value, AuthorityError> {
    let by = exec::who(peer);
    let event = |event| Event { event, level: None, subject: None, app_ids: &[], by: &by };
    let event = match &wanted {
        AuthorityRequest::Status | AuthorityRequest::Nodes => None,
        AuthorityRequest::Rotate(level) => Some(Event { level: Some(*level), ..event("authority_rotated") }),
        AuthorityRequest::Backup => Some(event("authority_backed_up")),
        AuthorityRequest::Token { node, app_ids, .. } => {
            Some(Event { subject: Some(node), app_ids, ..event("token_made") })
        }
        AuthorityRequest::Revoke(what) => Some(Event { subject: Some(what), ..event("revoked") }),
    };
    let listens = context.node.agent.listen.authority;
    if matches!(wanted, AuthorityRequest::Token { address: None, .. }) && listens.is_none() {
        return Err(AuthorityError::DoesNotListen);
    }
    if let Some(event) = event {
        context.node.record.event(&event)?;
    }
    let operation = match wanted {
        AuthorityRequest::Status => Operation::Status,
        AuthorityRequest::Rotate(level) => Operation::Rotate(level),
        AuthorityRequest::Backup => Operation::Backup,
        AuthorityRequest::Token { node, app_ids, ttl, address } => {
            let here = || listens.map(|address| address.to_string()).unwrap_or_default();
            Operation::Token { node, app_ids, ttl, address: address.unwrap_or_else(here) }
        }
        AuthorityRequest::Nodes => Operation::Nodes,
        AuthorityRequest::Revoke(what) => Operation::Revoke(what),
    };
    Ok(context.node.svids.operate(operation).await?)
}

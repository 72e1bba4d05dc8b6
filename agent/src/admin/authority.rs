//! What the operator asks of the authority.

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
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error(transparent)]
    Svids(#[from] SvidError),
    #[error("it cannot be recorded, and is not done: {0}")]
    Audit(#[from] NoSlot),
}

/// A line of the audit.
#[derive(Serialize)]
struct Event<'e> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<Level>,
    by: &'e str,
}

/// Whoever changes it, or takes it away, is in the audit first.
pub(super) async fn answer(
    wanted: AuthorityRequest,
    peer: UCred,
    context: &Context,
) -> Result<Value, AuthorityError> {
    let by = exec::who(peer);
    let (operation, event) = match wanted {
        AuthorityRequest::Status => (Operation::Status, None),
        AuthorityRequest::Rotate(level) => (
            Operation::Rotate(level),
            Some(Event { event: "authority_rotated", level: Some(level), by: &by }),
        ),
        AuthorityRequest::Backup => {
            (Operation::Backup, Some(Event { event: "authority_backed_up", level: None, by: &by }))
        }
    };
    if let Some(event) = event {
        context.node.record.event(&event)?;
    }
    Ok(context.node.svids.operate(operation).await?)
}

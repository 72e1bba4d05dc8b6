//! What the operator asks about TLS that is read.

use serde_json::{Map, Value, json};
use toolgate_core::identity::Identity;

use crate::app::Node;

/// Writes whom clients are to believe once more, as the system believes others now, and says where it is.
pub(super) fn trust(node: &Node) -> Result<Value, String> {
    let inspection = node.inspection.as_ref().ok_or(
        "this node reads nobody's TLS: write `capture: { tls: inspect }` into toolgate.yaml, and start the agent anew",
    )?;
    inspection.write_files().map_err(|error| error.to_string())?;
    Ok(json!({
        "authority": inspection.files.authority,
        "bundle": inspection.files.bundle,
        "fingerprint": inspection.authority().1,
        "variables": variables(node),
    }))
}

/// What the environment of a client must have whose TLS is read; empty: nobody's is.
fn variables(node: &Node) -> Map<String, Value> {
    let files = node.inspection.iter().flat_map(|inspection| inspection.files.variables());
    files.map(|(name, path)| (name.to_owned(), path.display().to_string().into())).collect()
}

/// The same for a program that `toolgate exec` starts under this App ID.
pub(super) fn variables_of(app_id: &str, node: &Node) -> Map<String, Value> {
    let identity = Identity::new(&node.agent.trust_domain, "default", app_id);
    let opts_in = identity.is_ok_and(|identity| node.resources.load().inspects(&identity));
    if opts_in { variables(node) } else { Map::new() }
}

/// Clients that do not believe it.
pub(super) fn untrusting(node: &Node) -> Value {
    let all = node.inspection.as_ref().map(|inspection| inspection.untrusting.all());
    // Strings and numbers.
    serde_json::to_value(all.unwrap_or_default()).unwrap_or_default()
}

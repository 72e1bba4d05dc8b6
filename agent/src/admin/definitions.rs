//! What the operator asks of definitions: which there are, and that some are approved or not any more.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::net::unix::UCred;
use toolgate_core::identity::Identity;
use toolgate_core::pin::{HiddenCharacters, Mode};

use super::{Context, exec};
use crate::app::Node;
use crate::pins::{Change, Chosen, Kept, PinsError, StoreError, Which};
use crate::record::NoSlot;

/// What `toolgate tools list` and `diff` ask for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefinitionsRequest {
    /// Of one server; `None`: of all.
    pub server: Option<String>,
    /// With their texts.
    pub texts: bool,
}

/// What `toolgate tools approve` and `revoke` ask for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// Whose.
    pub server: String,
    /// Which.
    pub which: Which,
    /// What is to be done.
    pub change: Change,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum DefinitionsError {
    #[error(
        "no Server `{given}` is declared, and nothing of one was seen; `toolgate status` lists those that are"
    )]
    NoServer { given: String },
    #[error(transparent)]
    Pins(#[from] PinsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "what is to be approved has hidden characters: {names}; `toolgate tools diff {server}` shows them, and the Server's \
         `hidden_characters: allow` lets them be approved"
    )]
    Hidden { server: String, names: String },
    #[error("it cannot be recorded, and is not done: {0}")]
    Audit(#[from] NoSlot),
}

/// A line of the audit.
#[derive(Serialize)]
struct Event<'e> {
    event: &'static str,
    target: String,
    kind: &'static str,
    name: &'e str,
    digest: String,
    by: &'e str,
}

/// One that is declared, or of which something is kept.
fn server(given: &str, node: &Node) -> Result<Identity, DefinitionsError> {
    let resources = node.resources.load();
    let declared = resources.servers.iter().map(|server| &server.identity);
    let pins = node.pins.now();
    let of_this_domain = pins.servers().filter(|server| server.trust_domain() == node.agent.trust_domain);
    let found = declared.chain(of_this_domain).find(|server| server.to_string() == given).cloned();
    found.ok_or_else(|| DefinitionsError::NoServer { given: given.to_owned() })
}

pub(super) async fn list(
    wanted: &DefinitionsRequest,
    context: &Context,
) -> Result<serde_json::Value, DefinitionsError> {
    let node = &context.node;
    let servers = match &wanted.server {
        Some(given) => vec![server(given, node)?],
        None => node.pins.now().servers().cloned().collect(),
    };
    let mut all = Vec::new();
    for server in servers {
        let kept = node.pins.kept(&server).await?;
        all.extend(kept.iter().map(|kept| shown(kept, wanted.texts, node)));
    }
    Ok(serde_json::json!({ "definitions": all }))
}

fn shown(kept: &Kept, with_text: bool, node: &Node) -> serde_json::Value {
    let place = &kept.place;
    let pins = node.pins.now();
    let pin = pins.pin(&place.server, place.kind, &place.name);
    let known = pin.and_then(|pin| pin.known().iter().find(|known| known.digest == place.digest));
    let given_to = pins.callers(&place.server, place.kind, &place.name, place.digest);
    let mut shown = serde_json::json!({
        "server": place.server.to_string(),
        "kind": place.kind.as_str(),
        "name": &*place.name,
        "digest": place.digest.to_string(),
        "state": if kept.approved.is_some() { "approved" } else { "pending" },
        "changed": pin.is_some_and(|pin| pin.has_changed()),
        "hidden_characters": known.is_some_and(|known| known.is_hiding),
        "seen_at": time(kept.seen_at),
        "seen_by": kept.seen_by,
        "given_to": given_to.map(ToString::to_string).collect::<Vec<_>>(),
        "approved_at": kept.approved.as_ref().map(|(at, _)| time(*at)),
        "approved_by": kept.approved.as_ref().map(|(_, by)| by),
    });
    if with_text {
        shown["text"] = kept.text.as_str().into();
    }
    shown
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

pub(super) async fn change(
    wanted: &ChangeRequest,
    peer: UCred,
    context: &Context,
) -> Result<serde_json::Value, DefinitionsError> {
    let node = &context.node;
    let server = server(&wanted.server, node)?;
    let mut chosen = node.pins.choose(&server, &wanted.which)?;
    let mut left_out = Vec::new();
    if wanted.change == Change::Approve && denies_hidden(&server, node) {
        (left_out, chosen) = chosen.into_iter().partition(|one| one.known.is_hiding);
        if chosen.is_empty() {
            let name = |one: &Chosen| format!("{} {:?}", one.place.kind.as_str(), one.place.name);
            let names = left_out.iter().map(name).collect::<Vec<_>>().join(", ");
            return Err(DefinitionsError::Hidden { server: server.to_string(), names });
        }
    }
    let by = exec::who(peer);
    for one in &chosen {
        node.record.event(&event(wanted.change, one, &by))?;
    }
    let done = serde_json::json!({
        "definitions": chosen.iter().map(told).collect::<Vec<_>>(),
        "hidden_characters": left_out.iter().map(told).collect::<Vec<_>>(),
    });
    node.pins.change(wanted.change, chosen, &by).await?;
    node.changes.tell();
    Ok(done)
}

/// One that nobody declares is as strict as can be.
fn denies_hidden(server: &Identity, node: &Node) -> bool {
    let resources = node.resources.load();
    let declared = resources.servers.iter().find(|declared| declared.identity == *server);
    declared.is_none_or(|server| server.pinning.hidden == HiddenCharacters::Deny)
}

fn event<'e>(change: Change, Chosen { place, .. }: &'e Chosen, by: &'e str) -> Event<'e> {
    Event {
        event: match change {
            Change::Approve => "definition_approved",
            Change::Revoke => "definition_revoked",
        },
        target: place.server.to_string(),
        kind: place.kind.as_str(),
        name: &place.name,
        digest: place.digest.to_string(),
        by,
    }
}

fn told(Chosen { place, known }: &Chosen) -> serde_json::Value {
    serde_json::json!({
        "kind": place.kind.as_str(),
        "name": &*place.name,
        "digest": place.digest.to_string(),
        "was": if known.is_approved { "approved" } else { "pending" },
    })
}

/// What is known of a server's definitions.
#[derive(Debug, Default, Serialize)]
pub(super) struct Counts {
    mode: &'static str,
    approved: usize,
    pending: usize,
    /// Names of which nobody may use any, as their definition has changed.
    changed: usize,
}

/// For `status`; `None`: nothing of it is pinned.
pub(super) fn counts(server: &toolgate_core::decision::Server, node: &Node) -> Option<Counts> {
    let mode = match server.pinning.mode {
        Mode::Off => return None,
        Mode::Warn => "warn",
        Mode::Enforce => "enforce",
        Mode::FirstUse => "first_use",
    };
    let mut counts = Counts { mode, ..Counts::default() };
    for (_, _, pin) in node.pins.now().of_server(&server.identity) {
        let approved = pin.known().iter().filter(|known| known.is_approved).count();
        counts.approved += approved;
        counts.pending += pin.known().len() - approved;
        counts.changed += usize::from(pin.has_changed());
    }
    Some(counts)
}

/// The same for Prometheus.
pub(super) fn metrics(out: &mut String, node: &Node) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP toolgate_definitions What pinned servers offer, by what was approved\n# TYPE toolgate_definitions gauge"
    );
    for server in &node.resources.load().servers {
        let Some(counts) = counts(server, node) else { continue };
        let states =
            [("approved", counts.approved), ("pending", counts.pending), ("changed", counts.changed)];
        for (state, count) in states {
            let target = &server.identity;
            let _ = writeln!(out, "toolgate_definitions{{target=\"{target}\",state=\"{state}\"}} {count}");
        }
    }
}

//! What messages are held to beyond policy: calls and replies to their pins, a server's requests to nothing yet.

use std::fmt::Display;

use serde::Serialize;
use toolgate_core::decision::{Denied, Permitted, Server};
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::Message;
use toolgate_core::pin::{self, Mode, News, Verdict};

use super::Turn;
use crate::parse::Asked;
use crate::pins::Findings;
use crate::record::Entry;
use crate::respond::PinExchange;

/// The most bytes of a name in the audit.
const NAME_BYTES_MAX: usize = 256;

/// A line of the audit: a server has shown what nobody knew.
#[derive(Serialize)]
struct Shown<'e> {
    event: &'static str,
    target: String,
    caller: String,
    kind: &'static str,
    name: &'e str,
    digest: String,
    /// Something else is approved under that name.
    changed: bool,
    approved: bool,
    hidden_characters: bool,
}

impl Turn<'_> {
    /// Holds a call that policy permits to the pin of what it names.
    pub(super) fn held_to_pins(
        &self,
        caller: &Identity,
        server: &Server,
        permitted: &Permitted<&Asked<'_>>,
        entry: &mut Entry,
    ) -> Result<(), Denied> {
        if server.pinning.mode == Mode::Off {
            return Ok(());
        }
        let called = match permitted.get().message() {
            Some(Message::Request(call) | Message::Notification(call)) => pin::called(call),
            Some(Message::Response(_)) | None => None,
        };
        let Some(called) = called else { return Ok(()) };
        let now = self.worker.node.pins.now();
        let reason = match now.call(&server.identity, caller, called, server.pinning.hidden) {
            Verdict::Approved => return Ok(()),
            Verdict::NotApproved => Reason::NotApproved,
            Verdict::Changed => Reason::DefinitionChanged,
            Verdict::Hidden => Reason::HiddenCharacters,
        };
        if server.pinning.mode.holds_back() {
            return Err(Denied { shadow: permitted.shadow().cloned(), ..Denied::because(reason) });
        }
        entry.passed_pins(reason);
        Ok(())
    }

    /// What a reply is held to; `None`: nothing of this server is pinned.
    pub(super) fn pinned<'p>(&'p self, server: &Server, findings: &'p Findings) -> Option<PinExchange<'p>> {
        let pins = &self.worker.node.pins;
        (server.pinning.mode != Mode::Off).then_some(PinExchange { pins, findings })
    }

    /// Records what a reply has shown.
    pub(super) fn record_findings(
        &self,
        caller: &Identity,
        server: &Server,
        findings: Findings,
        entry: &mut Entry,
    ) {
        let node = &*self.worker.node;
        for news in findings.news.into_inner() {
            let told = node.record.event(&shown(caller, server, &news));
            if let Err(error) = told {
                tracing::error!(%error, server = %server.identity, "a new definition is not in the audit");
            }
        }
        for limit in findings.limited.into_inner() {
            let server = &server.identity;
            let what: &dyn Display =
                &format_args!("a definition of `{server}` is not kept: {limit} is reached");
            node.metrics.limits.count(limit, what);
        }
        if findings.others_tasks.get() > 0 {
            entry.noted(format!("not shown, tasks of others: {}", findings.others_tasks.get()));
        }
        match (findings.left_out.get(), findings.passed.get()) {
            (0, 0) => {}
            (0, passed) => entry.noted(format!("shown though not approved: {passed}")),
            (left_out, _) => entry.noted(format!("not shown, not approved: {left_out}")),
        }
    }

    /// A request of the server's, on a stream of the caller's: no rule can permit it yet.
    pub(super) fn record_server_request(&self, server: &Server, method: &str, observe: bool) {
        let Ok(mut entry) = self.worker.node.record.open(self.origin, self.resources.generation) else {
            return; // it does not pass without a record either: only `observe` lets it, and says so
        };
        entry.target(&server.identity);
        self.name_caller(&mut entry);
        entry.server_request(method, &Denied::because(Reason::ServerRequest), observe);
    }
}

fn shown<'e>(
    caller: &Identity,
    server: &Server,
    News { seen, is_change, is_approved }: &'e News,
) -> Shown<'e> {
    let name = &seen.name[..seen.name.floor_char_boundary(NAME_BYTES_MAX)];
    Shown {
        event: "definition_seen",
        target: server.identity.to_string(),
        caller: caller.to_string(),
        kind: seen.kind.as_str(),
        name,
        digest: seen.digest.to_string(),
        changed: *is_change,
        approved: *is_approved,
        hidden_characters: seen.is_hiding,
    }
}

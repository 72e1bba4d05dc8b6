//! What messages are held to beyond the policy of calls: calls and replies to their pins, a server's requests and the
//! answers to them to each other.

use std::fmt::Display;
use std::time::Instant;

use serde::Serialize;
use toolgate_core::decision::{self, Decision, Denied, Permitted, Server, Target, Transport};
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Lists, Message, Method, Revision};
use toolgate_core::pin::{self, Mode, News, Verdict};

use super::Turn;
use crate::given::Between;
use crate::parse::{Asked, Expected};
use crate::pins::Findings;
use crate::record::Entry;
use crate::respond::{Asking, PinExchange};
use crate::views::{Sources, View};

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

    /// What the caller may see of the server's lists, where its stream is to tell of a change.
    pub(super) fn view<'v>(
        &'v self,
        caller: &'v Identity,
        Target { server, ends }: Target<'v>,
        expected: &Expected,
        findings: &'v Findings,
    ) -> Option<Box<View<'v>>> {
        let says_it_all = match server.transport {
            Transport::Streamable => !expected.ends_by_itself,
            Transport::Sse => false,
        };
        // A server tells first which changes it will tell of (MCP 2026-07-28).
        let told_of = if expected.subscription().is_some() { Lists::default() } else { expected.listens };
        let node = &*self.worker.node;
        let from =
            Sources { changes: &node.changes, resources: &node.resources, pins: &node.pins, mode: node.mode };
        let whose = (caller, ends, &server.identity);
        says_it_all.then(|| Box::new(View::new(from, whose, self.resources, told_of, &findings.told)))
    }

    /// Records what a reply has shown; what its own record should tell of that.
    pub(super) fn record_findings(
        &self,
        caller: &Identity,
        server: &Server,
        findings: &Findings,
    ) -> Option<String> {
        let node = &*self.worker.node;
        for news in findings.news.take() {
            let told = node.record.event(&shown(caller, server, &news));
            if let Err(error) = told {
                tracing::error!(%error, server = %server.identity, "a new definition is not in the audit");
            }
        }
        for limit in findings.limited.take() {
            let server = &server.identity;
            let what: &dyn Display =
                &format_args!("a definition of `{server}` is not kept: {limit} is reached");
            node.metrics.limits.count(limit, what);
        }
        let told: Vec<String> = [
            (findings.others_tasks.take(), "not shown, tasks of others"),
            (findings.left_out.take(), "not shown, not approved"),
            (findings.passed.take(), "shown though not approved"),
            (findings.pages.take(), "empty pages not shown"),
            (findings.told.take(), "told of changed lists"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{what}: {count}"))
        .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Whether what a server asks, or gives, may pass to the caller, who can come back with it then.
    pub(super) fn may_ask(
        &self,
        caller: &Identity,
        target: Target<'_>,
        (session, revision): (Option<&str>, Option<Revision>),
        asking: Asking<'_>,
    ) -> bool {
        let (given, now, server) = (&self.worker.node.bindings.given, Instant::now(), target.server);
        match asking {
            Asking::Request { method, id, opened } => {
                let may = self.may_be_asked(caller, target, method, revision);
                if may {
                    // Before the caller has it, so that no answer comes too early.
                    let between = Between { caller, server: &server.identity, session: session.or(opened) };
                    given.asked(between, id, Method::from_name(method), now);
                }
                may
            }
            Asking::Within(method) => self.may_be_asked(caller, target, method, None),
            Asking::State(state) => {
                given.gave_state(caller, &server.identity, state, now);
                true
            }
        }
    }

    /// Decides on a request of the server's, and records it. One that does not pass is not answered in the caller's place:
    /// the server waits for as long as it likes.
    fn may_be_asked(
        &self,
        caller: &Identity,
        target: Target<'_>,
        method_name: &str,
        revision: Option<Revision>,
    ) -> bool {
        let node = &*self.worker.node;
        let method = Method::from_name(method_name);
        // A message of its own, on a stream that may be older than what holds now.
        let now = node.resources.load();
        let decision = decision::server_request(caller, target, (method, revision), &now.policies, node.mode);
        // `ping` is no news.
        if method != Method::Ping {
            let Ok(mut entry) = node.record.open(self.origin, now.generation) else {
                return false; // it does not pass without a record either
            };
            entry.target(&target.server.identity);
            self.name_caller(&mut entry);
            entry.server_request(method_name);
            match &decision {
                Decision::Permitted(permitted) => entry.permitted(permitted),
                Decision::Denied(denied) => entry.denied(denied, 0),
            }
        }
        matches!(decision, Decision::Permitted(_))
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

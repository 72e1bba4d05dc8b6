//! The ids that a request names: whose they are.

use std::sync::Arc;

use toolgate_core::decision::{Ids, Server, Use};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::Message;

use super::Turn;
use crate::bindings::{Found, Kind};
use crate::events::Owes;
use crate::parse::Asked;
use crate::record::Entry;

/// What was found of the ids that a request names.
#[derive(Default)]
pub(super) struct Named {
    session: Use,
    task: Use,
    /// The tool whose call made the task.
    tool: Option<Arc<str>>,
    event: Use,
    /// What the stream that it resumes owes.
    owes: Option<Arc<Owes>>,
}

impl Named {
    pub(super) fn ids(&self) -> Ids<'_> {
        Ids { session: self.session, task: self.task, tool: self.tool.as_deref(), event: self.event }
    }

    pub(super) fn owes(&self) -> Option<&Owes> {
        self.owes.as_deref()
    }
}

impl Turn<'_> {
    /// Looks up what a request names; the record keeps the tool of its task.
    pub(super) fn named(
        &self,
        caller: &Identity,
        server: &Server,
        asked: &Asked<'_>,
        entry: &mut Entry,
    ) -> Named {
        let (bindings, now) = (&self.worker.node.bindings, entry.started());
        let find = |kind, id: &str| bindings.used_by(kind, caller, &server.identity, id, now);
        let session = asked.session.map(|id| find(Kind::Session, id)).unwrap_or_default().whose;
        let task_id = match asked.message() {
            Some(Message::Request(call) | Message::Notification(call)) => call.task_id(),
            Some(Message::Response(_)) | None => None,
        };
        let Found { whose: task, tool } = task_id.map(|id| find(Kind::Task, &id)).unwrap_or_default();
        if let Some(tool) = &tool {
            entry.tool(tool);
        }
        let resumed = |id| bindings.events.used_by(caller, &server.identity, asked.session, id, now);
        let (event, owes) = asked.last_event.map(resumed).unwrap_or_default();
        Named { session, task, tool, event, owes }
    }
}

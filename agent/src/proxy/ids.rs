//! The ids that a request names: whose they are.

use std::sync::Arc;

use toolgate_core::decision::{Ids, Server, Target, Transport, Use};
use toolgate_core::mcp::{Message, Method, Revision};
use toolgate_core::policy::Ends;

use super::Turn;
use crate::bindings::{Found, Kind};
use crate::endpoints::Paired;
use crate::events::Owes;
use crate::forward::{Bound, BoundBy};
use crate::given::Between;
use crate::parse::Asked;
use crate::record::Entry;

/// What was found of the ids that a request names.
#[derive(Default)]
pub(super) struct Named {
    session: Use,
    /// That its session was opened in.
    revision: Option<Revision>,
    task: Use,
    /// The tool whose call made the task.
    tool: Option<Arc<str>>,
    event: Use,
    endpoint: Use,
    /// The stream of its own endpoint, where answers come on one.
    pub(super) paired: Option<Arc<Paired>>,
    /// What the stream that it resumes owes.
    owes: Option<Arc<Owes>>,
    /// What the server asked that it answers.
    question: Option<Method>,
    state: Use,
    /// Which of the server's endpoints has what it is about.
    bound: Option<Bound>,
}

impl Named {
    pub(super) fn bound(&self) -> Option<Bound> {
        self.bound
    }

    pub(super) fn ids(&self) -> Ids<'_> {
        let &Self { session, revision, task, event, endpoint, question, state, .. } = self;
        let tool = self.tool.as_deref();
        Ids { session, revision, task, tool, event, endpoint, question, state }
    }

    pub(super) fn revision(&self) -> Option<Revision> {
        self.revision
    }

    pub(super) fn owes(&self) -> Option<&Owes> {
        self.owes.as_deref()
    }
}

impl Turn<'_> {
    /// What tells the agent at the other end which trace a request is of, where its caller does not; empty: nothing.
    pub(super) fn traceparent(&self, target: Target<'_>, asked: &Asked<'_>, entry: &Entry) -> String {
        let trace = if asked.trace.is_none() && target.ends == Ends::Caller { entry.trace() } else { None };
        trace.map(|(trace, part)| trace.header(part)).unwrap_or_default()
    }

    /// Looks up what a request names; the record keeps the tool of its task. Who answers a question has answered it.
    pub(super) fn named(&self, server: &Server, asked: &Asked<'_>, entry: &mut Entry) -> Named {
        let Ok(caller) = self.caller else { return Named::default() };
        let (bindings, now) = (&self.worker.node.bindings, entry.started());
        let find = |kind, id: &str| bindings.used_by(kind, caller, &server.identity, id, now);
        let session = asked.session.map(|id| find(Kind::Session, id)).unwrap_or_default();
        let Found { whose, revision, replica, .. } = session;
        let bound_by = |by| move |address| Bound { address, by };
        let bound = replica.map(bound_by(BoundBy::Session));
        let mut named = Named { session: whose, revision, bound, ..Named::default() };
        let endpoint = match server.transport {
            Transport::Sse => asked.message().map(|_| asked.request.head.target),
            Transport::Streamable => None,
        };
        if let Some(endpoint) = endpoint {
            (named.endpoint, named.paired) =
                self.worker.node.endpoints.used_by(caller, &server.identity, endpoint);
            let replica = named.paired.as_ref().and_then(|paired| paired.replica());
            named.bound = replica.map(bound_by(BoundBy::Stream));
        }
        let task_id = match asked.message() {
            Some(Message::Request(call) | Message::Notification(call)) => {
                let whose = |state: &str| bindings.given.state_of(caller, &server.identity, state, now);
                named.state = call.request_state.as_deref().map(whose).unwrap_or_default();
                call.task_id()
            }
            Some(Message::Response(response)) => {
                let session = endpoint.or(asked.session);
                let between = Between { caller, server: &server.identity, session };
                named.question = bindings.given.answered(between, &response.id, now);
                None
            }
            None => None,
        };
        let Found { whose, tool, replica, .. } = task_id.map(|id| find(Kind::Task, &id)).unwrap_or_default();
        (named.task, named.tool) = (whose, tool);
        named.bound = named.bound.or(replica.map(bound_by(BoundBy::Task)));
        if let Some(tool) = &named.tool {
            entry.tool(tool);
        }
        let resumed = |id| bindings.events.used_by(caller, &server.identity, asked.session, id, now);
        (named.event, named.owes) = asked.last_event.map(resumed).unwrap_or_default();
        named
    }
}

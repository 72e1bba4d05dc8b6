//! How what does not pass is answered and recorded.

use std::fmt::Display;

use toolgate_core::decision::{Denied, Target};
use toolgate_core::denial::{self, Answer, Reason, Shape};

use super::{Flow, Turn};
use crate::forward::ForwardError;
use crate::identify::Source;
use crate::limits::Limit;
use crate::parse::{Broken, Client, Expected, HeadAt, Refused, Stream};
use crate::record::{Entry, NoSlot};
use crate::respond;

impl Turn<'_> {
    /// No entry can be opened: the message is denied, and nothing but a metric and the log tells of it.
    pub(super) async fn unrecorded<S: Stream>(&self, client: &mut Client<S>, no_slot: &NoSlot) {
        let metrics = &self.worker.node.metrics;
        let reason = match no_slot {
            NoSlot::Full { .. } | NoSlot::Share(_) => Reason::Overload,
            NoSlot::Failing => Reason::AuditUnavailable,
        };
        metrics.refused(reason);
        if let Some(limit) = no_slot.limit() {
            metrics.limits.count(limit, no_slot);
        }
        self.answer(client, &denial::answer(reason, self.unread(), ""), true).await;
    }

    /// The shape of an answer to a request of which nothing is known.
    pub(super) fn unread(&self) -> Shape<'static> {
        if self.is_invoked() { Shape::Invocation { status: 403 } } else { Shape::Connection }
    }

    /// Whether its connection calls by App ID.
    fn is_invoked(&self) -> bool {
        match &self.origin.source {
            Source::Process(connecting) => self.worker.node.is_invoked(connecting.captured.original),
            Source::Peer(_) => false,
        }
    }

    /// There is too much of something: refused for now, and recorded.
    pub(super) fn shed(&self, limit: Limit, what: &dyn Display, entry: &mut Entry) -> Answer {
        self.worker.node.metrics.limits.count(limit, what);
        let answer = denial::answer(Reason::Overload, self.unread(), &entry.request_id());
        entry.refused(Reason::Overload, answer.status, what.to_string());
        answer
    }

    /// Records a request that breaks a wire rule, and says which.
    pub(super) fn refuse(&self, refused: &Refused, entry: &mut Entry) -> Answer {
        let id = refused.id.as_deref().unwrap_or("null");
        self.refuse_as(refused, Shape::Broken { status: refused.status, code: refused.code, id }, entry)
    }

    fn refuse_as(&self, refused: &Refused, shape: Shape<'_>, entry: &mut Entry) -> Answer {
        if let Some(limit) = refused.limit {
            self.worker.node.metrics.limits.count(limit, &refused.detail);
        }
        entry.refused(refused.reason, refused.status, refused.detail.clone());
        denial::answer(refused.reason, shape, &entry.request_id())
    }

    /// Records how a reply broke; what is said in its place where something still can be.
    pub(super) fn broke(&self, broken: &respond::Broken, expected: &Expected, entry: &mut Entry) -> Answer {
        let reason = broken.fault.reason();
        if let Some(limit) = broken.fault.limit() {
            self.worker.node.metrics.limits.count(limit, &broken.fault);
        }
        entry.failed(reason, broken.bytes, broken.fault.to_string());
        let is_refused = reason == Reason::ServerRequest;
        let shape = if is_refused { expected.refusal() } else { expected.failure() };
        denial::answer(reason, shape, &entry.request_id())
    }

    /// The agent ends: the client may come again, and finds its server without us, or our successor.
    pub(super) async fn turned_away<S: Stream>(&self, client: &mut Client<S>, mut entry: Entry) {
        self.name_caller(&mut entry);
        let answer = denial::answer(Reason::ShuttingDown, self.unread(), &entry.request_id());
        entry.refused(Reason::ShuttingDown, answer.status, "the agent ends");
        self.answer(client, &answer, true).await;
    }

    /// Another agent asks for a server that has been here when it connected.
    pub(super) async fn gone<S: Stream>(&self, client: &mut Client<S>, mut entry: Entry) -> Flow {
        self.name_caller(&mut entry);
        let denied = Denied::because(Reason::Undeclared)
            .with_detail("the server is not declared any more as it was when this connection began");
        let answer = deny(&denied, Shape::Connection, &mut entry);
        self.answer(client, &answer, true).await
    }

    /// The target is down.
    pub(super) async fn unreachable<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        error: &ForwardError,
        expected: &Expected,
        entry: &mut Entry,
    ) -> Flow {
        match self.unsent(error, expected, entry) {
            Some(answer) => self.answer(client, &answer, !head.keep_alive).await,
            None => Flow::Close,
        }
    }

    /// Records why a permitted request was not sent; what is said of it. `None`: its client has left.
    pub(super) fn unsent(
        &self,
        error: &ForwardError,
        expected: &Expected,
        entry: &mut Entry,
    ) -> Option<Answer> {
        let (reason, status) = error.reason();
        entry.failed(reason, 0, error.to_string());
        if reason == Reason::ClientLeft {
            return None;
        }
        match error.limit() {
            Some(limit) => self.worker.node.metrics.limits.count(limit, error),
            None => tracing::warn!(%error, "server unreachable"),
        }
        entry.replied(status, 0);
        Some(denial::answer(reason, expected.failure(), &entry.request_id()))
    }

    /// What came is no whole request: the connection cannot go on.
    pub(super) async fn broken<S: Stream>(
        &self,
        client: &mut Client<S>,
        broken: &Broken,
        target: Option<Target<'_>>,
        mut entry: Entry,
    ) -> Flow {
        if let Some(target) = target {
            entry.target(&target.server.identity);
        }
        self.name_caller(&mut entry);
        let refused = match broken {
            Broken::ClientLeft => return Flow::Close, // the entry says so by itself
            Broken::NoRoom(exceeded) => {
                let answer = self.shed(exceeded.limit, broken, &mut entry);
                return self.answer(client, &answer, true).await;
            }
            Broken::Http(error) => Refused::from(error),
            Broken::BodyTooLarge { .. } => Refused::too_large(broken.limit(), broken.to_string()),
            Broken::Slow { .. } => Refused::slow(broken.limit(), broken.to_string()),
        };
        let answer = if target.is_none() && self.is_invoked() {
            self.refuse_as(&refused, Shape::Invocation { status: refused.status }, &mut entry)
        } else {
            self.refuse(&refused, &mut entry)
        };
        self.answer(client, &answer, true).await
    }
}

/// Records a refusal, and puts it as the client can take it.
pub(super) fn deny(denied: &Denied, shape: Shape<'_>, entry: &mut Entry) -> Answer {
    let answer = denial::answer(denied.reason, shape, &entry.request_id());
    entry.denied(denied, answer.status);
    answer
}

//! What the reply to a request will be, as far as the request tells: kept while the request itself is forgotten.

use std::sync::Arc;

use smallvec::SmallVec;
use toolgate_core::decision::Asks as _;
use toolgate_core::denial::Shape;
use toolgate_core::mcp::{Class, Id, ListKind, Lists, Message, Method, Owed, Revision};
use toolgate_core::pin;

use super::{Again, Asked, HeadAt};
use crate::events::Owes;

/// What outlives the request's bytes.
#[derive(Clone)]
pub struct Expected {
    /// The HTTP method; of those that matter for a reply's framing.
    pub http_method: &'static str,
    /// The reply lists what may be called.
    pub list: Option<ListKind>,
    /// The reply opens a session.
    pub initialize: bool,
    /// The reply may tell a model of the server.
    pub instructions: bool,
    /// The reply lists tasks.
    pub tasks: bool,
    /// The tool that is called: the reply may be a task of it.
    tool: Option<Kept>,
    /// The revision that the request says it is of, or that its session is of, where that is known here.
    pub revision: Option<Revision>,
    /// The request ends its session.
    pub ends_session: bool,
    /// False for a stream that is open until someone leaves.
    pub ends_by_itself: bool,
    /// The lists whose changes such a stream is to tell of.
    pub listens: Lists,
    /// The reply may turn the connection into something else than HTTP.
    pub may_upgrade: bool,
    /// The session that the request names.
    session: Option<Kept>,
    /// The request's method.
    method: Option<Method>,
    /// The request is `tools/call`; whether its results carry `resultType`.
    tool_call: Option<bool>,
    /// The request's id as JSON, where it has one: a number or a UUID costs no allocation.
    id: Option<Kept>,
    /// The request, where it can be asked again for the next page of its list.
    pub again: Option<Arc<Again>>,
}

/// A text that is kept without an allocation where it is short.
#[derive(Clone)]
struct Kept(SmallVec<[u8; 40]>);

impl Kept {
    fn new(text: &str) -> Self {
        Self(SmallVec::from_slice(text.as_bytes()))
    }

    fn as_str(&self) -> &str {
        // It is made of a str.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Expected {
    /// Of a request to a declared server; `owes`: the stream that it resumes owes the answer to that request; `of_session`:
    /// the revision of its session.
    #[must_use]
    pub fn of(asked: &Asked<'_>, owes: Option<&Owes>, of_session: Option<Revision>) -> Self {
        let mut expected = Self::unread(asked.request.head.method);
        expected.session = asked.session.map(Kept::new);
        expected.revision = asked.revision().or(of_session);
        expected.ends_by_itself = asked.ends_by_itself();
        let Some(message) = asked.message() else {
            expected.listens = Lists::ALL;
            expected.ends_session = expected.http_method == "DELETE";
            if let Some(owes) = owes {
                expected.answer(Method::from_name(&owes.method), Some(&owes.id), owes.tool.as_deref());
            }
            return expected;
        };
        if let Message::Request(call) = message {
            expected.answer(call.method, call.id.as_ref().map(Id::raw), call.name.as_deref());
            expected.initialize = call.method == Method::Initialize;
            if let Shape::ToolCall { result_type, .. } = asked.shape() {
                expected.tool_call = Some(result_type);
            }
            expected.listens = Lists::listened(call.params);
        }
        expected
    }

    fn answer(&mut self, method: Method, id: Option<&str>, name: Option<&str>) {
        self.method = Some(method);
        self.id = id.map(Kept::new);
        self.instructions = pin::tells_instructions(method);
        self.tasks = method.class() == Class::Tasks;
        self.tool = name.filter(|_| method == Method::ToolsCall).map(Kept::new);
        if let Class::List(kind) = method.class() {
            self.list = Some(kind);
        }
    }

    /// Of a request whose reply nobody reads.
    #[must_use]
    pub fn unread(method: &str) -> Self {
        let http_method = framing_method(method);
        Self {
            http_method,
            list: None,
            initialize: false,
            instructions: false,
            tasks: false,
            tool: None,
            revision: None,
            ends_session: false,
            ends_by_itself: true,
            listens: Lists::default(),
            may_upgrade: false,
            session: None,
            method: None,
            tool_call: None,
            id: None,
            again: None,
        }
    }

    /// Of a GET for messages of the server's own.
    #[must_use]
    pub fn stream() -> Self {
        Self { ends_by_itself: false, ..Self::unread("GET") }
    }

    /// Of a request that is not MCP: what it asks for may be another protocol.
    #[must_use]
    pub fn passing(head: &HeadAt) -> Self {
        Self { may_upgrade: !head.offers_http2, ..Self::unread(head.http_method) }
    }

    /// What the reply may say.
    #[must_use]
    pub fn owed(&self) -> Owed<'_> {
        match (self.id(), self.ends_by_itself) {
            (Some(id), true) => Owed::Answer { id },
            (Some(id), false) => Owed::Resumed { id },
            (None, true) => Owed::Nothing,
            (None, false) => Owed::Stream,
        }
    }

    /// How a failure is put to the client: as an error of its request, where that has an id.
    #[must_use]
    pub fn failure(&self) -> Shape<'_> {
        self.id().map_or(Shape::Notification, |id| Shape::Request { id, status_tells: false })
    }

    /// The tool that is called.
    #[must_use]
    pub fn tool(&self) -> Option<&str> {
        self.tool.as_ref().map(Kept::as_str)
    }

    /// The session that the request names.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_ref().map(Kept::as_str)
    }

    /// The id, as JSON, that what is said on the stream of `subscriptions/listen` names (MCP 2026-07-28).
    #[must_use]
    pub fn subscription(&self) -> Option<&str> {
        self.id().filter(|_| self.method == Some(Method::SubscriptionsListen))
    }

    /// What an event stream owes that is the reply.
    #[must_use]
    pub fn owes(&self) -> Option<Owes> {
        let (id, method) = (self.id()?.into(), self.method?.as_str().into());
        Some(Owes { id, method, tool: self.tool().map(Into::into) })
    }

    /// How it is put that policy refuses the answer.
    #[must_use]
    pub fn refusal(&self) -> Shape<'_> {
        match (self.id(), self.tool_call) {
            (Some(id), Some(result_type)) => Shape::ToolCall { id, result_type },
            (_, _) => self.failure(),
        }
    }

    /// Bytes that it keeps beside itself, at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        [&self.tool, &self.session, &self.id].into_iter().flatten().map(|kept| kept.0.len()).sum()
    }

    fn id(&self) -> Option<&str> {
        self.id.as_ref().map(Kept::as_str)
    }
}

/// The method as far as it matters for a reply's framing (RFC 9112, 6.3).
pub(super) fn framing_method(method: &str) -> &'static str {
    match method {
        "HEAD" => "HEAD",
        "GET" => "GET",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        _ => "POST",
    }
}

//! What the reply to a request will be, as far as the request tells: kept while the request itself is forgotten.

use smallvec::SmallVec;
use toolgate_core::denial::Shape;
use toolgate_core::mcp::{Class, ListKind, Message, Method, Owed};
use toolgate_core::pin;

use super::Asked;

/// What outlives the request's bytes.
pub struct Expected {
    /// The HTTP method; of those that matter for a reply's framing.
    pub http_method: &'static str,
    /// The reply lists what may be called.
    pub list: Option<ListKind>,
    /// The reply opens a session.
    pub initialize: bool,
    /// The reply may tell a model of the server.
    pub instructions: bool,
    /// The request ends its session.
    pub ends_session: bool,
    /// False for a stream that is open until someone leaves.
    pub ends_by_itself: bool,
    /// The reply may turn the connection into something else than HTTP.
    pub may_upgrade: bool,
    /// The request is `tools/call`; whether its results carry `resultType`.
    tool_call: Option<bool>,
    /// The request's id as JSON, where it has one.
    id: Option<Kept>,
    session: Option<Kept>,
}

/// A text of the request's: a number or a UUID costs no allocation.
type Kept = SmallVec<[u8; 40]>;

impl Expected {
    /// Of a request to a declared server.
    #[must_use]
    pub fn of(asked: &Asked<'_>) -> Self {
        let mut expected = Self::unread(asked.request.head.method);
        expected.session = asked.session.map(kept);
        let Some(message) = asked.message() else {
            expected.ends_by_itself = expected.http_method != "GET";
            expected.ends_session = expected.http_method == "DELETE";
            return expected;
        };
        if let Message::Request(call) = message {
            expected.id = call.id.as_ref().map(|id| kept(id.raw()));
            if let Shape::ToolCall { result_type, .. } = asked.shape() {
                expected.tool_call = Some(result_type);
            }
            // It is open until someone leaves (MCP 2026-07-28).
            expected.ends_by_itself = call.method != Method::SubscriptionsListen;
            expected.initialize = call.method == Method::Initialize;
            expected.instructions = pin::tells_instructions(call.method);
            if let Class::List(kind) = call.method.class() {
                expected.list = Some(kind);
            }
        }
        expected
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
            ends_session: false,
            ends_by_itself: true,
            may_upgrade: false,
            tool_call: None,
            id: None,
            session: None,
        }
    }

    /// Of a request that is not MCP: what it asks for may be another protocol.
    #[must_use]
    pub fn passing(method: &str) -> Self {
        Self { may_upgrade: true, ..Self::unread(method) }
    }

    /// What the reply may say.
    #[must_use]
    pub fn owed(&self) -> Owed<'_> {
        match (self.id(), self.ends_by_itself) {
            (Some(id), _) => Owed::Answer { id },
            (None, true) => Owed::Nothing,
            (None, false) => Owed::Stream,
        }
    }

    /// How a failure is put to the client: as an error of its request, where that has an id.
    #[must_use]
    pub fn failure(&self) -> Shape<'_> {
        self.id().map_or(Shape::Notification, |id| Shape::Request { id })
    }

    /// How it is put that policy refuses the answer.
    #[must_use]
    pub fn refusal(&self) -> Shape<'_> {
        match (self.id(), self.tool_call) {
            (Some(id), Some(result_type)) => Shape::ToolCall { id, result_type },
            (_, _) => self.failure(),
        }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref().and_then(|id| std::str::from_utf8(id).ok())
    }

    /// The session that the request names.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref().and_then(|session| std::str::from_utf8(session).ok())
    }
}

fn kept(text: &str) -> Kept {
    SmallVec::from_slice(text.as_bytes())
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

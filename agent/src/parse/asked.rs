//! What a request asks of an MCP server: the message, or the stream, of exactly one meaning.

use std::cell::RefCell;

use smallvec::SmallVec;
use toolgate_core::decision::{Action, Asks, Server, Transport};
use toolgate_core::denial::{METHOD_NOT_FOUND_CODE, Reason, Shape};
use toolgate_core::http1::{Framing, Headers, HttpError, Name, RequestHead};
use toolgate_core::mcp::{self, Call, HeaderMismatch, Message, Method, Revision, json};

use toolgate_core::trace::TraceId;

use super::Request;
use crate::limits::{Limit, Limits};

thread_local! {
    static SCRATCH: RefCell<json::Scratch> = RefCell::new(json::Scratch::default());
}

/// A request that was parsed whole, with the bytes that it was parsed from: what is decided on is what is sent.
pub struct Asked<'b> {
    /// The request as it came.
    pub request: Request<'b>,
    /// Its session, as the client states it.
    pub session: Option<&'b str>,
    /// The last event of the stream that it resumes.
    pub last_event: Option<&'b [u8]>,
    /// The revision that it says it is of.
    revision: Option<Revision>,
    /// The trace that it is a part of, as it says.
    pub trace: Option<TraceId>,
    what: What<'b>,
}

#[expect(clippy::large_enum_variant, reason = "nearly every request is a message")]
enum What<'b> {
    Message(Message<'b>),
    OpenStream,
    EndSession,
    OtherPath,
}

impl Asks for Asked<'_> {
    fn action(&self) -> Action<'_> {
        match &self.what {
            What::Message(message) => Action::Message(message),
            What::OpenStream => Action::OpenStream,
            What::EndSession => Action::EndSession,
            What::OtherPath => Action::OtherPath,
        }
    }

    fn revision(&self) -> Option<Revision> {
        self.revision
    }

    fn names_revision(&self) -> bool {
        self.request.head.headers.get(Name::McpProtocolVersion).is_some()
    }
}

impl Asked<'_> {
    /// Holds it to a revision where it names none that is known.
    pub fn is_of(&mut self, revision: Option<Revision>) {
        self.revision = self.revision.or(revision);
    }

    /// The message, where it is one.
    #[must_use]
    pub fn message(&self) -> Option<&Message<'_>> {
        match &self.what {
            What::Message(message) => Some(message),
            What::OpenStream | What::EndSession | What::OtherPath => None,
        }
    }

    /// False for a stream that is open until someone leaves.
    #[must_use]
    pub fn ends_by_itself(&self) -> bool {
        match self.message() {
            Some(Message::Request(call)) => call.method != Method::SubscriptionsListen, // MCP 2026-07-28
            Some(_) => true,
            None => self.request.head.method != "GET",
        }
    }

    /// Whether it goes to a path that is not the server's MCP endpoint.
    #[must_use]
    pub fn is_other_path(&self) -> bool {
        matches!(self.what, What::OtherPath)
    }

    /// How a refusal of it is put.
    #[must_use]
    pub fn shape(&self) -> Shape<'_> {
        match &self.what {
            What::Message(message) => self.message_shape(message),
            What::OpenStream => Shape::Stream,
            What::EndSession => Shape::EndSession,
            What::OtherPath => {
                let well_known = self.request.head.path.starts_with("/.well-known/");
                match self.request.addressed {
                    None => Shape::OtherPath { well_known },
                    Some(_) => Shape::Invocation { status: if well_known { 404 } else { 403 } },
                }
            }
        }
    }
}

impl Asked<'_> {
    fn message_shape<'m>(&self, message: &'m Message<'_>) -> Shape<'m> {
        match message {
            Message::Request(call) => {
                let id = call.id.as_ref().map_or("null", |id| id.raw());
                let version = self.request.head.headers.get(Name::McpProtocolVersion);
                let version = version.or(call.version.as_deref().map(str::as_bytes));
                let is_stateless = version.is_some_and(mcp::is_stateless);
                if call.method == Method::ToolsCall {
                    Shape::ToolCall { id, result_type: is_stateless }
                } else {
                    Shape::Request { id, status_tells: is_stateless }
                }
            }
            Message::Notification(_) => Shape::Notification,
            Message::Response(_) => Shape::Response,
        }
    }
}

/// A request that breaks a wire rule: what to say, and what the audit is told.
#[derive(Debug)]
pub struct Refused {
    /// For the label.
    pub reason: Reason,
    /// The HTTP status.
    pub status: u16,
    /// The JSON-RPC error's code.
    pub code: i32,
    /// For the audit and the answer: which rule was broken.
    pub detail: String,
    /// The limit that it ran into.
    pub limit: Option<Limit>,
    /// The request's id as JSON, where it could be read.
    pub id: Option<String>,
}

impl Refused {
    fn malformed(error: &json::Malformed) -> Self {
        let limits = [
            (matches!(error, json::Malformed::Depth { .. }), Limit::JsonDepth),
            (matches!(error, json::Malformed::Members { .. }), Limit::JsonMembers),
        ];
        let is_batch = matches!(error, json::Malformed::Batch { .. });
        Self {
            reason: if is_batch { Reason::Batch } else { Reason::MalformedMessage },
            code: error.code(),
            limit: limits.into_iter().find_map(|(is_it, limit)| is_it.then_some(limit)),
            ..Self::http(400, error.to_string())
        }
    }

    /// What a method needs that the revision without sessions does not have: it is not there, whatever it misses.
    fn unknown(error: &json::Malformed, version: Option<&[u8]>) -> Option<Self> {
        let json::Malformed::Missing { needed_by, .. } = error else { return None };
        let revision = version.filter(|version| mcp::is_stateless(version)).and_then(Revision::named)?;
        let method = Method::from_name(needed_by);
        let is_unknown = method != Method::Other && !method.clients().contains(&revision);
        is_unknown.then(|| Self {
            reason: Reason::MethodUnknown,
            code: METHOD_NOT_FOUND_CODE,
            ..Self::http(404, format!("no method of clients in MCP {}: `{needed_by}`", revision.as_str()))
        })
    }

    fn mismatch(error: &HeaderMismatch, message: &Message<'_>) -> Self {
        let id = if let Message::Request(call) = message { call.id.as_ref() } else { None };
        Self {
            reason: Reason::HeaderMismatch,
            code: mcp::HEADER_MISMATCH_CODE,
            id: id.map(|id| id.raw().to_owned()),
            ..Self::http(400, error.to_string())
        }
    }

    /// The body exceeds its limit.
    #[must_use]
    pub fn too_large(limit: Option<Limit>, detail: String) -> Self {
        Self { reason: Reason::TooLarge, limit, ..Self::http(413, detail) }
    }

    /// It did not come in time.
    #[must_use]
    pub fn slow(limit: Option<Limit>, detail: String) -> Self {
        Self { limit, ..Self::http(408, detail) }
    }

    fn http(status: u16, detail: impl Into<String>) -> Self {
        Self {
            reason: Reason::MalformedHttp,
            status,
            code: -32600,
            detail: detail.into(),
            limit: None,
            id: None,
        }
    }
}

impl From<&HttpError> for Refused {
    fn from(error: &HttpError) -> Self {
        Self { limit: super::http_limit(error), ..Self::http(error.status(), error.to_string()) }
    }
}

/// Parses a request to a declared server.
///
/// # Errors
/// [`Refused`] for a request that two parsers could read in two ways, or that is no MCP.
pub fn asked<'b>(request: Request<'b>, server: &Server, limits: &Limits) -> Result<Asked<'b>, Refused> {
    let head = &request.head;
    let host = head.headers.only(Name::Host).map_err(|error| Refused::from(&error))?.unwrap_or_default();
    // By App ID the server is named already, and gets a Host of its own.
    if request.addressed.is_none() && !server.accepts_host(host) {
        return Err(Refused {
            reason: Reason::HostMismatch,
            ..Refused::http(403, format!("host `{host}` is none of the server's `hosts`"))
        });
    }
    let session = head.headers.only(Name::McpSessionId).map_err(|error| Refused::from(&error))?;
    let version = head.headers.only_bytes(Name::McpProtocolVersion).map_err(|error| Refused::from(&error))?;
    let trace = TraceId::of(&head.headers);
    let is_streamable = match server.transport {
        Transport::Streamable => true,
        Transport::Sse => false,
    };
    let what = match head.method {
        // Its endpoint may be anywhere.
        "POST" if !is_streamable => What::Message(message(&request, server.transport, limits)?),
        _ if server.path.strip_prefix(server.base(request.addressed)) != Some(head.path) => What::OtherPath,
        "POST" => What::Message(message(&request, server.transport, limits)?),
        "GET" if upgrades_to(head, "websocket") => {
            return Err(Refused::http(
                400,
                "an upgrade to WebSocket, in which messages are not read here: use plain HTTP",
            ));
        }
        "GET" if request.body.is_empty() => What::OpenStream,
        "DELETE" if request.body.is_empty() && is_streamable => What::EndSession,
        "GET" => return Err(Refused::http(400, "GET with a body")),
        "DELETE" if is_streamable => return Err(Refused::http(400, "DELETE with a body")),
        other => return Err(Refused::http(405, format!("method `{other}` is none of MCP's"))),
    };
    // Elsewhere it means nothing, and does not go on.
    let last_event = match &what {
        What::OpenStream if is_streamable => {
            head.headers.only_bytes(Name::LastEventId).map_err(|error| Refused::from(&error))?
        }
        What::OpenStream | What::Message(_) | What::EndSession | What::OtherPath => None,
    };
    let said = match &what {
        What::Message(Message::Request(call) | Message::Notification(call)) if !is_streamable => {
            call.version.as_deref().map(str::as_bytes)
        }
        What::Message(_) | What::OpenStream | What::EndSession | What::OtherPath => None,
    };
    let revision = version.or(said).and_then(Revision::named);
    Ok(Asked { request, session, last_event, revision, trace, what })
}

fn message<'b>(request: &Request<'b>, transport: Transport, limits: &Limits) -> Result<Message<'b>, Refused> {
    let content_type = request.head.headers.only_bytes(Name::ContentType);
    let content_type = content_type.map_err(|error| Refused::from(&error))?.unwrap_or_default();
    if !is_json(content_type) {
        let shown = String::from_utf8_lossy(content_type);
        return Err(Refused::http(415, format!("content type `{shown}`: MCP messages are application/json")));
    }
    let headers = &request.head.headers;
    let header = |name| headers.only(name).map_err(|error| Refused::from(&error));
    let version = headers.get(Name::McpProtocolVersion);
    let message = SCRATCH.with_borrow_mut(|scratch| {
        let parsed = mcp::parse(request.body, scratch, &limits.json());
        parsed
            .map_err(|error| Refused::unknown(&error, version).unwrap_or_else(|| Refused::malformed(&error)))
    })?;
    let (method, name) = (header(Name::McpMethod)?, header(Name::McpName)?);
    let mirrored = mcp::Mirrored { version, method, name, may_miss: transport == Transport::Sse };
    mcp::mirrors(&message, mirrored).map_err(|error| Refused::mismatch(&error, &message))?;
    match &message {
        Message::Request(call) | Message::Notification(call) => {
            params(headers, call).map_err(|error| Refused::mismatch(&error, &message))?;
        }
        Message::Response(_) if version.is_some_and(mcp::is_stateless) => {
            let detail = "an answer to a server, which there is not in the revision that the request names";
            return Err(Refused { reason: Reason::UnexpectedResponse, ..Refused::http(400, detail) });
        }
        Message::Response(_) => {}
    }
    Ok(message)
}

/// Holds the headers that repeat arguments to them.
fn params(headers: &Headers<'_>, call: &Call<'_>) -> Result<(), HeaderMismatch> {
    if headers.count(Name::McpParam) == 0 {
        return Ok(()); // as nearly always
    }
    let params = headers.iter().filter(|header| mcp::is_param(header.name));
    let params: SmallVec<[_; 4]> = params.map(|header| (header.name, header.value)).collect();
    mcp::repeats(call.arguments, &params)
}

/// `application/json`, with or without `charset=utf-8`: MCP is UTF-8.
fn is_json(content_type: &[u8]) -> bool {
    if content_type == b"application/json" {
        return true; // as nearly always
    }
    let content_type = String::from_utf8_lossy(content_type);
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    media_type.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| {
            let charset = parameter.to_ascii_lowercase();
            matches!(charset.as_str(), "charset=utf-8" | "charset=\"utf-8\"" | "")
        })
}

/// Whether a request to no declared server may carry MCP: then its body is read before anything is sent. One that
/// is too large to be read, and says that it is no JSON, is passed on as it comes.
#[must_use]
pub(super) fn looks_like_mcp(head: &RequestHead<'_>, limits: &Limits) -> bool {
    let content_type = content_type(head);
    let readable = match head.framing {
        Framing::Length(length) => length <= limits.body_bytes_max as u64,
        Framing::None | Framing::Chunked | Framing::UntilClose => true,
    };
    has_mcp_header(head)
        || (head.method == "POST" && (readable || content_type.is_empty() || mcp::says_json(&content_type)))
}

/// All that a head says about its content's type; a lenient server may go by any of it.
fn content_type(head: &RequestHead<'_>) -> String {
    let said = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-type"));
    said.map(|header| String::from_utf8_lossy(header.value)).collect::<Vec<_>>().join(",")
}

fn has_mcp_header(head: &RequestHead<'_>) -> bool {
    let is_mcp = |name: &str| name.get(..4).is_some_and(|name| name.eq_ignore_ascii_case("mcp-"));
    head.headers.iter().any(|header| is_mcp(header.name)) || opens_mcp_websocket(head)
}

/// Whether it asks for a WebSocket with MCP in it, as official SDKs open one.
#[must_use]
pub fn opens_mcp_websocket(head: &RequestHead<'_>) -> bool {
    upgrades_to(head, "websocket") && has_token(head, "sec-websocket-protocol", "mcp")
}

/// Whether it asks to go on in another protocol.
pub(super) fn upgrades_to(head: &RequestHead<'_>, protocol: &str) -> bool {
    // Nearly no request does.
    head.headers.count(Name::HopByHop) > 0 && has_token(head, "upgrade", protocol)
}

/// Whether a header that is a list has this in it.
fn has_token(head: &RequestHead<'_>, name: &str, token: &str) -> bool {
    let lists = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let mut tokens = lists.flat_map(|list| list.value.split(|byte| *byte == b','));
    tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// What a request to no declared server is.
#[expect(clippy::large_enum_variant, reason = "it lives as long as one look at it")]
pub enum Shadow<'b> {
    /// MCP: decided by `undeclared`.
    Mcp(Option<Message<'b>>),
    /// Something else: decided by `unrecognised`.
    Other,
}

/// Tells MCP from other requests to undeclared servers. What reads like JSON-RPC but breaks its rules counts as
/// MCP: a lenient server might still take it.
#[must_use]
pub fn shadow<'b>(request: &Request<'b>, limits: &Limits) -> Shadow<'b> {
    SCRATCH.with_borrow_mut(|scratch| {
        let has_mcp_header = has_mcp_header(&request.head);
        match mcp::parse(request.body, scratch, &limits.json()) {
            // JSON-RPC of another protocol is not ours to judge.
            Ok(message) if is_mcp(&message) || has_mcp_header => return Shadow::Mcp(Some(message)),
            Ok(_) => return Shadow::Other,
            Err(_) if has_mcp_header => return Shadow::Mcp(None),
            Err(_) => {}
        }
        let content_type = content_type(&request.head);
        match mcp::could_be_json_rpc(request.body, &content_type, scratch, &limits.json()) {
            true => Shadow::Mcp(None),
            false => Shadow::Other,
        }
    })
}

fn is_mcp(message: &Message<'_>) -> bool {
    match message {
        Message::Request(call) | Message::Notification(call) => call.method != Method::Other,
        Message::Response(_) => false,
    }
}

//! Why a request is refused, and what its sender is told.
//!
//! Two messages a refusal: [`Reason::public_text`] goes to the client and says no more than it may know; the
//! audit line has the reason's name and the rules. One table, [`answer`], turns a reason into bytes.

use std::fmt::Write as _;

use smallvec::{SmallVec, smallvec};

/// The JSON-RPC error code of a refusal: outside -32768..-32000, which JSON-RPC 2.0 keeps for itself.
pub const REFUSED_CODE: i32 = -31403;

/// The JSON-RPC error code of a method that is not there (JSON-RPC 2.0, 5.1).
pub const METHOD_NOT_FOUND_CODE: i32 = -32601;

/// The JSON-RPC error code of parameters that name nothing (JSON-RPC 2.0, 5.1).
const INVALID_PARAMS_CODE: i32 = -32602;
/// A capability that the method needs is not among those that the request names (MCP 2026-07-28).
const MISSING_CAPABILITY_CODE: i32 = -32021;

/// After how many seconds a client that met an overload may come back.
const RETRY_AFTER_SECONDS: u32 = 1;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $text:literal;)+) => {
        /// Why a request is not served. One label for audit and metrics, one text for the client.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The label in audit lines and metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What the client is told.
            #[must_use]
            pub fn public_text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// No Workload's selectors fit the process, and `exec` did not start it.
    UnidentifiedCaller = "unidentified_caller", "the calling process is not a known workload";
    /// More than one Workload's selectors fit.
    AmbiguousCaller = "ambiguous_caller", "the calling process is not a known workload";
    /// `exec` claimed an App ID whose Workload does not fit the process.
    ExecContradicted = "exec_contradicted", "the calling process is not a known workload";
    /// No allow rule matches.
    NoRule = "no_rule", "policy does not permit this";
    /// A deny rule matches.
    DeniedByRule = "denied_by_rule", "policy does not permit this";
    /// An allow rule matches in everything but the arguments.
    ArgumentsRefused = "arguments_refused", "policy does not permit these arguments";
    /// What is called, as its server defines it, is not approved (pins).
    NotApproved = "not_approved", "what the server offers under this name is not approved here";
    /// Its definition has changed since it was approved (pins).
    DefinitionChanged = "definition_changed", "what the server offers under this name has changed and is not approved";
    /// Its definition has characters that nobody sees (pins).
    HiddenCharacters = "hidden_characters", "what the server offers under this name has hidden characters";
    /// A method that no MCP revision gives to clients, and no rule names.
    MethodUnknown = "method_unknown", "policy does not permit this method";
    /// An answer to no request that this caller was given by this server and has not answered.
    UnexpectedResponse = "unexpected_response", "no answer was asked for";
    /// A request of a server (sampling, elicitation, roots) that no rule permits.
    ServerRequest = "server_request", "policy does not permit requests from this server";
    /// MCP to a server that no Server resource declares.
    Undeclared = "undeclared", "this MCP server is not declared here";
    /// A request by App ID that names none.
    NoAppId = "no_app_id", "no App ID is named: not by the header dapr-app-id, a Basic user of that name, or /v1.0/invoke/APP_ID/method/";
    /// A connection that is not MCP, where those are denied.
    Unrecognised = "unrecognised", "only MCP may pass here";
    /// A proxy is asked for a declared server.
    Proxied = "proxied", "this server is reached directly here, not through a proxy";
    /// Traffic to a declared server that cannot be read.
    Opaque = "opaque", "this server takes plain HTTP only: its traffic must be readable here";
    /// TLS, where captured processes may speak none.
    TlsDenied = "tls_denied", "TLS of this process is not permitted here";
    /// A client whose TLS is to be read does not trust this node's authority, or trusts certain certificates alone.
    ClientPinned = "client_pinned", "the client does not trust the authority of this node";
    /// TLS with the client did not come about for another reason.
    HandshakeFailed = "handshake_failed", "TLS with the client did not come about";
    /// A session that does not exist, or whose caller is no longer known.
    UnknownSession = "unknown_session", "no such session";
    /// A session of another caller's.
    ForeignSession = "session_hijack", "no such session";
    /// A task that does not exist, or whose caller is no longer known.
    UnknownTask = "unknown_task", "no such task";
    /// A task of another caller's.
    ForeignTask = "task_hijack", "no such task";
    /// The last event of a stream that nobody had, or whose caller is no longer known.
    UnknownEvent = "unknown_event", "no such event";
    /// The last event of another caller's stream.
    ForeignEvent = "event_hijack", "no such event";
    /// A message to an endpoint of no open stream, or whose caller is no longer known (MCP 2024-11-05, HTTP with SSE).
    UnknownEndpoint = "unknown_endpoint", "no such endpoint";
    /// A message to the endpoint of another caller's stream.
    ForeignEndpoint = "endpoint_hijack", "no such endpoint";
    /// A request about a task by a client that does not say that it knows tasks (MCP 2026-07-28, where they are an extension).
    MissingCapability = "missing_capability", "the request does not say that its client knows tasks";
    /// A request state that does not exist, or whose caller is no longer known.
    UnknownState = "unknown_request_state", "no such request state";
    /// A request state of another caller's.
    ForeignState = "request_state_hijack", "no such request state";
    /// A Host that is none of the server's.
    HostMismatch = "host_mismatch", "the Host header does not name this server";
    /// Not the server's MCP path.
    PathNotServed = "path_not_served", "this path is not served";
    /// Broken or ambiguous HTTP.
    MalformedHttp = "malformed_http", "the HTTP request is malformed";
    /// `Mcp-Method` or `Mcp-Name` says something else than the message.
    HeaderMismatch = "header_mismatch", "the MCP headers do not say what the message says";
    /// `MCP-Protocol-Version` names another revision than the session was opened in.
    RevisionMismatch = "revision_mismatch", "this session is of another MCP revision";
    /// Broken or ambiguous JSON-RPC.
    MalformedMessage = "malformed_message", "the JSON-RPC message is malformed";
    /// Several JSON-RPC messages in one body, as MCP 2025-03-26 alone had it: none of them is read.
    Batch = "batch", "batches are not taken here: send one message in each request";
    /// More bytes than the limits allow.
    TooLarge = "too_large", "the request is too large";
    /// The server takes no connection.
    ServerUnreachable = "server_unreachable", "the server cannot be reached";
    /// The name of an external server leads nowhere.
    NameUnresolved = "name_unresolved", "the server's name leads nowhere";
    /// The name of an external server leads to an address that it may not have.
    AddressRefused = "address_refused", "the server's name leads to an address that is refused here";
    /// An external server did not prove by TLS that it is the one.
    ServerUnproven = "server_unproven", "the server could not prove who it is";
    /// Who is at the other end of a connection between agents is not proven, or is another.
    PeerUnproven = "peer_unproven", "the node of the server could not prove who it is";
    /// The server, or the agent in front of it, does not accept the certificate that says who calls.
    CertificateRefused = "certificate_refused", "the server does not believe who calls";
    /// The server does not answer in time.
    ServerTimeout = "server_timeout", "the server did not answer in time";
    /// The server's answer is no valid answer.
    ServerFault = "server_fault", "the server's answer is invalid";
    /// No room for another request.
    Overload = "overload", "too many requests at once: try again";
    /// No record could be written, and `audit.on_failure` is `deny`.
    AuditUnavailable = "audit_unavailable", "the request could not be recorded";
    /// The kernel has no record of the connection.
    NoRecord = "no_record", "the connection is not known";
    /// The client closed before its request or its reply was whole.
    ClientLeft = "client_left", "the client left";
    /// The agent is stopping.
    ShuttingDown = "shutting_down", "shutting down: try again";
}

/// An HTTP answer, without its framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`; `None` = no body.
    pub content_type: Option<&'static str>,
    /// Further headers.
    pub headers: SmallVec<[(&'static str, String); 1]>,
    /// The whole body.
    pub body: Vec<u8>,
    /// Whether the connection is closed after it.
    pub close: bool,
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape<'m> {
    /// `tools/call`.
    ToolCall {
        /// The request's id, as JSON.
        id: &'m str,
        /// Whether results carry `resultType` (MCP 2026-07-28 and later).
        result_type: bool,
    },
    /// Any other request.
    Request {
        /// The request's id, as JSON.
        id: &'m str,
        /// Whether a method that is not there is told by the status (MCP 2026-07-28 and later, which have no sessions
        /// that a 404 would end).
        status_tells: bool,
    },
    /// A notification.
    Notification,
    /// A client's answer to a server's request.
    Response,
    /// GET: the server's stream.
    Stream,
    /// DELETE: the end of a session.
    EndSession,
    /// A path that is not the server's MCP path.
    OtherPath {
        /// Below `/.well-known/`.
        well_known: bool,
    },
    /// A connection that speaks plain HTTP, before any message is known.
    Connection,
    /// A request by App ID that is no MCP, or of which nothing is known: as Dapr's sidecars put errors.
    Invocation {
        /// HTTP status of a refusal.
        status: u16,
    },
    /// HTTP or JSON-RPC that could not be read.
    Broken {
        /// HTTP status: 400, 413, 415, 431 ..
        status: u16,
        /// JSON-RPC code: -32700, -32600 or -32020.
        code: i32,
        /// The request's id, as JSON; `null` where it is not known.
        id: &'m str,
    },
}

/// What kind of failure a reason is, where that decides the status.
enum Failure {
    /// The sender's or the policy's: the shape decides.
    Refused,
    /// Ours or the server's: this status, whatever was asked.
    Unavailable(u16),
    /// Try again: 503.
    Busy,
    /// 404, as the MCP specification says for sessions, and SDK servers of endpoints.
    Session,
    /// What a server says of a task (MCP 2025-11-25, tasks) or a request state (2026-07-28) that it does not have.
    NoSuch,
    /// 400, as official SDK servers say of an event that they do not have, and MCP of a revision that does not fit
    /// (2025-06-18, transports, protocol version header).
    Misfit,
}

fn failure(reason: Reason) -> Failure {
    match reason {
        Reason::UnidentifiedCaller
        | Reason::AmbiguousCaller
        | Reason::ExecContradicted
        | Reason::NoRule
        | Reason::DeniedByRule
        | Reason::ArgumentsRefused
        | Reason::NotApproved
        | Reason::DefinitionChanged
        | Reason::HiddenCharacters
        | Reason::MethodUnknown
        | Reason::UnexpectedResponse
        | Reason::ServerRequest
        | Reason::Undeclared
        | Reason::NoAppId
        | Reason::Unrecognised
        | Reason::Proxied
        | Reason::Opaque
        | Reason::TlsDenied
        | Reason::ClientPinned
        | Reason::HandshakeFailed
        | Reason::HostMismatch
        | Reason::PathNotServed
        | Reason::MalformedHttp
        | Reason::HeaderMismatch
        | Reason::MalformedMessage
        | Reason::Batch
        | Reason::TooLarge
        | Reason::ClientLeft
        | Reason::NoRecord => Failure::Refused,
        Reason::ServerUnreachable
        | Reason::NameUnresolved
        | Reason::AddressRefused
        | Reason::ServerUnproven
        | Reason::PeerUnproven
        | Reason::CertificateRefused
        | Reason::ServerFault => Failure::Unavailable(502),
        Reason::ServerTimeout => Failure::Unavailable(504),
        Reason::Overload | Reason::AuditUnavailable | Reason::ShuttingDown => Failure::Busy,
        Reason::UnknownSession
        | Reason::ForeignSession
        | Reason::UnknownEndpoint
        | Reason::ForeignEndpoint => Failure::Session,
        Reason::UnknownTask | Reason::ForeignTask | Reason::UnknownState | Reason::ForeignState => {
            Failure::NoSuch
        }
        Reason::UnknownEvent
        | Reason::ForeignEvent
        | Reason::RevisionMismatch
        | Reason::MissingCapability => Failure::Misfit,
    }
}

/// The answer to a refused request: status, headers and body, in one table. `request_id` is the one of the audit
/// line.
#[must_use]
pub fn answer(reason: Reason, to: Shape<'_>, request_id: &str) -> Answer {
    let text = format!("toolgate: {} (request {request_id})", reason.public_text());
    let id = match to {
        Shape::ToolCall { id, .. } | Shape::Request { id, .. } | Shape::Broken { id, .. } => id,
        Shape::Notification
        | Shape::Response
        | Shape::Stream
        | Shape::EndSession
        | Shape::OtherPath { .. }
        | Shape::Connection
        | Shape::Invocation { .. } => "null",
    };
    match (failure(reason), to) {
        (Failure::Unavailable(status), Shape::Invocation { .. }) => json(status, dapr_error(&text)),
        (Failure::Busy, Shape::Invocation { .. }) => json(503, dapr_error(&text)).after_a_moment(),
        (_, Shape::Invocation { status }) => json(status, dapr_error(&text)),
        (_, Shape::Broken { status, code, id }) => json(status, rpc_error(id, code, &text)).closing(),
        (Failure::Unavailable(status), _) => json(status, rpc_error(id, REFUSED_CODE, &text)),
        (Failure::Busy, _) => json(503, rpc_error(id, REFUSED_CODE, &text))
            .after_a_moment()
            .closing_if(reason == Reason::ShuttingDown),
        (Failure::Misfit, _) if reason == Reason::MissingCapability => json(400, asks_for_tasks(id, &text)),
        (Failure::Misfit, _) => json(400, rpc_error(id, REFUSED_CODE, &text)),
        (Failure::Session, _) => json(404, rpc_error(id, REFUSED_CODE, &text)),
        (Failure::NoSuch, Shape::ToolCall { id, .. } | Shape::Request { id, .. }) => {
            json(200, rpc_error(id, INVALID_PARAMS_CODE, &text))
        }
        (Failure::Refused, Shape::ToolCall { id, result_type }) => {
            json(200, tool_result(id, result_type, &text))
        }
        (Failure::Refused, Shape::Request { id, status_tells: true }) if reason == Reason::MethodUnknown => {
            json(404, rpc_error(id, METHOD_NOT_FOUND_CODE, &text))
        }
        (Failure::Refused, Shape::Request { id, .. }) => json(200, rpc_error(id, REFUSED_CODE, &text)),
        (Failure::Refused | Failure::NoSuch, Shape::Notification | Shape::Response) => empty(202),
        (Failure::Refused | Failure::NoSuch, Shape::Stream | Shape::EndSession) => {
            empty(405).with("Allow", "POST".to_owned())
        }
        (Failure::Refused | Failure::NoSuch, Shape::OtherPath { well_known: true }) => {
            json(404, plain_error(&text))
        }
        (Failure::Refused | Failure::NoSuch, Shape::OtherPath { well_known: false }) => {
            json(403, plain_error(&text))
        }
        (Failure::Refused | Failure::NoSuch, Shape::Connection) => json(403, plain_error(&text)).closing(),
    }
}

fn empty(status: u16) -> Answer {
    Answer { status, content_type: None, headers: smallvec![], body: Vec::new(), close: false }
}

fn json(status: u16, body: String) -> Answer {
    Answer { content_type: Some("application/json"), body: body.into_bytes(), ..empty(status) }
}

impl Answer {
    /// A success that says this, as JSON; `None`: nothing, and 204.
    #[must_use]
    pub fn said(body: Option<String>) -> Self {
        body.map_or_else(|| empty(204), |body| json(200, body))
    }

    /// It is not ready, as Dapr's sidecars say it of themselves.
    #[must_use]
    pub fn not_ready(error_code: &'static str, why: &str) -> Self {
        json(500, format!(r#"{{"errorCode":"{error_code}","message":{}}}"#, quoted(why)))
    }

    /// The message was taken; what is said to it is said elsewhere.
    #[must_use]
    pub fn accepted() -> Self {
        empty(202)
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    fn after_a_moment(self) -> Self {
        self.with("Retry-After", RETRY_AFTER_SECONDS.to_string())
    }

    fn closing(self) -> Self {
        self.closing_if(true)
    }

    fn closing_if(mut self, close: bool) -> Self {
        self.close = close;
        self
    }
}

fn tool_result(id: &str, result_type: bool, text: &str) -> String {
    let result_type = if result_type { r#""resultType":"complete","# } else { "" };
    let text = quoted(text);
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{{result_type}"content":[{{"type":"text","text":{text}}}],"isError":true}}}}"#
    )
}

fn rpc_error(id: &str, code: i32, text: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{}}}}}"#, quoted(text))
}

/// An error that says which capability is missing, as the schema of MCP 2026-07-28 has it.
fn asks_for_tasks(id: &str, text: &str) -> String {
    let data = r#"{"requiredCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
    let (code, message) = (MISSING_CAPABILITY_CODE, quoted(text));
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message},"data":{data}}}}}"#)
}

fn plain_error(text: &str) -> String {
    format!(r#"{{"error":{}}}"#, quoted(text))
}

/// As Dapr's service invocation says it.
fn dapr_error(text: &str) -> String {
    format!(r#"{{"errorCode":"ERR_DIRECT_INVOKE","message":{}}}"#, quoted(text))
}

/// Text as a JSON string (RFC 8259 section 7).
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            control if control.is_control() => {
                // Control characters are all below U+00A0, so four digits do; writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_follow_the_table() {
        let tool = Shape::ToolCall { id: "7", result_type: false };
        let modern = Shape::ToolCall { id: "\"a\"", result_type: true };
        let request = Shape::Request { id: "7", status_tells: false };
        let stateless = Shape::Request { id: "7", status_tells: true };
        let table: &[(Reason, Shape<'_>, u16, &str)] = &[
            (
                Reason::NoRule,
                tool,
                200,
                r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"toolgate: policy does not permit this (request r-1)"}],"isError":true}}"#,
            ),
            (
                Reason::ArgumentsRefused,
                modern,
                200,
                r#"{"jsonrpc":"2.0","id":"a","result":{"resultType":"complete","content":[{"type":"text","text":"toolgate: policy does not permit these arguments (request r-1)"}],"isError":true}}"#,
            ),
            (
                Reason::NoRule,
                request,
                200,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31403,"message":"toolgate: policy does not permit this (request r-1)"}}"#,
            ),
            (Reason::NoRule, Shape::Notification, 202, ""),
            (Reason::UnexpectedResponse, Shape::Response, 202, ""),
            (Reason::NoRule, Shape::Stream, 405, ""),
            (Reason::NoRule, Shape::EndSession, 405, ""),
            (
                Reason::UnknownSession,
                Shape::EndSession,
                404,
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-31403,"message":"toolgate: no such session (request r-1)"}}"#,
            ),
            (
                Reason::UnknownSession,
                tool,
                404,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31403,"message":"toolgate: no such session (request r-1)"}}"#,
            ),
            (
                Reason::ForeignTask,
                request,
                200,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"toolgate: no such task (request r-1)"}}"#,
            ),
            (Reason::ForeignTask, Shape::Notification, 202, ""),
            (
                Reason::MethodUnknown,
                request,
                200,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31403,"message":"toolgate: policy does not permit this method (request r-1)"}}"#,
            ),
            (
                Reason::MethodUnknown,
                stateless,
                404,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"toolgate: policy does not permit this method (request r-1)"}}"#,
            ),
            (
                Reason::NoRule,
                stateless,
                200,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31403,"message":"toolgate: policy does not permit this (request r-1)"}}"#,
            ),
            (
                Reason::MissingCapability,
                stateless,
                400,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32021,"message":"toolgate: the request does not say that its client knows tasks (request r-1)","data":{"requiredCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}}}"#,
            ),
            (
                Reason::UnknownState,
                Shape::ToolCall { id: "7", result_type: true },
                200,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"toolgate: no such request state (request r-1)"}}"#,
            ),
            (
                Reason::ForeignEvent,
                Shape::Stream,
                400,
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-31403,"message":"toolgate: no such event (request r-1)"}}"#,
            ),
            (
                Reason::PathNotServed,
                Shape::OtherPath { well_known: true },
                404,
                r#"{"error":"toolgate: this path is not served (request r-1)"}"#,
            ),
            (
                Reason::PathNotServed,
                Shape::OtherPath { well_known: false },
                403,
                r#"{"error":"toolgate: this path is not served (request r-1)"}"#,
            ),
            (
                Reason::Undeclared,
                Shape::Connection,
                403,
                r#"{"error":"toolgate: this MCP server is not declared here (request r-1)"}"#,
            ),
            (
                Reason::Undeclared,
                Shape::Invocation { status: 404 },
                404,
                r#"{"errorCode":"ERR_DIRECT_INVOKE","message":"toolgate: this MCP server is not declared here (request r-1)"}"#,
            ),
            (
                Reason::Overload,
                Shape::Invocation { status: 403 },
                503,
                r#"{"errorCode":"ERR_DIRECT_INVOKE","message":"toolgate: too many requests at once: try again (request r-1)"}"#,
            ),
            (
                Reason::MalformedMessage,
                Shape::Broken { status: 400, code: -32700, id: "null" },
                400,
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"toolgate: the JSON-RPC message is malformed (request r-1)"}}"#,
            ),
            (
                Reason::ServerTimeout,
                tool,
                504,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31403,"message":"toolgate: the server did not answer in time (request r-1)"}}"#,
            ),
            (
                Reason::Overload,
                request,
                503,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-31403,"message":"toolgate: too many requests at once: try again (request r-1)"}}"#,
            ),
        ];
        for (reason, shape, status, body) in table {
            let got = answer(*reason, *shape, "r-1");
            assert_eq!(
                (got.status, std::str::from_utf8(&got.body).unwrap()),
                (*status, *body),
                "{reason:?} {shape:?}"
            );
            assert_eq!(got.content_type.is_some(), !body.is_empty(), "{reason:?} {shape:?}");
        }
        assert_eq!(
            answer(Reason::Overload, request, "r").headers.as_slice(),
            [("Retry-After", "1".to_owned())]
        );
        assert_eq!(
            answer(Reason::NoRule, Shape::Stream, "r").headers.as_slice(),
            [("Allow", "POST".to_owned())]
        );
    }

    #[test]
    fn every_answer_is_valid_json_and_hides_which_rule() {
        let shapes = [
            Shape::ToolCall { id: "1", result_type: true },
            Shape::Request { id: "1", status_tells: true },
            Shape::Notification,
            Shape::Response,
            Shape::Stream,
            Shape::EndSession,
            Shape::OtherPath { well_known: true },
            Shape::Connection,
            Shape::Invocation { status: 404 },
            Shape::Broken { status: 413, code: -32600, id: "null" },
        ];
        for reason in Reason::ALL {
            for shape in shapes {
                let got = answer(*reason, shape, "a\"b\\c\n\u{1}");
                if !got.body.is_empty() {
                    serde_json::from_slice::<serde_json::Value>(&got.body).unwrap();
                }
            }
        }
        assert_eq!(Reason::NoRule.public_text(), Reason::DeniedByRule.public_text());
    }

    #[test]
    fn labels_are_unique() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}

//! One JSON-RPC 2.0 message: validated and taken apart in the same pass.

use super::input::{Input, RESULT};
use super::json::{JsonLimits, Key, Kind, Malformed, Name, Parser, Scratch, Start, Step, Value};
use super::method::{Class, Method};
use std::borrow::Cow;

/// The integers that every reader has exactly: 2^53 on either side of zero.
const ID_MAX: i64 = 1 << 53;

/// Names of the envelope, of `params` and of `_meta`: a key that differs from one of them only in case is what a
/// lenient reader would take for it, so it is refused even where the name itself is absent.
const ENVELOPE: &[&str] = &["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMS: &[&str] = &[
    "name",
    "uri",
    "arguments",
    "task",
    "_meta",
    "ref",
    "argument",
    "context",
    "cursor",
    "taskId",
    "requestId",
    "requestState",
    "inputRequests",
    "inputResponses",
    "level",
    "protocolVersion",
    "capabilities",
    "clientInfo",
    "notifications",
];
/// The member of `_meta` that names the revision of a message.
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META: &[&str] = &[
    "progressToken",
    "traceparent",
    "tracestate",
    VERSION,
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/logLevel",
    "io.modelcontextprotocol/related-task",
    "io.modelcontextprotocol/subscriptionId",
];

/// The id of a request, by value; its JSON text is kept to echo it.
#[derive(Debug, Clone)]
pub enum Id<'b> {
    /// An integer within 2^53 of zero.
    Number {
        /// The integer.
        value: i64,
        /// As it was written.
        raw: &'b str,
    },
    /// A string.
    String {
        /// The string, unescaped.
        value: Cow<'b, str>,
        /// As it was written, with its quotes.
        raw: &'b str,
    },
}

impl<'b> Id<'b> {
    /// The JSON text, to echo.
    #[must_use]
    pub fn raw(&self) -> &'b str {
        match self {
            Self::Number { raw, .. } | Self::String { raw, .. } => raw,
        }
    }

    /// Whether it is the id that was accepted as `raw`: of the same kind and value, however it was written.
    #[must_use]
    pub fn is(&self, raw: &str) -> bool {
        match self {
            _ if self.raw() == raw => true, // as nearly always
            // An integer is written in one way alone.
            Self::Number { .. } => false,
            Self::String { value, .. } => Value::of_string(raw).is_some_and(|other| other == *value),
        }
    }

    /// Whether it is this string.
    #[must_use]
    pub fn is_string(&self, text: &str) -> bool {
        matches!(self, Self::String { value, .. } if value == text)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`]: it is no id.
    pub fn new(value: Value<'b>) -> Result<Self, Malformed> {
        let raw = value.text();
        let refused = || member(value, "id", "a string or an integer within 2^53 of zero");
        match value.kind() {
            Kind::String => Ok(Self::String { value: value.as_str().ok_or_else(refused)?, raw }),
            Kind::Number => {
                let number = raw.parse().ok().filter(|n| (-ID_MAX..=ID_MAX).contains(n) && raw != "-0");
                Ok(Self::Number { value: number.ok_or_else(refused)?, raw })
            }
            Kind::Null | Kind::Bool | Kind::Array | Kind::Object => Err(refused()),
        }
    }
}

/// Equal by value, however it was written.
impl PartialEq for Id<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number { value: a, .. }, Self::Number { value: b, .. }) => a == b,
            (Self::String { value: a, .. }, Self::String { value: b, .. }) => a == b,
            (Self::Number { .. }, Self::String { .. }) | (Self::String { .. }, Self::Number { .. }) => false,
        }
    }
}

impl Eq for Id<'_> {}

/// What a client sent.
#[derive(Debug, Clone)]
pub enum Message<'b> {
    /// Has an id and wants a reply.
    Request(Call<'b>),
    /// Has none.
    Notification(Call<'b>),
    /// The client's answer to a request of the server.
    Response(Response<'b>),
}

/// A request or a notification.
#[derive(Debug, Clone)]
pub struct Call<'b> {
    /// None for a notification.
    pub id: Option<Id<'b>>,
    /// The method.
    pub method: Method,
    /// The method's name, also where it is none of MCP's.
    pub method_name: Cow<'b, str>,
    /// An object.
    pub params: Option<Value<'b>>,
    /// `params.name`, which `tools/call` and `prompts/get` have; for `completion/complete` the prompt it refers to.
    pub name: Option<Cow<'b, str>>,
    /// `params.uri`, which methods of single resources have; for `completion/complete` the resource it refers to.
    pub uri: Option<Cow<'b, str>>,
    /// `params.arguments`, an object.
    pub arguments: Option<Value<'b>>,
    /// Whether `params.task` is there: the reply will be a task.
    pub task: bool,
    /// `params.requestState`: what the server gave to go on with (MCP 2026-07-28).
    pub request_state: Option<Cow<'b, str>>,
    /// Whether `params.inputResponses` is there: answers to what the server asked within one (MCP 2026-07-28).
    pub has_responses: bool,
    /// The revision that `params._meta` names (MCP 2026-07-28).
    pub version: Option<Cow<'b, str>>,
}

impl Call<'_> {
    /// The task that it is about, where its method is about one; empty where it names none.
    #[must_use]
    pub fn task_id(&self) -> Option<Cow<'_, str>> {
        let id = || self.params.and_then(|params| params.get("taskId")).and_then(Value::as_str);
        (self.method.class() == Class::Task).then(|| id().unwrap_or_default())
    }
}

/// A client's answer.
#[derive(Debug, Clone)]
pub struct Response<'b> {
    /// Which request it answers.
    pub id: Id<'b>,
    /// `error` rather than `result`.
    pub is_error: bool,
}

/// The envelope of what a server sent: a reply, or a message of its own on a stream.
#[derive(Debug, Clone)]
pub enum Envelope<'b> {
    /// A reply.
    Response {
        /// None only for an error about a request whose id could not be read.
        id: Option<Id<'b>>,
        /// `error` rather than `result`.
        is_error: bool,
    },
    /// A request of the server.
    Request(Cow<'b, str>, Id<'b>),
    /// A notification.
    Notification(Cow<'b, str>),
}

/// Members of the message as they were passed.
#[derive(Default)]
struct Fields<'b> {
    jsonrpc: Option<Value<'b>>,
    id: Option<Value<'b>>,
    method: Option<Value<'b>>,
    params: Option<Value<'b>>,
    result: Option<Value<'b>>,
    error: Option<Value<'b>>,
    name: Option<Value<'b>>,
    uri: Option<Value<'b>>,
    arguments: Option<Value<'b>>,
    reference: Option<Value<'b>>,
    task: Option<Value<'b>>,
    request_state: Option<Value<'b>>,
    responses: Option<Value<'b>>,
    /// That of `params._meta`.
    version: Option<Value<'b>>,
    has_meta: bool,
    /// Of a result, or of a notification's `params`.
    input: Input<'b>,
}

/// What kind of message the envelope makes it.
enum Shape<'b> {
    Call { method: Cow<'b, str> },
    Reply { is_error: bool },
}

/// Validates what a client sent and takes it apart, in one pass.
///
/// # Errors
/// [`Malformed`]: bad JSON, or a message that some reader could take for another.
pub fn parse<'b>(
    body: &'b [u8],
    scratch: &mut Scratch,
    limits: &JsonLimits,
) -> Result<Message<'b>, Malformed> {
    let mut fields = Fields::default();
    fields.read(body, scratch, limits)?;
    let id = fields.id.map(Id::new).transpose()?;
    match fields.shape()? {
        Shape::Reply { is_error } => {
            let id = id.ok_or(Malformed::Missing { member: "id", needed_by: "a response" })?;
            Ok(Message::Response(Response { id, is_error }))
        }
        Shape::Call { method } => fields.call(method, id),
    }
}

/// Validates what a server sent, a reply's body or an event's data, and reads its envelope and what it asks within.
///
/// # Errors
/// [`Malformed`], as [`parse`]; the id of an error reply may be absent or null.
pub fn reply_envelope<'b>(
    text: &'b [u8],
    scratch: &mut Scratch,
    limits: &JsonLimits,
) -> Result<(Envelope<'b>, Value<'b>, Input<'b>), Malformed> {
    let mut fields = Fields::default();
    let value = fields.read(text, scratch, limits)?;
    let shape = fields.shape()?;
    let nameless = matches!(shape, Shape::Reply { is_error: true });
    let id = fields.id.filter(|id| !(nameless && id.kind() == Kind::Null)).map(Id::new).transpose()?;
    let envelope = match (shape, id) {
        (Shape::Reply { is_error: false }, None) => {
            return Err(Malformed::Missing { member: "id", needed_by: "a result" });
        }
        (Shape::Reply { is_error }, id) => Envelope::Response { id, is_error },
        (Shape::Call { method }, Some(id)) => Envelope::Request(method, id),
        (Shape::Call { method }, None) => Envelope::Notification(method),
    };
    let input = Input { error: fields.error, ..fields.input };
    Ok((envelope, value, input))
}

impl<'b> Fields<'b> {
    /// Takes the members of the text, which it validates, and gives the whole.
    fn read(
        &mut self,
        text: &'b [u8],
        scratch: &mut Scratch,
        limits: &JsonLimits,
    ) -> Result<Value<'b>, Malformed> {
        let mut parser = Parser::new(text, scratch, limits)?;
        let value = match parser.first() {
            (at, b'{') => parser.object(at, |parser, key, start| self.member(parser, key, start))?,
            (offset, b'[') => return Err(Malformed::Batch { offset }),
            start => {
                let value = parser.value(start)?;
                return Err(Malformed::NotAnObject { offset: value.offset() });
            }
        };
        parser.finish(value.end())?;
        Ok(value)
    }

    #[inline(always)]
    fn member(&mut self, parser: &mut Parser<'b, '_>, key: Key<'b>, start: Start) -> Step {
        let place = if key.is(&const { Name::new("jsonrpc") }) {
            &mut self.jsonrpc
        } else if key.is(&const { Name::new("id") }) {
            &mut self.id
        } else if key.is(&const { Name::new("method") }) {
            &mut self.method
        } else if key.is(&const { Name::new("params") }) {
            if let (at, b'{') = start {
                parser.only(self.params.is_some(), key)?;
                let params = parser.object(at, |parser, key, start| self.param(parser, key, start))?;
                self.params = Some(params);
                return Ok(params.end());
            }
            &mut self.params
        } else if key.is(&const { Name::new("result") }) {
            if let (at, b'{') = start {
                parser.only(self.result.is_some(), key)?;
                let result = parser.object(at, |parser, key, start| self.of_result(parser, key, start))?;
                self.result = Some(result);
                return Ok(result.end());
            }
            &mut self.result
        } else if key.is(&const { Name::new("error") }) {
            &mut self.error
        } else {
            return other(parser, key, start, ENVELOPE);
        };
        parser.once(place, key, start)
    }

    #[inline(always)]
    fn param(&mut self, parser: &mut Parser<'b, '_>, key: Key<'b>, start: Start) -> Step {
        let place = if key.is(&const { Name::new("name") }) {
            &mut self.name
        } else if key.is(&const { Name::new("arguments") }) {
            &mut self.arguments
        } else if key.is(&const { Name::new("_meta") }) {
            parser.only(self.has_meta, key)?;
            self.has_meta = true;
            return self.meta(parser, start);
        } else if key.is(&const { Name::new("uri") }) {
            &mut self.uri
        } else if key.is(&const { Name::new("ref") }) {
            &mut self.reference
        } else if key.is(&const { Name::new("task") }) {
            &mut self.task
        } else if key.is(&const { Name::new("requestState") }) {
            &mut self.request_state
        } else if key.is(&const { Name::new("inputResponses") }) {
            &mut self.responses
        } else if key.is(&const { Name::new("inputRequests") }) {
            &mut self.input.requests
        } else {
            return other(parser, key, start, PARAMS);
        };
        parser.once(place, key, start)
    }

    #[inline(always)]
    fn of_result(&mut self, parser: &mut Parser<'b, '_>, key: Key<'b>, start: Start) -> Step {
        let place = if key.is(&const { Name::new("inputRequests") }) {
            &mut self.input.requests
        } else if key.is(&const { Name::new("requestState") }) {
            &mut self.input.state
        } else {
            let names_task = key.is(&const { Name::new("task") }) || key.is(&const { Name::new("taskId") });
            self.input.names_task |= names_task;
            return other(parser, key, start, RESULT);
        };
        parser.once(place, key, start)
    }

    /// `params._meta`.
    fn meta(&mut self, parser: &mut Parser<'b, '_>, start: Start) -> Step {
        let (at, byte) = start;
        if byte != b'{' {
            return Err(Box::new(member(parser.value(start)?, "params._meta", "an object")));
        }
        let meta = parser.object(at, |parser, key, start| {
            if key.is(&const { Name::new(VERSION) }) {
                return parser.once(&mut self.version, key, start);
            }
            other(parser, key, start, META)
        })?;
        Ok(meta.end())
    }

    fn shape(&self) -> Result<Shape<'b>, Malformed> {
        let version = self.jsonrpc.ok_or(Malformed::Missing { member: "jsonrpc", needed_by: "JSON-RPC" })?;
        if version.text() != r#""2.0""# && version.as_str().as_deref() != Some("2.0") {
            return Err(member(version, "jsonrpc", "`\"2.0\"`"));
        }
        let has = match (self.method, self.result, self.error) {
            (Some(method), None, None) => {
                let name = method.as_str().ok_or_else(|| member(method, "method", "a string"))?;
                return Ok(Shape::Call { method: name });
            }
            (None, Some(_), None) => return Ok(Shape::Reply { is_error: false }),
            (None, None, Some(error)) if error.kind() == Kind::Object => {
                return Ok(Shape::Reply { is_error: true });
            }
            (None, None, Some(error)) => return Err(member(error, "error", "an object")),
            (None, None, None) => "none of them",
            (None, Some(_), Some(_)) => "`result` and `error`",
            (Some(_), _, _) => "`method` and a reply",
        };
        Err(Malformed::Ambiguous { has })
    }

    fn call(&self, method_name: Cow<'b, str>, id: Option<Id<'b>>) -> Result<Message<'b>, Malformed> {
        let method = Method::from_name(&method_name);
        if method == Method::ToolsCall && id.is_none() {
            return Err(Malformed::Missing { member: "id", needed_by: "tools/call" });
        }
        object(self.params, "params")?;
        object(self.arguments, "params.arguments")?;
        let (name, uri) = (self.name, self.uri);
        let (name, uri) = match method.class() {
            Class::Tool | Class::Prompt => {
                (Some(string(name, "params.name", method)?), uri.and_then(Value::as_str))
            }
            Class::Resource => (name.and_then(Value::as_str), Some(string(uri, "params.uri", method)?)),
            Class::Completion => completed(self.reference)?,
            // These are decided without a name; what one means there is the server's to say.
            Class::Handshake
            | Class::List(_)
            | Class::Listen
            | Class::Task
            | Class::Tasks
            | Class::ServerToClient
            | Class::Unknown => (name.and_then(Value::as_str), uri.and_then(Value::as_str)),
        };
        let optional = |value: Option<Value<'b>>, path| {
            let text = |value: Value<'b>| value.as_str().ok_or_else(|| member(value, path, "a string"));
            value.map(text).transpose()
        };
        let request_state = optional(self.request_state, "params.requestState")?;
        let version = optional(self.version, "params._meta.io.modelcontextprotocol/protocolVersion")?;
        let &Self { params, arguments, task, responses, .. } = self;
        let (is_request, task, has_responses) = (id.is_some(), task.is_some(), responses.is_some());
        let call = Call {
            id,
            method,
            method_name,
            params,
            name,
            uri,
            arguments,
            task,
            request_state,
            has_responses,
            version,
        };
        Ok(if is_request { Message::Request(call) } else { Message::Notification(call) })
    }
}

/// A member that is not read; one that a lenient reader would read is refused.
// Inlined, or the key would go through memory.
#[inline(always)]
fn other<'b>(parser: &mut Parser<'b, '_>, key: Key<'b>, start: Start, known: &[&str]) -> Step {
    if key.collides(known) {
        return Err(parser.colliding(key.place()));
    }
    parser.note(key)?;
    Ok(parser.value(start)?.end())
}

/// A name and a URI.
type Reference<'b> = (Option<Cow<'b, str>>, Option<Cow<'b, str>>);

/// What `completion/complete` refers to: the name of a prompt or the URI of a resource.
fn completed(reference: Option<Value<'_>>) -> Result<Reference<'_>, Malformed> {
    let method = Method::Complete;
    let reference =
        reference.ok_or(Malformed::Missing { member: "params.ref", needed_by: method.as_str() })?;
    if ["type", "name", "uri"].iter().any(|key| reference.collides(key)) {
        return Err(member(reference, "params.ref", "an object with `type`, `name` and `uri` in lower case"));
    }
    match reference.get("type").and_then(Value::as_str).as_deref() {
        Some("ref/prompt") => Ok((Some(string(reference.get("name"), "params.ref.name", method)?), None)),
        Some("ref/resource") => Ok((None, Some(string(reference.get("uri"), "params.ref.uri", method)?))),
        Some(_) | None => Err(member(reference, "params.ref", "a `ref/prompt` or a `ref/resource`")),
    }
}

fn object(value: Option<Value<'_>>, path: &'static str) -> Result<(), Malformed> {
    match value {
        Some(value) if value.kind() != Kind::Object => Err(member(value, path, "an object")),
        Some(_) | None => Ok(()),
    }
}

fn string<'b>(
    value: Option<Value<'b>>,
    path: &'static str,
    method: Method,
) -> Result<Cow<'b, str>, Malformed> {
    let value = value.ok_or(Malformed::Missing { member: path, needed_by: method.as_str() })?;
    value.as_str().ok_or_else(|| member(value, path, "a string"))
}

fn member(value: Value<'_>, member: &'static str, expected: &'static str) -> Malformed {
    Malformed::Member { offset: value.offset(), member, expected }
}

//! Pins: what a server offers is listed and called only as somebody has approved it.
//!
//! - [`Definition::read`]: the canonical form of one definition, and its digest
//! - [`hidden`]: characters that a reader does not see
//! - [`Pins`]: what was seen and approved, and what that means for a call and for a list

mod canonical;
pub mod hidden;
mod state;

pub use self::canonical::{Definition, Digest};
pub use self::state::{Known, Limited, Limits, News, Pin, Pins, Seen, Verdict};

use crate::mcp::json::{Kind as JsonKind, Malformed, Value};
use crate::mcp::{Call, Class, ListKind, Method};

/// What is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A tool, by its name.
    Tool,
    /// A prompt, by its name.
    Prompt,
    /// A resource template, by its URI template.
    ResourceTemplate,
    /// What `initialize` or `server/discover` tells the model of the server. There is one, without a name.
    Instructions,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tool, Self::Prompt, Self::ResourceTemplate, Self::Instructions];

    /// Its name in commands, the audit and the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Prompt => "prompt",
            Self::ResourceTemplate => "resource-template",
            Self::Instructions => "instructions",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What the elements of a list are; single resources are not pinned.
    #[must_use]
    pub fn of_list(list: ListKind) -> Option<Self> {
        match list {
            ListKind::Tools => Some(Self::Tool),
            ListKind::Prompts => Some(Self::Prompt),
            ListKind::ResourceTemplates => Some(Self::ResourceTemplate),
            ListKind::Resources => None,
        }
    }
}

/// What pins do on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Off,
    /// What is not approved passes, and is recorded.
    Warn,
    /// What is not approved is neither listed nor called.
    Enforce,
    /// The same, and what is first seen under a name is approved.
    FirstUse,
}

impl Mode {
    /// Whether what is not approved is kept back.
    #[must_use]
    pub fn holds_back(self) -> bool {
        match self {
            Self::Off | Self::Warn => false,
            Self::Enforce | Self::FirstUse => true,
        }
    }
}

/// What becomes of definitions with characters that a reader does not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenCharacters {
    /// They count as not approved, whoever approved them.
    Deny,
    /// They are shown escaped, and may be approved.
    Allow,
}

/// How a server's definitions are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinning {
    /// What pins do.
    pub mode: Mode,
    /// What becomes of hidden characters.
    pub hidden: HiddenCharacters,
}

impl Pinning {
    /// No pins.
    pub const OFF: Self = Self { mode: Mode::Off, hidden: HiddenCharacters::Allow };
}

/// What a call refers to that may be pinned: a tool, a prompt, or the template that a completion is for. Which template
/// a URI comes from cannot be told, so what is read is policy's alone.
#[must_use]
pub fn called<'c>(call: &'c Call<'_>) -> Option<(Kind, &'c str)> {
    let (name, uri) = (call.name.as_deref(), call.uri.as_deref());
    match call.method.class() {
        Class::Tool => name.map(|name| (Kind::Tool, name)),
        Class::Prompt => name.map(|name| (Kind::Prompt, name)),
        Class::Completion => {
            let template = || uri.filter(|uri| uri.contains('{')).map(|uri| (Kind::ResourceTemplate, uri));
            name.map(|name| (Kind::Prompt, name)).or_else(template)
        }
        Class::Handshake
        | Class::List(_)
        | Class::Resource
        | Class::Listen
        | Class::Task
        | Class::Tasks
        | Class::ServerToClient
        | Class::Unknown => None,
    }
}

/// Whether the reply to this method tells a model of the server.
#[must_use]
pub fn tells_instructions(method: Method) -> bool {
    matches!(method, Method::Initialize | Method::Discover)
}

/// `result.instructions` of a reply; `None` where there are none.
///
/// # Errors
/// [`Malformed`] where a lenient reader could find others, or they are no text.
pub fn instructions(reply: Value<'_>) -> Result<Option<Value<'_>>, Malformed> {
    const KEY: &str = "instructions";
    let colliding =
        |value: Value<'_>, key: &str| Malformed::CollidingKey { offset: value.offset(), key: key.to_owned() };
    if reply.collides("result") {
        return Err(colliding(reply, "result"));
    }
    let Some(result) = reply.get("result") else { return Ok(None) };
    if result.collides(KEY) {
        return Err(colliding(result, KEY));
    }
    match result.get(KEY) {
        Some(value) if value.kind() == JsonKind::String => Ok(Some(value)),
        Some(value) if value.kind() == JsonKind::Null => Ok(None),
        Some(value) => Err(Malformed::Member { offset: value.offset(), member: KEY, expected: "a string" }),
        None => Ok(None),
    }
}

/// Appends `reply` to `out` with an empty text in the place of its `instructions`; every other byte stays.
pub fn without_instructions(reply: Value<'_>, instructions: Value<'_>, out: &mut Vec<u8>) {
    let text = reply.text();
    let start = instructions.offset() - reply.offset();
    let end = start + instructions.text().len();
    out.extend_from_slice(text.get(..start).unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\"\"");
    out.extend_from_slice(text.get(end..).unwrap_or_default().as_bytes());
}

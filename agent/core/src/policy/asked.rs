//! What a message asks for, as rules see it.

use std::borrow::Cow;

use smallvec::{SmallVec, smallvec};

use super::index::Named;
use crate::mcp::json::{Kind, Value};
use crate::mcp::{Call, Class, ServerAsks};

/// One thing that a message asks for.
#[derive(Debug, Clone)]
pub(super) enum Asked<'m> {
    /// A tool with its arguments.
    Tool(Cow<'m, str>, Option<Value<'m>>),
    /// A prompt.
    Prompt(Cow<'m, str>, Arguable<'m>),
    /// A resource, or in a completion a resource template.
    Resource(Cow<'m, str>),
    /// The caller's own task, made by a call of that tool.
    Task(&'m str),
    /// What any caller that may anything on the server may have.
    Handshake,
    /// What only a rule that names the method permits.
    Method,
    /// What the server asks of the caller.
    ByServer(ServerAsks),
}

impl Asked<'_> {
    /// What rules find it by.
    pub(super) fn named(&self) -> Named<'_> {
        match self {
            Self::Tool(name, _) => Named::Tool(name),
            Self::Prompt(name, _) => Named::Prompt(name),
            Self::Resource(_) | Self::Task(_) | Self::Handshake | Self::Method | Self::ByServer(_) => {
                Named::Nothing
            }
        }
    }
}

/// The arguments of a prompt; a completion asks about a prompt before they are known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arguable<'m> {
    /// They are these; `None` = none are given.
    Known(Option<Value<'m>>),
    /// No condition can be evaluated on them.
    NotYet,
}

/// Gives each of what a message asks for, at least one: all must be permitted. One that lacks what decides it (a name,
/// a URI, a reference) is left to rules for its method. `tool`: whose call made the task that it is about.
pub(super) fn each_asked<E>(
    call: &Call<'_>,
    tool: Option<&str>,
    mut permit: impl FnMut(&Asked<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if call.method.class() != Class::Listen {
        return permit(&asked(call, tool));
    }
    listened(call).unwrap_or_else(|| smallvec![Asked::Method]).iter().try_for_each(permit)
}

type AllAsked<'m> = SmallVec<[Asked<'m>; 1]>;

fn asked<'m>(call: &'m Call<'m>, tool: Option<&'m str>) -> Asked<'m> {
    let borrowed = |text: &'m Option<Cow<'m, str>>| text.as_deref().map(Cow::Borrowed);
    let one = match call.method.class() {
        Class::Handshake | Class::List(_) => Some(Asked::Handshake),
        Class::Tool => borrowed(&call.name).map(|name| Asked::Tool(name, call.arguments)),
        Class::Prompt => {
            borrowed(&call.name).map(|name| Asked::Prompt(name, Arguable::Known(call.arguments)))
        }
        Class::Resource => borrowed(&call.uri).map(Asked::Resource),
        // Follows its reference, which the parser puts there (MCP 2025-06-18, server/utilities/completion).
        Class::Completion => {
            let prompt = borrowed(&call.name).map(|name| Asked::Prompt(name, Arguable::NotYet));
            prompt.or_else(|| borrowed(&call.uri).map(Asked::Resource))
        }
        Class::Tasks => Some(Asked::Handshake),
        Class::Task => tool.map(Asked::Task),
        // What is listened to may be several things.
        Class::Listen | Class::ServerToClient | Class::Unknown => None,
    };
    one.unwrap_or(Asked::Method)
}

/// `subscriptions/listen` follows what it names (MCP 2026-07-28, `SubscriptionFilter`): changes of lists are part
/// of the handshake, a resource is as good as read. `None`: it names what this agent does not know.
fn listened<'m>(call: &Call<'m>) -> Option<AllAsked<'m>> {
    let mut asked: AllAsked<'m> = smallvec![Asked::Handshake];
    let Some(filter) = call.params.and_then(|params| params.get("notifications")) else { return Some(asked) };
    if filter.kind() != Kind::Object {
        return None;
    }
    for (name, value) in filter.members() {
        match (&*name, value.kind()) {
            ("toolsListChanged" | "promptsListChanged" | "resourcesListChanged", Kind::Bool) => {}
            ("resourceSubscriptions", Kind::Array) => {
                for uri in value.elements() {
                    asked.push(Asked::Resource(uri.as_str()?));
                }
            }
            _ => return None,
        }
    }
    Some(asked)
}

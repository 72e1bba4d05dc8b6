//! Removes from a list what its reader may not see, and says that it is for that reader alone. Every other byte stays as
//! it was.

use super::json::{Kind, Malformed, Value};
use super::message::Call;
use super::method::{ListKind, Lists, Method};
use std::borrow::Cow;
use std::ops::Range;

/// How many elements of a list stayed and went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filtered {
    /// Still there.
    pub kept: usize,
    /// Gone.
    pub removed: usize,
}

/// The array in `result`, and what names an element of it.
fn keys(kind: ListKind) -> (&'static str, &'static str) {
    match kind {
        ListKind::Tools => ("tools", "name"),
        ListKind::Resources => ("resources", "uri"),
        ListKind::ResourceTemplates => ("resourceTemplates", "uriTemplate"),
        ListKind::Prompts => ("prompts", "name"),
    }
}

/// An element of a list: its place, its name (or URI) where it has exactly one, and itself.
pub type Element<'b> = (usize, Option<Cow<'b, str>>, Value<'b>);

/// The elements of the list in `reply`, a whole JSON-RPC response; none where there is no list.
///
/// # Errors
/// [`Malformed`] as [`filter`].
pub fn elements(reply: Value<'_>, kind: ListKind) -> Result<impl Iterator<Item = Element<'_>>, Malformed> {
    let (list_key, name_key) = keys(kind);
    Ok(named(find(reply, list_key)?, name_key))
}

fn named<'b>(list: Option<Value<'b>>, name_key: &'static str) -> impl Iterator<Item = Element<'b>> {
    list.into_iter().flat_map(Value::elements).enumerate().map(move |(place, element)| {
        let name = element.get(name_key).filter(|_| !element.collides(name_key)).and_then(Value::as_str);
        (place, name, element)
    })
}

/// Appends `reply`, a whole JSON-RPC response, to `out` with those elements alone that `keep` wants, told the
/// element's place and name (or URI). An element without exactly one such name is removed. A reply without the list, such as an error, is unchanged.
///
/// # Errors
/// [`Malformed`] where a lenient reader could find another list in the reply. `out` is unchanged then.
pub fn filter(
    reply: Value<'_>,
    kind: ListKind,
    keep: impl FnMut(usize, &str) -> bool,
    out: &mut Vec<u8>,
) -> Result<Filtered, Malformed> {
    filter_by(reply, keys(kind), keep, out)
}

/// The same of the reply to `tasks/list`, whose elements are named by their ids.
///
/// # Errors
/// As [`filter`].
pub fn filter_tasks(
    reply: Value<'_>,
    mut keep: impl FnMut(&str) -> bool,
    out: &mut Vec<u8>,
) -> Result<Filtered, Malformed> {
    filter_by(reply, ("tasks", "taskId"), |_place, id| keep(id), out)
}

fn filter_by(
    reply: Value<'_>,
    (list_key, name_key): (&'static str, &'static str),
    mut keep: impl FnMut(usize, &str) -> bool,
    out: &mut Vec<u8>,
) -> Result<Filtered, Malformed> {
    let Some(list) = find(reply, list_key)? else {
        out.extend_from_slice(reply.text().as_bytes());
        return Ok(Filtered { kept: 0, removed: 0 });
    };
    let scope = shared_scope(reply)?;
    let before = scope.filter(|scope| scope.offset() < list.offset());
    let after = scope.filter(|scope| scope.offset() > list.offset());
    let mut copy = Copy { reply, out, at: 0 };
    before.into_iter().for_each(|scope| copy.replace(scope, PRIVATE));
    copy.through(list.offset() - reply.offset() + 1);
    let undo = copy.out.len();
    let mut filtered = Filtered { kept: 0, removed: 0 };
    for (place, name, element) in named(Some(list), name_key) {
        if !name.is_some_and(|name| keep(place, &name)) {
            filtered.removed += 1;
            continue;
        }
        if filtered.kept > 0 {
            copy.out.push(b',');
        }
        copy.out.extend_from_slice(element.text().as_bytes());
        filtered.kept += 1;
    }
    if filtered.removed == 0 {
        // Nothing to hide: the list as it is, with the white space between its elements.
        copy.out.truncate(undo);
    } else {
        copy.out.push(b']');
        copy.at = list.offset() - reply.offset() + list.text().len();
    }
    after.into_iter().for_each(|scope| copy.replace(scope, PRIVATE));
    copy.through(reply.text().len());
    Ok(filtered)
}

/// Where the list in `reply` goes on, the text of a JSON string: the cursor of the next page.
///
/// # Errors
/// [`Malformed`] where a lenient reader could find another cursor, or this one is no text.
pub fn next_cursor(reply: Value<'_>) -> Result<Option<Value<'_>>, Malformed> {
    const KEY: &str = "nextCursor";
    let Some(result) = reply.get("result") else { return Ok(None) };
    if result.collides(KEY) {
        return Err(Malformed::CollidingKey { offset: result.offset(), key: KEY.to_owned() });
    }
    match result.get(KEY) {
        Some(cursor) if cursor.kind() == Kind::String => Ok(Some(cursor)),
        Some(other) if other.kind() != Kind::Null => {
            Err(Malformed::Member { offset: other.offset(), member: KEY, expected: "a string" })
        }
        Some(_) | None => Ok(None),
    }
}

/// Where the cursor is in a request for a page of a list, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorPlace {
    at: Range<usize>,
    before: &'static str,
    after: &'static str,
}

impl CursorPlace {
    /// In the text of a request that was parsed whole.
    #[must_use]
    pub fn of(text: &[u8], call: &Call<'_>) -> Self {
        let place = |at, before, after| Self { at, before, after };
        let Some(params) = call.params else {
            let start = text.iter().position(|byte| *byte == b'{').map_or(text.len(), |brace| brace + 1);
            return place(start..start, r#""params":{"cursor":"#, "},");
        };
        let start = params.offset() + 1;
        match params.get("cursor") {
            Some(cursor) => place(cursor.offset()..cursor.offset() + cursor.text().len(), "", ""),
            None if params.members().next().is_none() => place(start..start, r#""cursor":"#, ""),
            None => place(start..start, r#""cursor":"#, ","),
        }
    }

    /// The same request for the page at `cursor`, the text of a JSON string. Every other byte stays as it was.
    #[must_use]
    pub fn put(&self, text: &[u8], cursor: &str) -> Vec<u8> {
        let (front, rest) = text.split_at_checked(self.at.start).unwrap_or((text, &[]));
        let rest = rest.get(self.at.len()..).unwrap_or_default();
        [front, self.before.as_bytes(), cursor.as_bytes(), self.after.as_bytes(), rest].concat()
    }
}

impl Lists {
    /// All of them.
    pub const ALL: Self = Self { tools: true, resources: true, prompts: true };

    /// Those whose changes `subscriptions/listen` asks to be told of, or is acknowledged to be (MCP 2026-07-28,
    /// `SubscriptionFilter`): by the `params` of either.
    #[must_use]
    pub fn listened(params: Option<Value<'_>>) -> Self {
        let filter = params.and_then(|params| params.get("notifications"));
        let asks = |key| filter.and_then(|filter| filter.get(key)).and_then(Value::as_bool) == Some(true);
        Self {
            tools: asks("toolsListChanged"),
            resources: asks("resourcesListChanged"),
            prompts: asks("promptsListChanged"),
        }
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            tools: self.tools && other.tools,
            resources: self.resources && other.resources,
            prompts: self.prompts && other.prompts,
        }
    }

    /// What tells of a change of each: whole messages. `subscription`: the id, as JSON, of the `subscriptions/listen` on
    /// whose stream they go.
    pub fn changed(self, subscription: Option<&str>) -> impl Iterator<Item = String> {
        let params = subscription
            .map(|id| format!(r#","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}"#));
        let params = params.unwrap_or_default();
        let all = [
            (self.tools, Method::ToolsListChanged),
            (self.resources, Method::ResourcesListChanged),
            (self.prompts, Method::PromptsListChanged),
        ];
        let some = all.into_iter().filter(|(is_one, _)| *is_one);
        some.map(move |(_, method)| format!(r#"{{"jsonrpc":"2.0","method":"{}"{params}}}"#, method.as_str()))
    }
}

/// What a filtered list says of who may be shown it again.
const PRIVATE: &[u8] = br#""private""#;

/// The member of a result that lets others be shown it from a cache (MCP 2026-07-28, `CacheableResult`).
fn shared_scope(reply: Value<'_>) -> Result<Option<Value<'_>>, Malformed> {
    let Some(result) = reply.get("result") else { return Ok(None) };
    if result.collides("cacheScope") {
        return Err(Malformed::CollidingKey { offset: result.offset(), key: "cacheScope".to_owned() });
    }
    let scope = result.get("cacheScope");
    Ok(scope.filter(|scope| scope.as_str().is_none_or(|scope| scope != "private")))
}

/// A reply on its way to `out`.
struct Copy<'b, 'o> {
    reply: Value<'b>,
    out: &'o mut Vec<u8>,
    /// So far it was copied, or left out.
    at: usize,
}

impl Copy<'_, '_> {
    fn through(&mut self, end: usize) {
        self.out.extend_from_slice(self.reply.text().as_bytes().get(self.at..end).unwrap_or_default());
        self.at = end;
    }

    fn replace(&mut self, value: Value<'_>, by: &[u8]) {
        let start = value.offset() - self.reply.offset();
        self.through(start);
        self.out.extend_from_slice(by);
        self.at = start + value.text().len();
    }
}

fn find<'b>(reply: Value<'b>, list_key: &'static str) -> Result<Option<Value<'b>>, Malformed> {
    let colliding =
        |value: Value<'_>, key: &str| Malformed::CollidingKey { offset: value.offset(), key: key.to_owned() };
    if reply.collides("result") {
        return Err(colliding(reply, "result"));
    }
    let Some(result) = reply.get("result") else { return Ok(None) };
    if result.collides(list_key) {
        return Err(colliding(result, list_key));
    }
    match result.get(list_key) {
        Some(list) if list.kind() != Kind::Array => {
            Err(Malformed::Member { offset: list.offset(), member: list_key, expected: "an array" })
        }
        list => Ok(list),
    }
}

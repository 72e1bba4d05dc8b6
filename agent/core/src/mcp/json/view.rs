//! A lazy view of a validated text. Nothing is checked again; what cannot be in such a text ends the iteration.

use super::{Key, Kind, Value, text};
use std::borrow::Cow;

impl<'b> Value<'b> {
    /// Which of JSON's six kinds it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.whole.as_bytes().get(self.start) {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(_) | None => Kind::Null,
        }
    }

    /// The value as it stands in the text, without the white space around it.
    #[must_use]
    pub fn text(self) -> &'b str {
        self.whole.get(self.start..self.end).unwrap_or_default()
    }

    /// How many bytes it has there.
    pub(crate) fn bytes(self) -> usize {
        self.end - self.start
    }

    /// Where it stands in the text that was validated.
    #[must_use]
    pub fn offset(self) -> usize {
        self.start
    }

    /// A string's text, unescaped; borrowed unless it has escapes.
    #[must_use]
    pub fn as_str(self) -> Option<Cow<'b, str>> {
        let (whole, start) = (self.whole, self.start + 1);
        if self.kind() != Kind::String {
            return None;
        }
        let raw = whole.get(start..self.end - 1)?;
        // A string that has no escapes is plain up to its closing quote.
        let is_plain = text::valid_plain_end(whole.as_bytes(), start) == start + raw.len();
        Some(if is_plain { Cow::Borrowed(raw) } else { text::unescape(raw) })
    }

    /// The text of a string that was validated by itself, with its quotes.
    pub(in crate::mcp) fn of_string(raw: &'b str) -> Option<Cow<'b, str>> {
        Value::new(raw, 0, raw.len()).as_str()
    }

    /// A boolean.
    #[must_use]
    pub fn as_bool(self) -> Option<bool> {
        match self.text() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// A number as it is written: no double stands between the text and the reader.
    #[must_use]
    pub fn number_text(self) -> Option<&'b str> {
        (self.kind() == Kind::Number).then(|| self.text())
    }

    /// An object's members in order, keys unescaped; nothing for other kinds.
    pub fn members(self) -> impl Iterator<Item = (Cow<'b, str>, Value<'b>)> {
        self.keyed_members().map(|(key, value)| (key.text(), value))
    }

    /// An array's elements in order; nothing for other kinds.
    pub fn elements(self) -> impl Iterator<Item = Value<'b>> {
        let mut cursor = Cursor::inside(self, Kind::Array);
        std::iter::from_fn(move || cursor.element())
    }

    /// The member of that key.
    #[must_use]
    pub fn get(self, key: &str) -> Option<Value<'b>> {
        self.keyed_members().find(|(one, _)| one.is_text(key)).map(|(_, value)| value)
    }

    /// The value that an RFC 6901 pointer names, this one being the root.
    #[must_use]
    pub fn pointer(self, pointer: &str) -> Option<Value<'b>> {
        let Some(path) = pointer.strip_prefix('/') else {
            return pointer.is_empty().then_some(self);
        };
        path.split('/').try_fold(self, |value, token| match value.kind() {
            Kind::Object if token.contains('~') => value.get(&token.replace("~1", "/").replace("~0", "~")),
            Kind::Object => value.get(token),
            Kind::Array => {
                let canonical = token == "0" || !token.starts_with(['0', '+', '-']);
                value.elements().nth(token.parse().ok().filter(|_| canonical)?)
            }
            Kind::Null | Kind::Bool | Kind::Number | Kind::String => None,
        })
    }

    /// Whether a member's key differs from `key` only in case, so that a lenient reader takes it for `key`.
    #[must_use]
    pub fn collides(self, key: &str) -> bool {
        self.keyed_members().any(|(one, _)| text::collide(&one.text(), key))
    }

    /// An object's members in order; nothing for other kinds.
    #[inline]
    pub(crate) fn keyed_members(self) -> impl Iterator<Item = (Key<'b>, Value<'b>)> {
        let mut cursor = Cursor::inside(self, Kind::Object);
        std::iter::from_fn(move || cursor.member())
    }
}

/// Where the closing quote of a string stands whose content begins at a place, and whether it has escapes.
#[inline]
fn closing_quote(text: &[u8], at: usize) -> (usize, bool) {
    let plain = text::valid_plain_end(text, at);
    match text.get(plain) {
        Some(b'\\') => (plain + string_bytes(text.get(plain..).unwrap_or_default()), true),
        Some(_) | None => (plain, false),
    }
}

/// The key whose content begins at a place.
#[inline(always)]
fn key_at(text: &str, offset: usize) -> Key<'_> {
    let bytes = text.as_bytes();
    if let Some(front) = text::front(bytes, offset)
        && bytes.get(offset + front.bytes) == Some(&b'"')
    {
        return Key { text, head: front.head, offset, end: offset + front.bytes, escaped: false };
    }
    let (end, escaped) = closing_quote(bytes, offset);
    Key { text, head: text::head(bytes.get(offset..end).unwrap_or_default()), offset, end, escaped }
}

/// How many bytes a string goes on before its closing quote.
pub(super) fn string_bytes(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes.get(at) == Some(&b'"') {
            return at;
        }
        at += 2;
    }
    bytes.len()
}

/// A place between the members or elements of a container. Passed on piece by piece, in registers: a value that is put
/// together in memory and copied at once has to wait for its pieces.
struct Cursor<'b> {
    whole: &'b str,
    at: usize,
}

impl<'b> Cursor<'b> {
    /// Behind the opening bracket; at the text's end where the value is of another kind.
    #[inline(always)]
    fn inside(value: Value<'b>, kind: Kind) -> Self {
        let at = if value.kind() == kind { value.start + 1 } else { value.whole.len() };
        Self { whole: value.whole, at }
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.whole.as_bytes().get(self.at).copied()
    }

    /// Most texts have one byte between two values.
    #[inline(always)]
    fn separators(&mut self) {
        self.at += usize::from(matches!(self.peek(), Some(b',' | b':')));
        if self.peek().is_some_and(|byte| byte <= b' ') {
            self.at = behind_separators(self.whole.as_bytes(), self.at);
        }
    }

    #[inline(always)]
    fn member(&mut self) -> Option<(Key<'b>, Value<'b>)> {
        self.separators();
        if self.peek()? != b'"' {
            return None;
        }
        let key = key_at(self.whole, self.at + 1);
        self.at = key.end + 1;
        Some((key, self.element()?))
    }

    #[inline(always)]
    fn element(&mut self) -> Option<Value<'b>> {
        self.separators();
        let start = self.at;
        if let b'}' | b']' = self.peek()? {
            return None;
        }
        self.at = behind(self.whole.as_bytes(), start);
        Some(Value::new(self.whole, start, self.at))
    }
}

#[inline(never)]
fn behind_separators(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t' | b',' | b':') = text.get(at) {
        at += 1;
    }
    at
}

/// The place behind the value that begins at one.
#[inline(never)]
fn behind(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(b'"') => closing_quote(text, at + 1).0 + 1,
        Some(b'{' | b'[') => behind_container(text, at),
        Some(_) | None => {
            let ends = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b',' | b']' | b'}');
            let rest = text.get(at..).unwrap_or_default();
            at + rest.iter().position(ends).unwrap_or(rest.len())
        }
    }
}

fn behind_container(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at = closing_quote(text, at).0 + 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => break,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    at
}

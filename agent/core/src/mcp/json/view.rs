//! A lazy view of a validated text. Nothing is checked again; what cannot be in such a text ends the iteration.

use super::{Kind, Value, text};
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
        self.raw_members().map(|(key, value)| (key.text(), value))
    }

    /// An array's elements in order; nothing for other kinds.
    pub fn elements(self) -> impl Iterator<Item = Value<'b>> {
        let mut cursor = Cursor::inside(self, Kind::Array);
        std::iter::from_fn(move || cursor.element())
    }

    /// The member of that key.
    #[must_use]
    pub fn get(self, key: &str) -> Option<Value<'b>> {
        self.raw_members()
            .find(|(one, _)| one.raw == key || (one.escaped && one.text() == key))
            .map(|(_, value)| value)
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
        self.raw_members().any(|(one, _)| text::collide(&one.text(), key))
    }

    fn raw_members(self) -> impl Iterator<Item = (RawKey<'b>, Value<'b>)> {
        let mut cursor = Cursor::inside(self, Kind::Object);
        std::iter::from_fn(move || cursor.member())
    }
}

/// A key as it stands in the text.
#[derive(Clone, Copy)]
struct RawKey<'b> {
    raw: &'b str,
    escaped: bool,
}

impl<'b> RawKey<'b> {
    fn text(self) -> Cow<'b, str> {
        if self.escaped { text::unescape(self.raw) } else { Cow::Borrowed(self.raw) }
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

/// A place between the members or elements of a container.
struct Cursor<'b> {
    whole: &'b str,
    /// The text up to the container's end.
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Cursor<'b> {
    /// Behind the opening bracket; at the end where the value is of another kind.
    fn inside(value: Value<'b>, kind: Kind) -> Self {
        let at = if value.kind() == kind { value.start + 1 } else { value.end };
        let bytes = value.whole.as_bytes().get(..value.end).unwrap_or_default();
        Self { whole: value.whole, bytes, at }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline(always)]
    fn separators(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t' | b',' | b':') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn member(&mut self) -> Option<(RawKey<'b>, Value<'b>)> {
        self.separators();
        if self.peek()? != b'"' {
            return None;
        }
        let start = self.at + 1;
        let (end, escaped) = closing_quote(self.whole.as_bytes(), start);
        let raw = self.whole.get(start..end)?;
        self.at = end + 1;
        Some((RawKey { raw, escaped }, self.element()?))
    }

    #[inline]
    fn element(&mut self) -> Option<Value<'b>> {
        self.separators();
        let start = self.at;
        match self.peek()? {
            b'"' => self.at = closing_quote(self.whole.as_bytes(), start + 1).0 + 1,
            b'{' | b'[' => self.container(),
            b'}' | b']' => return None,
            _ => self.scalar(),
        }
        Some(Value::new(self.whole, start, self.at))
    }

    #[inline]
    fn scalar(&mut self) {
        while let Some(byte) = self.peek()
            && !matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b',' | b']' | b'}')
        {
            self.at += 1;
        }
    }

    fn container(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => self.at = closing_quote(self.whole.as_bytes(), self.at).0 + 1,
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth <= 1 => return,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
        }
    }
}

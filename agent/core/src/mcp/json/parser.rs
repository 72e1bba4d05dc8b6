//! The one pass over a text: grammar, strings, numbers, depth and keys. Callers hook into the objects they need.

use super::error::{Malformed, shortened};
use super::keys::{Key, Scratch};
use super::{JsonLimits, Value, text};

/// The recursion below never goes deeper, whatever the limits say: a frame costs stack.
const DEPTH_CEILING: usize = 128;

/// What is refused about the keys of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// The same key twice.
    Duplicates,
    /// Also two that differ only in case.
    Collisions,
}

/// Reads one text from front to back.
pub(crate) struct Parser<'b, 's> {
    text: &'b str,
    at: usize,
    depth: usize,
    depth_max: usize,
    members_max: usize,
    scratch: &'s mut Scratch,
}

impl<'b, 's> Parser<'b, 's> {
    /// At the text's first value.
    pub(crate) fn new(
        text: &'b [u8],
        scratch: &'s mut Scratch,
        limits: &JsonLimits,
    ) -> Result<Self, Malformed> {
        if text.starts_with(b"\xef\xbb\xbf") {
            return Err(Malformed::ByteOrderMark { offset: 0 });
        }
        let text = std::str::from_utf8(text).map_err(|e| Malformed::NotUtf8 { offset: e.valid_up_to() })?;
        scratch.reset();
        let depth_max = limits.depth_max.min(DEPTH_CEILING);
        let mut parser = Self { text, at: 0, depth: 0, depth_max, members_max: limits.members_max, scratch };
        parser.space();
        Ok(parser)
    }

    /// Nothing but white space may follow.
    pub(crate) fn finish(&mut self) -> Result<(), Malformed> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.syntax("the end of the text")) }
    }

    /// The next byte; at the start of a value it tells the value's kind.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Where the next byte is.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    /// One value, validated.
    pub(crate) fn value(&mut self) -> Result<Value<'b>, Malformed> {
        let start = self.at;
        self.skip()?;
        Ok(Value::new(self.text, start, self.at))
    }

    /// One object: `member` is called behind each `:` and takes the value.
    pub(crate) fn object(
        &mut self,
        keys: Keys,
        member: impl FnMut(&mut Self, Key<'b>) -> Result<(), Malformed>,
    ) -> Result<Value<'b>, Malformed> {
        let start = self.at;
        self.skip_object(keys, member)?;
        Ok(Value::new(self.text, start, self.at))
    }

    fn skip_object(
        &mut self,
        keys: Keys,
        mut member: impl FnMut(&mut Self, Key<'b>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.enter(b'{', "an object")?;
        let frame = self.scratch.open();
        if !self.eat(b'}') {
            loop {
                let key = self.key()?;
                if self.scratch.count(frame) >= self.members_max {
                    return Err(Malformed::Members { offset: key.offset, members_max: self.members_max });
                }
                let added = self.scratch.add(frame, &key);
                added.map_err(|offset| self.duplicate(offset))?;
                self.space();
                self.expect(b':', "`:`")?;
                self.space();
                member(self, key)?;
                if self.ends(b'}', "`,` or `}`")? {
                    break;
                }
            }
        }
        if keys == Keys::Collisions {
            let collision = self.scratch.collision(frame, self.text.as_bytes());
            // Equal keys collide as well; they are named for what they are.
            let collision = collision.map_err(|offset| self.colliding(offset));
            self.scratch.close(frame, self.text.as_bytes()).map_err(|offset| self.duplicate(offset))?;
            collision?;
        } else {
            self.scratch.close(frame, self.text.as_bytes()).map_err(|offset| self.duplicate(offset))?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn array(&mut self) -> Result<(), Malformed> {
        self.enter(b'[', "an array")?;
        if !self.eat(b']') {
            loop {
                self.skip()?;
                if self.ends(b']', "`,` or `]`")? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), Malformed> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'{') => self.skip_object(Keys::Duplicates, |parser, _| parser.skip()),
            Some(b'[') => self.array(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(_) | None => Err(self.syntax("a value")),
        }
    }

    /// An opening bracket and the space behind it.
    #[inline]
    fn enter(&mut self, bracket: u8, what: &'static str) -> Result<(), Malformed> {
        if self.depth >= self.depth_max {
            return Err(Malformed::Depth { offset: self.at, depth_max: self.depth_max });
        }
        self.expect(bracket, what)?;
        self.depth += 1;
        self.space();
        Ok(())
    }

    /// Behind a member or an element: a comma (false) or the closing bracket (true).
    #[inline]
    fn ends(&mut self, bracket: u8, expected: &'static str) -> Result<bool, Malformed> {
        self.space();
        if self.eat(b',') {
            self.space();
            return Ok(false);
        }
        self.expect(bracket, expected)?;
        Ok(true)
    }

    #[inline]
    fn key(&mut self) -> Result<Key<'b>, Malformed> {
        if self.peek() != Some(b'"') {
            return Err(self.syntax("a key in double quotes"));
        }
        let offset = self.at + 1;
        let escaped = self.string()?;
        Ok(Key { text: self.text, offset, end: self.at - 1, escaped })
    }

    /// One string from quote to quote; whether it has escapes.
    fn string(&mut self) -> Result<bool, Malformed> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.at += text::plain_run(self.rest());
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return Err(Malformed::Control { offset: self.at }),
                None => return Err(self.syntax("the end of a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => match self.unit()? {
                0xd800..0xdc00 => {
                    let low = self.rest().starts_with(b"\\u");
                    self.at += 1;
                    if low && matches!(self.unit()?, 0xdc00..0xe000) {
                        return Ok(());
                    }
                    Err(Malformed::LoneSurrogate { offset: start })
                }
                0xdc00..0xe000 => Err(Malformed::LoneSurrogate { offset: start }),
                _ => Ok(()),
            },
            Some(_) | None => Err(self.syntax("an escape of RFC 8259")),
        }
    }

    /// `u` and four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, Malformed> {
        let digits = self.rest().get(1..).and_then(text::hex4);
        let unit = digits.ok_or_else(|| self.syntax("four hexadecimal digits"))?;
        self.at += 5;
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        self.eat(b'-');
        let whole = if self.eat(b'0') { 1 } else { self.digits("a digit")? };
        if self.eat(b'.') {
            self.digits("a digit behind the point")?;
        }
        let mut exponent = false;
        if let Some(b'e' | b'E') = self.peek() {
            exponent = true;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits("a digit of the exponent")?;
        }
        // 308 digits and no exponent always fit.
        if exponent || whole > 308 {
            let number = self.text.get(start..self.at).and_then(|number| number.parse::<f64>().ok());
            if !number.is_some_and(f64::is_finite) {
                return Err(Malformed::Number { offset: start });
            }
        }
        Ok(())
    }

    /// At least one digit; how many.
    fn digits(&mut self, expected: &'static str) -> Result<usize, Malformed> {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.syntax(expected));
        }
        self.at += count;
        Ok(count)
    }

    fn word(&mut self, word: &'static str) -> Result<(), Malformed> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.syntax("`true`, `false` or `null`"));
        }
        self.at += word.len();
        Ok(())
    }

    #[inline]
    fn rest(&self) -> &'b [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    #[inline]
    fn space(&mut self) {
        // Most texts have none, and everything else that is valid here is above it.
        if self.peek().is_some_and(|byte| byte <= b' ') {
            self.some_space();
        }
    }

    #[inline(never)]
    fn some_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Malformed> {
        if self.eat(byte) { Ok(()) } else { Err(self.syntax(expected)) }
    }

    fn syntax(&self, expected: &'static str) -> Malformed {
        Malformed::Syntax { offset: self.at, expected }
    }

    fn duplicate(&self, offset: usize) -> Malformed {
        Malformed::DuplicateKey { offset, key: self.key_at(offset) }
    }

    /// The error for a key that differs from another, or from a known name, only in case.
    pub(crate) fn colliding(&self, offset: usize) -> Malformed {
        Malformed::CollidingKey { offset, key: self.key_at(offset) }
    }

    /// The validated key at `offset`, for a message.
    fn key_at(&self, offset: usize) -> String {
        let rest = self.text.as_bytes().get(offset..).unwrap_or_default();
        let end = offset + super::view::string_bytes(rest);
        shortened(&text::unescape(self.text.get(offset..end).unwrap_or_default()))
    }
}

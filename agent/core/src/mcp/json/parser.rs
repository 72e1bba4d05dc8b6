//! The one pass over a text: grammar, strings, numbers, depth and keys. Callers hook into the objects they need.

use super::error::{Malformed, shortened};
use super::keys::{Frame, Key, Scratch};
use super::{JsonLimits, Value, text};

/// The recursion below never goes deeper, whatever the limits say: a frame costs stack.
const DEPTH_CEILING: usize = 128;

/// Where the reader stands behind what it read. The error is boxed so that the result stays in registers.
type Step = Result<usize, Box<Malformed>>;

impl From<Box<Malformed>> for Malformed {
    fn from(boxed: Box<Malformed>) -> Self {
        *boxed
    }
}

/// Reads one text from front to back.
pub(crate) struct Parser<'b, 's> {
    text: &'b str,
    at: usize,
    depth: usize,
    depth_max: usize,
    members_max: usize,
    /// The keys of the object that a caller's hook is in.
    frame: Frame,
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
        let frame = scratch.open();
        let mut parser =
            Self { text, at: 0, depth: 0, depth_max, members_max: limits.members_max, frame, scratch };
        (parser.at, _) = parser.solid(0);
        Ok(parser)
    }

    /// Nothing but white space may follow.
    pub(crate) fn finish(&mut self) -> Result<(), Malformed> {
        (self.at, _) = self.solid(self.at);
        if self.at == self.text.len() { Ok(()) } else { Err(*self.syntax(self.at, "the end of the text")) }
    }

    /// The next byte, 0 at the end; at the start of a value it tells the value's kind.
    #[inline]
    pub(crate) fn peek(&self) -> u8 {
        self.byte(self.at)
    }

    /// Where the next byte is.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    /// One value, validated.
    #[inline]
    pub(crate) fn value(&mut self) -> Result<Value<'b>, Malformed> {
        let start = self.at;
        self.at = self.skip(start, self.peek())?;
        Ok(Value::new(self.text, start, self.at))
    }

    /// One object: `member` is called behind each `:` and takes the value by [`Self::once`], or by [`Self::note`] and
    /// [`Self::value`]. No key is noted twice, nor one that differs from another only in case.
    #[inline]
    pub(crate) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Key<'b>) -> Result<(), Malformed>,
    ) -> Result<Value<'b>, Malformed> {
        let start = self.at;
        let outer = std::mem::replace(&mut self.frame, self.scratch.open());
        self.enter(start)?;
        let (mut at, mut byte) = self.solid(start + 1);
        while byte != b'}' {
            let key = self.key(at, byte)?;
            (self.at, _) = self.colon(key.end + 1)?;
            member(self, key)?;
            (at, byte) = self.solid(self.at);
            match byte {
                b',' => (at, byte) = self.another(at + 1, "a key in double quotes")?,
                b'}' => {}
                _ => return Err(*self.syntax(at, "`,` or `}`")),
            }
        }
        let frame = std::mem::replace(&mut self.frame, outer);
        let collision = self.scratch.collision(frame, self.text.as_bytes());
        // Equal keys collide as well; they are named for what they are.
        let collision = collision.map_err(|offset| self.colliding(offset));
        self.close(frame)?;
        collision?;
        self.at = at + 1;
        Ok(Value::new(self.text, start, self.at))
    }

    /// The value of a member that has a place of its own.
    #[inline]
    pub(crate) fn once(&mut self, place: &mut Option<Value<'b>>, key: Key<'b>) -> Result<(), Malformed> {
        self.only(place.is_some(), key)?;
        *place = Some(self.value()?);
        Ok(())
    }

    /// Refuses a member that was `seen` before.
    #[inline]
    pub(crate) fn only(&self, seen: bool, key: Key<'b>) -> Result<(), Malformed> {
        if seen { Err(*self.duplicate(key.offset)) } else { Ok(()) }
    }

    /// Takes down a key that has no place of its own.
    #[inline]
    pub(crate) fn note(&mut self, key: Key<'b>) -> Result<(), Malformed> {
        let mut frame = self.frame;
        self.noted(&mut frame, key)?;
        self.frame = frame;
        Ok(())
    }

    fn noted(&mut self, frame: &mut Frame, key: Key<'b>) -> Result<(), Box<Malformed>> {
        if self.scratch.count(*frame) >= self.members_max {
            return Err(self.too_many(key.offset));
        }
        if self.scratch.add(frame, key) { Ok(()) } else { Err(self.duplicate(key.offset)) }
    }

    fn close(&mut self, frame: Frame) -> Result<(), Box<Malformed>> {
        self.depth -= 1;
        self.scratch.close(frame, self.text.as_bytes()).map_err(|offset| self.duplicate(offset))
    }

    fn skip_object(&mut self, at: usize) -> Step {
        self.enter(at)?;
        let (mut at, mut byte) = self.solid(at + 1);
        if byte == b'}' {
            self.depth -= 1;
            return Ok(at + 1);
        }
        let mut frame = self.scratch.open();
        loop {
            at = self.skip_key(at, byte, &mut frame)?;
            (at, byte) = self.colon(at)?;
            at = self.skip(at, byte)?;
            (at, byte) = self.solid(at);
            match byte {
                b',' => (at, byte) = self.solid(at + 1),
                b'}' => break,
                _ => return Err(self.syntax(at, "`,` or `}`")),
            }
        }
        self.close(frame)?;
        Ok(at + 1)
    }

    /// Notes a key and goes behind it. Most end within one word, which is all that is read of them.
    #[inline(always)]
    fn skip_key(&mut self, at: usize, byte: u8, frame: &mut Frame) -> Step {
        let (text, start) = (self.text.as_bytes(), at + 1);
        if byte == b'"'
            && self.scratch.count(*frame) < self.members_max
            && let Some(word) = text::word_at(text, start)
        {
            let front = text::front(word);
            if front.end == b'"' {
                if self.scratch.add_plain(frame, text, front.word, start, front.bytes) {
                    return Ok(start + front.bytes + 1);
                }
                return Err(self.duplicate(start));
            }
        }
        self.skip_long_key(at, byte, frame)
    }

    #[inline(never)]
    fn skip_long_key(&mut self, at: usize, byte: u8, frame: &mut Frame) -> Step {
        let key = self.key(at, byte)?;
        self.noted(frame, key)?;
        Ok(key.end + 1)
    }

    fn skip_array(&mut self, at: usize) -> Step {
        self.enter(at)?;
        let (mut at, mut byte) = self.solid(at + 1);
        while byte != b']' {
            at = self.skip(at, byte)?;
            (at, byte) = self.solid(at);
            match byte {
                b',' => (at, byte) = self.another(at + 1, "a value")?,
                b']' => {}
                _ => return Err(self.syntax(at, "`,` or `]`")),
            }
        }
        self.depth -= 1;
        Ok(at + 1)
    }

    /// What stands behind a comma is another one, not the end.
    #[inline(always)]
    fn another(&self, at: usize, expected: &'static str) -> Result<(usize, u8), Box<Malformed>> {
        let (at, byte) = self.solid(at);
        if matches!(byte, b']' | b'}') { Err(self.syntax(at, expected)) } else { Ok((at, byte)) }
    }

    #[inline(always)]
    fn skip(&mut self, at: usize, byte: u8) -> Step {
        // Most values are strings, and most of those end within one word.
        if byte != b'"' {
            return self.skip_other(at, byte);
        }
        let start = at + 1;
        if let Some(word) = text::word_at(self.text.as_bytes(), start) {
            let front = text::front(word);
            if front.end == b'"' {
                return Ok(start + front.bytes + 1);
            }
        }
        self.string(at)
    }

    #[inline(never)]
    fn skip_other(&mut self, at: usize, byte: u8) -> Step {
        match byte {
            b'{' => self.skip_object(at),
            b'[' => self.skip_array(at),
            b'-' | b'0'..=b'9' => self.number(at),
            b't' => self.word(at, b"true"),
            b'f' => self.word(at, b"false"),
            b'n' => self.word(at, b"null"),
            _ => Err(self.syntax(at, "a value")),
        }
    }

    #[inline]
    fn enter(&mut self, at: usize) -> Result<(), Box<Malformed>> {
        if self.depth >= self.depth_max {
            return Err(Box::new(Malformed::Depth { offset: at, depth_max: self.depth_max }));
        }
        self.depth += 1;
        Ok(())
    }

    /// The value behind a colon: its place and its first byte.
    #[inline(always)]
    fn colon(&self, at: usize) -> Result<(usize, u8), Box<Malformed>> {
        let (at, byte) = self.solid(at);
        if byte == b':' { Ok(self.solid(at + 1)) } else { Err(self.syntax(at, "`:`")) }
    }

    // Inlined, or its flag would go through memory.
    #[inline(always)]
    fn key(&self, at: usize, byte: u8) -> Result<Key<'b>, Box<Malformed>> {
        if byte != b'"' {
            return Err(self.syntax(at, "a key in double quotes"));
        }
        let (text, offset) = (self.text, at + 1);
        let end = text::plain_end(text.as_bytes(), offset);
        if self.byte(end) == b'"' {
            return Ok(Key { text, offset, end, escaped: false });
        }
        let end = self.rest_of_string(end)? - 1;
        Ok(Key { text, offset, end, escaped: true })
    }

    /// One string from quote to quote.
    #[inline(never)]
    fn string(&self, at: usize) -> Step {
        let end = text::plain_end(self.text.as_bytes(), at + 1);
        if self.byte(end) == b'"' { Ok(end + 1) } else { self.rest_of_string(end) }
    }

    /// From the first byte that is not plain.
    #[inline(never)]
    fn rest_of_string(&self, mut at: usize) -> Step {
        loop {
            at = match self.text.as_bytes().get(at) {
                Some(b'"') => return Ok(at + 1),
                Some(b'\\') => self.escape(at)?,
                Some(_) => return Err(Box::new(Malformed::Control { offset: at })),
                None => return Err(self.syntax(at, "the end of a string")),
            };
            at = text::plain_end(self.text.as_bytes(), at);
        }
    }

    fn escape(&self, at: usize) -> Step {
        match self.byte(at + 1) {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(at + 2),
            b'u' => match self.unit(at + 1)? {
                0xd800..0xdc00 => {
                    let low = self.rest(at + 6).starts_with(b"\\u");
                    if low && matches!(self.unit(at + 7)?, 0xdc00..0xe000) {
                        return Ok(at + 12);
                    }
                    Err(Box::new(Malformed::LoneSurrogate { offset: at }))
                }
                0xdc00..0xe000 => Err(Box::new(Malformed::LoneSurrogate { offset: at })),
                _ => Ok(at + 6),
            },
            _ => Err(self.syntax(at + 1, "an escape of RFC 8259")),
        }
    }

    /// `u` and four hexadecimal digits.
    fn unit(&self, at: usize) -> Result<u32, Box<Malformed>> {
        text::hex4(self.rest(at + 1)).ok_or_else(|| self.syntax(at, "four hexadecimal digits"))
    }

    #[inline]
    fn number(&self, start: usize) -> Step {
        let first = start + usize::from(self.byte(start) == b'-');
        let end = if self.byte(first) == b'0' { first + 1 } else { self.digits(first, "a digit")? };
        // 308 digits and no exponent always fit.
        if matches!(self.byte(end), b'.' | b'e' | b'E') || end - first > 308 {
            return self.rest_of_number(start, first, end);
        }
        Ok(end)
    }

    /// From the end of the whole part.
    fn rest_of_number(&self, start: usize, first: usize, mut at: usize) -> Step {
        let mut is_bounded = at - first <= 308;
        if self.byte(at) == b'.' {
            at = self.digits(at + 1, "a digit behind the point")?;
        }
        if let b'e' | b'E' = self.byte(at) {
            is_bounded = false;
            let signed = matches!(self.byte(at + 1), b'+' | b'-');
            at = self.digits(at + 1 + usize::from(signed), "a digit of the exponent")?;
        }
        let number = || self.text.get(start..at).and_then(|number| number.parse::<f64>().ok());
        if is_bounded || number().is_some_and(f64::is_finite) {
            return Ok(at);
        }
        Err(Box::new(Malformed::Number { offset: start }))
    }

    /// At least one digit.
    #[inline]
    fn digits(&self, at: usize, expected: &'static str) -> Step {
        if !self.byte(at).is_ascii_digit() {
            return Err(self.syntax(at, expected));
        }
        let mut at = at + 1;
        while self.byte(at).is_ascii_digit() {
            at += 1;
        }
        Ok(at)
    }

    #[inline]
    fn word(&self, at: usize, word: &[u8]) -> Step {
        if self.rest(at).starts_with(word) {
            return Ok(at + word.len());
        }
        Err(self.syntax(at, "`true`, `false` or `null`"))
    }

    /// The byte at a place, 0 behind the text: nothing valid outside of a string begins with that.
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    #[inline]
    fn rest(&self, at: usize) -> &'b [u8] {
        self.text.as_bytes().get(at..).unwrap_or_default()
    }

    /// The next byte that is no white space, and its place.
    #[inline(always)]
    fn solid(&self, at: usize) -> (usize, u8) {
        let byte = self.byte(at);
        // Most texts have none, and everything else that is valid here is above it.
        if byte > b' ' { (at, byte) } else { self.behind_space(at) }
    }

    #[inline(never)]
    fn behind_space(&self, mut at: usize) -> (usize, u8) {
        while let b' ' | b'\n' | b'\r' | b'\t' = self.byte(at) {
            at += 1;
        }
        (at, self.byte(at))
    }

    #[cold]
    fn syntax(&self, offset: usize, expected: &'static str) -> Box<Malformed> {
        // Behind the text nothing was looked at but its end.
        Box::new(Malformed::Syntax { offset: offset.min(self.text.len()), expected })
    }

    #[cold]
    fn too_many(&self, offset: usize) -> Box<Malformed> {
        Box::new(Malformed::Members { offset, members_max: self.members_max })
    }

    #[cold]
    fn duplicate(&self, offset: usize) -> Box<Malformed> {
        Box::new(Malformed::DuplicateKey { offset, key: self.key_at(offset) })
    }

    /// The error for a key that differs from another, or from a known name, only in case.
    #[cold]
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

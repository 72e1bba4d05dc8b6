//! The one pass over a text: grammar, strings, numbers, depth and keys. Callers hook into the objects they need.

use super::error::{Malformed, shortened};
use super::keys::{Frame, Key, Scratch};
use super::{JsonLimits, Value, text};

/// The recursion below never goes deeper, whatever the limits say: a frame costs stack.
const DEPTH_CEILING: usize = 128;

/// Boxed so that results stay in registers.
pub(crate) type Fault = Box<Malformed>;

/// Where the reader stands behind what it read.
pub(crate) type Step = Result<usize, Fault>;

impl From<Fault> for Malformed {
    fn from(boxed: Fault) -> Self {
        *boxed
    }
}

/// Where a value begins, and its first byte, which tells its kind; 0 behind the text.
pub(crate) type Start = (usize, u8);

/// Reads one text from front to back.
pub(crate) struct Parser<'b, 's> {
    text: &'b str,
    depth: usize,
    depth_max: usize,
    members_max: usize,
    /// The keys of the object that a caller's hook is in.
    frame: Frame,
    scratch: &'s mut Scratch,
}

impl<'b, 's> Parser<'b, 's> {
    /// Of a text that is nothing but UTF-8.
    pub(crate) fn new(
        text: &'b [u8],
        scratch: &'s mut Scratch,
        limits: &JsonLimits,
    ) -> Result<Self, Malformed> {
        if text.starts_with(b"\xef\xbb\xbf") {
            return Err(Malformed::ByteOrderMark { offset: 0 });
        }
        let Ok(text) = simdutf8::basic::from_utf8(text) else { return Err(not_utf8(text)) };
        scratch.reset();
        let depth_max = limits.depth_max.min(DEPTH_CEILING);
        let frame = scratch.open();
        Ok(Self { text, depth: 0, depth_max, members_max: limits.members_max, frame, scratch })
    }

    /// The text's value.
    pub(crate) fn first(&self) -> Start {
        solid(self.text, 0)
    }

    /// Behind the text's value nothing but white space may follow.
    pub(crate) fn finish(&self, at: usize) -> Result<(), Fault> {
        let (at, _) = solid(self.text, at);
        if at == self.text.len() { Ok(()) } else { Err(self.syntax(at, "the end of the text")) }
    }

    /// One value, validated.
    #[inline(always)]
    pub(crate) fn value(&mut self, (at, byte): Start) -> Result<Value<'b>, Fault> {
        let end = self.skip(at, byte)?;
        Ok(Value::new(self.text, at, end))
    }

    /// One object: `member` is called for each key with the value behind it, which it takes by [`Self::once`], or by
    /// [`Self::note`] and [`Self::value`], and says where that ends. No key is noted twice, nor one that differs from
    /// another only in case.
    #[inline]
    pub(crate) fn object(
        &mut self,
        start: usize,
        mut member: impl FnMut(&mut Self, Key<'b>, Start) -> Step,
    ) -> Result<Value<'b>, Fault> {
        let text = self.text;
        let outer = std::mem::replace(&mut self.frame, self.scratch.open());
        self.enter(start)?;
        let (mut at, mut byte) = solid(text, start + 1);
        while byte != b'}' {
            let key = self.key(at, byte)?;
            let value = self.colon(key.end + 1)?;
            (at, byte) = solid(text, member(self, key, value)?);
            match byte {
                b',' => (at, byte) = self.another(at + 1, "a key in double quotes")?,
                b'}' => {}
                _ => return Err(self.syntax(at, "`,` or `}`")),
            }
        }
        let frame = std::mem::replace(&mut self.frame, outer);
        let collision = match self.scratch.count(frame) {
            0 | 1 => Ok(()),
            _ => self.scratch.collision(frame, text.as_bytes()),
        };
        // Equal keys collide as well; they are named for what they are.
        self.close(frame)?;
        collision.map_err(|offset| self.colliding(offset))?;
        Ok(Value::new(text, start, at + 1))
    }

    /// The value of a member that has a place of its own.
    #[inline(always)]
    pub(crate) fn once(&mut self, place: &mut Option<Value<'b>>, key: Key<'b>, start: Start) -> Step {
        self.only(place.is_some(), key)?;
        let value = self.value(start)?;
        *place = Some(value);
        Ok(value.end)
    }

    /// Refuses a member that was `seen` before.
    #[inline]
    pub(crate) fn only(&self, seen: bool, key: Key<'b>) -> Result<(), Fault> {
        if seen { Err(self.duplicate(key.offset)) } else { Ok(()) }
    }

    /// Takes down a key that has no place of its own.
    #[inline]
    pub(crate) fn note(&mut self, key: Key<'b>) -> Result<(), Fault> {
        let mut frame = self.frame;
        self.noted(&mut frame, key)?;
        self.frame = frame;
        Ok(())
    }

    fn noted(&mut self, frame: &mut Frame, key: Key<'b>) -> Result<(), Fault> {
        if self.scratch.count(*frame) >= self.members_max {
            return Err(self.too_many(key.offset));
        }
        if self.scratch.add(frame, key) { Ok(()) } else { Err(self.duplicate(key.offset)) }
    }

    fn close(&mut self, frame: Frame) -> Result<(), Fault> {
        self.depth -= 1;
        self.scratch.close(frame, self.text.as_bytes()).map_err(|offset| self.duplicate(offset))
    }

    #[inline(never)]
    fn skip_object(&mut self, at: usize) -> Step {
        self.enter(at)?;
        let text = self.text;
        let (mut at, mut byte) = solid(text, at + 1);
        if byte == b'}' {
            self.depth -= 1;
            return Ok(at + 1);
        }
        let mut frame = self.scratch.open();
        loop {
            at = self.skip_key(at, byte, &mut frame)?;
            (at, byte) = self.colon(at)?;
            at = self.skip(at, byte)?;
            (at, byte) = solid(text, at);
            match byte {
                b',' => (at, byte) = solid(text, at + 1),
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
            && let Some(front) = text::front(text, start)
            && byte_at(text, start + front.bytes) == b'"'
        {
            if self.scratch.add_plain(frame, text, front.head, start, front.bytes) {
                return Ok(start + front.bytes + 1);
            }
            return Err(self.duplicate(start));
        }
        self.skip_long_key(at, byte, frame)
    }

    #[inline(never)]
    fn skip_long_key(&mut self, at: usize, byte: u8, frame: &mut Frame) -> Step {
        let key = self.key(at, byte)?;
        self.noted(frame, key)?;
        Ok(key.end + 1)
    }

    #[inline(never)]
    fn skip_array(&mut self, at: usize) -> Step {
        self.enter(at)?;
        let text = self.text;
        let (mut at, mut byte) = solid(text, at + 1);
        while byte != b']' {
            at = self.skip(at, byte)?;
            (at, byte) = solid(text, at);
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
    fn another(&self, at: usize, expected: &'static str) -> Result<Start, Fault> {
        let (at, byte) = solid(self.text, at);
        if matches!(byte, b']' | b'}') { Err(self.syntax(at, expected)) } else { Ok((at, byte)) }
    }

    #[inline(always)]
    fn skip(&mut self, at: usize, byte: u8) -> Step {
        // Most values are strings, and most of those end within one block.
        if byte != b'"' {
            return self.skip_other(at, byte);
        }
        let (text, start) = (self.text.as_bytes(), at + 1);
        let Some(front) = text::front(text, start) else { return self.long_string(start) };
        if byte_at(text, start + front.bytes) == b'"' {
            return Ok(start + front.bytes + 1);
        }
        self.long_string(start + front.bytes)
    }

    /// From behind the first block, or the first byte in it that is not plain, or where less than a block is left.
    #[inline(never)]
    fn long_string(&self, at: usize) -> Step {
        let end = text::plain_end(self.text.as_bytes(), at);
        if self.byte(end) == b'"' { Ok(end + 1) } else { self.rest_of_string(end) }
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
    fn enter(&mut self, at: usize) -> Result<(), Fault> {
        if self.depth >= self.depth_max {
            return Err(Box::new(Malformed::Depth { offset: at, depth_max: self.depth_max }));
        }
        self.depth += 1;
        Ok(())
    }

    /// The value behind a colon: its place and its first byte.
    #[inline(always)]
    fn colon(&self, at: usize) -> Result<Start, Fault> {
        let (at, byte) = solid(self.text, at);
        if byte == b':' { Ok(solid(self.text, at + 1)) } else { Err(self.syntax(at, "`:`")) }
    }

    // Inlined, or its flag would go through memory.
    #[inline(always)]
    fn key(&self, at: usize, byte: u8) -> Result<Key<'b>, Fault> {
        if byte != b'"' {
            return Err(self.syntax(at, "a key in double quotes"));
        }
        let (text, offset) = (self.text, at + 1);
        let (head, end, escaped) = match text::front(text.as_bytes(), offset) {
            Some(front) if self.byte(offset + front.bytes) == b'"' => {
                (front.head, offset + front.bytes, false)
            }
            Some(_) | None => self.long_key(offset)?,
        };
        Ok(Key { text, head, offset, end, escaped })
    }

    /// A key's head, where it ends, and whether it has escapes.
    #[inline(never)]
    fn long_key(&self, offset: usize) -> Result<(u64, usize, bool), Fault> {
        let text = self.text.as_bytes();
        let plain = text::plain_end(text, offset);
        let escaped = self.byte(plain) != b'"';
        let end = if escaped { self.rest_of_string(plain)? - 1 } else { plain };
        Ok((text::head(text.get(offset..end).unwrap_or_default()), end, escaped))
    }

    /// From any place within a string: a block at a time, of which each escape is looked at where it stands.
    #[inline(never)]
    fn rest_of_string(&self, mut at: usize) -> Step {
        let text = self.text.as_bytes();
        loop {
            let mut found = text::ends_at(text, at);
            let mut next = at + 64;
            while found != 0 {
                let end = at + found.trailing_zeros() as usize;
                let behind = match text.get(end) {
                    Some(b'"') => return Ok(end + 1),
                    Some(b'\\') if is_short_escape(self.byte(end + 1)) => end + 2,
                    Some(b'\\') => self.unicode_escape(end)?,
                    Some(_) => return Err(Box::new(Malformed::Control { offset: end })),
                    None => return Err(self.syntax(end, "the end of a string")),
                };
                if behind >= next {
                    next = behind;
                    break;
                }
                found &= u64::MAX << (behind - at);
            }
            at = next;
        }
    }

    #[inline(never)]
    fn unicode_escape(&self, at: usize) -> Step {
        if self.byte(at + 1) != b'u' {
            return Err(self.syntax(at + 1, "an escape of RFC 8259"));
        }
        match self.unit(at + 1)? {
            0xd800..0xdc00 => {
                let low = self.rest(at + 6).starts_with(b"\\u");
                if low && matches!(self.unit(at + 7)?, 0xdc00..0xe000) {
                    return Ok(at + 12);
                }
                Err(Box::new(Malformed::LoneSurrogate { offset: at }))
            }
            0xdc00..0xe000 => Err(Box::new(Malformed::LoneSurrogate { offset: at })),
            _ => Ok(at + 6),
        }
    }

    /// `u` and four hexadecimal digits.
    fn unit(&self, at: usize) -> Result<u32, Fault> {
        text::hex4(self.rest(at + 1)).ok_or_else(|| self.syntax(at, "four hexadecimal digits"))
    }

    #[inline(never)]
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
    #[inline(never)]
    fn rest_of_number(&self, start: usize, first: usize, mut at: usize) -> Step {
        let point = at;
        let mut is_bounded = at - first <= 308;
        if self.byte(at) == b'.' {
            at = self.digits(at + 1, "a digit behind the point")?;
        }
        if let b'e' | b'E' = self.byte(at) {
            let sign = self.byte(at + 1);
            let exponent = at + 1 + usize::from(matches!(sign, b'+' | b'-'));
            at = self.digits(exponent, "a digit of the exponent")?;
            // Few digits, and not many places behind them: no double overflows.
            is_bounded &= sign == b'-' || (at - exponent <= 2 && point - first <= 200);
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

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        byte_at(self.text.as_bytes(), at)
    }

    #[inline]
    fn rest(&self, at: usize) -> &'b [u8] {
        self.text.as_bytes().get(at..).unwrap_or_default()
    }

    #[cold]
    fn syntax(&self, offset: usize, expected: &'static str) -> Fault {
        // Behind the text nothing was looked at but its end.
        Box::new(Malformed::Syntax { offset: offset.min(self.text.len()), expected })
    }

    #[cold]
    fn too_many(&self, offset: usize) -> Fault {
        Box::new(Malformed::Members { offset, members_max: self.members_max })
    }

    #[cold]
    fn duplicate(&self, offset: usize) -> Fault {
        Box::new(Malformed::DuplicateKey { offset, key: self.key_at(offset) })
    }

    /// The error for a key that differs from another, or from a known name, only in case.
    #[cold]
    pub(crate) fn colliding(&self, offset: usize) -> Fault {
        Box::new(Malformed::CollidingKey { offset, key: self.key_at(offset) })
    }

    /// The validated key at `offset`, for a message.
    fn key_at(&self, offset: usize) -> String {
        let rest = self.text.as_bytes().get(offset..).unwrap_or_default();
        let end = offset + super::view::string_bytes(rest);
        shortened(&text::unescape(self.text.get(offset..end).unwrap_or_default()))
    }
}

/// The byte at a place, 0 behind the text: nothing valid outside of a string begins with that.
#[inline(always)]
fn byte_at(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

/// The next byte that is no white space, and its place.
#[inline(always)]
fn solid(text: &str, at: usize) -> Start {
    let byte = byte_at(text.as_bytes(), at);
    // Most texts have none, and everything else that is valid here is above it.
    if byte > b' ' { (at, byte) } else { behind_space(text, at) }
}

#[inline(never)]
fn behind_space(text: &str, mut at: usize) -> Start {
    while let b' ' | b'\n' | b'\r' | b'\t' = byte_at(text.as_bytes(), at) {
        at += 1;
    }
    (at, byte_at(text.as_bytes(), at))
}

/// Which byte it is; the fast check does not tell.
#[cold]
fn not_utf8(text: &[u8]) -> Malformed {
    let offset = std::str::from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
    Malformed::NotUtf8 { offset }
}

/// Whether `\` and this byte are an escape.
#[inline(always)]
fn is_short_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')
}

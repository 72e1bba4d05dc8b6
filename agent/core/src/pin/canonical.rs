//! The canonical form of a definition: equal for texts of one meaning, different for any two others.
//!
//! As RFC 8785 has it (no white space, keys sorted, the shortest escapes), but for two things: keys are sorted by their
//! bytes, and a number is its exact decimal value, where RFC 8785 would first round it to a double and so take large
//! integers for each other.

use std::fmt;

use memchr::memchr2;
use sha2::{Digest as _, Sha256};

use super::hidden;
use crate::mcp::json::Value;

/// SHA-256 of a canonical form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of a canonical form.
    #[must_use]
    pub fn of(canonical: &str) -> Self {
        Self(Sha256::digest(canonical.as_bytes()).into())
    }

    /// One that was kept.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// To be kept.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One definition as a server gave it: all of it, so that nothing a client could act on is outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its canonical form.
    pub text: String,
    /// Of that.
    pub digest: Digest,
    /// Whether it has characters that a reader does not see.
    pub is_hiding: bool,
}

impl Definition {
    /// Reads an element of a list, or the text of `instructions`.
    #[must_use]
    pub fn read(value: Value<'_>) -> Self {
        let mut out = String::with_capacity(value.text().len());
        Reader { text: value.text(), at: 0 }.value(&mut out);
        Self::from_canonical(out)
    }

    /// One that was kept.
    #[must_use]
    pub fn from_canonical(text: String) -> Self {
        let (digest, is_hiding) = (Digest::of(&text), hidden::in_canonical(&text));
        Self { text, digest, is_hiding }
    }
}

/// Reads a validated text from front to back: what cannot be in one ends it.
struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or_default()
    }

    /// The next byte that is no white space and separates nothing.
    fn next(&mut self) -> u8 {
        while let b' ' | b'\n' | b'\r' | b'\t' | b',' | b':' = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn value(&mut self, out: &mut String) {
        match self.next() {
            b'{' => self.object(out),
            b'[' => self.array(out),
            b'"' => self.string(out),
            b'-' | b'0'..=b'9' => number(self.word(), out),
            _ => out.push_str(self.word()),
        }
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> &'t str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_end = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b',' | b']' | b'}');
        let bytes = rest.bytes().position(|byte| is_end(&byte)).unwrap_or(rest.len());
        self.at += bytes;
        rest.get(..bytes).unwrap_or_default()
    }

    fn array(&mut self, out: &mut String) {
        self.at += 1;
        out.push('[');
        let mut is_first = true;
        while !matches!(self.next(), b']' | 0) {
            if !is_first {
                out.push(',');
            }
            is_first = false;
            self.value(out);
        }
        self.at += 1;
        out.push(']');
    }

    fn object(&mut self, out: &mut String) {
        self.at += 1;
        out.push('{');
        let first = out.len();
        // Where each member begins, its key ends, and it ends.
        let mut members: Vec<[usize; 3]> = Vec::new();
        while self.next() == b'"' {
            if !members.is_empty() {
                out.push(',');
            }
            let start = out.len();
            self.string(out);
            let key = out.len();
            out.push(':');
            self.value(out);
            members.push([start, key, out.len()]);
        }
        self.at += 1;
        let key = |[start, end, _]: &[usize; 3]| out.get(*start..*end).unwrap_or_default();
        if !members.is_sorted_by(|a, b| key(a) <= key(b)) {
            members.sort_unstable_by(|a, b| key(a).cmp(key(b)));
            let member = |[start, _, end]: &[usize; 3]| out.get(*start..*end).unwrap_or_default();
            let sorted: Vec<&str> = members.iter().map(member).collect();
            let sorted = sorted.join(",");
            out.truncate(first);
            out.push_str(&sorted);
        }
        out.push('}');
    }

    fn string(&mut self, out: &mut String) {
        self.at += 1;
        out.push('"');
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let plain = memchr2(b'"', b'\\', rest.as_bytes()).unwrap_or(rest.len());
            out.push_str(rest.get(..plain).unwrap_or_default());
            self.at += plain + 1;
            if rest.as_bytes().get(plain) != Some(&b'\\') {
                break;
            }
            escaped(self.escape(), out);
        }
        out.push('"');
    }

    /// The character of an escape, whose `\` was passed.
    fn escape(&mut self) -> char {
        let kind = self.peek();
        self.at += 1;
        match kind {
            b'u' => match self.unit() {
                high @ 0xd800..0xdc00 => {
                    self.at += 2; // `\u` of the other half
                    let low = self.unit();
                    let code = 0x10000 + ((high - 0xd800) << 10) + (low & 0x3ff);
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                unit => char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER),
            },
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            other => char::from(other),
        }
    }

    fn unit(&mut self) -> u32 {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        self.at += 4;
        u32::from_str_radix(digits, 16).unwrap_or(0xfffd)
    }
}

/// A character within a string: escaped only where it must be.
fn escaped(character: char, out: &mut String) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        control @ '\0'..'\u{20}' => {
            const HEX: [char; 16] =
                ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
            out.push_str("\\u00");
            let code = u32::from(control);
            out.extend([code >> 4, code & 15].iter().filter_map(|nibble| HEX.get(*nibble as usize)));
        }
        other => out.push(other),
    }
}

/// So many digits before or behind the point are written out; beyond, there is an exponent.
const PLAIN_DIGITS_MAX: i64 = 21;

/// Appends the exact value of a number, in the one way there is for it: `100`, `0.5`, `-12.25`, `15e30`.
fn number(text: &str, out: &mut String) {
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let digits = all.trim_start_matches('0').trim_end_matches('0');
    if digits.is_empty() {
        return out.push('0'); // also -0 and 0e9
    }
    let dropped = all.len() - all.trim_end_matches('0').len();
    let shift = i64::try_from(dropped).ok().zip(i64::try_from(fraction.len()).ok());
    let exponent = exponent.parse::<i64>().ok().zip(shift);
    let exponent = exponent.and_then(|(exponent, (up, down))| exponent.checked_add(up)?.checked_sub(down));
    let Some(exponent) = exponent else {
        // An exponent beyond 2^63: as small as it is, it is told from others by how it is written.
        return out.push_str(text);
    };
    let count = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let point = exponent.saturating_add(count);
    out.push_str(sign);
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or_default());
    match point {
        _ if exponent >= 0 && point <= PLAIN_DIGITS_MAX => {
            out.push_str(digits);
            out.push_str(&zeros(exponent));
        }
        1.. if exponent < 0 => {
            let (before, behind) = digits.split_at(usize::try_from(point).unwrap_or_default());
            out.extend([before, ".", behind]);
        }
        _ if exponent < 0 && point > -PLAIN_DIGITS_MAX => out.extend(["0.", &zeros(-point), digits]),
        _ => out.extend([digits, "e", &exponent.to_string()]),
    }
}

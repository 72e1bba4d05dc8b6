//! The headers of one head, borrowed, in the order they came.

use super::error::{HttpError, shortened};
use std::ops::Range;

/// The most headers one head may have.
pub const HEADERS_MAX: usize = 100;

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'b> {
    /// As it was written: names are compared without regard to case.
    pub name: &'b str,
    /// Without the white space around it.
    pub value: &'b [u8],
}

/// Headers whose places are kept. Few heads have more; those behind are found again, line by line, so that a head is
/// cheap to pass on.
const PLACES: usize = 24;

/// Where a part of a head begins, and its length.
pub(super) type Part = (u16, u16);

/// Where a header stands in its head.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    name: Part,
    value: Part,
}

/// Where all headers of a head stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    kept: [Place; PLACES],
    /// Those that are kept.
    count: usize,
    /// The lines behind them.
    rest: Part,
}

/// All headers of one head. Plain data: nothing to drop, so that a borrowed head ends with its last use.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'b> {
    head: &'b [u8],
    places: Places,
}

impl<'b> Headers<'b> {
    /// Of `parsed`, which borrows `head`; that has at most 65,535 bytes.
    pub(super) fn new(head: &'b [u8], parsed: &[httparse::Header<'b>]) -> Self {
        let mut kept = [Place::default(); PLACES];
        for (to, from) in kept.iter_mut().zip(parsed) {
            *to = Place { name: find(head, from.name.as_bytes()), value: find(head, from.value) };
        }
        let next = parsed.get(PLACES).map(|next| find(head, next.name.as_bytes()));
        let rest = next.and_then(|(start, _)| head.get(usize::from(start)..)).unwrap_or_default();
        let places = Places { kept, count: parsed.len().min(PLACES), rest: find(head, rest) };
        Self { head, places }
    }

    /// The headers of another head, which stand where these stood.
    pub(super) fn at(head: &'b [u8], places: &Places) -> Self {
        Self { head, places: *places }
    }

    /// Where they stand.
    pub(super) fn places(&self) -> Places {
        self.places
    }

    /// Where a part of the same head is.
    pub(super) fn find(&self, part: &[u8]) -> Part {
        find(self.head, part)
    }

    pub(super) fn part(&self, (start, length): Part) -> &'b [u8] {
        let start = usize::from(start);
        self.head.get(start..start + usize::from(length)).unwrap_or_default()
    }

    /// All in order, names as bytes: what is only compared is no text first.
    pub(super) fn raw(&self) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        let kept = self.kept().iter().map(|place| (self.part(place.name), self.part(place.value)));
        kept.chain(self.behind())
    }

    fn kept(&self) -> &[Place] {
        self.places.kept.get(..self.places.count).unwrap_or_default()
    }

    /// Those whose places are not kept.
    fn behind(&self) -> impl Iterator<Item = (&'b [u8], &'b [u8])> + use<'b> {
        let mut rest = self.part(self.places.rest);
        std::iter::from_fn(move || {
            let (line, behind) = rest.split_at_checked(memchr::memchr(b'\n', rest)? + 1)?;
            rest = behind;
            let (name, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
            Some((name, value.get(1..)?.trim_ascii()))
        })
    }

    /// Where a header's line stands in the head, if it is written as this agent writes it: one space after the colon,
    /// none at the end.
    pub(super) fn plain_line(&self, name: &[u8], value: &[u8]) -> Option<Range<usize>> {
        let start = usize::from(self.find(name).0);
        let end = start + name.len() + value.len() + 4;
        let line = self.head.get(start..end)?;
        let is_plain = line.get(name.len()..name.len() + 2)? == b": " && line.ends_with(b"\r\n");
        // Of an empty value it is not told where it stands.
        (is_plain && usize::from(self.find(value).0) == start + name.len() + 2).then_some(start..end)
    }

    /// The head that they are of.
    pub(super) fn head(&self) -> &'b [u8] {
        self.head
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = Header<'b>> {
        self.raw().map(|(name, value)| {
            // httparse takes tokens alone as names: they are ASCII.
            Header { name: std::str::from_utf8(name).unwrap_or_default(), value }
        })
    }

    /// The first value of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'b [u8]> {
        self.all(name).next()
    }

    /// How often that name stands.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.all(name).count()
    }

    /// The value of a header that may stand once and has visible ASCII (and spaces) alone.
    ///
    /// # Errors
    /// [`HttpError::Duplicate`], [`HttpError::HeaderValue`].
    pub fn only(&self, name: &str) -> Result<Option<&'b str>, HttpError> {
        let mut values = self.all(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(HttpError::Duplicate { name: name.to_owned() });
        }
        let visible = value.iter().all(|byte| matches!(byte, 0x20..0x7f));
        let text = std::str::from_utf8(value).ok().filter(|_| visible);
        text.map(Some).ok_or_else(|| HttpError::HeaderValue { name: name.to_owned() })
    }

    /// Whether one of the comma-separated tokens under that name is `token`, in any case.
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.tokens(name).any(|found| found.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The comma-separated tokens under that name.
    pub(super) fn tokens(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.all(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        // Asked some twenty times for each head: most names are told apart by their length alone.
        let like = move |place: &&Place| {
            usize::from(place.name.1) == name.len()
                && self.part(place.name).eq_ignore_ascii_case(name.as_bytes())
        };
        let kept = self.kept().iter().filter(like).map(|place| self.part(place.value));
        let is_named = move |(found, _): &(&[u8], &[u8])| found.eq_ignore_ascii_case(name.as_bytes());
        kept.chain(self.behind().filter(is_named).map(|(_, value)| value))
    }

    /// Headers that a lenient reader could take for the framing, or that hide others.
    pub(super) fn check(&self) -> Result<(), HttpError> {
        for (name, value) in self.raw() {
            let plain = |byte: u8| byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
            // All of them are looked at, which is quicker than to stop at the first that is not.
            if !value.iter().fold(true, |all, &byte| all & plain(byte)) {
                return Err(HttpError::HeaderBytes { name: shortened(name) });
            }
            if has_underscore_twin(name) {
                return Err(HttpError::Underscore { name: shortened(name) });
            }
        }
        let named = self.tokens("connection").find(|token| ESSENTIAL.iter().any(|name| begins(token, name)));
        match named {
            Some(name) => Err(HttpError::ConnectionNames { name: shortened(name) }),
            None => Ok(()),
        }
    }
}

/// What decisions are made on, or the message cannot do without: `Connection` must not remove it on the way. Each
/// also as a prefix.
const ESSENTIAL: &[&str] =
    &["host", "content-", "authorization", "accept", "cookie", "origin", "last-event-id", "mcp-"];

/// Headers that the framing or a decision hangs on and that have a hyphen; and how such names begin.
const HYPHENATED: &[&str] = &[
    "content-length",
    "transfer-encoding",
    "content-encoding",
    "content-type",
    "last-event-id",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
];
const HYPHENATED_PREFIXES: &[&str] = &["mcp-", "mcp-param-"];

/// Whether a server that takes underscores for hyphens would take it for one that counts. What follows `Mcp-Param-`
/// is a name of the server's own, and may have underscores.
fn has_underscore_twin(name: &[u8]) -> bool {
    name.contains(&b'_')
        && (HYPHENATED.iter().any(|lower| same(name, lower))
            || HYPHENATED_PREFIXES.iter().any(|lower| {
                let front = name.get(..lower.len()).unwrap_or_default();
                front.contains(&b'_') && same(front, lower)
            }))
}

/// Equal without regard to case, an underscore counting as a hyphen. `lower` is in lower case.
pub(super) fn same(name: &[u8], lower: &str) -> bool {
    name.len() == lower.len() && begins(name, lower)
}

/// Begins with `lower`, compared as [`same`] does.
pub(super) fn begins(name: &[u8], lower: &str) -> bool {
    let normal = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() >= lower.len() && name.iter().zip(lower.bytes()).all(|(&byte, lower)| normal(byte) == lower)
}

/// The characters of a method or a header's name (RFC 9110 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Where a part of a head is.
fn find(head: &[u8], part: &[u8]) -> Part {
    let start = part.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    (u16::try_from(start).unwrap_or(u16::MAX), u16::try_from(part.len()).unwrap_or_default())
}

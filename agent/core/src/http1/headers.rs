//! The headers of one head, borrowed, in the order they came.

use super::error::{HttpError, shortened};
use super::name::Name;
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

/// Where a header stands in its head, and what it is.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    name: Part,
    value: Part,
    known: Name,
    /// Its line is written as this agent writes it: one space after the colon, none at the end.
    is_plain: bool,
}

/// Where all headers of a head stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    kept: [Place; PLACES],
    /// Those that are kept.
    count: usize,
    /// The lines behind them.
    rest: Part,
    /// What there is among them, a bit each.
    all_known: u32,
    /// Each value is followed by CRLF, and that by the next name.
    are_tight: bool,
}

/// All headers of one head. Plain data: nothing to drop, so that a borrowed head ends with its last use.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'b> {
    head: &'b [u8],
    places: Places,
}

/// A header as it is passed on.
pub(super) struct Line<'b> {
    pub(super) name: &'b [u8],
    pub(super) value: &'b [u8],
    pub(super) known: Name,
    /// Where it stands, if it can be copied as it is.
    pub(super) plain: Option<Range<usize>>,
}

impl<'b> Headers<'b> {
    /// Of `parsed`, which borrows `head`; that has at most 65,535 bytes.
    pub(super) fn new(head: &'b [u8], parsed: &[httparse::Header<'b>]) -> Self {
        let mut kept = [Place::default(); PLACES];
        let mut places = kept.iter_mut();
        let (mut all_known, mut are_tight) = (0, true);
        let mut names = parsed.iter().map(|header| find(head, header.name.as_bytes()).0).skip(1);
        for header in parsed {
            let (name, value) = (find(head, header.name.as_bytes()), find(head, header.value));
            let end = usize::from(value.0) + usize::from(value.1);
            let next = names.next().map_or(head.len().saturating_sub(2), usize::from);
            let is_tight = next == end + 2 && head.get(end..next) == Some(b"\r\n");
            let known = Name::of(header.name.as_bytes());
            all_known |= known.bit();
            are_tight &= is_tight;
            if let Some(place) = places.next() {
                *place = Place { name, value, known, is_plain: is_tight && is_close(head, name, value) };
            }
        }
        let next = parsed.get(PLACES).map(|next| find(head, next.name.as_bytes()));
        let rest = next.and_then(|(start, _)| head.get(usize::from(start)..)).unwrap_or_default();
        let count = parsed.len().min(PLACES);
        Self { head, places: Places { kept, count, rest: find(head, rest), all_known, are_tight } }
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

    /// Whether nothing stands between the end of each value and the next line but CRLF, the first line being at `first`.
    pub(super) fn are_tight_from(&self, first: usize) -> bool {
        let starts =
            self.kept().first().map_or(self.head.len().saturating_sub(2), |place| place.name.0.into());
        self.places.are_tight && starts == first
    }

    fn kept(&self) -> &[Place] {
        self.places.kept.get(..self.places.count).unwrap_or_default()
    }

    /// Those whose places are not kept: names and values.
    #[inline]
    fn behind(&self) -> impl Iterator<Item = (&'b [u8], &'b [u8])> + use<'b> {
        let mut rest = self.part(self.places.rest);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (line, behind) = rest.split_at_checked(memchr::memchr(b'\n', rest)? + 1)?;
            rest = behind;
            let (name, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
            Some((name, value.get(1..)?.trim_ascii()))
        })
    }

    /// All in order, as they are passed on.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'b>> {
        let kept = self.kept().iter().map(|place| {
            let (start, end) =
                (place.name.0.into(), usize::from(place.value.0) + usize::from(place.value.1) + 2);
            let (name, value) = (self.part(place.name), self.part(place.value));
            Line { name, value, known: place.known, plain: place.is_plain.then_some(start..end) }
        });
        let behind =
            self.behind().map(|(name, value)| Line { name, value, known: Name::of(name), plain: None });
        kept.chain(behind)
    }

    /// The head that they are of.
    #[must_use]
    pub fn head(&self) -> &'b [u8] {
        self.head
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = Header<'b>> {
        self.lines().map(|Line { name, value, .. }| {
            // httparse takes tokens alone as names: they are ASCII.
            Header { name: std::str::from_utf8(name).unwrap_or_default(), value }
        })
    }

    /// The first value of that name.
    #[must_use]
    pub fn get(&self, name: Name) -> Option<&'b [u8]> {
        self.all(name).next()
    }

    /// How often that name stands.
    #[must_use]
    pub fn count(&self, name: Name) -> usize {
        self.all(name).count()
    }

    /// The value of a header that may stand once and has visible ASCII (and spaces) alone.
    ///
    /// # Errors
    /// [`HttpError::Duplicate`], [`HttpError::HeaderValue`].
    pub fn only(&self, name: Name) -> Result<Option<&'b str>, HttpError> {
        Ok(self.only_bytes(name)?.map(|value| std::str::from_utf8(value).unwrap_or_default()))
    }

    /// The same where it is only compared: what is looked at is no text first.
    ///
    /// # Errors
    /// As [`Headers::only`].
    #[inline]
    pub fn only_bytes(&self, name: Name) -> Result<Option<&'b [u8]>, HttpError> {
        // Most that is asked for is not there.
        if self.has(name) { self.only_visible(name) } else { Ok(None) }
    }

    fn only_visible(&self, name: Name) -> Result<Option<&'b [u8]>, HttpError> {
        let mut values = self.all(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(HttpError::Duplicate { name: name.as_str().to_owned() });
        }
        if is_visible(value) {
            Ok(Some(value))
        } else {
            Err(HttpError::HeaderValue { name: name.as_str().to_owned() })
        }
    }

    /// Whether the connection ends with this message.
    pub(super) fn close(&self) -> bool {
        self.connection().any(|token| token.eq_ignore_ascii_case(b"close"))
    }

    /// The tokens of `Connection`: names of headers that hold for it alone, and what becomes of it.
    pub(super) fn connection(&self) -> impl Iterator<Item = &'b [u8]> {
        let values = self.all(Name::Connection);
        values.flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    fn has(&self, name: Name) -> bool {
        self.places.all_known & name.bit() != 0
    }

    fn all(&self, name: Name) -> impl Iterator<Item = &'b [u8]> {
        let kept = if self.has(name) { self.kept() } else { &[] };
        let kept = kept.iter().filter(move |place| place.known == name).map(|place| self.part(place.value));
        kept.chain(self.behind().filter(move |(found, _)| Name::of(found) == name).map(|(_, value)| value))
    }

    /// Headers that a lenient reader could take for the framing, or that hide others.
    pub(super) fn check(&self) -> Result<(), HttpError> {
        if self.has(Name::Twin) {
            let twin = self.lines().find(|line| line.known == Name::Twin).map(|line| shortened(line.name));
            return Err(HttpError::Underscore { name: twin.unwrap_or_default() });
        }
        let mut named = self.connection();
        match named.find(|token| ESSENTIAL.iter().any(|name| begins(token, name))) {
            Some(name) => Err(HttpError::ConnectionNames { name: shortened(name) }),
            None => Ok(()),
        }
    }
}

/// Whether all bytes are visible ASCII or spaces.
pub(super) fn is_visible(value: &[u8]) -> bool {
    let (eights, rest) = value.as_chunks::<8>();
    let mut last = [b' '; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    eights.iter().chain([&last]).all(|eight| are_visible(u64::from_le_bytes(*eight)))
}

/// Eight at once: what is no visible byte sets a highest bit, by a borrow, by a carry, or by having it. What it does to
/// its neighbours changes nothing then.
fn are_visible(bytes: u64) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let (below, delete) = (bytes.wrapping_sub(EACH * 0x20), bytes.wrapping_add(EACH));
    (below | delete | bytes) & (EACH * 0x80) == 0
}

/// What decisions are made on, or the message cannot do without: `Connection` must not remove it on the way. Each
/// also as a prefix.
const ESSENTIAL: &[&str] =
    &["host", "content-", "authorization", "accept", "cookie", "origin", "last-event-id", "mcp-"];

/// Begins with `lower`, without regard to case, an underscore counting as a hyphen.
fn begins(name: &[u8], lower: &str) -> bool {
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

/// Whether one space and a colon are all that stands between a name and its value. Of an empty value it is not told where
/// it stands.
fn is_close(head: &[u8], name: Part, value: Part) -> bool {
    let end = usize::from(name.0) + usize::from(name.1);
    usize::from(value.0) == end + 2 && head.get(end..end + 2) == Some(b": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte at every place of values of every length up to three words.
    #[test]
    fn what_is_visible_is_told_at_every_place() {
        for length in 0..24 {
            let mut value = vec![b'~'; length];
            assert!(is_visible(&value));
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    value[at] = byte;
                    assert_eq!(
                        is_visible(&value),
                        matches!(byte, 0x20..0x7f),
                        "{byte:#x} at {at} of {length}"
                    );
                }
                value[at] = b' ';
            }
        }
    }
}

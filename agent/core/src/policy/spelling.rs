//! What a path or a URI may mean to a reader that decodes it: rules hold for every such reading, or cannot be told.

use std::borrow::Cow;

use smallvec::{SmallVec, smallvec};
use wide::u8x16;

use super::truth::Truth;

/// The most times that a text is decoded. What then still has escapes is not to be told.
const DECODINGS_MAX: usize = 3;

/// A text as it is written, then decoded once, and so on until nothing is left to decode.
type Readings<'t> = SmallVec<[Cow<'t, str>; 2]>;

/// Asks `fits` of every reading; the first argument says how often it was decoded. `Unknown` where readings differ,
/// or one of them hides a separator.
pub(super) fn agreed(text: &str, fits: impl Fn(usize, &str) -> Truth) -> Truth {
    if marks(text) == 0 {
        return fits(0, text);
    }
    let mut verdict = None;
    for (decodings, reading) in readings(text).into_iter().flatten().enumerate() {
        let fits = fits(decodings, &reading);
        if *verdict.get_or_insert(fits) != fits {
            return Truth::Unknown;
        }
    }
    verdict.unwrap_or(Truth::Unknown)
}

/// Whether what a rule says fits a reading: as it was written, and for decoded readings also decoded itself.
pub(super) fn rule_fits(rule: &str, decodings: usize, fits: impl Fn(&str) -> bool) -> bool {
    fits(rule) || (decodings > 0 && readings(rule).is_some_and(|all| all.iter().any(|reading| fits(reading))))
}

/// Every reading of the text; `None` where one of them has what may be read as a separator, as the end of the text
/// or as nothing at all: `\`, control characters (URL parsers skip some), encoded slashes, what is not UTF-8.
fn readings(text: &str) -> Option<Readings<'_>> {
    if marks(text) & HIDES != 0 {
        return None;
    }
    let mut readings: Readings<'_> = smallvec![Cow::Borrowed(text)];
    while let Some(next) = decoded(readings.last()?)? {
        if readings.len() > DECODINGS_MAX {
            return None;
        }
        readings.push(Cow::Owned(next));
    }
    Some(readings)
}

/// A byte that may be read as something else.
const HIDES: u8 = 1;

/// A byte that may begin an escape.
const ESCAPES: u8 = 2;

/// What bytes of the text are marked; most texts have one reading.
#[inline]
fn marks(text: &str) -> u8 {
    let (blocks, _) = text.as_bytes().as_chunks::<16>();
    if let Some(last) = text.as_bytes().last_chunk()
        && !blocks.iter().chain([last]).any(has_mark)
    {
        return 0;
    }
    marks_one_by_one(text)
}

/// Whether one of sixteen bytes is marked.
#[inline(always)]
fn has_mark(block: &[u8; 16]) -> bool {
    let bytes = u8x16::new(*block);
    let hides = bytes.simd_eq(u8x16::splat(b'\\')) | bytes.simd_eq(u8x16::splat(0x7f));
    let controls = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    (hides | controls | bytes.simd_eq(u8x16::splat(b'%'))).to_bitmask() != 0
}

fn marks_one_by_one(text: &str) -> u8 {
    let mark = |byte: u8| match byte {
        b'%' => ESCAPES,
        b'\\' | 0x00..0x20 | 0x7f => HIDES,
        _ => 0,
    };
    text.bytes().fold(0, |all, byte| all | mark(byte))
}

/// The text with its percent-escapes decoded: `Some(None)` without any, `None` where one of them hides something.
fn decoded(text: &str) -> Option<Option<String>> {
    if !text.contains('%') {
        return Some(None);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        match escape(rest) {
            Some(b'/' | b'\\' | 0x00..0x20 | 0x7f) => return None,
            Some(hidden) => {
                bytes.push(hidden);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    // An overlong `/` (%c0%af) is not UTF-8 either.
    let decoded = String::from_utf8(bytes).ok()?;
    Some((decoded.len() != text.len()).then_some(decoded))
}

/// The byte that `%` and two hexadecimal digits at the front stand for.
fn escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

/// Whether a part between slashes is `.` or `..`: what such text names is up to who resolves it. Also before a
/// query, a fragment or a path parameter, and with spaces around, which readers cut off.
pub(super) fn has_dot_part(text: &str) -> bool {
    let dots = |part: &str| {
        let part = part.split(['?', '#', ';']).next().unwrap_or_default();
        matches!(part.trim(), "." | "..")
    };
    text.split('/').any(dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_parts_are_seen() {
        let table = [
            ("a/../b", true),
            ("a/..", true),
            ("..", true),
            (".", true),
            ("a/..?x/y", true),
            ("a/..#x", true),
            ("a/..;x=1/y", true),
            ("a/.. ", true),
            ("a/...", false),
            ("a/.x", false),
            ("a/x..", false),
            ("", false),
            ("a//b", false),
        ];
        for (text, expected) in table {
            assert_eq!(has_dot_part(text), expected, "{text}");
        }
    }

    #[test]
    fn a_text_is_decoded_until_nothing_is_left_or_something_is_hidden() {
        let table: [(&str, Option<&[&str]>); 24] = [
            ("a/b", Some(&["a/b"])),
            ("", Some(&[""])),
            ("a%20b", Some(&["a%20b", "a b"])),
            ("%C3%a9", Some(&["%C3%a9", "é"])),
            ("100%", Some(&["100%"])),
            ("%zz%2", Some(&["%zz%2"])),
            ("100%25", Some(&["100%25", "100%"])),
            ("%2e%2E", Some(&["%2e%2E", ".."])),
            ("%252e", Some(&["%252e", "%2e", "."])),
            ("%25252e", Some(&["%25252e", "%252e", "%2e", "."])),
            ("%2525252e", None),
            ("%2f", None),
            ("%5C", None),
            ("%00", None),
            ("%0a", None),
            ("%7f", None),
            ("%252F", None),
            ("%25252f", None),
            ("%%32%66", None),
            ("%c0%af", None),
            ("%ff", None),
            ("a\\b", None),
            ("a\nb\0", None),
            ("a\x7f", None),
        ];
        for (text, expected) in table {
            let got = readings(text);
            let got: Option<Vec<&str>> = got.as_ref().map(|all| all.iter().map(AsRef::as_ref).collect());
            assert_eq!(got.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn readings_must_agree() {
        let is_x = |_, text: &str| Truth::from(text == "x");
        let table =
            [("x", Truth::True), ("y", Truth::False), ("%78", Truth::Unknown), ("%2f", Truth::Unknown)];
        for (text, expected) in table {
            assert_eq!(agreed(text, is_x), expected, "{text}");
        }
    }
}

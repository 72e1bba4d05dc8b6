//! Strings: where a run of plain bytes ends, unescaping, case folding.

use std::borrow::Cow;

use super::lanes::{ends, ends_wide};

/// The heads of all keys that are shorter than a head.
const HEADS: [u64; 8] =
    [0, 0xff, 0xffff, 0xff_ffff, 0xffff_ffff, 0xff_ffff_ffff, 0xffff_ffff_ffff, 0xff_ffff_ffff_ffff];

/// What is plain at the front of sixteen bytes.
pub(super) struct Front {
    /// Its bytes; the one behind them is what ends it, or is not looked at yet.
    pub(super) bytes: usize,
    /// As [`head`].
    pub(super) head: u64,
}

/// Sixteen bytes from a place on, where there are so many.
#[inline(always)]
fn block_at(text: &[u8], at: usize) -> Option<&[u8; 16]> {
    text.get(at..)?.first_chunk()
}

/// What is plain from a place on; `None` where less than sixteen bytes are left.
#[inline(always)]
pub(super) fn front(text: &[u8], at: usize) -> Option<Front> {
    let block = block_at(text, at)?;
    let bytes = (ends(block) | 1 << 16).trailing_zeros() as usize;
    let mask = HEADS.get(bytes).copied().unwrap_or(u64::MAX);
    Some(Front { bytes, head: u64::from_le_bytes(*block.first_chunk()?) & mask })
}

/// The first eight bytes of a key, or as many as it has.
#[inline]
pub(super) const fn head(key: &[u8]) -> u64 {
    if let Some(first) = key.first_chunk::<8>() {
        return u64::from_le_bytes(*first);
    }
    let (mut head, mut rest) = (0, key);
    while let [before @ .., last] = rest {
        head = head << 8 | *last as u64;
        rest = before;
    }
    head
}

/// Where a `"`, a `\` or a control character stands from a place on, or the end.
#[inline]
pub(super) fn plain_end(text: &[u8], at: usize) -> usize {
    // Most names and many values end within the first block.
    match block_at(text, at).map(ends) {
        Some(0) => long_end(text, at + 16),
        Some(found) => at + found.trailing_zeros() as usize,
        None => last_end(text, at),
    }
}

/// The same in a text that was validated, where nothing but a quote and an escape ends a plain run.
#[inline]
pub(super) fn valid_plain_end(text: &[u8], at: usize) -> usize {
    match block_at(text, at).map(ends) {
        Some(0) => {
            let rest = text.get(at + 16..).unwrap_or_default();
            memchr::memchr2(b'"', b'\\', rest).map_or(text.len(), |found| at + 16 + found)
        }
        Some(found) => at + found.trailing_zeros() as usize,
        None => last_end(text, at),
    }
}

/// Where less than sixteen bytes are left.
#[inline(never)]
fn last_end(text: &[u8], at: usize) -> usize {
    let left = text.len().saturating_sub(at);
    let Some(block) = text.last_chunk::<16>() else { return long_end(text, at) };
    let found = ends(block) >> (16 - left);
    at + left.min(found.trailing_zeros() as usize)
}

/// Of a long run its end is searched first, by as many bytes at once as the CPU can, and then what must not be in it.
#[inline(never)]
fn long_end(text: &[u8], at: usize) -> usize {
    // Many end within the second.
    if let Some(found @ 1..) = block_at(text, at).map(ends) {
        return at + found.trailing_zeros() as usize;
    }
    let rest = text.get(at..).unwrap_or_default();
    let run = memchr::memchr2(b'"', b'\\', rest).and_then(|end| rest.get(..end)).unwrap_or(rest);
    // All of them are looked at, which is quicker than to stop at the first.
    let has_control = run.iter().fold(false, |any, &byte| any | (byte < 0x20));
    let control = if has_control { run.iter().position(|&byte| byte < 0x20) } else { None };
    at + control.unwrap_or(run.len())
}

/// The ends of plain runs in the 64 bytes from a place on, the text's own end among them.
#[inline(always)]
pub(super) fn ends_at(text: &[u8], at: usize) -> u64 {
    match text.get(at..).and_then(<[u8]>::first_chunk) {
        Some(block) => ends_wide(block),
        None => last_ends(text, at),
    }
}

/// Where less than 64 bytes are left.
#[inline(never)]
fn last_ends(text: &[u8], at: usize) -> u64 {
    let left = text.len().saturating_sub(at);
    let found = match text.last_chunk::<64>() {
        Some(block) => ends_wide(block) >> 1 >> (63 - left),
        None => {
            // Zeros are no bytes of a string either.
            let mut block = [0; 64];
            block.iter_mut().zip(text.get(at..).unwrap_or_default()).for_each(|(to, from)| *to = *from);
            ends_wide(&block)
        }
    };
    found | 1 << left
}

/// Four hexadecimal digits.
pub(super) fn hex4(digits: &[u8]) -> Option<u32> {
    let digits = digits.first_chunk::<4>()?;
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

/// The text of a string whose escapes were validated, without its quotes. Borrowed unless it has escapes.
pub(super) fn unescape(raw: &str) -> Cow<'_, str> {
    if !raw.as_bytes().contains(&b'\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    unescape_with(raw, |part| text.push_str(part));
    Cow::Owned(text)
}

/// Gives the unescaped text of `raw` part by part.
pub(super) fn unescape_with(raw: &str, mut part: impl FnMut(&str)) {
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        part(plain);
        let mut buffer = [0; 4];
        let (character, used) = unescape_one(escape.as_bytes());
        part(character.encode_utf8(&mut buffer));
        rest = escape.get(used..).unwrap_or_default();
    }
    part(rest);
}

/// The character of an escape, and how many bytes after the `\` it takes.
fn unescape_one(escape: &[u8]) -> (char, usize) {
    let unit = |at: usize| escape.get(at..).and_then(hex4).unwrap_or(0xfffd);
    match escape.first() {
        Some(b'u') => {
            let high = unit(1);
            if let 0xd800..0xdc00 = high {
                let code = 0x10000 + ((high - 0xd800) << 10) + (unit(7).wrapping_sub(0xdc00) & 0x3ff);
                return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11);
            }
            (char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), 5)
        }
        Some(b'b') => ('\u{8}', 1),
        Some(b'f') => ('\u{c}', 1),
        Some(b'n') => ('\n', 1),
        Some(b'r') => ('\r', 1),
        Some(b't') => ('\t', 1),
        Some(&byte) => (char::from(byte), 1),
        None => (char::REPLACEMENT_CHARACTER, 0),
    }
}

/// Upper case, then lower case of every character: what readers that ignore case may take for the same. Going by
/// way of upper case also catches those with one lower case too many (`ſ`, `ς`, the Kelvin sign).
pub(super) fn fold(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

/// Equal to a reader that ignores case, but not equal.
pub(super) fn collide(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        return a.eq_ignore_ascii_case(b) && a != b;
    }
    a != b && fold(a).eq(fold(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a run begins and ends, in texts shorter and longer than a block.
    #[test]
    fn a_plain_run_ends_where_it_ends() {
        for length in 0..150 {
            for end in 0..=length {
                let mut text = vec![b'a'; length];
                if let Some(byte) = text.get_mut(end) {
                    *byte = b"\"\\\n"[end % 3];
                }
                for at in 0..=end {
                    assert_eq!(plain_end(&text, at), end, "{length} {at}");
                    let found = ends_at(&text, at).trailing_zeros() as usize;
                    assert_eq!(found, (end - at).min(64), "{length} {at} {end}");
                    let front = front(&text, at).map(|front| (front.bytes, front.head));
                    let run = &text[at..end];
                    let expected = (length - at >= 16).then(|| (run.len().min(16), head(run)));
                    assert_eq!(front, expected, "{length} {at} {end}");
                }
            }
        }
    }
}

//! Strings: where a run of plain bytes ends, unescaping, case folding.

use std::borrow::Cow;

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;

/// Bytes of `word` that end a plain run, as the high bits of their places: `"`, `\` and controls. The lowest set
/// bit is exact; those above it may be false, which nobody reads.
#[inline(always)]
fn ends(word: u64) -> u64 {
    // Flipping one bit puts the quote beside the controls: below 0x21 are then these alone.
    let quote_or_control = (word ^ (ONES * 0x02)).wrapping_sub(ONES * 0x21);
    let backslash = (word ^ (ONES * b'\\' as u64)).wrapping_sub(ONES);
    // All three are ASCII, so a byte with its own high bit set is none of them.
    (quote_or_control | backslash) & !word & HIGHS
}

fn is_end(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// Eight bytes from a place on, where there are so many.
#[inline(always)]
pub(super) fn word_at(text: &[u8], at: usize) -> Option<u64> {
    text.get(at..at.wrapping_add(8))?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
}

/// What is plain at the front of a word.
pub(super) struct Front {
    /// Its bytes; 8: all of them.
    pub(super) bytes: usize,
    /// The byte behind it; 0 where that is not in the word.
    pub(super) end: u8,
    /// The word without what is behind it.
    pub(super) word: u64,
}

#[inline(always)]
pub(super) fn front(word: u64) -> Front {
    let found = ends(word);
    let bit = found.trailing_zeros();
    let mask = (found & found.wrapping_neg()).wrapping_sub(1) >> 7;
    let [end, ..] = word.unbounded_shr(bit & !7).to_le_bytes();
    Front { bytes: bit as usize / 8, end, word: word & mask }
}

/// The first eight bytes of a key, or as many as it has.
#[inline]
pub(super) fn head(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_le_bytes(*first),
        None => key.iter().rev().fold(0, |head, &byte| head << 8 | u64::from(byte)),
    }
}

/// Where a `"`, a `\` or a control character stands from a place on, or the end.
#[inline]
pub(super) fn plain_end(text: &[u8], at: usize) -> usize {
    // Most names and many values end within two words.
    for at in [at, at + 8] {
        match word_at(text, at).map(ends) {
            Some(0) => {}
            Some(found) => return at + found.trailing_zeros() as usize / 8,
            None => return at + short_run(text.get(at..).unwrap_or_default()),
        }
    }
    long_end(text, at + 16)
}

/// Two words more: blocks do not pay before. Then whole blocks, and the words of the one with the end.
#[inline(never)]
fn long_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let run = short_run(rest.get(..16).unwrap_or(rest));
    if run < 16 {
        return at + run;
    }
    let run = run + plain_blocks(rest.get(run..).unwrap_or_default());
    at + run + short_run(rest.get(run..).unwrap_or_default())
}

/// A word at a time, then a byte at a time.
fn short_run(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let found = ends(u64::from_le_bytes(*word));
        if found != 0 {
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    words.len() * 8 + rest.iter().position(|&byte| is_end(byte)).unwrap_or(rest.len())
}

/// Whole blocks of 32 without an end; the compiler makes vectors of it.
#[inline]
fn plain_blocks(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<32>();
    let plain = |block: &&[u8; 32]| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |found, word| found | ends(u64::from_le_bytes(*word))) == 0
    };
    blocks.iter().take_while(plain).count() * 32
}

/// Four hexadecimal digits.
pub(super) fn hex4(digits: &[u8]) -> Option<u32> {
    let digits = digits.first_chunk::<4>()?;
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

/// The text of a string whose escapes were validated, without its quotes. Borrowed unless it has escapes.
pub(super) fn unescape(raw: &str) -> Cow<'_, str> {
    // Of what ends a plain run, a validated string has escapes alone.
    if plain_end(raw.as_bytes(), 0) == raw.len() {
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

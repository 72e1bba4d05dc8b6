//! Strings: where a run of plain bytes ends, unescaping, case folding.

use std::borrow::Cow;

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;

/// Bytes of `word` that end a plain run, as the high bits of their places: `"`, `\` and controls. The lowest set
/// bit is exact; those above it may be false, which nobody reads.
fn ends(word: u64) -> u64 {
    let quote = (word ^ (ONES * b'"' as u64)).wrapping_sub(ONES);
    let backslash = (word ^ (ONES * b'\\' as u64)).wrapping_sub(ONES);
    let control = word.wrapping_sub(ONES * 0x20);
    // All three are ASCII, so a byte with its own high bit set is none of them.
    (quote | backslash | control) & !word & HIGHS
}

fn is_end(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

/// How many bytes of `bytes` go by before a `"`, a `\` or a control character.
#[inline]
pub(super) fn plain_run(bytes: &[u8]) -> usize {
    // Most keys and names end within one word.
    match bytes.first_chunk::<8>().map(|word| ends(u64::from_le_bytes(*word))) {
        Some(found) if found != 0 => found.trailing_zeros() as usize / 8,
        Some(_) | None => long_run(bytes),
    }
}

fn long_run(bytes: &[u8]) -> usize {
    // Blocks do not pay before this.
    let run = short_run(bytes.get(..32).unwrap_or(bytes));
    if run < 32 {
        return run;
    }
    let run = run + plain_blocks(bytes.get(run..).unwrap_or_default());
    run + short_run(bytes.get(run..).unwrap_or_default())
}

/// A word at a time, then a byte at a time.
#[inline]
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
    if memchr::memchr(b'\\', raw.as_bytes()).is_none() {
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

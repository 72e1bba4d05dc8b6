//! Characters that a reader does not see, or that change how others are seen: what they say is for the model alone.
//!
//! All that Unicode calls default ignorable (UAX 44: zero-width characters, bidirectional controls, tags, variation
//! selectors, fillers), the annotation marks, and controls other than tab and line ends. Not those that belong to an emoji: a
//! variation selector right behind a visible symbol, and the joiner between two.

use std::iter::Peekable;
use std::str::Chars;

/// Whether a reader does not see this character, wherever it stands.
fn is_invisible(character: char) -> bool {
    matches!(character,
        // Controls.
        '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Default ignorable (DerivedCoreProperties.txt, Unicode 17).
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}'
        // Line and paragraph separators, annotation marks.
        | '\u{2028}' | '\u{2029}' | '\u{fff9}'..='\u{fffb}')
}

/// From here on there are symbols that emoji are made of; letters of most scripts stand before.
const SYMBOLS: char = '\u{2190}';

/// Each character of a text, and whether it is hidden.
pub fn characters(text: &str) -> impl Iterator<Item = (char, bool)> {
    Characters { rest: text.chars().peekable(), before: '\n' }
}

struct Characters<'t> {
    rest: Peekable<Chars<'t>>,
    before: char,
}

impl Iterator for Characters<'_> {
    type Item = (char, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let character = self.rest.next()?;
        let before = std::mem::replace(&mut self.before, character);
        let is_emojis = match character {
            // Text and emoji presentation, and the caps of keys.
            '\u{fe0e}' | '\u{fe0f}' => {
                matches!(
                    before,
                    '0'..='9' | '#' | '*' | '\u{a9}' | '\u{ae}' | '\u{203c}' | '\u{2049}' | '\u{2122}'
                ) || is_symbol(before)
            }
            '\u{200d}' => {
                (is_symbol(before) || before == '\u{fe0f}')
                    && self.rest.peek().is_some_and(|next| is_symbol(*next))
            }
            _ => false,
        };
        Some((character, is_invisible(character) && !is_emojis))
    }
}

fn is_symbol(character: char) -> bool {
    matches!(character, SYMBOLS..='\u{2bff}' | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}' | '\u{1f000}'..='\u{1faff}')
}

/// Whether any character of a canonical form is hidden. There, controls are escapes.
#[must_use]
pub fn in_canonical(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, escape)) = rest.split_once('\\') {
        if escape.starts_with(['u', 'b', 'f']) {
            return true;
        }
        rest = escape.get(1..).unwrap_or_default(); // the escaped character may be a `\`
    }
    !text.is_ascii() && characters(text).any(|(_, is_hidden)| is_hidden)
}

/// Text for a terminal: hidden characters as `\u{202e}`, so that they show and do nothing.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (character, is_hidden) in characters(text) {
        match character {
            _ if is_hidden => out.extend(character.escape_unicode()),
            '\r' => out.push_str("\\r"),
            other => out.push(other),
        }
    }
    out
}

/// JSON for a terminal: hidden characters, which are within strings alone, as JSON's own escapes.
#[must_use]
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for (character, is_hidden) in characters(json) {
        if !is_hidden {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}

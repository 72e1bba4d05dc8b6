//! Strict JSON (RFC 8259), validated in one pass and read where it lies.
//!
//! What is accepted means one thing to every reader: no duplicate keys, UTF-8 alone, no byte order mark, no lone
//! surrogates, no number that overflows a double. Integers of any other size pass as they are written.

mod error;
mod keys;
mod lanes;
mod parser;
mod text;
mod view;

pub use error::Malformed;
pub use keys::Scratch;

pub(super) use keys::Key;
pub(crate) use keys::Name;
pub(super) use parser::{Parser, Start, Step};

use std::borrow::Cow;

/// Limits on one text. Its length is the caller's to limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonLimits {
    /// Objects and arrays within each other; 128 at the most.
    pub depth_max: usize,
    /// Members of one object.
    pub members_max: usize,
}

impl Default for JsonLimits {
    fn default() -> Self {
        Self { depth_max: 64, members_max: 16_384 }
    }
}

/// The kinds of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number of any size.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// One value of a validated text, read where it lies: no tree is built.
#[derive(Debug, Clone, Copy)]
pub struct Value<'b> {
    whole: &'b str,
    start: usize,
    end: usize,
}

impl<'b> Value<'b> {
    fn new(whole: &'b str, start: usize, end: usize) -> Self {
        Self { whole, start, end }
    }

    /// The place behind it in the text that was validated.
    pub(super) fn end(self) -> usize {
        self.end
    }
}

impl<'b> Key<'b> {
    /// The key, unescaped; borrowed unless it has escapes.
    #[inline(never)]
    pub(crate) fn text(self) -> Cow<'b, str> {
        if self.escaped { text::unescape(self.raw()) } else { Cow::Borrowed(self.raw()) }
    }

    /// Its place in the text.
    pub(super) fn place(self) -> usize {
        self.offset
    }

    /// Whether it differs from one of `names` only in case.
    pub(super) fn collides(self, names: &[&str]) -> bool {
        let key = self.text();
        if names.contains(&&*key) {
            return false;
        }
        // No character folds to one of another length without being beyond ASCII.
        let candidate = |name: &&&str| !key.is_ascii() || name.len() == key.len();
        names.iter().filter(candidate).any(|name| text::collide(&key, name))
    }
}

/// Validates a whole text: one value with white space around it.
///
/// # Errors
/// [`Malformed`], with the byte where it was noticed.
pub fn validate<'b>(
    text: &'b [u8],
    scratch: &mut Scratch,
    limits: &JsonLimits,
) -> Result<Value<'b>, Malformed> {
    let mut parser = Parser::new(text, scratch, limits)?;
    let value = parser.value(parser.first())?;
    parser.finish(value.end)?;
    Ok(value)
}

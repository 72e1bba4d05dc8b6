//! The one wildcard of rules and selectors: `*`, any run of characters but `/`.

use super::spelling::rule_fits;

/// A pattern in which `*` stands for any characters except `/`. Everything else is literal, case included.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Glob {
    text: String,
    is_literal: bool,
}

/// A pattern that promises what [`Glob`] does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGlob {
    /// Nothing to match.
    #[error("an empty pattern matches nothing")]
    Empty,
    /// `**` crosses `/` elsewhere; here nothing does.
    #[error("`{pattern}` has `**`, but `*` never crosses `/`: write one `*` for each part")]
    DoubleStar {
        /// What was given.
        pattern: String,
    },
    /// A wildcard of other languages, in a place where no name has that character.
    #[error("`{pattern}` has `{character}`, but `*` is the only wildcard: write the names one by one")]
    OtherWildcard {
        /// What was given.
        pattern: String,
        /// The first one found.
        character: char,
    },
}

impl Glob {
    /// A pattern over paths and URIs, where `?`, `[` and `{` are ordinary characters.
    ///
    /// # Errors
    /// [`InvalidGlob`] for an empty pattern and for `**`.
    pub fn new(text: &str) -> Result<Self, InvalidGlob> {
        if text.is_empty() {
            return Err(InvalidGlob::Empty);
        }
        if text.contains("**") {
            return Err(InvalidGlob::DoubleStar { pattern: text.to_owned() });
        }
        Ok(Self { text: text.to_owned(), is_literal: !text.contains('*') })
    }

    /// A pattern over names of tools, prompts, methods or workloads. `?`, `[` and `{` are refused: in a deny
    /// rule a pattern that silently matches nothing would be a hole.
    ///
    /// # Errors
    /// [`InvalidGlob`].
    pub fn name(text: &str) -> Result<Self, InvalidGlob> {
        if let Some(character) = text.chars().find(|c| matches!(c, '?' | '[' | ']' | '{' | '}')) {
            return Err(InvalidGlob::OtherWildcard { pattern: text.to_owned(), character });
        }
        Self::new(text)
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it has no `*`.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.is_literal
    }

    /// Whether the whole of `text` fits.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        if self.is_literal { self.text == text } else { fits(&self.text, text) }
    }

    /// Whether the whole of `text` fits, which was decoded so often.
    pub(super) fn matches_reading(&self, decodings: usize, text: &str) -> bool {
        rule_fits(&self.text, decodings, |pattern| fits(pattern, text))
    }

    /// Whether `path` or one of the directories above it fits: a cgroup and what is below it.
    #[must_use]
    pub fn matches_ancestor(&self, path: &str) -> bool {
        let mut parts = path.split('/');
        self.text.split('/').all(|pattern| parts.next().is_some_and(|part| part_matches(pattern, part)))
    }

    /// Whether everything that fits `other` provably fits this. `false` also means "cannot tell".
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self.text == other.text || (other.is_literal() && self.matches(&other.text)) {
            return true;
        }
        let mut others = other.text.split('/');
        self.text.split('/').all(|part| others.next().is_some_and(|other| part == "*" || part == other))
            && others.next().is_none()
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = text.split('/');
    pattern.split('/').all(|pattern| parts.next().is_some_and(|part| part_matches(pattern, part)))
        && parts.next().is_none()
}

/// One part between slashes: its first and last piece are fixed, those between are found from the left, which is
/// enough because nothing but `*` stands between them.
fn part_matches(pattern: &str, part: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == part };
    let Some(mut left) = part.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').map_or(("", rest), |(middle, last)| (middle, last));
    let Some(body) = left.strip_suffix(last) else { return false };
    left = body;
    for piece in middle.split('*') {
        let Some(at) = left.find(piece) else { return false };
        left = left.get(at + piece.len()..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stays_within_a_part() {
        let table = [
            ("search", "search", true),
            ("search", "Search", false),
            ("read_*", "read_file", true),
            ("read_*", "read_", true),
            ("read_*", "xread_", false),
            ("*_file", "read_file", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("/srv/*", "/srv/a", true),
            ("/srv/*", "/srv/a/b", false),
            ("/srv/*/x", "/srv/a/x", true),
            ("x", "", false),
            ("a*a*a", "aa", false),
            ("*é*", "café", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(Glob::new(pattern).unwrap().matches(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn covers_only_what_is_proven() {
        let table = [
            ("*", "read_*", true),
            ("*", "a/b", false),
            ("*/*", "a/*", true),
            ("read_*", "read_file", true),
            ("read_*", "read_f*", false),
            ("read_f*", "read_*", false),
            ("x", "x", true),
        ];
        for (one, other, expected) in table {
            assert_eq!(Glob::new(one).unwrap().covers(&Glob::new(other).unwrap()), expected, "{one} {other}");
        }
    }

    #[test]
    fn other_wildcards_are_refused_in_names() {
        for pattern in ["", "a**", "a?", "[ab]", "{a,b}"] {
            assert!(Glob::name(pattern).is_err(), "{pattern}");
        }
        assert!(Glob::new("file:///{path}?x").is_ok());
    }
}

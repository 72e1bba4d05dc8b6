//! Names that a message says, as they are kept: cut where they are too long, without an allocation where they are short.

use smallvec::SmallVec;

/// The most bytes of a name or a detail that is kept.
const NAME_BYTES_MAX: usize = 256;
/// Tools and methods have names of this length; longer ones cost an allocation.
const INLINE_BYTES: usize = 48;

/// A name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(SmallVec<[u8; INLINE_BYTES]>);

impl Name {
    pub(super) fn new(name: &str) -> Self {
        if name.len() <= NAME_BYTES_MAX {
            return Self(SmallVec::from_slice(name.as_bytes()));
        }
        let mut cut = SmallVec::from_slice(&name.as_bytes()[..name.floor_char_boundary(NAME_BYTES_MAX)]);
        cut.extend_from_slice("…".as_bytes());
        Self(cut)
    }

    pub(super) fn as_str(&self) -> &str {
        // It is made of a str, cut between characters.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Whether it is not the whole name.
    pub(super) fn is_cut(&self) -> bool {
        self.0.len() > NAME_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(Name::new("search").as_str(), "search");
        let cut = Name::new(&"\u{e9}".repeat(200));
        assert_eq!(cut.as_str(), format!("{}…", "\u{e9}".repeat(128)));
        let odd = Name::new(&format!("a{}", "\u{e9}".repeat(200)));
        assert_eq!(odd.as_str(), format!("a{}…", "\u{e9}".repeat(127)));
        assert!(odd.is_cut() && !Name::new(&"x".repeat(NAME_BYTES_MAX)).is_cut());
    }
}

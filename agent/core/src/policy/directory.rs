//! Directories and the paths within them, by their letters alone.

use super::truth::Truth;

/// An absolute directory, kept as its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    parts: Vec<String>,
    /// The path, without a `/` at the end.
    path: String,
}

impl Directory {
    /// An absolute path in its shortest form; a `/` at the end does no harm. `None` for any other text.
    pub(super) fn new(path: &str) -> Option<Self> {
        let below = path.strip_prefix('/')?;
        let below = below.strip_suffix('/').unwrap_or(below);
        let mut parts = Vec::new();
        for part in below.split('/').filter(|_| !below.is_empty()) {
            if matches!(part, "" | "." | "..") || part.contains(['\\', '\0']) {
                return None;
            }
            parts.push(part.to_owned());
        }
        let path = parts.iter().flat_map(|part| ["/", part]).collect();
        Some(Self { parts, path })
    }

    /// Walks the path by its letters; a link is the server's affair. Relative paths mean what the server's
    /// working directory makes of them, and `\` or NUL may be read as something else: not to be told.
    pub(super) fn contains(&self, path: &str) -> Truth {
        let path = path.as_bytes();
        if path.strip_prefix(self.path.as_bytes()).is_some_and(is_below) {
            return Truth::True;
        }
        if !path.starts_with(b"/") || path.iter().any(|byte| matches!(byte, b'\\' | 0)) {
            return Truth::Unknown;
        }
        // `inside` parts of the directory are matched; `beyond` more follow, below it or off to the side.
        let (mut inside, mut beyond) = (0_usize, 0_usize);
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." if beyond > 0 => beyond -= 1,
                b".." => inside = inside.saturating_sub(1),
                _ if beyond == 0 && self.parts.get(inside).is_some_and(|own| own.as_bytes() == part) => {
                    inside += 1
                }
                _ => beyond += 1,
            }
        }
        Truth::from(inside == self.parts.len())
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.parts.join("/"))
    }
}

/// Whether what follows a directory's path leads to it or into it, with nothing that could lead out again.
fn is_below(rest: &[u8]) -> bool {
    let mut before = b'/';
    rest.first().is_none_or(|&first| first == b'/')
        && rest.iter().all(|&byte| {
            let begins_with_dot = byte == b'.' && before == b'/';
            before = byte;
            !begins_with_dot && !matches!(byte, b'\\' | 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_is_lexical() {
        let table = [
            ("/srv/docs", "/srv/docs", Truth::True),
            ("/srv/docs", "/srv/docs/", Truth::True),
            ("/srv/docs", "/srv/docs/a/b", Truth::True),
            ("/srv/docs", "/srv//docs/./a", Truth::True),
            ("/srv/docs", "/srv/x/../docs/a", Truth::True),
            ("/srv/docs", "/srv/docs/../docs/a", Truth::True),
            ("/srv/docs", "/../srv/docs/a", Truth::True),
            ("/srv/docs", "/srv/docs/..", Truth::False),
            ("/srv/docs", "/srv/docs/../../etc", Truth::False),
            ("/srv/docs", "/srv/docs/a/../../x", Truth::False),
            ("/srv/docs", "/srv/docs2", Truth::False),
            ("/srv/docs", "/srv", Truth::False),
            ("/srv/docs", "/x/srv/docs", Truth::False),
            ("/srv/docs", "/x/docs", Truth::False),
            ("/srv/docs", "srv/docs", Truth::Unknown),
            ("/srv/docs", "", Truth::Unknown),
            ("/srv/docs", "/srv/docs/..\\..\\etc", Truth::Unknown),
            ("/srv/docs", "/srv/docs\0", Truth::Unknown),
            ("/", "/etc", Truth::True),
        ];
        for (directory, path, expected) in table {
            let directory = Directory::new(directory).unwrap();
            assert_eq!(directory.contains(path), expected, "{path:?} in {}", directory.path());
        }
        for path in ["srv", "", "/a/../b", "/a//b", "/./a", "/a\\b"] {
            assert!(Directory::new(path).is_none(), "{path}");
        }
    }
}

//! YAML text: documents, locations, and the parser's errors in this project's words.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_saphyr::{Location, MergeKeyPolicy, Spanned, UserMessageFormatter};

use super::diagnostic::Diagnostic;

/// The most bytes of one configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: PathBuf,
    pub(super) text: String,
    /// The permissions of the file.
    pub(super) mode: u32,
}

impl Source {
    pub(super) fn read(file: &Path) -> Result<Self, Diagnostic> {
        let fault = |message: String| Diagnostic::of_file(file, message);
        let metadata = std::fs::metadata(file).map_err(|error| fault(format!("cannot read it: {error}")))?;
        let (length, mode) = (metadata.len(), metadata.permissions().mode());
        if length > FILE_BYTES_MAX {
            let message = format!("{length} bytes are more than the {FILE_BYTES_MAX} of one file");
            return Err(fault(message).help("split it into several files"));
        }
        let text =
            std::fs::read_to_string(file).map_err(|error| fault(format!("cannot read it: {error}")))?;
        Ok(Self { file: file.to_owned(), text, mode })
    }

    /// Whether headers or keys may stand in it: what is wrong is then said without its line, whose words may be one, and
    /// whatever its line is in that does not parse.
    pub(super) fn may_hold_secrets(&self) -> bool {
        self.text.contains("HTTPEndpoint")
    }

    /// The YAML documents, each with as many empty lines before it as keep its line numbers right.
    pub(super) fn documents(&self) -> Vec<String> {
        let mut documents = Vec::new();
        let mut current = String::new();
        for (number, line) in self.text.split('\n').enumerate() {
            let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
            // YAML 1.2.2 section 9.1.2: three at the start of a line, even within a block scalar.
            match rest.filter(|rest| rest.trim_start().len() < rest.len() || rest.is_empty()) {
                Some(rest) => {
                    documents.push(std::mem::replace(&mut current, "\n".repeat(number)));
                    current.push_str("   ");
                    current.push_str(rest);
                }
                None => current.push_str(line),
            }
            current.push('\n');
        }
        documents.push(current);
        documents.retain(|text| {
            text.lines().any(|line| !matches!(line.trim_start().chars().next(), None | Some('#')))
        });
        documents
    }

    /// Reads one document as `T`.
    pub(super) fn parse<T: DeserializeOwned>(&self, document: &str) -> Result<T, Diagnostic> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            strict_booleans: true,
            reject_unsupported_tags: true,
            merge_keys: MergeKeyPolicy::Error
        };
        serde_saphyr::from_str_with_options(document, options).map_err(|error| self.in_our_words(&error))
    }

    /// An error at a value.
    pub(super) fn error<T>(&self, at: &Spanned<T>, message: impl Into<String>) -> Diagnostic {
        self.error_at(at.referenced, message)
    }

    pub(super) fn error_at(&self, at: Location, message: impl Into<String>) -> Diagnostic {
        let [line, column, width] =
            [at.line(), at.column(), at.span().len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let index = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        let excerpt = self.text.lines().nth(index).map(str::to_owned);
        // What spans lines is marked to the end of its first.
        let length =
            excerpt.as_ref().map_or(0, |text| u32::try_from(text.chars().count()).unwrap_or(u32::MAX));
        let width = width.clamp(1, (length + 1).saturating_sub(column).max(1));
        Diagnostic {
            line,
            column,
            width,
            excerpt: excerpt.filter(|_| line > 0 && !self.may_hold_secrets()),
            ..Diagnostic::of_file(&self.file, message.into())
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser's enum is open: its own words do for the rest"
    )]
    fn in_our_words(&self, error: &serde_saphyr::Error) -> Diagnostic {
        use serde_saphyr::Error;
        let (message, help) = match error.without_snippet() {
            Error::SerdeUnknownField { field, expected, .. } => {
                (format!("unknown key `{field}`"), Some(did_you_mean(field, expected)))
            }
            Error::SerdeMissingField { field, .. } => {
                (format!("`{field}` is missing"), Some(format!("add `{field}: ..` here")))
            }
            Error::DuplicateMappingKey { key: Some(key), .. } => {
                (format!("`{key}` is given twice"), Some("keep one of them".to_owned()))
            }
            Error::NullIntoString { .. } => {
                ("a value is missing".to_owned(), Some("write it, or remove the key".to_owned()))
            }
            Error::InvalidBooleanStrict { .. } => {
                ("neither `true` nor `false`".to_owned(), Some("write `true` or `false`".to_owned()))
            }
            Error::InvalidScalar { ty, .. } => {
                let number = match *ty {
                    "u16" => "a whole number from 0 to 65535",
                    "u64" => "a whole number, zero or more,",
                    _ => "a number",
                };
                (format!("{number} belongs here"), Some("write it in digits, without quotes".to_owned()))
            }
            Error::MergeKeyNotAllowed { .. } => (
                "`<<` merges are not read here".to_owned(),
                Some("write the keys out: a rule must show all that it says".to_owned()),
            ),
            Error::Unexpected { expected, .. } => {
                let (message, help) = expected_in_words(expected);
                (message.to_owned(), help.map(str::to_owned))
            }
            other => (plain(other), None),
        };
        match error.location() {
            Some(at) => self.error_at(at, message).maybe_help(help),
            None => Diagnostic::of_file(&self.file, message).maybe_help(help),
        }
    }
}

fn expected_in_words(expected: &str) -> (&str, Option<&str>) {
    match expected {
        "mapping start" => {
            ("keys and values belong here", Some("write `key: value` pairs; none at all is `{}`"))
        }
        "sequence start" => ("a list belongs here", Some("write `[one, two]`, also for a single one")),
        "string scalar" => {
            ("one text belongs here", Some("write a single value, in quotes where it is no plain word"))
        }
        other => (other, None),
    }
}

/// The parser's own words without the location, which is shown anyway.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.render_with_formatter(&UserMessageFormatter);
    let text = text.lines().next().unwrap_or_default();
    text.rsplit_once(" at line ").map_or(text, |(message, _)| message).to_owned()
}

/// The nearest of the known words, or all of them.
pub(super) fn did_you_mean<S: AsRef<str>>(word: &str, known: &[S]) -> String {
    let names = || known.iter().map(AsRef::as_ref);
    let nearest = names().map(|name| (distance(word, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= word.len().div_ceil(3) => format!("did you mean `{name}`?"),
        Some(_) => {
            format!("known here: {}", names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
        }
        None => "nothing is known here".to_owned(),
    }
}

/// Levenshtein's edit distance.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines() {
        let table: &[(&str, &[&str])] = &[
            ("a: 1\n", &["a: 1\n\n"]),
            ("---\na: 1\n---\nb: 2", &["   \na: 1\n", "\n\n   \nb: 2\n"]),
            ("# only a comment\n---\n", &[]),
            ("--- {a: 1}\n...\n", &["    {a: 1}\n"]),
            ("a: ---x\n----\n", &["a: ---x\n----\n\n"]),
            ("---\r\na: 1\r\n", &["   \r\na: 1\r\n\n"]),
        ];
        for (text, expected) in table {
            let source = Source { file: "x.yaml".into(), text: (*text).to_owned(), mode: 0o600 };
            assert_eq!(source.documents(), *expected, "{text:?}");
        }
    }

    #[test]
    fn near_words_are_offered() {
        assert_eq!(did_you_mean("toolz", &["tools", "methods"]), "did you mean `tools`?");
        assert_eq!(did_you_mean("x", &["tools", "methods"]), "known here: `tools`, `methods`");
    }
}

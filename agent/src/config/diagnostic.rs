//! What is wrong with a file, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The files are not used.
    Error,
    /// They are, but probably do not do what was meant.
    Warning,
}

/// One finding. Lines and columns count from 1, columns in characters; line 0 = the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where: the file,
    pub file: PathBuf,
    /// the line,
    pub line: u32,
    /// the column,
    pub column: u32,
    /// and how many characters from there.
    pub width: u32,
    /// What is wrong.
    pub message: String,
    /// The line itself; `None` for a file as a whole.
    pub excerpt: Option<String>,
    /// The next step.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error about a file as a whole.
    pub(super) fn of_file(file: impl Into<PathBuf>, message: String) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            line: 0,
            column: 0,
            width: 0,
            message,
            excerpt: None,
            help: None,
        }
    }

    /// The same with the next step.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with the next step, where there is one.
    pub(super) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    /// The same as a warning.
    pub(super) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

fn characters(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn spaces(count: u32) -> String {
    " ".repeat(characters(count))
}

/// As rustc shows it:
/// ```text
/// error: unknown key `toolz`
///   --> resources/docs.yaml:12:5
///    |
/// 12 |     toolz: [search]
///    |     ^^^^^
///    = help: did you mean `tools`?
/// ```
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}: {}", self.message)?;
        let gutter = self.line.to_string().len();
        let blank = " ".repeat(gutter);
        match (&self.excerpt, self.line) {
            (_, 0) => writeln!(f, "{blank} --> {}", self.file.display())?,
            (None, line) => writeln!(f, "{blank}--> {}:{line}:{}", self.file.display(), self.column)?,
            (Some(excerpt), line) => {
                let (before, carets) =
                    (spaces(self.column.saturating_sub(1)), "^".repeat(characters(self.width.max(1))));
                writeln!(f, "{blank}--> {}:{line}:{}", self.file.display(), self.column)?;
                writeln!(f, "{blank} |")?;
                writeln!(f, "{line} | {}", excerpt.replace('\t', " "))?;
                writeln!(f, "{blank} | {before}{carets}")?;
            }
        }
        match &self.help {
            Some(help) => writeln!(f, "{blank} = help: {help}"),
            None => Ok(()),
        }
    }
}

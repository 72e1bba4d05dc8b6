//! A file as tidy sees it: its text, and for Rust the same text with comments and literals blanked out.

/// One file.
pub(super) struct Source<'t> {
    /// Path below the workspace's root, with `/`.
    pub(super) name: &'t str,
    /// All of it.
    pub(super) text: &'t str,
    /// Rust: what the compiler would call code, every other character a space; line numbers are kept. Else: empty.
    pub(super) code: String,
}

impl<'t> Source<'t> {
    /// Reads a file that was loaded before.
    pub(super) fn new(name: &'t str, text: &'t str) -> Self {
        let code = if name.ends_with(".rs") { blank(text) } else { String::new() };
        Self { name, text, code }
    }

    /// Rust source?
    pub(super) fn is_rust(&self) -> bool {
        self.name.ends_with(".rs")
    }

    /// Is it below that folder?
    pub(super) fn is_in(&self, folder: &str) -> bool {
        self.name.starts_with(folder)
    }

    /// Lines of code before the module of unit tests, numbered from 1; none in a file that is such a module.
    pub(super) fn tested_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let within = self.name.split_once("/src/").map_or("", |(_, within)| within);
        let all_tests = self.name.ends_with("/tests.rs") || within.contains("tests/");
        let begins_tests = move |line: &str| all_tests || line.trim_start().starts_with("#[cfg(test)]");
        self.code_lines().take_while(move |(_, line)| !begins_tests(line))
    }

    /// Lines of code, numbered from 1.
    pub(super) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Lines of the whole text, numbered from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &'t str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Blanks comments, strings and character literals. No parser: enough to count braces and find words.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = literal_or_comment(rest, out.chars().next_back());
        if skipped == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    out
}

/// How many bytes at the start of `rest` are a comment or a literal; 0: none.
fn literal_or_comment(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        rest.find("*/").map_or(rest.len(), |end| end + 2)
    } else if rest.starts_with('"') {
        quoted(rest, 1, '"')
    } else if !in_word && (rest.starts_with("r\"") || rest.starts_with("r#")) {
        raw(rest, 1)
    } else if !in_word && (rest.starts_with("br\"") || rest.starts_with("br#")) {
        raw(rest, 2)
    } else if rest.starts_with('\'') {
        character(rest)
    } else {
        0
    }
}

/// Length of a literal that begins with `start` bytes and ends at an unescaped `end`.
fn quoted(rest: &str, start: usize, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip_while(|(at, _)| *at < start) {
        match c {
            _any if escaped => escaped = false,
            '\\' => escaped = true,
            _other if c == end => return at + c.len_utf8(),
            _other => {}
        }
    }
    rest.len()
}

/// Length of `r"..."` or `r#"..."#`, whose hashes begin at `hashes`; 0: a raw identifier.
fn raw(rest: &str, hashes: usize) -> usize {
    let count = rest[hashes..].bytes().take_while(|byte| *byte == b'#').count();
    let body = hashes + count;
    if !rest[body..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(count));
    rest[body + 1..].find(&end).map_or(rest.len(), |at| body + 1 + at + end.len())
}

/// Length of `'c'` or `'\n'`; 0: a lifetime.
fn character(rest: &str) -> usize {
    let mut inside = rest[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(rest, 1, '\''),
        (Some(one), Some('\'')) => 1 + one.len_utf8() + 1,
        _lifetime => 0,
    }
}

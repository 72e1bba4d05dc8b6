//! `cargo xtask tidy`: the rules of the house that a machine can check. Each finding says where, which and what to do.

mod rules;
mod source;

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{root, run_quietly};
use source::Source;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    /// Counted from 1.
    line: usize,
    rule: &'static str,
    /// What to do about it.
    advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.rule, self.advice)
    }
}

/// Checks every file that git knows or would add.
pub(crate) fn tidy() -> Result<()> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"];
    let output = run_quietly(Command::new("git").args(list).current_dir(root()))
        .context("cannot list the files: tidy needs a git checkout")?;
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let mut findings = Vec::new();
    let mut files = 0_usize;
    for name in names.split_terminator('\0') {
        // What is deleted but not yet committed is still listed.
        let Ok(bytes) = std::fs::read(root().join(name)) else { continue };
        files += 1;
        findings.extend(check(name, &bytes));
    }
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings in {files} files", findings.len());
    }
    eprintln!("tidy: {files} files, no finding");
    Ok(())
}

/// All findings of one file.
fn check(name: &str, bytes: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => {
            let source = Source::new(name, text);
            for rule in rules::RULES {
                findings.extend((rule.find)(&source).into_iter().map(|(line, advice)| Finding {
                    file: name.to_owned(),
                    line,
                    rule: rule.name,
                    advice,
                }));
            }
        }
        _binary if name.ends_with(".png") => {}
        _binary => findings.push(Finding {
            file: name.to_owned(),
            line: 1,
            rule: "no-binaries",
            advice: "objects are built, not checked in: remove it".to_owned(),
        }),
    }
    findings
}

#[cfg(test)]
mod tests {
    /// The rules that `text`, as the content of `name`, breaks, with their lines.
    #[track_caller]
    fn check(name: &str, text: &str, expected: &[(usize, &str)]) {
        let found = super::check(name, text.as_bytes());
        let found: Vec<_> = found.iter().map(|finding| (finding.line, finding.rule)).collect();
        assert_eq!(found, expected, "{name}: {text:?}");
    }

    #[test]
    fn every_rule_finds_what_it_is_for() {
        let todo = concat!("//! A.\n// TO", "DO: later\n");
        check("agent/src/a.rs", todo, &[(2, "no-leftovers")]);
        check("agent/src/a.rs", concat!("//! A.\nfn f() { db", "g!(1); }\n"), &[(2, "no-leftovers")]);
        check("agent/src/a.rs", "//! A.\nfn f() { println!(); }\n", &[(2, "no-printing")]);
        check("agent/src/cli/a.rs", "//! A.\nfn f() { println!(); }\n", &[]);
        check("agent/src/a.rs", "fn f() {}\n", &[(1, "module-words")]);
        check("agent/src/a.rs", "//! A.\nuse anyhow::Result;\n", &[(2, "errors-have-names")]);
        check("agent/src/main.rs", "//! A.\nuse anyhow::Result;\n", &[]);
        check("agent/src/a.rs", "//! A.\n#[error(\"Cannot do it\")]\n", &[(2, "error-text")]);
        check("agent/src/a.rs", "//! A.\n#[error(\"cannot do it.\")]\n", &[(2, "error-text")]);
        check("agent/src/a.rs", "//! A.\n#[error(\"HTTP is broken\")]\n", &[]);
        check("agent/core/src/a.rs", "//! A.\nuse std::fs;\n", &[(2, "core-is-pure")]);
        check("agent/core/src/lib.rs", "//! A.\n", &[(1, "core-is-pure")]);
        check("agent/core/src/lib.rs", "//! A.\n#![forbid(unsafe_code)]\n", &[]);
        check("agent/src/a.rs", "//! A.\nfn f() { std::env::var(\"A\"); }\n", &[(2, "environment")]);
        check("agent/src/config/a.rs", "//! A.\nfn f() { std::env::var(\"A\"); }\n", &[]);
        check("tests/tests/a.rs", "//! A.\nfn f() { std::thread::sleep(D); }\n", &[(2, "no-sleep")]);
        check("tests/fixtures/a.py", "import time\ntime.sleep(1)\n", &[(2, "no-sleep")]);
        check("tests/tests/a.rs", concat!("//! A.\n#[ig", "nore]\n"), &[(2, "no-skipped-tests")]);
        check("a/b.sh", "echo\n", &[(1, "no-shell-scripts")]);
        check("a/b", "#!/bin/bash\necho\n", &[(1, "no-shell-scripts")]);
        check(".ci/run", "#!/usr/bin/env bash\nexec cargo xtask ci\n", &[]);
        check("README.md", concat!("see /ro", "ot/.cargo\n"), &[(1, "no-machine-paths")]);
        check("agent/src/a.rs", "//! A.\nfn f() { unsafe { g() } }\n", &[(2, "unsafe-says-why")]);
        check("agent/src/a.rs", "//! A.\n// SAFETY: g is fine.\nlet a = unsafe { g() };\n", &[]);
        check("agent/src/a.rs", concat!("//! A.\n#[al", "low(dead_code)]\n"), &[(2, "expect-not-allow")]);
        check("agent/Cargo.toml", "[dependencies]\nlibc = \"1\"\n", &[(2, "one-place-for-versions")]);
        check("agent/Cargo.toml", "[dependencies]\nlibc.workspace = true\n", &[]);
    }

    #[test]
    fn words_in_strings_and_comments_are_not_code() {
        check(
            "agent/src/a.rs",
            "//! A.\n// println! is for cli\nconst A: &str = \"unsafe { println! }\";\n",
            &[],
        );
        check("agent/src/a.rs", "//! A.\nconst A: &str = r#\"sleep(\" println!(\"#;\n", &[]);
        check("agent/src/a.rs", "//! A.\nfn f<'a>(a: &'a u8) { let b = '{'; let c = b'\\''; }\n", &[]);
    }

    #[test]
    fn long_things_are_found() {
        let body = "    a();\n".repeat(71);
        check("agent/src/a.rs", &format!("//! A.\nfn f() {{\n{body}}}\n"), &[(2, "function-length")]);
        let short = "    a();\n".repeat(60);
        check("agent/src/a.rs", &format!("//! A.\nfn f() {{\n{short}}}\nfn g() {{\n{short}}}\n"), &[]);
        let long = format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(520));
        check("agent/src/a.rs", &long, &[(1, "file-length")]);
        let tests = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "const A: u8 = 1;\n".repeat(520));
        check("agent/src/a.rs", &tests, &[]);
        check("agent/src/a/tests/b.rs", &"const A: u8 = 1;\n".repeat(520), &[]);
    }
}

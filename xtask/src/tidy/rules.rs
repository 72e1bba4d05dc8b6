//! The rules. Each finds lines (from 1) and says what to do there; the words of a rule that would match it are
//! written in two pieces here.

use super::source::Source;

/// Lines before the unit tests of a file.
const FILE_LINES_MAX: usize = 500;
/// Lines between a function's `fn` and its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// What a rule found: line and advice.
type Found = Vec<(usize, String)>;

/// One rule.
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) find: fn(&Source<'_>) -> Found,
}

/// All of them.
pub(super) const RULES: &[Rule] = &[
    Rule { name: "file-length", find: file_length },
    Rule { name: "function-length", find: function_length },
    Rule { name: "module-words", find: module_words },
    Rule { name: "no-leftovers", find: no_leftovers },
    Rule { name: "no-printing", find: no_printing },
    Rule { name: "errors-have-names", find: errors_have_names },
    Rule { name: "error-text", find: error_text },
    Rule { name: "core-is-pure", find: core_is_pure },
    Rule { name: "environment", find: environment },
    Rule { name: "no-sleep", find: no_sleep },
    Rule { name: "no-skipped-tests", find: no_skipped_tests },
    Rule { name: "no-shell-scripts", find: no_shell_scripts },
    Rule { name: "no-machine-paths", find: no_machine_paths },
    Rule { name: "unsafe-says-why", find: unsafe_says_why },
    Rule { name: "expect-not-allow", find: expect_not_allow },
    Rule { name: "one-place-for-versions", find: one_place_for_versions },
];

/// The lines among `lines` that contain one of `words`, each with the same advice.
fn containing<'l>(lines: impl Iterator<Item = (usize, &'l str)>, words: &[&str], advice: &str) -> Found {
    let hit = |line: &str| words.iter().any(|word| line.contains(word));
    lines.filter(|(_, line)| hit(line)).map(|(number, _)| (number, advice.to_owned())).collect()
}

fn file_length(source: &Source<'_>) -> Found {
    let lines = source.tested_code().count();
    if source.is_rust() && !source.is_in("tests/") && lines > FILE_LINES_MAX {
        return vec![(
            1,
            format!("{lines} lines before its tests, {FILE_LINES_MAX} at most: split it by its rooms"),
        )];
    }
    Vec::new()
}

/// Of what is tested; a test may be one long table.
fn function_length(source: &Source<'_>) -> Found {
    if source.is_in("tests/tests/") {
        return Vec::new();
    }
    let lines: Vec<_> = source.tested_code().collect();
    let mut found = Vec::new();
    for (number, line) in &lines {
        if !begins_function(line) {
            continue;
        }
        let mut depth = 0_usize;
        let mut length = 0_usize;
        'body: for (_, line) in lines.iter().skip(number - 1) {
            length += 1;
            for c in line.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth <= 1 => break 'body,
                    '}' => depth -= 1,
                    ';' if depth == 0 => break 'body,
                    _other => {}
                }
            }
        }
        if length > FUNCTION_LINES_MAX {
            let advice = format!("{length} lines, {FUNCTION_LINES_MAX} at most: a function fits a screen");
            found.push((*number, advice));
        }
    }
    found
}

/// `fn name` after nothing but qualifiers.
fn begins_function(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern"];
    words.by_ref().find(|word| !qualifiers.contains(word)) == Some("fn")
}

fn module_words(source: &Source<'_>) -> Found {
    let first = source.text.lines().find(|line| !line.starts_with("#!") && !line.trim().is_empty());
    match first {
        Some(line) if source.tested_code().next().is_some() && !line.starts_with("//!") => {
            vec![(1, "begin the file with `//!` and what it is for".to_owned())]
        }
        _other => Vec::new(),
    }
}

fn no_leftovers(source: &Source<'_>) -> Found {
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut found = if source.name.ends_with("package-lock.json") {
        Vec::new()
    } else {
        containing(
            source.lines(),
            &notes,
            "do it now, or open an issue and say in ARCHITECTURE.md what is missing",
        )
    };
    let macros = [concat!("db", "g!("), concat!("to", "do!("), concat!("unimpl", "emented!(")];
    found.extend(containing(source.code_lines(), &macros, "finish it"));
    found
}

fn no_printing(source: &Source<'_>) -> Found {
    let speaks = ["agent/src/cli", "agent/src/main.rs"].iter().any(|place| source.is_in(place));
    if !source.is_in("agent/src/") || speaks {
        return Vec::new();
    }
    containing(source.tested_code(), &["println!", "print!("], "use tracing; only the command line prints")
}

fn errors_have_names(source: &Source<'_>) -> Found {
    let may = ["agent/src/cli", "agent/src/main.rs"].iter().any(|place| source.is_in(place));
    if !source.is_in("agent/") || may {
        return Vec::new();
    }
    containing(
        source.tested_code(),
        &["anyhow"],
        "anyhow is for main, cli, xtask and tests: give the module its enum",
    )
}

fn error_text(source: &Source<'_>) -> Found {
    if !source.is_rust() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in source.lines() {
        let Some(text) = line.trim_start().strip_prefix("#[error(\"") else { continue };
        let Some(text) = text.strip_suffix("\")]") else { continue };
        let mut letters = text.chars();
        let capital =
            letters.next().is_some_and(char::is_uppercase) && letters.next().is_some_and(char::is_lowercase);
        if capital || text.ends_with('.') {
            found.push((number, "lowercase, no full stop, the input in backticks".to_owned()));
        }
    }
    found
}

fn core_is_pure(source: &Source<'_>) -> Found {
    if !source.is_in("agent/core/src/") {
        return Vec::new();
    }
    let words = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::time::",
        "std::thread",
        "std::env",
        "tokio",
        "async fn",
    ];
    let mut found = containing(
        source.tested_code(),
        &words,
        "core has no I/O, clock, thread or async: pass the value in",
    );
    if source.name == "agent/core/src/lib.rs" && !source.code.contains("#![forbid(unsafe_code)]") {
        found.push((1, "core begins with `#![forbid(unsafe_code)]`".to_owned()));
    }
    found
}

fn environment(source: &Source<'_>) -> Found {
    let may =
        ["agent/src/config", "agent/src/cli", "agent/src/main.rs"].iter().any(|place| source.is_in(place));
    if !source.is_in("agent/src/") || may {
        return Vec::new();
    }
    containing(source.tested_code(), &["env::var"], "only `config` reads the environment: pass the value in")
}

fn no_sleep(source: &Source<'_>) -> Found {
    let advice = "wait for the event itself; `toolgate_tests::wait` is the one place that polls";
    let words = ["sleep(", "setTimeout("];
    if source.is_in("tests/") && source.name != "tests/src/wait.rs" {
        return if source.is_rust() {
            containing(source.code_lines(), &words, advice)
        } else {
            containing(source.lines(), &words, advice)
        };
    }
    let tested = source.tested_code().count();
    containing(source.code_lines().skip(tested), &words, advice)
}

fn no_skipped_tests(source: &Source<'_>) -> Found {
    containing(
        source.code_lines(),
        &[concat!("#[ig", "nore")],
        "a test that cannot run fails: say what it needs",
    )
}

fn no_shell_scripts(source: &Source<'_>) -> Found {
    let first = source.text.lines().next().unwrap_or_default();
    let shell = first.starts_with("#!") && first.trim_end().ends_with("sh");
    let script = source.name.ends_with(".sh") || shell;
    let ci = source.name == ".ci/run" && source.text.lines().count() <= 2;
    if script && !ci {
        return vec![(
            1,
            "write it as a task of `cargo xtask`; `.ci/run` is the one script, of two lines".to_owned(),
        )];
    }
    Vec::new()
}

fn no_machine_paths(source: &Source<'_>) -> Found {
    let paths = [concat!("/ro", "ot/"), concat!("/wo", "rk/")];
    containing(
        source.lines(),
        &paths,
        "a path of one machine: name it relative to the workspace, or as an example",
    )
}

fn unsafe_says_why(source: &Source<'_>) -> Found {
    let lines: Vec<_> = source.lines().map(|(_, line)| line.trim_start()).collect();
    let mut found = Vec::new();
    for (number, line) in source.code_lines() {
        let block = line.contains("unsafe {") || line.contains("unsafe impl");
        // The comment stands above the statement that holds the block.
        let above = lines.iter().take(number).rev().take(12);
        if block && !above.clone().any(|line| line.contains("SAFETY:")) {
            found.push((number, "say above it in `// SAFETY: ...` why it is sound".to_owned()));
        }
    }
    found
}

fn expect_not_allow(source: &Source<'_>) -> Found {
    let words = [concat!("#[al", "low("), concat!("#![al", "low(")];
    containing(source.code_lines(), &words, "write `#[expect(.., reason = \"..\")]` at its place")
}

fn one_place_for_versions(source: &Source<'_>) -> Found {
    let member = source.name.ends_with("/Cargo.toml")
        && !["ebpf/Cargo.toml", "tests/fuzz/Cargo.toml"].contains(&source.name);
    if !member {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut dependencies = false;
    for (number, line) in source.lines() {
        if line.starts_with('[') {
            dependencies = line.contains("dependencies");
        } else if dependencies && line.contains('=') && !line.contains("workspace = true") {
            found.push((
                number,
                "versions stand in the workspace's Cargo.toml: `NAME.workspace = true`".to_owned(),
            ));
        }
    }
    found
}

//! Two definitions side by side, field by field, as a unified diff. Hidden characters are shown escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value as Json;
use similar::{ChangeTag, TextDiff};
use toolgate_core::mcp::json::{JsonLimits, Kind, Scratch, Value, validate};
use toolgate_core::pin::hidden;

use super::{called, digits, text};

/// Lines around a change.
const CONTEXT: usize = 3;
/// After that a difference is shown less finely.
const TIME_MAX: Duration = Duration::from_secs(2);
/// As deep as the agent reads at all.
const LIMITS: JsonLimits = JsonLimits { depth_max: 128, members_max: usize::MAX };

/// How a pending definition differs from what is approved under its name.
pub(super) fn words(pending: &Json, approved: Option<&Json>) -> String {
    let mut out = format!("{} {}\n", hidden::escaped(text(pending, "server")), called(pending));
    // Writing to a String cannot fail.
    let _ = match approved {
        Some(approved) => writeln!(
            out,
            "--- {} approved {} by {}",
            digits(approved),
            text(approved, "approved_at"),
            hidden::escaped(text(approved, "approved_by"))
        ),
        None => writeln!(out, "--- nothing approved"),
    };
    let (state, at, by) = match text(pending, "state") {
        "approved" => ("approved", "approved_at", "approved_by"),
        _ => ("pending, seen", "seen_at", "seen_by"),
    };
    let _ = writeln!(
        out,
        "+++ {} {state} {} by {}",
        digits(pending),
        text(pending, at),
        hidden::escaped(text(pending, by))
    );
    let (before, after) = (approved.map(|one| fields(text(one, "text"))), fields(text(pending, "text")));
    let before = before.unwrap_or_default();
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let field = |of: &BTreeMap<String, String>| of.get(key).cloned().unwrap_or_default();
        if before.get(key) != after.get(key) {
            let _ = writeln!(out, "@@ {} @@", hidden::escaped(key));
            difference(&field(&before), &field(&after), &mut out);
        }
    }
    if pending["hidden_characters"] == true {
        out += "hidden characters are shown as \\u{..}\n";
    }
    out.push('\n');
    out
}

fn difference(before: &str, after: &str, out: &mut String) {
    let diff = TextDiff::configure().timeout(TIME_MAX).diff_lines(before, after);
    let mut is_first = true;
    for group in diff.grouped_ops(CONTEXT) {
        if !std::mem::take(&mut is_first) {
            out.push_str(" ...\n");
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            let line = hidden::escaped(change.value());
            let _ = writeln!(out, "{sign}{}", line.trim_end_matches('\n')); // as above
        }
    }
}

/// The members of a definition, each as lines: text as it reads, anything else as JSON.
fn fields(canonical: &str) -> BTreeMap<String, String> {
    let mut scratch = Scratch::new();
    let Ok(value) = validate(canonical.as_bytes(), &mut scratch, &LIMITS) else {
        return BTreeMap::from([("definition".to_owned(), format!("{canonical}\n"))]);
    };
    match value.kind() {
        Kind::Object => value.members().map(|(key, value)| (key.into_owned(), lines(value))).collect(),
        Kind::String | Kind::Null | Kind::Bool | Kind::Number | Kind::Array => {
            BTreeMap::from([("text".to_owned(), lines(value))])
        }
    }
}

fn lines(value: Value<'_>) -> String {
    let mut text = match value.as_str() {
        Some(text) => text.into_owned(),
        None => indented(value.text()),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Canonical JSON, which has no white space, with a line for each member and element. Numbers stay as they are.
fn indented(json: &str) -> String {
    let mut out = String::with_capacity(2 * json.len());
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    let mut characters = json.chars().peekable();
    while let Some(character) = characters.next() {
        if in_string {
            in_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
            out.push(character);
            continue;
        }
        match character {
            '{' | '[' => {
                out.push(character);
                let is_empty = matches!(characters.peek(), Some('}' | ']'));
                if is_empty {
                    out.extend(characters.next());
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(',');
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            other => {
                in_string = other == '"';
                out.push(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition(state: &str, text: &str) -> Json {
        let hides = text.contains('\u{202e}');
        json!({ "server": "docs", "kind": "tool", "name": "search", "digest": "0123456789abcdef", "state": state,
            "text": text, "hidden_characters": hides, "seen_at": "then", "seen_by": "reader", "approved_at": "before",
            "approved_by": "root" })
    }

    #[test]
    fn fields_that_differ_are_shown_and_no_others() {
        let before = definition(
            "approved",
            r#"{"description":"Finds.\nOne\nTwo\nThree\nFour","inputSchema":{"a":9007199254740992,"b":[]},"name":"search"}"#,
        );
        let after = definition(
            "pending",
            "{\"annotations\":{\"x\":true},\"description\":\"Finds \u{202e}all.\\nOne\\nTwo\\nThree\\nFour\",\"inputSchema\":{\"a\":9007199254740993,\"b\":[]},\"name\":\"search\"}",
        );
        let expected = "docs tool search
--- 0123456789ab approved before by root
+++ 0123456789ab pending, seen then by reader
@@ annotations @@
+{
+  \"x\": true
+}
@@ description @@
-Finds.
+Finds \\u{202e}all.
 One
 Two
 Three
@@ inputSchema @@
 {
-  \"a\": 9007199254740992,
+  \"a\": 9007199254740993,
   \"b\": []
 }
hidden characters are shown as \\u{..}

";
        assert_eq!(words(&after, Some(&before)), expected);
        let new = words(&after, None);
        assert!(new.contains("--- nothing approved\n") && new.contains("@@ name @@\n+search\n"), "{new}");
        assert_eq!(words(&before, Some(&before)).lines().count(), 4, "nothing differs");
    }

    #[test]
    fn controls_do_nothing_to_a_terminal() {
        let evil = definition("pending", "\"\\u001b[2J\\u0007 \u{9b}2J\\r x\"");
        let shown = words(&evil, None);
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        assert!(shown.contains("+\\u{1b}[2J\\u{7} \\u{9b}2J\\r\n+ x\n"), "{shown:?}");
    }
}

//! What the demo prints.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use serde_json::Value;

use super::stage::{APP_ID, Stage};

/// Width of one of the two columns.
const COLUMN: usize = 52;
/// Lines of one result; the rest is cut.
const RESULT_LINES_MAX: usize = 8;
/// What of an audit line tells most; the file has more.
const AUDIT_FIELDS: [&str; 8] =
    ["caller", "target", "method", "tool", "decision", "reason", "rules", "status"];

/// What is running.
pub(super) fn heading(stage: &Stage<'_>) -> String {
    let server = stage.server;
    format!(
        "\n{}\n\n  \
         client  xtask/src/demo/client.py, on the official Python SDK; its URL is the server's own\n  \
         server  @modelcontextprotocol/server-everything at http://{server}/mcp\n  \
         policy  policies/examples/demo/resources\n",
        bold("One unmodified MCP client, started twice")
    )
}

/// Two outputs of the same program: blocks that belong together stand side by side.
pub(super) fn side_by_side(titles: [&str; 2], outputs: [&[String]; 2]) -> String {
    let [left, right] = outputs.map(blocks);
    let rule = "-".repeat(COLUMN);
    let mut out =
        format!("  {} | {}\n  {rule}-+-{rule}\n", bold(&format!("{:COLUMN$}", titles[0])), bold(titles[1]));
    for index in 0..left.len().max(right.len()) {
        if index > 0 {
            let _infallible = writeln!(out, "  {:COLUMN$} |", "");
        }
        let empty = Vec::new();
        let left = left.get(index).unwrap_or(&empty);
        let right = right.get(index).unwrap_or(&empty);
        for line in 0..left.len().max(right.len()) {
            let [left, right] = [left, right].map(|block| block.get(line).map_or("", String::as_str));
            let _infallible =
                writeln!(out, "  {} | {}", coloured(&format!("{left:COLUMN$}")), coloured(right));
        }
    }
    out
}

/// The blocks of an output, separated by empty lines, each line wrapped to the column.
fn blocks(lines: &[String]) -> Vec<Vec<String>> {
    let block = |lines: &[String]| {
        let mut wrapped: Vec<String> = lines.iter().flat_map(|line| wrap(line)).collect();
        if wrapped.len() > RESULT_LINES_MAX + 1 {
            wrapped.truncate(RESULT_LINES_MAX);
            wrapped.push("  ...".to_owned());
        }
        wrapped
    };
    lines.split(|line| line.is_empty()).filter(|lines| !lines.is_empty()).map(block).collect()
}

/// A line in pieces of the column's width, broken at spaces where there are any.
fn wrap(line: &str) -> Vec<String> {
    let indent = if line.starts_with(' ') { "  " } else { "" };
    let mut pieces = vec![indent.to_owned()];
    for word in line.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            let Some(piece) = pieces.last_mut() else { break };
            let used = piece.chars().count();
            let space = usize::from(used > indent.len());
            if used + space + word.len() <= COLUMN {
                piece.push_str(&" ".repeat(space));
                piece.extend(word.drain(..));
            } else if used == indent.len() {
                piece.extend(word.drain(..COLUMN - used));
            } else {
                pieces.push(indent.to_owned());
            }
        }
    }
    pieces
}

/// The audit lines, each reduced to the fields that tell most.
pub(super) fn audit(lines: &[Value]) -> String {
    let mut out = format!(
        "{}\n",
        bold("Audit: one line for each of the captured client's messages (some of its fields)")
    );
    for entry in lines {
        let mut shown = Vec::new();
        for field in AUDIT_FIELDS {
            let value = match field {
                "caller" => entry.pointer("/caller/app_id"),
                _other => entry.get(field),
            };
            let Some(value) = value.filter(|value| !value.is_null()) else { continue };
            shown.push(format!("\"{field}\":{value}"));
        }
        let _infallible = writeln!(out, "  {}", coloured(&format!("{{{}}}", shown.join(","))));
    }
    out
}

/// The request counters.
pub(super) fn metrics(reply: &str) -> String {
    let mut out = format!("{}\n", bold("Metrics: the same calls, counted"));
    for line in
        reply.lines().filter(|line| line.starts_with("toolgate_requests_total{") && line.contains(APP_ID))
    {
        let _infallible = writeln!(out, "  {line}");
    }
    out
}

/// The last line.
pub(super) fn footer() -> &'static str {
    "Nothing is left behind: no process, cgroup, BPF program, map, link or file."
}

fn bold(text: &str) -> String {
    paint("1", text)
}

/// A refusal in red, a result in green; on a terminal.
fn coloured(text: &str) -> String {
    let refused = ["  error:", "\"decision\":\"deny\""].iter().any(|mark| text.contains(mark));
    let permitted = ["  result:", "\"decision\":\"permit\""].iter().any(|mark| text.contains(mark));
    match (refused, permitted) {
        (true, _) => paint("31", text),
        (false, true) => paint("32", text),
        (false, false) => text.to_owned(),
    }
}

fn paint(code: &str, text: &str) -> String {
    let plain =
        !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

#[cfg(test)]
mod tests {
    use super::{COLUMN, blocks, side_by_side, wrap};

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn long_lines_are_wrapped_and_nothing_is_lost() {
        for line in ["", "a", "  result: b c", &"x".repeat(3 * COLUMN), &format!("  {}", "word ".repeat(40))]
        {
            let pieces = wrap(line);
            assert!(pieces.iter().all(|piece| piece.chars().count() <= COLUMN), "{pieces:?}");
            let bare = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(bare(&pieces.concat()), bare(line));
        }
    }

    #[test]
    fn blocks_stand_beside_each_other() {
        assert_eq!(blocks(&lines("a\n  b\n\nc\n")).len(), 2);
        let shown = side_by_side(["one", "two"], [&lines("a\n  1\n\nb"), &lines("a\n\nb")]);
        let rows: Vec<Vec<&str>> =
            shown.lines().skip(2).map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(rows, [["a", "a"], ["1", ""], ["", ""], ["b", "b"]]);
    }
}

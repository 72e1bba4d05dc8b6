//! `toolgate discover` for people: what no Server declares, and what to write about it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

use serde_json::Value;

/// Prints what the agent has found.
pub(super) fn print(answer: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return super::print_json(answer);
    }
    Ok(std::io::stdout().write_all(words(answer).as_bytes())?)
}

fn words(answer: &Value) -> String {
    let all = answer["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let untrusting = untrusting(&answer["untrusting"]);
    if all.is_empty() {
        return format!("no undeclared MCP server was seen since the agent started\n{untrusting}");
    }
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ =
        writeln!(out, "{:<20} {:<24} {:<16} {:>8}  TOOLS CALLED", "CALLER", "ADDRESS", "PATH", "MESSAGES");
    for one in all {
        let caller = one["caller"].as_str().unwrap_or("unidentified");
        let tools: Vec<&str> =
            one["tools"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        // What a server or its caller chose is shown on a terminal.
        let tools = tools.join(", ").escape_debug().to_string();
        let more = if one["more_tools"] == true { ", .." } else { "" };
        let (address, path) = (text(one, "address"), text(one, "path").escape_debug().to_string());
        let messages = &one["messages"];
        let _ = writeln!(out, "{caller:<20} {address:<24} {path:<16} {messages:>8}  {tools}{more}");
    }
    out.push_str("\nTo declare them, below `resources/`; then a Policy says who may what:\n");
    let places: BTreeSet<_> = all.iter().map(|one| (text(one, "address"), text(one, "path"))).collect();
    for (address, path) in places {
        out.push_str(&resource(&address, &path));
    }
    out + &untrusting
}

/// Whose TLS could not be read, and what to do about it.
fn untrusting(all: &Value) -> String {
    let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return String::new();
    }
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut out = format!(
        "\nTheir TLS is to be read, and they do not believe this node:\n{:<20} {:<32} {:>11}  HOW THEY PUT IT\n",
        "CALLER", "HOST", "CONNECTIONS"
    );
    for one in all {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<20} {:<32} {:>11}  {}",
            text(one, "caller"),
            text(one, "host").escape_debug().to_string(),
            one["connections"],
            text(one, "says").escape_debug()
        );
    }
    out.push_str(
        "Let the program believe it (`toolgate inspect trust`; one that ran before the agent was started anew is to be \
         restarted), or, where it takes certain certificates alone, leave the host alone: `capture.tls_exclude`\n",
    );
    out
}

/// The resource that declares it.
fn resource(address: &str, path: &str) -> String {
    let is_loopback = address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    let hint = if is_loopback { "" } else { "   # only where it runs on this host" };
    let name: String = address.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    // A path that was too long to be kept is for the operator to say.
    let path = if path.is_empty() { "/mcp" } else { path };
    let path = serde_json::to_string(path).unwrap_or_default();
    format!(
        "---
apiVersion: toolgate/v1
kind: Server
metadata: {{ name: mcp-{} }}
spec:
  local: {{ address: \"{address}\" }}{hint}
  path: {path}
",
        name.trim_matches('-')
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_shown_can_be_pasted() {
        let answer = json!({ "servers": [
            { "caller": "a", "address": "127.0.0.1:8931", "path": "/mcp", "tools": ["add", "x\u{202e}"],
              "more_tools": true, "messages": 3 },
            { "caller": null, "address": "127.0.0.1:8931", "path": "/mcp", "tools": [], "messages": 1 },
            { "caller": "a", "address": "[fd00::1]:80", "path": "", "tools": [], "messages": 1 },
        ] });
        let words = words(&answer);
        assert!(words.contains("add, x\\u{202e}, .."), "{words}");
        assert!(words.contains("unidentified"), "{words}");
        assert_eq!(words.matches("kind: Server").count(), 2, "one for each place: {words}");
        assert!(words.contains("metadata: { name: mcp-127-0-0-1-8931 }"), "{words}");
        assert!(words.contains("metadata: { name: mcp-fd00--1--80 }"), "{words}");
        assert!(words.contains("\"[fd00::1]:80\" }   # only where"), "{words}");
    }
}

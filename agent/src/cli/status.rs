//! `toolgate status` for people.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;

/// Prints what the agent said of itself.
pub(super) fn print(status: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return super::print_json(status);
    }
    Ok(std::io::stdout().write_all(words(status).as_bytes())?)
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn words(status: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "toolgate {} (pid {}), generation {}, {} sessions{}",
        text(status, "version"),
        status["pid"],
        status["generation"],
        status["sessions"],
        if status["observe"] == true { ", OBSERVING: policy denies nothing" } else { "" }
    );
    let cgroups: Vec<&str> = rows(&status["capture"]["cgroups"]).iter().filter_map(Value::as_str).collect();
    let captured = if cgroups.is_empty() { String::new() } else { format!(" and {}", cgroups.join(", ")) };
    let _ = writeln!(out, "captured: what `toolgate exec` starts{captured}");
    if let Some(invoke) = status["capture"]["invoke"].as_str() {
        let _ = writeln!(out, "by App ID: captured processes call servers at {invoke}, as at a Dapr sidecar");
    }
    if let Some(why) = status["unready"].as_str() {
        let _ = writeln!(out, "NOT READY: {why}");
    }
    if let Some(why) = status["identity_failing"].as_str() {
        let _ = writeln!(out, "IDENTITY: {why}; what there is goes on");
    }
    for bypass in rows(&status["bypasses"]) {
        let _ = writeln!(
            out,
            "BYPASS:   {} goes unchecked until {} ({} s left), by {}: {}",
            text(bypass, "cgroup"),
            text(bypass, "until"),
            bypass["seconds_left"],
            text(bypass, "by"),
            text(bypass, "reason")
        );
    }
    for (result, count) in status["capture"]["older"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "older than their capture: {count} connections ({result})");
    }
    let untrusting = rows(&status["untrusting"]).len();
    if untrusting > 0 {
        let _ =
            writeln!(out, "TLS:      {untrusting} clients do not believe this node: see `toolgate discover`");
    }
    for server in rows(&status["servers"]) {
        let _ = writeln!(
            out,
            "server:   {} at {}{}{}",
            text(server, "app_id"),
            text(server, "address"),
            text(server, "path"),
            pins(&server["pins"])
        );
        for endpoint in rows(&server["endpoints"]) {
            let _ = writeln!(out, "  endpoint {}", self::endpoint(endpoint));
        }
    }
    for error in rows(&status["refused_configuration"]).iter().filter_map(Value::as_str) {
        let _ = writeln!(out, "\na changed configuration was not taken over:\n{error}");
    }
    requests(&mut out, rows(&status["requests"]));
    recent(&mut out, rows(&status["recent"]));
    out
}

/// Where it is, how it is, and why.
fn endpoint(of: &Value) -> String {
    let state = text(of, "state").replace('_', " ");
    let left = of["seconds_left"].as_u64().map(|left| format!(" for {left} s yet")).unwrap_or_default();
    let reason = of["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
    let calls = of["outstanding"].as_u64().filter(|calls| *calls > 0);
    let calls = calls.map(|calls| format!(", {calls} calls")).unwrap_or_default();
    format!("{}: {state}{left}{calls}{reason}", text(of, "address"))
}

/// What of a server's definitions is approved.
fn pins(counts: &Value) -> String {
    if counts.is_null() {
        return String::new();
    }
    let (mode, changed) = (text(counts, "mode"), &counts["changed"]);
    let changed = if *changed == 0 { String::new() } else { format!(", {changed} CHANGED") };
    format!(", pins {mode}: {} approved, {} pending{changed}", counts["approved"], counts["pending"])
}

fn requests(out: &mut String, requests: &[Value]) {
    if requests.is_empty() {
        let _ =
            writeln!(out, "\nno messages yet; start a program with `toolgate exec --app-id NAME -- COMMAND`");
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<20} {:<16} {:<28} {:<16} {:<8} {:<20} {:>7}",
        "CALLER", "TARGET", "METHOD", "TOOL", "DECISION", "REASON", "COUNT"
    );
    let mut rows: Vec<&Value> = requests.iter().collect();
    rows.sort_by_key(|row| ["caller", "target", "method", "tool", "decision"].map(|key| text(row, key)));
    for row in rows {
        let _ = writeln!(
            out,
            "{:<20} {:<16} {:<28} {:<16} {:<8} {:<20} {:>7}",
            text(row, "caller"),
            text(row, "target"),
            text(row, "method"),
            text(row, "tool"),
            text(row, "decision"),
            text(row, "reason"),
            row["count"].to_string()
        );
    }
}

/// An undeclared server has no name yet: its address is what a Server resource would say.
fn target(line: &Value) -> String {
    match text(line, "target") {
        "undeclared" => format!("undeclared {}", text(line, "address")),
        declared => declared.to_owned(),
    }
}

fn recent(out: &mut String, recent: &[Value]) {
    if !recent.is_empty() {
        let _ = writeln!(out, "\nlast messages");
    }
    for line in recent {
        let caller = line["caller"]["app_id"].as_str().unwrap_or("unidentified");
        let tool = line["tool"].as_str().map(|tool| format!(" {tool}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "{}  {caller} -> {}  {}{tool}  {} ({})",
            text(line, "time"),
            target(line),
            text(line, "method"),
            text(line, "decision"),
            text(line, "reason")
        );
    }
}

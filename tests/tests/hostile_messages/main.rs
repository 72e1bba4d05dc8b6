//! Messages that two readers could read in two ways, or that ask for what they may not: each is refused in its own way and
//! does not reach the server, while its harmless twin does.
//!
//! - `json`: texts that are no JSON for everybody
//! - `envelope`: JSON that is no JSON-RPC message for everybody
//! - `http`: requests that are framed, routed or described in two ways
//! - `policy`: sound messages that ask for something else than they seem to

mod envelope;
mod http;
mod json;
mod policy;

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolgate_tests::http::Reply;
use toolgate_tests::scene::text;
use toolgate_tests::{Caller, Connection, Scene};

/// What this is about at least: more than one of each kind.
const ROWS_MIN: usize = 150;

/// One hostile request, and what is the same but for the hostility. Both are whole, but for `HOST`, which is the server's
/// address.
struct Row {
    name: String,
    hostile: Vec<u8>,
    twin: Vec<u8>,
    /// The twin's message.
    arrives: Vec<u8>,
    refusal: Refusal,
}

/// How the hostile one is refused.
#[derive(Clone, Copy)]
struct Refusal {
    told: Told,
    /// The audit's reason.
    reason: &'static str,
    /// What the audit's detail has in it.
    detail: &'static str,
}

/// What the client is told.
#[derive(Clone, Copy)]
enum Told {
    /// This status, and a JSON-RPC error of this code for nobody's id: then the connection ends.
    Broken(u16, i64),
    /// 200 and a result that is an error.
    ToolError,
    /// 200 and an error of Toolgate's own code.
    Error,
    /// This status and nothing that a client takes for an answer.
    Status(u16),
}

/// A POST of this message.
fn post(body: &[u8]) -> Vec<u8> {
    let head = "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n";
    [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// A connection of the caller's, opened anew when it was closed.
struct Client<'s> {
    scene: &'s Scene,
    caller: Caller,
    connection: Option<Connection>,
    opened: usize,
}

impl Client<'_> {
    fn reply(&mut self, request: &[u8]) -> Result<Reply> {
        if self.connection.is_none() {
            self.connection = Some(self.caller.http(self.scene.server.address)?);
            self.opened += 1;
        }
        let connection = self.connection.as_mut().context("no connection")?;
        connection.send(&with_host(request, &self.scene.server.address.to_string()))?;
        let reply = connection.reply()?;
        if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            ensure!(connection.rest()?.is_empty(), "something came behind the answer");
            self.connection = None;
        }
        Ok(reply)
    }
}

fn with_host(request: &[u8], host: &str) -> Vec<u8> {
    let mut rest = request;
    let mut whole = Vec::new();
    while let Some(at) = rest.windows(4).position(|window| window == b"HOST") {
        whole.extend_from_slice(&rest[..at]);
        whole.extend_from_slice(host.as_bytes());
        rest = &rest[at + 4..];
    }
    whole.extend_from_slice(rest);
    whole
}

fn refused(reply: &Reply, told: Told) -> Result<()> {
    let (status, code) = match told {
        Told::Broken(status, code) => (status, Some(code)),
        Told::ToolError => (200, None),
        Told::Error => (200, Some(-31403)),
        Told::Status(status) => (status, None),
    };
    ensure!(reply.status == status, "{} instead of {status}: {}", reply.status, reply.text());
    match (told, code) {
        (Told::ToolError, _) => {
            let message = reply.message()?;
            ensure!(message.pointer("/result/isError") == Some(&Value::Bool(true)), "{message}");
        }
        (_, Some(code)) => {
            let message = reply.message()?;
            ensure!(message.pointer("/error/code") == Some(&code.into()), "not {code}: {message}");
        }
        (_, None) => ensure!(!reply.text().contains("result"), "{}", reply.text()),
    }
    Ok(())
}

/// The hostile one, then its twin: the first thing that reaches the server is the twin.
fn check(row: &Row, client: &mut Client<'_>) -> Result<()> {
    let reply = client.reply(&row.hostile).context("hostile")?;
    refused(&reply, row.refusal.told)?;
    let broken = matches!(row.refusal.told, Told::Broken(..));
    ensure!(client.connection.is_none() == broken, "a broken request alone ends the connection");
    let reply = client.reply(&row.twin).context("twin")?;
    let is_served = match reply.status {
        200 => reply
            .message()?
            .get("result")
            .is_some_and(|result| result.get("isError") != Some(&Value::Bool(true))),
        status => status == 202,
    };
    ensure!(is_served, "the twin is refused: {} {}", reply.status, reply.text());
    // What is answered has arrived: so has whatever of the hostile one was let through.
    let arrived = client.scene.server.requests_now();
    let bodies: Vec<_> = arrived.iter().map(|request| request.body.escape_ascii().to_string()).collect();
    ensure!(bodies == [row.arrives.escape_ascii().to_string()], "this reached the server: {bodies:#?}");
    Ok(())
}

/// The audit has a line for each of the two, with the row's reason.
fn audited(row: &Row, lines: &[Value]) -> Result<()> {
    let [hostile, twin] = lines else { anyhow::bail!("{} lines", lines.len()) };
    ensure!(text(hostile, "decision") == "deny", "{hostile}");
    ensure!(text(hostile, "reason") == row.refusal.reason, "not {}: {hostile}", row.refusal.reason);
    ensure!(text(hostile, "detail").contains(row.refusal.detail), "not `{}`: {hostile}", row.refusal.detail);
    ensure!(text(twin, "decision") == "permit", "{twin}");
    Ok(())
}

#[test]
fn hostile_messages_are_refused_by_name_and_their_twins_arrive() -> Result<()> {
    let scene = Scene::set()?;
    let kinds = [
        ("json", json::rows()),
        ("envelope", envelope::rows()),
        ("http", http::rows()),
        ("policy", policy::rows()),
    ];
    let caller = scene.caller("reader")?;
    let mut client = Client { scene: &scene, caller, connection: None, opened: 0 };
    let (mut wrong, mut counts) = (Vec::new(), String::new());
    let rows: Vec<&Row> = kinds.iter().flat_map(|(_, rows)| rows).collect();
    for row in &rows {
        if let Err(error) = check(row, &mut client) {
            wrong.push(format!("{}: {error:#}", row.name));
            client.connection = None;
            // What a leak left behind is not the next row's.
            drop(scene.server.requests_now());
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(scene.server.requests_now().is_empty(), "something reached the server late");
    let lines = scene.agent.audit(2 * rows.len())?;
    for (row, lines) in rows.iter().zip(lines.chunks(2)) {
        if let Err(error) = audited(row, lines) {
            wrong.push(format!("{}: audit: {error:#}", row.name));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (kind, rows) in &kinds {
        counts += &format!("{kind} {}, ", rows.len());
    }
    // Not by `print!`, which shows only what fails.
    writeln!(std::io::stderr(), "{counts}in all {} on {} connections", rows.len(), client.opened)?;
    ensure!(rows.len() >= ROWS_MIN, "{} rows", rows.len());
    Ok(())
}

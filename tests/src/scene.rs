//! What most tests begin with: one server, and an agent whose policy lets two callers use some of it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::http::Reply;
use crate::{Agent, Caller, Connection, Server, Setup};

/// A server and an agent. Dropped in this order: agent, server.
#[derive(Debug)]
pub struct Scene {
    /// The agent.
    pub agent: Agent,
    /// The server, declared as `docs`.
    pub server: Server,
}

/// One Server, `docs`, and what `reader` and `writer` may do there. `stranger`, or anybody else, may nothing.
#[must_use]
pub fn resources(server: SocketAddr) -> String {
    format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: docs }}
spec:
  local: {{ address: \"{server}\" }}
  path: /mcp
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: docs }}
spec:
  rules:
  - name: plain-tools
    effect: allow
    callers: [reader, writer]
    servers: [docs]
    tools: [echo, stream, slow_count]
  - name: small-sums
    effect: allow
    callers: [reader]
    servers: [docs]
    tools: [add]
    arguments: {{ a: {{ max: 100 }}, b: {{ max: 100 }} }}
  - name: docs-only
    effect: allow
    callers: [reader]
    servers: [docs]
    tools: [read_file]
    arguments: {{ path: {{ within: /srv/docs }} }}
  - name: no-secrets
    effect: deny
    callers: [reader]
    servers: [docs]
    tools: [read_file]
    arguments: {{ path: {{ within: /srv/docs/secret }} }}
"
    )
}

impl Scene {
    /// Starts the server, then the agent with `resources`.
    ///
    /// # Errors
    /// One of them does not get ready.
    pub fn set() -> Result<Self> {
        Self::with("", false)
    }

    /// The same with a `capture` section and perhaps `--observe`.
    ///
    /// # Errors
    /// One of them does not get ready.
    pub fn with(capture: &str, observe: bool) -> Result<Self> {
        Self::with_setup(Setup { capture, observe, ..Setup::default() })
    }

    /// The same with all that a setup says but its resources.
    ///
    /// # Errors
    /// One of them does not get ready.
    pub fn with_setup(setup: Setup<'_>) -> Result<Self> {
        let server = Server::start()?;
        let agent = Agent::start(Setup { resources: &resources(server.address), ..setup })?;
        Ok(Self { agent, server })
    }

    /// A captured process with that App ID.
    ///
    /// # Errors
    /// `toolgate exec` fails.
    pub fn caller(&self, app_id: &str) -> Result<Caller> {
        self.agent.caller(app_id)
    }

    /// A connection of `reader` to the server.
    ///
    /// # Errors
    /// It is refused.
    pub fn reader(&self) -> Result<(Caller, Connection)> {
        let mut caller = self.caller("reader")?;
        let connection = caller.http(self.server.address)?;
        Ok((caller, connection))
    }

    /// Proves that nothing but `expected` has reached the server: sends one more call, which is permitted, and looks
    /// what arrived before it.
    ///
    /// # Errors
    /// The call is denied, or something else arrived.
    pub fn nothing_reached_the_server(&self, connection: &mut Connection) -> Result<()> {
        let marker = call(9999, "echo", &json!({ "text": "marker" }));
        let reply = connection.post(&marker)?;
        ensure!(is_result(&reply)?, "the marker was denied: {}", reply.text());
        let first = self.server.request()?;
        ensure!(first.body == marker, "this reached the server: {}\n{}", first.head, first.json());
        Ok(())
    }
}

/// A `tools/call` message.
#[must_use]
pub fn call(id: u64, tool: &str, arguments: &Value) -> Vec<u8> {
    message(id, "tools/call", &json!({ "name": tool, "arguments": arguments }))
}

/// A request.
#[must_use]
pub fn message(id: u64, method: &str, params: &Value) -> Vec<u8> {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string().into_bytes()
}

/// `initialize`, as a client of 2025-11-25 sends it.
#[must_use]
pub fn initialize() -> Vec<u8> {
    let client = json!({ "name": "test", "version": "1" });
    message(
        0,
        "initialize",
        &json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client }),
    )
}

/// A result that is no error?
///
/// # Errors
/// The reply has no message.
pub fn is_result(reply: &Reply) -> Result<bool> {
    let message = reply.message()?;
    let is_error = message.pointer("/result/isError").and_then(Value::as_bool).unwrap_or_default();
    Ok(reply.status == 200 && message.get("result").is_some() && !is_error)
}

/// A text of an audit line, e.g. `caller/app_id`.
#[must_use]
pub fn text<'l>(line: &'l Value, pointer: &str) -> &'l str {
    line.pointer(&format!("/{pointer}")).and_then(Value::as_str).unwrap_or_default()
}

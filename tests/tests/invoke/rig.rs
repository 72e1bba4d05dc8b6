//! A server, an agent that takes calls by App ID, and requests to any path.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::Value;
use toolgate_tests::http::Reply;
use toolgate_tests::{Caller, Connection, Scene, Setup, free_address};

/// A scene, and where calls by App ID come there.
pub(crate) struct Stage {
    pub(crate) scene: Scene,
    pub(crate) door: SocketAddr,
}

impl Stage {
    pub(crate) fn set(setup: Setup<'_>) -> Result<Self> {
        let door = free_address()?;
        Ok(Self { scene: Scene::with_setup(Setup { invoke: Some(door), ..setup })?, door })
    }

    /// A captured process with that App ID, and its connection.
    pub(crate) fn caller(&self, app_id: &str) -> Result<(Caller, Connection)> {
        let mut caller = self.scene.caller(app_id)?;
        let connection = caller.http(self.door)?;
        Ok((caller, connection))
    }
}

/// Sends a request; `headers` are whole lines, each with its CRLF. Without a Host among them, it is `host`.
pub(crate) fn ask(
    connection: &mut Connection,
    host: SocketAddr,
    (method, target): (&str, &str),
    headers: &str,
    body: &[u8],
) -> Result<Reply> {
    let own = if headers.contains("Host: ") { String::new() } else { format!("Host: {host}\r\n") };
    let content = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let accept = "Accept: application/json, text/event-stream\r\n";
    let head = format!("{method} {target} HTTP/1.1\r\n{own}{accept}{headers}{content}\r\n");
    connection.send(&[head.as_bytes(), body].concat())?;
    connection.reply()
}

/// That an answer is an error as Dapr puts it, and says this.
pub(crate) fn is_dapr_error(reply: &Reply, status: u16, part: &str) -> Result<()> {
    let said: Value = serde_json::from_slice(&reply.body)?;
    let message = said["message"].as_str().unwrap_or_default();
    let fits = reply.status == status && said["errorCode"] == "ERR_DIRECT_INVOKE" && message.contains(part);
    ensure!(fits, "not {status} with `{part}`: {} {}", reply.status, reply.text());
    ensure!(reply.header("content-type") == Some("application/json"), "{}", reply.head);
    Ok(())
}

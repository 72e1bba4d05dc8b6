//! What is asked and answered: one `tools/call`, as large as is wanted.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;

/// What a request carries, and how its reply comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// One long text; the reply is JSON.
    Text,
    /// Many small members; the reply is JSON.
    Structured,
    /// One long text; the reply is one server-sent event.
    Sse,
}

/// Says to the upstream which reply is wanted.
pub(crate) const REPLY_HEADER: &str = "x-reply";

impl Kind {
    /// As in [`REPLY_HEADER`].
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Structured => "structured",
            Self::Sse => "sse",
        }
    }

    /// What that header says; `Text` where it says nothing.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "structured" => Self::Structured,
            "sse" => Self::Sse,
            _other => Self::Text,
        }
    }
}

/// A request as it goes over the wire, its body of `bytes`.
pub(crate) fn request(kind: Kind, bytes: usize, host: &str, app_id: Option<&str>) -> Vec<u8> {
    let body = match kind {
        Kind::Text | Kind::Sse => padded(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":""#,
            "x",
            r#""}}}"#,
            bytes,
        ),
        Kind::Structured => items(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"store","arguments":{"items":["#,
            "]}}}",
            bytes,
        ),
    };
    let by_app_id = app_id.map(|app_id| format!("dapr-app-id: {app_id}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {host}\r\n{by_app_id}Content-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-06-18\r\n\
         {REPLY_HEADER}: {}\r\nContent-Length: {}\r\n\r\n",
        kind.as_str(),
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// What comes on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Flow {
    /// Nothing once it is open.
    Silent,
    /// A small event each second, numbered, with its time.
    Seconds,
    /// Events as fast as they are taken.
    Flood,
}

impl Flow {
    /// As in [`REPLY_HEADER`].
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Seconds => "seconds",
            Self::Flood => "flood",
        }
    }

    /// What that header says; `Silent` where it says nothing.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "seconds" => Self::Seconds,
            "flood" => Self::Flood,
            _other => Self::Silent,
        }
    }
}

/// The request that opens a stream.
pub(crate) fn stream_request(host: &str, flow: Flow) -> Vec<u8> {
    format!(
        "GET /mcp HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\nMCP-Protocol-Version: 2025-06-18\r\n\
         {REPLY_HEADER}: {}\r\n\r\n",
        flow.as_str()
    )
    .into_bytes()
}

/// One event as a chunk: a notification with its number, its time in nanoseconds of CLOCK_MONOTONIC, and padding.
pub(crate) fn event(number: u64, at_ns: i64, padding: usize) -> Vec<u8> {
    let padding = "x".repeat(padding);
    let event = format!(
        "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{{\"level\":\"info\",\
         \"data\":{{\"number\":{number},\"at_ns\":{at_ns},\"padding\":\"{padding}\"}}}}}}\n\n"
    );
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// CLOCK_MONOTONIC, which both ends share.
pub(crate) fn now_ns() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("no clock")?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// A reply as it goes over the wire, as large as the request that it answers.
pub(crate) fn reply(kind: Kind, bytes: usize) -> Vec<u8> {
    let text = || {
        padded(
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#,
            "x",
            r#""}]}}"#,
            bytes,
        )
    };
    let (content_type, body) = match kind {
        Kind::Text => ("application/json", text()),
        Kind::Structured => (
            "application/json",
            items(
                r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"structuredContent":{"items":["#,
                "]}}}",
                bytes,
            ),
        ),
        Kind::Sse => ("text/event-stream", format!("event: message\ndata: {}\n\n", text())),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n");
    match kind {
        Kind::Text | Kind::Structured => format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
        Kind::Sse => {
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
        }
    }
    .into_bytes()
}

/// What a stream begins with, and is open from then on.
pub(crate) const STREAM_REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Transfer-Encoding: chunked\r\n\r\n8\r\n: open\n\n\r\n";

fn padded(front: &str, with: &str, back: &str, bytes: usize) -> String {
    let left = bytes.saturating_sub(front.len() + back.len());
    format!("{front}{}{back}", with.repeat(left))
}

fn items(front: &str, back: &str, bytes: usize) -> String {
    let mut text = front.to_owned();
    let mut number = 0;
    while text.len() + back.len() < bytes {
        let comma = if number == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            r#"{comma}{{"id":{number},"name":"item {number}","tags":["a","b\n"],"price":1.5e1,"ok":true}}"#
        );
        number += 1;
    }
    text + back
}

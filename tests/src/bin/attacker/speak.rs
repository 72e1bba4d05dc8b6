//! The words that an attempt says once it is connected: one call of the tool that has its name.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::ask::{At as _, Stopped, Tried, stopped};

/// Nobody answers within that: the attempt was met with silence.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);
/// Bytes of a reply, at most.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Whether more is to be said on a connection.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    More,
    /// The other end is asked to close it.
    Nothing,
}

/// The request. `Host` is what the server of the tests is declared with.
pub(crate) fn request(tool: &str, host: &str, then: Then) -> Vec<u8> {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#
    );
    let close = if let Then::Nothing = then { "Connection: close\r\n" } else { "" };
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{close}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head, body].concat().into_bytes()
}

/// Calls the tool and reads the answer.
pub(crate) fn call(mut stream: TcpStream, tool: &str, host: &str, then: Then) -> Tried {
    stream.set_nonblocking(false).at("blocking")?;
    stream.write_all(&request(tool, host, then)).at("write")?;
    answer(stream)
}

/// Reads a whole reply: `answered STATUS BODY`.
pub(crate) fn answer(mut stream: TcpStream) -> Tried {
    stream.set_read_timeout(Some(SILENCE)).at("timeout")?;
    let mut bytes = Vec::new();
    loop {
        if let Some(whole) = whole(&bytes) {
            return Ok(whole);
        }
        let mut some = [0; 4096];
        let read = stream.read(&mut some).at("read")?;
        if read == 0 || bytes.len() > REPLY_BYTES_MAX {
            return Err(ended_early(&bytes));
        }
        bytes.extend_from_slice(some.get(..read).unwrap_or_default());
    }
}

fn ended_early(bytes: &[u8]) -> Stopped {
    if bytes.is_empty() {
        return Stopped::from_errno("read", libc::ECONNRESET);
    }
    stopped("read", format!("the reply breaks off: {}", String::from_utf8_lossy(bytes).escape_debug()))
}

/// The reply in one line, if it is all there.
fn whole(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let status = head.split(' ').nth(1).unwrap_or("?");
    (body.len() >= length.unwrap_or(0)).then(|| format!("answered {status} {}", body.escape_debug()))
}

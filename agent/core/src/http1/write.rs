//! What leaves the agent: exactly one framing, no hop-by-hop header, nothing that only the agent may say.

use super::head::{RequestHead, ResponseHead};
use super::headers::{Headers, Line};
use super::invoked::Addressed;
use super::name::Name;
use super::own::OwnHeader;
use std::ops::Range;

/// Between a chunk's data and the next chunk's size.
pub const CHUNK_END: &[u8] = b"\r\n";
/// Ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How a reply's body will be framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// No body, or one that ends with the connection.
    None,
}

/// What of a request's head differs from what its caller sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes<'t> {
    /// It resumes a stream of the caller's own: the id of the last event goes with it, which it otherwise does not.
    pub resumes: bool,
    /// The line that comes in the place of the caller's `traceparent`; empty: that one goes on.
    pub traceparent: &'t str,
    /// Who is asked, in the place of what the caller's `Host` says; empty: that one goes on.
    pub host: &'t str,
    /// It was addressed by App ID, and how: what only addresses does not go on.
    pub invoked: Option<Addressed>,
    /// What stands before its target at the server; empty: nothing.
    pub base: &'t str,
    /// What the server gets in the place of the caller's headers of those names.
    pub own: &'t [OwnHeader],
}

/// Appends the head of a request as it leaves the agent: method, target and headers byte for byte in order, without
/// what holds for one hop alone, what a caller may not say, and what asks for an encoded reply. Says of the caller's own
/// headers which go, and what comes in their place.
pub fn write_request_head(
    out: &mut Vec<u8>,
    head: &RequestHead<'_>,
    framing: Outgoing,
    changes: Changes<'_>,
) {
    let Changes { resumes, traceparent, host, invoked, base, own } = changes;
    let is_dropped = |name, written: &[u8]| {
        matches!(name, Name::NotForwarded | Name::Expect)
            || (name == Name::LastEventId && !resumes)
            || (name == Name::Traceparent && !traceparent.is_empty())
            || (name == Name::Host && !host.is_empty())
            || invoked.is_some_and(|addressed| addressed.ends(name))
            || own.iter().any(|own| own.is(written))
    };
    for part in [head.method, " ", base, head.target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if !host.is_empty() {
        for part in ["Host: ", host, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    headers(out, &head.headers, is_dropped);
    own.iter().for_each(|own| own.write(out));
    out.extend_from_slice(traceparent.as_bytes());
    end(out, framing);
}

/// Appends the head of a reply as it leaves the agent, by the same rules. `close` says that the connection ends
/// after it.
pub fn write_response_head(out: &mut Vec<u8>, head: &ResponseHead<'_>, framing: Outgoing, close: bool) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(out, u64::from(head.status));
    out.push(b' ');
    out.extend_from_slice(head.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    headers(out, &head.headers, |_name, _written| false);
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    end(out, framing);
}

/// Appends the size line of a chunk of `bytes`, which must not be 0.
pub fn write_chunk_head(out: &mut Vec<u8>, bytes: usize) {
    debug_assert_ne!(bytes, 0, "a chunk of 0 bytes ends the body");
    let digits = (bytes.max(1).ilog2() / 4 + 1) as usize;
    let digit =
        |place: usize| b"0123456789abcdef".get(bytes >> (4 * place) & 15).copied().unwrap_or_default();
    out.extend((0..digits).rev().map(digit));
    out.extend_from_slice(b"\r\n");
}

fn headers(out: &mut Vec<u8>, headers: &Headers<'_>, is_dropped: impl Fn(Name, &[u8]) -> bool) {
    // Collecting what Connection names costs more than asking each time: most heads name `keep-alive` or nothing.
    let names_some = headers.connection().any(|token| !token.eq_ignore_ascii_case(b"keep-alive"));
    let is_named =
        |name: &[u8]| names_some && headers.connection().any(|token| token.eq_ignore_ascii_case(name));
    let head = headers.head();
    out.reserve(head.len());
    // Lines that follow one another are copied at once.
    let mut run = 0..0;
    let copy = |out: &mut Vec<u8>, run: Range<usize>| {
        out.extend_from_slice(head.get(run).unwrap_or_default());
    };
    for Line { name, value, known, plain } in headers.lines() {
        if known.ends_here() || is_dropped(known, name) || is_named(name) {
            continue;
        }
        match plain {
            Some(line) if line.start == run.end => run.end = line.end,
            Some(line) => copy(out, std::mem::replace(&mut run, line)),
            None => {
                copy(out, std::mem::take(&mut run));
                for part in [name, b": ", value, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
        }
    }
    copy(out, run);
}

fn end(out: &mut Vec<u8>, framing: Outgoing) {
    match framing {
        Outgoing::Length(bytes) => {
            out.extend_from_slice(b"Content-Length: ");
            decimal(out, bytes);
            out.extend_from_slice(b"\r\n\r\n");
        }
        Outgoing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
        Outgoing::None => out.extend_from_slice(b"\r\n"),
    }
}

fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let start = out.len();
    loop {
        out.push(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

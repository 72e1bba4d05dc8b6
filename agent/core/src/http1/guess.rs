//! Whether a connection speaks HTTP/1, by its first bytes.

/// What the first bytes of a connection tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// Something else, such as TLS.
    No,
    /// More bytes are needed.
    Maybe,
    /// A request line, well-formed or not: it must be parsed strictly.
    Yes,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 3.3): it may carry anything that HTTP/1.1 may.
    Http2,
}

/// What a connection of HTTP/2 begins with (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No registered method is longer (`UPDATEREDIRECTREF` has 17).
const METHOD_BYTES_MAX: usize = 32;

/// Whether the first bytes of a connection are an HTTP/1 request: a method, a space and what a target begins with.
///
/// Lenient on purpose: what a lenient server takes for a request must not pass as something else. A known method
/// needs no target, line ends before it are skipped, a tab counts as a space.
#[must_use]
pub fn looks_like_http(prefix: &[u8]) -> Guess {
    if prefix.starts_with(PREFACE) {
        return Guess::Http2;
    }
    if PREFACE.starts_with(prefix) {
        return Guess::Maybe;
    }
    let start = prefix.iter().take_while(|&&b| b == b'\r' || b == b'\n').count();
    let line = prefix.get(start..).unwrap_or_default();
    let length = line.iter().take_while(|&&b| super::headers::is_token(b)).count();
    let (method, rest) = line.split_at_checked(length).unwrap_or((line, &[]));
    let Some(&separator) = rest.first() else {
        return if length > METHOD_BYTES_MAX { Guess::No } else { Guess::Maybe };
    };
    if length == 0 || length > METHOD_BYTES_MAX || !matches!(separator, b' ' | b'\t') {
        return Guess::No;
    }
    if matches!(method, b"GET" | b"POST" | b"PUT" | b"DELETE" | b"PATCH" | b"HEAD" | b"OPTIONS" | b"PRI") {
        return Guess::Yes;
    }
    let spaces = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let target = rest.get(spaces..).unwrap_or_default();
    match target.first() {
        None => Guess::Maybe,
        Some(b'/' | b'*') => Guess::Yes,
        // `host:port`, which other protocols with a CONNECT (NATS, STOMP) do not have.
        Some(b'[' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') if method.eq_ignore_ascii_case(b"CONNECT") => {
            Guess::Yes
        }
        Some(_) => scheme(target),
    }
}

fn scheme(target: &[u8]) -> Guess {
    let length = target.len().min(4);
    let same = target
        .get(..length)
        .unwrap_or_default()
        .eq_ignore_ascii_case(b"http".get(..length).unwrap_or_default());
    match (same, length) {
        (true, 4) => Guess::Yes,
        (true, _) => Guess::Maybe,
        (false, _) => Guess::No,
    }
}

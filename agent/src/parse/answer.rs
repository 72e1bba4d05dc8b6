//! What the agent says in a server's place, as bytes.

use std::io::{self, IoSlice};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use toolgate_core::denial::Answer;

pub(super) fn answer_head(answer: &Answer, close: bool) -> Vec<u8> {
    use std::io::Write as _;
    let mut head = Vec::with_capacity(192);
    let reason = reason_phrase(answer.status);
    // Writing to a Vec cannot fail.
    let _ = write!(head, "HTTP/1.1 {} {reason}\r\n", answer.status);
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if let Some(content_type) = answer.content_type {
        let _ = write!(head, "Content-Type: {content_type}\r\n");
    }
    let connection = if close { "Connection: close\r\n" } else { "" };
    if answer.status != 204 {
        let _ = write!(head, "Content-Length: {}\r\n", answer.body.len()); // RFC 9110 8.6
    }
    let _ = write!(head, "{connection}\r\n");
    head
}

/// Of a status that this agent answers with; clients go by the number.
fn reason_phrase(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default()
}

/// Writes all of `parts`.
///
/// # Errors
/// As the connection's.
pub async fn write_all_vectored<W: AsyncWrite + Unpin>(
    io: &mut W,
    mut parts: &mut [IoSlice<'_>],
) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let count = io.write_vectored(parts).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut parts, count);
    }
    io.flush().await // what TLS keeps back
}

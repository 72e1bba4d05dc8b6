//! Traffic that is not MCP, on its permitted way to where the client wanted it: requests with bodies that are
//! streamed, and bytes that nobody reads.

use std::io::IoSlice;
use std::pin::pin;

use crate::deadline::timeout;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use toolgate_core::decision::{Passage, Permitted};
use toolgate_core::http1::{self, Changes, Framing, Guess, Outgoing};

use super::undeclared::still_open;
use super::{ForwardError, Undeclared, Upstream};
use crate::body::Body;
use crate::buffer::BLOCK_BYTES;
use crate::limits::Limits;
use crate::parse::{BodyAt, Client, HeadAt, Stream};

/// Waits for the first byte of either side. `None`: one of them left without a word.
///
/// A server that speaks first speaks no HTTP; a client that does is looked at.
pub async fn first_to_speak<S: Stream>(
    _permitted: &Permitted<Passage>,
    client: &mut Client<S>,
    upstream: &mut Upstream,
    limits: &Limits,
) -> Option<Guess> {
    let Upstream { io, buffer, .. } = upstream;
    // Behind a proxy's answer it may have spoken already.
    let speaking = async { if buffer.is_empty() { buffer.fill(io, BLOCK_BYTES).await } else { Ok(1) } };
    tokio::select! {
        biased;
        guess = client.guess(limits.client_idle_max) => guess,
        spoken = speaking => matches!(spoken, Ok(1..)).then_some(Guess::No),
    }
}

/// Speaks TLS with the server of a permitted passage in the place of its client, whose own is read.
///
/// # Errors
/// [`ForwardError`]: it is not who the client means, or speaks no TLS.
pub async fn secure(
    _permitted: &Permitted<Passage>,
    upstream: Upstream,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    to.secured(upstream, limits).await
}

/// Sends a request whose head was read; its body too, or as it comes.
///
/// # Errors
/// [`ForwardError`]; the server may have got a part.
pub async fn pass<S: Stream>(
    _permitted: &Permitted<Passage>,
    client: &mut Client<S>,
    head: &HeadAt,
    body: Option<BodyAt>,
    own: Option<Upstream>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let mut upstream = still_open(own, to, limits).await?;
    let broken = |error: crate::parse::Broken| ForwardError::ClientBody { problem: error.to_string() };
    match body {
        None => stream_request(client, head, &mut upstream, limits).await?,
        // Its chunks were joined, so its framing is another now; or an offer of HTTP/2 must not go on.
        Some(body) if head.offers_http2 || matches!(body, BodyAt::Joined(_)) => {
            let (request, mut watch) = client.request(head, &body).map_err(broken)?;
            let sent =
                watch.unless_left(pin!(upstream.write_request(&request, Changes::default(), limits))).await;
            sent.unwrap_or(Err(ForwardError::ClientLeft))?;
            client.done(head, &body);
        }
        Some(body) => {
            let (mut watch, buffer) = client.watched();
            let length = if let BodyAt::InPlace(length) = body { length } else { 0 };
            let mut parts = [IoSlice::new(&buffer.bytes()[..head.bytes + length])];
            let sent = watch.unless_left(pin!(upstream.write(&mut parts, limits))).await;
            sent.unwrap_or(Err(ForwardError::ClientLeft))?;
            client.done(head, &body);
        }
    }
    Ok(upstream)
}

/// Sends the head as it came, then the body run by run, in the framing that the client chose, until the server replies.
async fn stream_request<S: Stream>(
    client: &mut Client<S>,
    head: &HeadAt,
    upstream: &mut Upstream,
    limits: &Limits,
) -> Result<(), ForwardError> {
    let broken = |problem: &str| ForwardError::ClientBody { problem: problem.to_owned() };
    client.go_ahead(head, usize::MAX).await.map_err(|error| broken(&error.to_string()))?;
    let chunked = matches!(head.framing, Framing::Chunked);
    // An offer of HTTP/2 does not go on.
    let written = client.kept_head().filter(|_| head.offers_http2).map(|kept| {
        let framing = match head.framing {
            Framing::Length(bytes) => Outgoing::Length(bytes),
            Framing::Chunked => Outgoing::Chunked,
            Framing::None | Framing::UntilClose => Outgoing::None,
        };
        let mut written = Vec::new();
        http1::write_request_head(&mut written, &kept, framing, Changes::default());
        written
    });
    let (io, buffer) = client.parts();
    let first = written.as_deref().unwrap_or(&buffer.bytes()[..head.bytes]);
    upstream.write(&mut [IoSlice::new(first)], limits).await?;
    buffer.consume(head.bytes);
    let mut body = Body::new(head.framing);
    let mut out = Vec::new();
    while !body.is_done() && !upstream.cut {
        let run = body.next(buffer.bytes()).map_err(|e| broken(&e.to_string()))?;
        let consumed = run.consumed;
        if !run.data.is_empty() {
            out.clear();
            let mut end: &[u8] = b"";
            if chunked {
                http1::write_chunk_head(&mut out, run.data.len());
                end = http1::CHUNK_END;
            }
            let mut parts = [IoSlice::new(&out), IoSlice::new(run.data), IoSlice::new(end)];
            upstream.write(&mut parts, limits).await?;
        }
        buffer.consume(consumed);
        if consumed == 0 && !body.is_done() {
            let more = timeout(limits.client_idle_max, upstream.unless_spoken(buffer.fill(io, BLOCK_BYTES)));
            if !matches!(more.await, Ok(Some(Ok(1..)) | None)) {
                return Err(broken("the client left"));
            }
        }
    }
    // A body that was not read to its end leaves bytes that are no request: this connection cannot go on.
    upstream.cut |= !body.is_done();
    if chunked && !upstream.cut {
        upstream.write(&mut [IoSlice::new(http1::LAST_CHUNK)], limits).await?;
    }
    Ok(())
}

/// Passes bytes both ways until both sides end; what was read before goes first. Returns bytes (sent, received).
pub async fn relay<S: Stream>(
    _permitted: &Permitted<Passage>,
    client: &mut Client<S>,
    upstream: &mut Upstream,
) -> (u64, u64) {
    let (io, buffer) = client.parts();
    let (sent, received) = (buffer.bytes().len(), upstream.buffer.bytes().len());
    let first = async {
        upstream.io.write_all(buffer.bytes()).await?;
        io.write_all(upstream.buffer.bytes()).await
    };
    if first.await.is_err() {
        return (0, 0);
    }
    buffer.consume(sent);
    upstream.buffer.consume(received);
    // How it ends is the two sides' affair; what went through is what is recorded.
    let (more_sent, more_received) = copy_bidirectional(io, &mut upstream.io).await.unwrap_or_default();
    (sent as u64 + more_sent, received as u64 + more_received)
}

//! Replies that are read when they are whole: where they lie in the read buffer, if that can be.

use std::ops::Range;

use toolgate_core::http1::{self, ChunkedDecoder, Framing, HttpError, Name, Outgoing, ResponseHead};
use toolgate_core::mcp::json::Value;
use toolgate_core::mcp::{self, Envelope, Owed, sse};

use super::client::ToClient;
use super::content::is_success;
use super::shown::{self, Shown};
use super::{Exchange, Fault, McpExchange, Next, Reply, SCRATCH, message, server_left};
use crate::body::Body;
use crate::buffer::{BLOCK_BYTES, PARKED_BYTES, Scratch};
use crate::deadline::timeout;
use crate::limits::{Limit, Limits};
use crate::parse::Stream;

/// Where a reply lies in the read buffer.
pub(super) enum Placed {
    /// All of it: its body without framing, and where it ends.
    Whole { text: Range<usize>, end: usize },
    /// So far in one piece.
    Partly,
    /// Its body is in pieces, or ends with the connection.
    Scattered,
}

/// Where the body is that begins behind `head_bytes` of `bytes`.
pub(super) fn placed(framing: Framing, head_bytes: usize, bytes: &[u8]) -> Result<Placed, HttpError> {
    match framing {
        Framing::None => Ok(Placed::Whole { text: head_bytes..head_bytes, end: head_bytes }),
        Framing::Length(length) => {
            let end = usize::try_from(length).ok().and_then(|length| head_bytes.checked_add(length));
            let end = end.filter(|end| *end <= bytes.len());
            Ok(end.map_or(Placed::Partly, |end| Placed::Whole { text: head_bytes..end, end }))
        }
        Framing::Chunked => one_chunk(head_bytes, bytes),
        Framing::UntilClose => Ok(Placed::Scattered),
    }
}

fn one_chunk(head_bytes: usize, bytes: &[u8]) -> Result<Placed, HttpError> {
    let mut decoder = ChunkedDecoder::new();
    let (mut at, mut text) = (head_bytes, head_bytes..head_bytes);
    loop {
        let decoded = decoder.decode(&bytes[at..])?;
        at += decoded.consumed;
        match (decoded.data.len(), text.is_empty()) {
            (0, _) => {}
            (length, true) => text = at - length..at,
            (_, false) => return Ok(Placed::Scattered),
        }
        if decoded.done {
            return Ok(Placed::Whole { text, end: at });
        }
        if decoded.consumed == 0 {
            return Ok(Placed::Partly);
        }
    }
}

/// A reply that was read whole.
enum Whole {
    InBuffer { text: Range<usize>, end: usize },
    Joined { head: Scratch, text: Scratch },
}

impl<S: Stream> Reply<'_, '_, S> {
    /// A reply of which a part is still to come.
    pub(super) async fn held(&mut self, head_bytes: usize, framing: Framing) -> Result<(), Fault> {
        let limits = self.exchange.limits;
        let is_shown = self.exchange.mcp.as_ref().is_some_and(|mcp| mcp.shown().is_some());
        let reading = self.read_whole(head_bytes, framing);
        let whole = if is_shown {
            let limit = limits.list_time_max;
            timeout(limit, reading).await.map_err(|_| Fault::Slow(limit, Limit::ListTime))??
        } else {
            reading.await?
        };
        let buffer = &self.upstream.buffer;
        let (head, text, held) = match &whole {
            Whole::InBuffer { text, .. } => (buffer.bytes(), &buffer.bytes()[text.clone()], buffer.held()),
            Whole::Joined { head, text } => (&head[..], &text[..], buffer.held() + text.capacity()),
        };
        let parsed = http1::response_head(head, self.exchange.http_method, &limits.head())?;
        let head = parsed.ok_or_else(server_left)?;
        self.next = self.client.deliver(&head, text, held, self.exchange).await?;
        if let Whole::InBuffer { end, .. } = whole {
            self.upstream.buffer.consume(end);
        }
        Ok(())
    }

    /// Reads a reply of at most `reply_bytes_max`, in the read buffer as long as its body is in one piece.
    async fn read_whole(&mut self, head_bytes: usize, framing: Framing) -> Result<Whole, Fault> {
        let limits = self.exchange.limits;
        let length = if let Framing::Length(length) = framing { length } else { 0 };
        // What is too large by its own account is not waited for.
        let length = fitting(usize::try_from(length).unwrap_or(usize::MAX), limits)?;
        let room = (head_bytes + length).max(BLOCK_BYTES);
        loop {
            let bytes = self.upstream.buffer.bytes();
            match placed(framing, head_bytes, bytes)? {
                Placed::Whole { text, end } => return Ok(Whole::InBuffer { text, end }),
                Placed::Partly if bytes.len() < room => {}
                Placed::Partly | Placed::Scattered => return self.join(head_bytes, framing).await,
            }
            if !self.more_of_held(0, room).await? {
                return Err(server_left());
            }
        }
    }

    /// Puts a body together that is in pieces.
    async fn join(&mut self, head_bytes: usize, framing: Framing) -> Result<Whole, Fault> {
        let (mut head, mut text, mut body) = (Scratch::default(), Scratch::default(), Body::new(framing));
        head.vec().extend_from_slice(&self.upstream.buffer.bytes()[..head_bytes]);
        self.upstream.buffer.consume(head_bytes);
        while !body.is_done() {
            let run = body.next(self.upstream.buffer.bytes())?;
            fitting(text.len() + run.data.len(), self.exchange.limits)?;
            text.vec().extend_from_slice(run.data);
            let consumed = run.consumed;
            self.upstream.buffer.consume(consumed);
            let is_waiting = consumed == 0 && !body.is_done();
            if is_waiting && !self.more_of_held(text.capacity(), BLOCK_BYTES).await? && !body.end() {
                return Err(server_left());
            }
        }
        Ok(Whole::Joined { head, text })
    }

    /// Waits for more of a reply that is held, of which so many bytes are `joined` already. False: the server closed.
    async fn more_of_held(&mut self, joined: usize, bytes_max: usize) -> Result<bool, Fault> {
        let buffer = &self.upstream.buffer;
        let is_parked = buffer.bytes().len() <= PARKED_BYTES;
        let held = joined + if is_parked { 0 } else { buffer.held() };
        if held > PARKED_BYTES {
            self.client.charge.at_least(held)?;
        }
        let limit = self.exchange.limits.reply_idle_max;
        timeout(limit, self.more(bytes_max)).await.map_err(|_| Fault::Slow(limit, Limit::ReplyIdle))?
    }
}

/// The length of a reply that is not too large to be held.
fn fitting(length: usize, limits: &Limits) -> Result<usize, Fault> {
    let bytes_max = limits.reply_bytes_max;
    let too_large = Fault::TooLarge { what: "reply", bytes_max, limit: Limit::ReplyBytes };
    if length <= bytes_max { Ok(length) } else { Err(too_large) }
}

impl<S: Stream> ToClient<'_, S> {
    /// Sends a reply that is whole, if it is what its request is owed, as the caller may see it. `held`: bytes that are
    /// held meanwhile. A page that shows nothing is not sent: it tells where the list goes on.
    pub(super) async fn deliver(
        &mut self,
        head: &ResponseHead<'_>,
        text: &[u8],
        held: usize,
        exchange: &Exchange<'_>,
    ) -> Result<Option<Next>, Fault> {
        fitting(text.len(), exchange.limits)?;
        let mut shown = Vec::new();
        let mut all = held;
        let text = match admitted(head, text, exchange)? {
            None => text,
            Some((what, reply, mcp)) => {
                all += text.len();
                if text.len() > BLOCK_BYTES {
                    self.charge.at_least(all)?;
                }
                shown.reserve(text.len());
                if let Some(next) = shown::show(reply, what, mcp, exchange.limits, &mut shown).await? {
                    return Ok(Some(next));
                }
                &shown
            }
        };
        if exchange.begun.get() {
            return self.end_with(text, all).await.map(|()| None);
        }
        let outgoing = Outgoing::Length(text.len() as u64);
        http1::write_response_head(self.out.vec(), head, outgoing, exchange.close);
        self.with(text, b"", all).await.map(|()| None)
    }

    /// Sends a message as the last event of the client's stream.
    async fn end_with(&mut self, text: &[u8], held: usize) -> Result<(), Fault> {
        let mut event = Vec::with_capacity(text.len() + 64);
        sse::with_data(b"event: message\ndata:\n\n", text, &mut event);
        self.run(&event, true, held).await?;
        self.with(b"", http1::LAST_CHUNK, held + event.len()).await
    }
}

/// Whether a whole reply is what its request is owed, and what of it must be shown in another way.
fn admitted<'t, 'e>(
    head: &ResponseHead<'_>,
    text: &'t [u8],
    exchange: &'t Exchange<'e>,
) -> Result<Option<(Shown, Value<'t>, &'t McpExchange<'e>)>, Fault> {
    let Some(mcp) = &exchange.mcp else { return Ok(None) };
    let succeeds = is_success(head.status);
    let must_answer = succeeds && matches!(mcp.owed, Owed::Answer { .. });
    if text.is_empty() {
        return if must_answer { Err(Fault::NoAnswer { status: head.status }) } else { Ok(None) };
    }
    match message(text, "reply", exchange.limits) {
        Ok((message, reply, input)) => {
            mcp.owed.admits(&message, !succeeds)?;
            mcp.admits(&input, "reply")?;
            let has_result = matches!(message, Envelope::Response { is_error: false, .. });
            if has_result {
                mcp.bind_task(reply, &input)?;
                if mcp.expected.initialize {
                    mcp.agreed(reply, head.headers.only(Name::McpSessionId)?)?;
                }
            }
            Ok(mcp.shown().filter(|_| has_result).map(|what| (what, reply, mcp)))
        }
        Err(fault) if must_answer || could_be_read(text, head, exchange.limits)? => Err(fault),
        // What failed, or had nothing to answer, may say what it likes.
        Err(_) => Ok(None),
    }
}

/// Whether some client could take for a message what is none.
fn could_be_read(text: &[u8], head: &ResponseHead<'_>, limits: &Limits) -> Result<bool, HttpError> {
    let content_type = head.headers.only(Name::ContentType)?.unwrap_or_default();
    Ok(SCRATCH.with_borrow_mut(|scratch| mcp::could_be_json_rpc(text, content_type, scratch, &limits.json())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a reply whose head is `HEAD`, byte by byte as it comes: its body and end when it is whole.
    fn check(framing: Framing, body: &str, expected: Option<(&str, usize)>) {
        let bytes = ["HEAD", body].concat().into_bytes();
        for count in 4..=bytes.len() {
            let found = match placed(framing, 4, &bytes[..count]).unwrap() {
                Placed::Whole { text, end } => Some((std::str::from_utf8(&bytes[text]).unwrap(), end)),
                Placed::Partly | Placed::Scattered => None,
            };
            let is_due = expected.is_some_and(|(_, end)| count >= end);
            assert_eq!(found, expected.filter(|_| is_due), "{count} bytes of {body:?}");
        }
    }

    #[test]
    fn a_reply_is_whole_when_its_last_byte_has_come() {
        check(Framing::Length(3), "abcBEYOND", Some(("abc", 7)));
        check(Framing::Length(0), "BEYOND", Some(("", 4)));
        check(Framing::Length(u64::MAX), "abc", None);
        check(Framing::Chunked, "3;x=y\r\nabc\r\n0\r\nLate: 1\r\n\r\nBEYOND", Some(("abc", 30)));
        check(Framing::Chunked, "0\r\n\r\nBEYOND", Some(("", 9)));
        check(Framing::Chunked, "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", None);
        check(Framing::UntilClose, "abc", None);
        assert!(placed(Framing::Chunked, 0, b"3\r\nabcd").is_err());
    }
}

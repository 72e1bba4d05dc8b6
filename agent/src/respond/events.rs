//! Server-sent events: each goes on when it is whole, its envelope read.

use std::cell::RefCell;
use std::io::IoSlice;

use toolgate_core::http1;
use toolgate_core::mcp::{self, Envelope, Method, json, sse};

use super::shown::{self, Shown};
use super::{Exchange, Fault, QUEUED_BYTES_MAX, Reply, TOGETHER_BYTES_MAX, put_chunk, unreadable, write};
use crate::body::Body;
use crate::buffer::{BLOCK_BYTES, Scratch};
use crate::limits::Limit;
use crate::parse::Stream;

thread_local! {
    static SCRATCH: RefCell<json::Scratch> = RefCell::new(json::Scratch::default());
}

/// What becomes of an event.
enum Judged {
    Kept,
    Replaced(Vec<u8>),
    /// A server request that no rule permits.
    Withheld,
}

impl<S: Stream> Reply<'_, S> {
    pub(super) async fn events(&mut self, body: &mut Body) -> Result<(), Fault> {
        let mut splitter = sse::Splitter::new(self.exchange.limits.event_bytes_max);
        let mut held = Scratch::default();
        loop {
            let mut consumed = 0;
            if !body.is_done() {
                let run = body.next(self.upstream.buffer.bytes())?;
                held.vec().extend_from_slice(run.data);
                consumed = run.consumed;
                self.upstream.buffer.consume(consumed);
            }
            self.whole_events(&mut splitter, &mut held).await?;
            if body.is_done() {
                break;
            }
            if consumed == 0 {
                self.flush_beside(held.capacity()).await?;
                // What the client was slow to take is no longer held.
                self.charge.release();
                self.charge.at_least(held.capacity())?;
                self.wait(body, true).await?;
            }
            if held.len() > BLOCK_BYTES {
                self.charge.at_least(held.capacity())?;
            }
        }
        // What is left is no whole event: a client would drop it (WHATWG HTML, 9.2.6).
        self.out.vec().extend_from_slice(http1::LAST_CHUNK);
        self.flush().await
    }

    /// Sends every event that is whole, and keeps the rest.
    async fn whole_events(&mut self, splitter: &mut sse::Splitter, held: &mut Scratch) -> Result<(), Fault> {
        let mut start = 0;
        while let Some(span) = splitter.next(&held[start..]).map_err(|error| unsplittable(&error))? {
            let event = &held[start..start + span.bytes];
            match judge(event, self.exchange).await? {
                Judged::Kept => self.event(event, held.capacity()).await?,
                Judged::Replaced(event) => self.event(&event, held.capacity() + event.len()).await?,
                Judged::Withheld => {}
            }
            start += span.bytes;
        }
        if start == held.len() {
            held.clear(); // an idle stream holds nothing
            self.charge.release();
        } else {
            held.vec().drain(..start);
        }
        Ok(())
    }

    async fn event(&mut self, event: &[u8], held: usize) -> Result<(), Fault> {
        if event.len() <= TOGETHER_BYTES_MAX {
            put_chunk(self.out.vec(), event);
            self.queued += event.len();
            return if self.out.len() < QUEUED_BYTES_MAX { Ok(()) } else { self.flush_beside(held).await };
        }
        self.begun = true;
        http1::write_chunk_head(self.out.vec(), event.len());
        let mut parts = [IoSlice::new(&self.out), IoSlice::new(event), IoSlice::new(http1::CHUNK_END)];
        write(self.client, &mut self.charge, held, &mut parts, self.exchange.limits).await?;
        self.wrote(event.len());
        Ok(())
    }
}

fn unsplittable(error: &sse::SseError) -> Fault {
    match *error {
        sse::SseError::TooLarge { event_bytes_max: bytes_max } => {
            Fault::TooLarge { what: "event", bytes_max, limit: Limit::EventBytes }
        }
        sse::SseError::ByteOrderMark => unreadable("event", &error.to_string()),
    }
}

async fn judge(event: &[u8], exchange: &Exchange<'_>) -> Result<Judged, Fault> {
    let Some(mcp) = &exchange.mcp else { return Ok(Judged::Kept) };
    // Comments, and events without data, which prime a resumable stream (MCP 2025-11-25, transports).
    let Some(data) = sse::data(event).filter(|data| !data.is_empty()) else { return Ok(Judged::Kept) };
    let limits = exchange.limits.json();
    let envelope = SCRATCH.with_borrow_mut(|scratch| mcp::reply_envelope(&data, scratch, &limits));
    match envelope.map_err(|error| unreadable("event", &error.to_string()))? {
        (Envelope::Notification(_), _) => Ok(Judged::Kept),
        (Envelope::Request(method_name, _), _) => {
            if Method::from_name(&method_name) == Method::Ping {
                return Ok(Judged::Kept);
            }
            (mcp.on_server_request)(&method_name);
            Ok(if mcp.observe { Judged::Kept } else { Judged::Withheld })
        }
        (Envelope::Response { .. }, reply) => {
            let Some(what) = mcp.shown() else { return Ok(Judged::Kept) };
            let mut shown = Vec::with_capacity(data.len());
            shown::show(reply, what, exchange, &mut shown).await?;
            let mut replaced = Vec::with_capacity(event.len());
            sse::with_data(event, &shown, &mut replaced);
            Ok(Judged::Replaced(replaced))
        }
    }
}

/// Appends a reply as the caller may see it.
pub(super) async fn show_whole(
    text: &[u8],
    what: Shown,
    exchange: &Exchange<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let limits = exchange.limits.json();
    let read = SCRATCH.with_borrow_mut(|scratch| mcp::reply_envelope(text, scratch, &limits));
    let (_, reply) = read.map_err(|error| unreadable("list", &error.to_string()))?;
    shown::show(reply, what, exchange, out).await
}

//! Server-sent events: each goes on when it is whole, and its envelope was read.

use std::sync::Arc;
use std::time::Instant;

use toolgate_core::http1;
use toolgate_core::mcp::json::Value;
use toolgate_core::mcp::{Envelope, Input, Lists, Method, sse};

use super::client::put_chunk;
use super::{
    Asking, Exchange, Fault, McpExchange, Next, Reply, Seen, message, server_left, shown, unreadable,
};
use crate::body::Body;
use crate::buffer::{BLOCK_BYTES, Scratch};
use crate::deadline::timeout;
use crate::events::Given;
use crate::limits::{Limit, Limits};
use crate::parse::{Client, Stream};
use crate::views::View;

/// What becomes of an event.
pub(super) enum Judged {
    Kept,
    Replaced(Vec<u8>),
    /// A request of the server's that may not pass, or news of another caller's task.
    Withheld,
    /// A page of a list that shows the caller nothing, and is not the last.
    Next(Next),
}

impl<S: Stream> Reply<'_, '_, S> {
    pub(super) async fn events(&mut self, body: &mut Body) -> Result<(), Fault> {
        let mut answered = false;
        let passed = self.each_event(body, &mut answered).await;
        let Err(fault) = passed else { return Ok(()) };
        // Who has its answer may leave: SDKs do not wait for the end of the stream that it came in.
        if self.has_answer && matches!(fault, Fault::ClientLeft) {
            self.abandoned = true;
            return Ok(());
        }
        // What came before goes on, unless all can be told by the status.
        if fault.is_refusal() && (answered || self.client.seen != Seen::Nothing) && self.flush().await.is_ok()
        {
            let owed = self.exchange.mcp.as_ref().and_then(|mcp| mcp.owed.answer());
            let unanswered = (!answered || self.next.is_some()) && owed.is_some();
            self.client.seen = Seen::Events { unanswered };
        }
        Err(fault)
    }

    async fn each_event(&mut self, body: &mut Body, answered: &mut bool) -> Result<(), Fault> {
        let mut splitter = sse::Splitter::new(self.exchange.limits.event_bytes_max);
        let (mut held, mut given, mut until) = (Scratch::default(), None, None);
        let mut view = self.exchange.mcp.as_ref().and_then(|mcp| mcp.view.take());
        loop {
            let mut consumed = 0;
            if !body.is_done() {
                let run = body.next(self.upstream.buffer.bytes())?;
                held.vec().extend_from_slice(run.data);
                consumed = run.consumed;
                self.upstream.buffer.consume(consumed);
            }
            self.whole_events(&mut splitter, &mut held, answered, &mut given, view.as_deref()).await?;
            if body.is_done() {
                break;
            }
            if self.next.is_some() {
                if consumed == 0 && !self.ends_soon(body, &mut until).await? {
                    break;
                }
            } else if consumed == 0 {
                self.client.flush(held.capacity()).await?;
                self.has_answer = *answered;
                // What the client was slow to take is no longer held.
                self.client.charge.release();
                self.client.charge.at_least(held.capacity())?;
                match view.as_deref_mut().filter(|_| !*answered) {
                    Some(view) => self.wait_in_view(body, view).await?,
                    None => self.wait(body, true).await?,
                }
            }
            if held.len() > BLOCK_BYTES {
                self.client.charge.at_least(held.capacity())?;
            }
        }
        if self.next.is_some() {
            return self.goes_on().await;
        }
        // What is left is no whole event: a client would drop it (WHATWG HTML, 9.2.6).
        self.client.out.vec().extend_from_slice(http1::LAST_CHUNK);
        self.flush().await
    }

    /// Waits for more of a stream, or until its caller may see other lists: then it is told so, between two events.
    async fn wait_in_view(&mut self, body: &mut Body, view: &mut View<'_>) -> Result<(), Fault> {
        let changed = tokio::select! {
            biased; // a busy server holds up nothing
            changed = view.changed() => changed,
            more = self.more(BLOCK_BYTES) => {
                return if more? || body.end() { Ok(()) } else { Err(server_left()) };
            }
        };
        let subscription = self.exchange.mcp.as_ref().and_then(|mcp| mcp.expected.subscription());
        for message in changed.changed(subscription) {
            let event = format!("event: message\ndata: {message}\n\n");
            self.client.run(event.as_bytes(), true, event.len()).await?;
        }
        view.told();
        Ok(())
    }

    /// Waits for a moment for a stream to end whose page is not shown: then its connection can take the next request. False:
    /// that it does not, and is of no use any more.
    async fn ends_soon(&mut self, body: &mut Body, until: &mut Option<Instant>) -> Result<bool, Fault> {
        let now = Instant::now();
        let left = until.get_or_insert(now + self.exchange.limits.linger_time_max).duration_since(now);
        let more = if left.is_zero() { None } else { timeout(left, self.more(BLOCK_BYTES)).await.ok() };
        let Some(more) = more else {
            self.abandoned = true;
            return Ok(false);
        };
        if more? || body.end() { Ok(true) } else { Err(server_left()) }
    }

    /// The client's stream goes on with the next page, if it has begun.
    async fn goes_on(&mut self) -> Result<(), Fault> {
        if self.client.takes_back() {
            return Ok(());
        }
        self.exchange.begun.set(true);
        self.flush().await
    }

    /// Sends every event that is whole, and keeps the rest.
    async fn whole_events(
        &mut self,
        splitter: &mut sse::Splitter,
        held: &mut Scratch,
        answered: &mut bool,
        given: &mut Option<Arc<Given>>,
        view: Option<&View<'_>>,
    ) -> Result<(), Fault> {
        let mut start = 0;
        while let Some(span) = splitter.next(&held[start..]).map_err(|error| unsplittable(&error))? {
            let event = &held[start..start + span.bytes];
            match judge(event, self.exchange, self.opened.as_deref(), answered, view).await? {
                Judged::Kept => {
                    self.give(event, given);
                    self.event(event, held.capacity()).await?;
                }
                Judged::Replaced(event) => {
                    self.give(&event, given);
                    self.event(&event, held.capacity() + event.len()).await?;
                }
                Judged::Withheld => {}
                Judged::Next(next) => self.next = Some(next),
            }
            start += span.bytes;
        }
        if start == held.len() {
            held.clear(); // an idle stream holds nothing
            self.client.charge.release();
        } else {
            held.vec().drain(..start);
        }
        Ok(())
    }

    /// Its id, if it has one, is this caller's from here on.
    fn give(&self, event: &[u8], given: &mut Option<Arc<Given>>) {
        let (Some(mcp), Some(id)) = (&self.exchange.mcp, sse::id(event)) else { return };
        let session = self.opened.as_deref().or(mcp.expected.session());
        let server = &mcp.server.identity;
        let open = || mcp.bindings.events.open(mcp.caller, server, session, mcp.expected.owes());
        mcp.bindings.events.give(given.get_or_insert_with(open), id, Instant::now());
    }

    pub(super) async fn event(&mut self, event: &[u8], held: usize) -> Result<(), Fault> {
        self.client.run(event, true, held).await?;
        if self.client.is_full() { self.client.flush(held).await } else { Ok(()) }
    }
}

pub(super) fn unsplittable(error: &sse::SseError) -> Fault {
    match *error {
        sse::SseError::TooLarge { event_bytes_max: bytes_max } => {
            Fault::TooLarge { what: "event", bytes_max, limit: Limit::EventBytes }
        }
        sse::SseError::ByteOrderMark => unreadable("event", &error.to_string()),
    }
}

/// `opened`: the session that this reply opens.
async fn judge(
    event: &[u8],
    exchange: &Exchange<'_>,
    opened: Option<&str>,
    answered: &mut bool,
    view: Option<&View<'_>>,
) -> Result<Judged, Fault> {
    let Some(mcp) = &exchange.mcp else { return Ok(Judged::Kept) };
    // Comments, and events without data, which prime a resumable stream (MCP 2025-11-25, transports).
    let Some(data) = sse::data(event).filter(|data| !data.is_empty()) else { return Ok(Judged::Kept) };
    let (message, reply, input) = message(&data, "event", exchange.limits)?;
    mcp.owed.admits_event(&message, *answered)?;
    match message {
        Envelope::Notification(method) => {
            let judged = mcp.told(&method, reply, &input)?;
            let is_ack = Method::from_name(&method) == Method::SubscriptionsAcknowledged;
            if let (Judged::Kept, Some(view)) = (&judged, view.filter(|_| is_ack)) {
                view.acknowledged(mcp.expected.listens.and(Lists::listened(reply.get("params"))));
            }
            Ok(judged)
        }
        Envelope::Request(method_name, id) => {
            let may_ask = (mcp.may_ask)(Asking::Request { method: &method_name, id: &id, opened });
            Ok(if may_ask { Judged::Kept } else { Judged::Withheld })
        }
        Envelope::Response { is_error, .. } => {
            let judged = mcp.answered((event, &data), reply, &input, is_error, exchange.limits).await?;
            if !is_error && mcp.expected.initialize {
                mcp.agreed(reply, opened)?;
            }
            *answered = true;
            Ok(judged)
        }
    }
}

impl McpExchange<'_> {
    /// What becomes of a notification.
    pub(super) fn told(
        &self,
        method: &str,
        notification: Value<'_>,
        input: &Input<'_>,
    ) -> Result<Judged, Fault> {
        if !self.may_be_told(method, notification) {
            return Ok(Judged::Withheld);
        }
        match self.admits(input, "event") {
            Err(Fault::Asks { .. }) => Ok(Judged::Withheld),
            admitted => admitted.map(|()| Judged::Kept),
        }
    }

    /// What becomes of the answer, the data of an event.
    pub(super) async fn answered(
        &self,
        (event, data): (&[u8], &[u8]),
        reply: Value<'_>,
        input: &Input<'_>,
        is_error: bool,
        limits: &Limits,
    ) -> Result<Judged, Fault> {
        self.admits(input, "event")?;
        if is_error {
            return Ok(Judged::Kept);
        }
        self.bind_task(reply, input)?;
        let Some(what) = self.shown() else { return Ok(Judged::Kept) };
        let mut shown = Vec::with_capacity(data.len());
        if let Some(next) = shown::show(reply, what, self, limits, &mut shown).await? {
            return Ok(Judged::Next(next));
        }
        let mut replaced = Vec::with_capacity(event.len());
        sse::with_data(event, &shown, &mut replaced);
        Ok(Judged::Replaced(replaced))
    }
}

/// A message as an event.
pub(super) fn as_event(message: &[u8]) -> Vec<u8> {
    [b"event: message\ndata: ", message, b"\n\n"].concat()
}

/// Ends an event stream in the server's place, with one more message where the client still waits for its answer. False:
/// the client has left.
pub async fn end_events<S: Stream>(client: &mut Client<S>, message: Option<&[u8]>, limits: &Limits) -> bool {
    let mut out = Vec::new();
    if let Some(message) = message {
        put_chunk(&mut out, &as_event(message));
    }
    out.extend_from_slice(http1::LAST_CHUNK);
    client.write(&mut [std::io::IoSlice::new(&out)], limits).await.is_ok()
}

//! The stream on which a server answers what is sent to its endpoint (MCP 2024-11-05, HTTP with SSE): it begins with that
//! endpoint, and each answer on it belongs to a request that waits.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use toolgate_core::denial::{self, Reason};
use toolgate_core::http1;
use toolgate_core::mcp::endpoint::endpoint;
use toolgate_core::mcp::json::Value;
use toolgate_core::mcp::{Envelope, Id, Input, NotOwed, Owed, sse};
use toolgate_core::pin::Mode;

use super::events::{Judged, as_event, unsplittable};
use super::{Asking, Fault, McpExchange, PinExchange, Reply, Seen, message};
use crate::body::Body;
use crate::buffer::{BLOCK_BYTES, Scratch};
use crate::deadline::timeout;
use crate::endpoints::{Endpoints, Outcome, Paired, Request, RequestId};
use crate::limits::Limits;
use crate::parse::Stream;

/// What such a stream has to do with what is sent to its endpoint.
pub struct PairedExchange<'a> {
    /// Where its endpoint is named.
    pub endpoints: &'a Endpoints,
    /// What waits for it.
    pub paired: &'a Arc<Paired>,
    /// All of the node's pins, and what is to be told of the next answer.
    pub pins: PinExchange<'a>,
    /// Records what an answer has shown, and says what of that its request's record should tell.
    pub found: &'a dyn Fn() -> Option<String>,
}

/// What becomes of an event, and of the request that it answers.
struct Answered {
    judged: Judged,
    answer: Option<(RequestId, Option<(Reason, String)>)>,
}

impl From<Judged> for Answered {
    fn from(judged: Judged) -> Self {
        Self { judged, answer: None }
    }
}

impl<S: Stream> Reply<'_, '_, S> {
    /// Passes the stream on, with what is said in its server's place between its events. However it ends, who waits for an
    /// answer is told, if the client can still be told anything.
    pub(super) async fn paired(
        &mut self,
        body: &mut Body,
        mcp: &McpExchange<'_>,
        with: &PairedExchange<'_>,
    ) -> Result<(), Fault> {
        let ended = self.each_paired(body, mcp, with).await;
        let (reason, detail) = match &ended {
            Ok(()) => (Reason::ServerFault, "the server has ended its stream".to_owned()),
            Err(fault) => (fault.reason(), fault.to_string()),
        };
        let last = with.paired.close(reason, &detail);
        let is_told = match &ended {
            Ok(()) => true,
            // What came before goes on, unless all can be told by the status.
            Err(fault) => fault.ends_between_events() && self.client.seen != Seen::Nothing,
        };
        if !is_told {
            return ended;
        }
        for message in last {
            self.client.run(&as_event(&message), true, 0).await?;
        }
        if ended.is_ok() {
            self.client.out.vec().extend_from_slice(http1::LAST_CHUNK);
        }
        self.flush().await?;
        self.client.seen = Seen::Events { unanswered: false };
        ended
    }

    async fn each_paired(
        &mut self,
        body: &mut Body,
        mcp: &McpExchange<'_>,
        with: &PairedExchange<'_>,
    ) -> Result<(), Fault> {
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
            let mut start = 0;
            while let Some(span) = splitter.next(&held[start..]).map_err(|error| unsplittable(&error))? {
                self.pass(&held[start..start + span.bytes], held.capacity(), mcp, with).await?;
                start += span.bytes;
            }
            held.vec().drain(..start);
            while let Some(message) = with.paired.told() {
                self.event(&as_event(&message), held.capacity()).await?;
            }
            if body.is_done() {
                return Ok(());
            }
            if held.is_empty() {
                held.clear(); // an idle stream holds nothing
            }
            if consumed == 0 {
                self.client.flush(held.capacity()).await?;
                // What the client was slow to take is no longer held.
                self.client.charge.release();
                self.client.charge.at_least(held.capacity())?;
                self.called_or_more(body, with.paired).await?;
            }
            if held.len() > BLOCK_BYTES {
                self.client.charge.at_least(held.capacity())?;
            }
        }
    }

    /// Waits for more of the stream, or for something to say on it. All that is ready has gone out before.
    async fn called_or_more(&mut self, body: &mut Body, paired: &Paired) -> Result<(), Fault> {
        let ends_in = paired.ends_in(self.exchange.limits.drain_time_max / 2);
        if ends_in.is_some_and(|left| left.is_zero()) {
            return Err(Fault::Ending);
        }
        let waiting = async {
            tokio::select! {
                biased;
                () = paired.called() => Ok(()),
                more = self.wait(body, true) => more,
            }
        };
        match ends_in {
            Some(left) => timeout(left, waiting).await.unwrap_or(Ok(())),
            None => waiting.await,
        }
    }

    /// Sends a whole event, if the client may have it; the record of the request that it answers is closed when it has.
    async fn pass(
        &mut self,
        event: &[u8],
        held: usize,
        mcp: &McpExchange<'_>,
        with: &PairedExchange<'_>,
    ) -> Result<(), Fault> {
        let Answered { judged, answer } = mcp.judge_paired(event, with, self.exchange.limits).await?;
        let replaced;
        let event = match judged {
            Judged::Kept => event,
            Judged::Replaced(event) => {
                replaced = event;
                &replaced
            }
            // It asks for no further pages.
            Judged::Withheld | Judged::Next(_) => return Ok(()),
        };
        self.event(event, held).await?;
        if let Some((id, fault)) = answer {
            self.client.flush(held).await?;
            let (bytes, note) = (event.len() as u64, (with.found)());
            with.paired.passed(&id, Outcome { bytes, note, fault });
        }
        Ok(())
    }
}

impl McpExchange<'_> {
    async fn judge_paired(
        &self,
        event: &[u8],
        with: &PairedExchange<'_>,
        limits: &Limits,
    ) -> Result<Answered, Fault> {
        let (kind, data) = (sse::kind(event), sse::data(event).unwrap_or_default());
        if kind == b"endpoint" {
            self.name_endpoint(&data, with)?;
            return Ok(Judged::Kept.into());
        }
        // Comments, and events without data.
        if data.is_empty() {
            return Ok(Judged::Kept.into());
        }
        let Some(opened) = with.paired.endpoint() else {
            return Err(unusable("the stream begins with something else"));
        };
        if !kind.is_empty() && kind != b"message" {
            return Ok(Judged::Withheld.into()); // no client takes it for a message
        }
        let (message, reply, input) = message(&data, "event", limits)?;
        match message {
            Envelope::Notification(method) => Ok(self.told(&method, reply, &input)?.into()),
            Envelope::Request(method_name, id) => {
                let asking = Asking::Request { method: &method_name, id: &id, opened: Some(opened) };
                Ok(if (self.may_ask)(asking) { Judged::Kept } else { Judged::Withheld }.into())
            }
            Envelope::Response { id: None, .. } => Err(NotOwed::NotPending.into()),
            Envelope::Response { id: Some(id), is_error } => {
                self.paired_answer((event, &data), (reply, &input, limits), &id, is_error, with).await
            }
        }
    }

    /// The one endpoint, which must be of this server and nobody else's.
    fn name_endpoint(&self, data: &[u8], with: &PairedExchange<'_>) -> Result<(), Fault> {
        if with.paired.endpoint().is_some() {
            return Err(unusable("it is the second one"));
        }
        let named = endpoint(data, &self.server.path).map_err(|error| unusable(&error.to_string()))?;
        if named.authority.is_some_and(|authority| !self.server.accepts_host(&authority)) {
            return Err(unusable("it is none of this server's"));
        }
        // Before the client has it, so that no message comes too early.
        if !with.endpoints.name(with.paired, &named.target) {
            return Err(unusable("another open stream has the same one"));
        }
        Ok(())
    }

    /// What becomes of an answer: held to what its request asked for, by the generation that this was decided on.
    async fn paired_answer(
        &self,
        event: (&[u8], &[u8]),
        (reply, input, limits): (Value<'_>, &Input<'_>, &Limits),
        id: &Id<'_>,
        is_error: bool,
        with: &PairedExchange<'_>,
    ) -> Result<Answered, Fault> {
        let id = RequestId::from(id);
        let request = with.paired.waiting(&id).ok_or(NotOwed::NotPending)?;
        let Request { expected, resources, server, ends, observe, request_id } = &*request;
        let pins = (server.pinning.mode != Mode::Off).then_some(with.pins);
        let mcp = McpExchange {
            server,
            ends: *ends,
            resources,
            owed: Owed::Stream,
            pins,
            expected,
            // Its lists are shown page by page, as they come.
            pages: None,
            view: Cell::default(),
            others_tasks: &with.pins.findings.others_tasks,
            observe: *observe,
            ..*self
        };
        let judged = mcp.answered(event, reply, input, is_error, limits).await;
        if let Err(Fault::Asks { .. }) = &judged {
            // A matter of policy, and of this request alone.
            let answer = denial::answer(Reason::ServerRequest, expected.refusal(), request_id);
            let fault = judged.err().map(|fault| (fault.reason(), fault.to_string()));
            return Ok(Answered {
                judged: Judged::Replaced(as_event(&answer.body)),
                answer: Some((id, fault)),
            });
        }
        if expected.initialize
            && let Some(version) = agreed(reply)
        {
            // Before the client has it, so that what it sends next is held to it.
            with.paired.agreed(&version);
        }
        Ok(Answered { judged: judged?, answer: Some((id, None)) })
    }
}

/// The revision that the answer to `initialize` agrees on.
fn agreed(reply: Value<'_>) -> Option<Cow<'_, str>> {
    reply.get("result")?.get("protocolVersion")?.as_str()
}

fn unusable(problem: &str) -> Fault {
    Fault::Endpoint { problem: problem.to_owned() }
}

//! Stage 6, respond: the reply goes back as it comes.
//!
//! Only what a rule needs is held: a list until it can be filtered, an event until it is whole. A reply ends where its
//! framing says; a byte beyond makes the connection useless for anyone else.

mod events;
mod fault;
mod shown;

pub use fault::Fault;
pub use shown::PinExchange;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Instant;

use memchr::memmem::Finder;
use shown::Shown;
use toolgate_core::decision::Server;
use toolgate_core::http1::{self, Framing, HttpError, Name, Outgoing, ResponseHead};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::ListKind;

use crate::body::Body;
use crate::buffer::{BLOCK_BYTES, Scratch};
use crate::config::Resources;
use crate::deadline::{timeout, timeout_at};
use crate::forward::Upstream;
use crate::limits::{Limit, Limits};
use crate::parse::{Client, Stream};
use crate::sessions::Sessions;
use crate::shares::Charge;

/// What a reply depends on besides its own bytes.
pub struct Exchange<'a> {
    /// The request's HTTP method.
    pub http_method: &'a str,
    /// To a declared server: what its reply is held to. `None`: passed on unread.
    pub mcp: Option<McpExchange<'a>>,
    /// Whether the reply may be 101: then the connection is no longer HTTP.
    pub upgrade: bool,
    /// Whether the client's connection ends with this reply.
    pub close: bool,
    /// The limits.
    pub limits: &'a Limits,
}

/// What the reply of a declared server is held to.
pub struct McpExchange<'a> {
    /// Who asked.
    pub caller: &'a Identity,
    /// Whom.
    pub server: &'a Server,
    /// The generation that the request was decided on.
    pub resources: &'a Arc<Resources>,
    /// The request was a list method: what may not be seen is cut out.
    pub list: Option<ListKind>,
    /// The reply may tell a model of the server.
    pub instructions: bool,
    /// The pins of what the reply shows; `None` where there are none.
    pub pins: Option<PinExchange<'a>>,
    /// Where the session that an `initialize` opens is bound.
    pub sessions: Option<&'a Sessions>,
    /// Policy is only observed: lists are shown whole, and server requests pass.
    pub observe: bool,
    /// Told of each request of the server's that no rule permits: its method.
    pub on_server_request: &'a dyn Fn(&str),
}

/// How a reply ended.
#[derive(Debug)]
pub struct Replied {
    /// Its HTTP status.
    pub status: u16,
    /// Bytes of its body that the client got.
    pub bytes: u64,
    /// Whether the connection can take this caller's next request.
    pub reusable: bool,
    /// Bytes that came beyond it: a fault of the server's, for which nobody but its connection pays.
    pub beyond: usize,
}

/// Why a reply did not come, or not whole.
#[derive(Debug)]
pub struct Broken {
    /// Who is at fault.
    pub fault: Fault,
    /// Bytes of the body that the client got.
    pub bytes: u64,
    /// Whether the client has seen a status: then nothing can be answered any more.
    pub begun: bool,
}

/// Streams the reply that `upstream` owes to `client`.
///
/// # Errors
/// [`Broken`]: where `begun` is false the client still needs an answer.
pub async fn stream<S: Stream>(
    upstream: &mut Upstream,
    client: &mut Client<S>,
    exchange: &Exchange<'_>,
) -> Result<Replied, Broken> {
    let charge = Charge::new(Arc::clone(client.share()));
    let out = Scratch::default();
    let mut reply = Reply { upstream, client, exchange, charge, out, queued: 0, bytes: 0, begun: false };
    match reply.run().await {
        Ok((status, keep_alive)) => {
            let upgraded = status == 101;
            let whole = keep_alive && !reply.upstream.cut && reply.upstream.buffer.is_empty();
            let reusable = upgraded || whole;
            let beyond = if upgraded { 0 } else { reply.upstream.buffer.bytes().len() };
            Ok(Replied { status, bytes: reply.bytes, reusable, beyond })
        }
        Err(fault) => Err(Broken { fault, bytes: reply.bytes, begun: reply.begun }),
    }
}

/// A chunk of so many bytes waits for what is ready after it: one write for both.
const TOGETHER_BYTES_MAX: usize = 8 * 1024;

/// So many bytes wait at most.
const QUEUED_BYTES_MAX: usize = 24 * 1024;

fn put_chunk(out: &mut Vec<u8>, data: &[u8]) {
    http1::write_chunk_head(out, data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(http1::CHUNK_END);
}

/// What a reply's body is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Events,
    Shown(Shown),
    Other,
}

struct Reply<'r, S> {
    upstream: &'r mut Upstream,
    client: &'r mut Client<S>,
    exchange: &'r Exchange<'r>,
    /// For what it holds while it waits.
    charge: Charge,
    /// What is to be written with the next bytes: the head, small chunks.
    out: Scratch,
    /// Bytes of the body in it.
    queued: usize,
    bytes: u64,
    begun: bool,
}

impl<S: Stream> Reply<'_, S> {
    async fn run(&mut self) -> Result<(u16, bool), Fault> {
        self.wait_for_head().await?;
        let parsed = http1::response_head(
            self.upstream.buffer.bytes(),
            self.exchange.http_method,
            &self.exchange.limits.head(),
        )?;
        let Some(head) = parsed else { return Err(server_left()) };
        let (head_bytes, status, keep_alive, framing) =
            (head.bytes, head.status, head.keep_alive, head.framing);
        if status == 101 {
            self.out.vec().extend_from_slice(&self.upstream.buffer.bytes()[..head_bytes]);
            self.upstream.buffer.consume(head_bytes);
            self.flush().await?;
            return Ok((status, true));
        }
        self.bind_session(&head)?;
        let content = self.content(&head)?;
        let mut body = Body::new(framing);
        if let Content::Shown(shown) = content {
            let head_copy = self.upstream.buffer.bytes()[..head_bytes].to_vec();
            self.upstream.buffer.consume(head_bytes);
            self.held_and_shown(shown, &head_copy, &mut body).await?;
        } else {
            let outgoing = outgoing(&head, content, self.exchange.http_method)?;
            http1::write_response_head(self.out.vec(), &head, outgoing, self.exchange.close);
            self.upstream.buffer.consume(head_bytes);
            match content {
                Content::Events => self.events(&mut body).await?,
                Content::Other | Content::Shown(_) => self.bytes(&mut body, outgoing).await?,
            }
        }
        Ok((status, keep_alive && framing != Framing::UntilClose))
    }

    /// Waits for the final head; interim ones (1xx, RFC 9110 15.2) end here.
    async fn wait_for_head(&mut self) -> Result<(), Fault> {
        let limits = self.exchange.limits;
        let limit = limits.first_byte_max;
        let due = tokio::time::Instant::now() + limit;
        loop {
            let bytes = self.upstream.buffer.bytes();
            if is_whole_and_final(bytes) {
                return Ok(()); // as nearly always, and it is parsed but once
            }
            match http1::response_head(bytes, self.exchange.http_method, &limits.head())? {
                Some(head) if head.status == 101 && !self.exchange.upgrade => {
                    return Err(unreadable("reply", "101 to no upgrade"));
                }
                Some(head) if head.status < 200 && head.status != 101 => {
                    let interim = head.bytes;
                    self.upstream.buffer.consume(interim);
                }
                Some(_) => return Ok(()),
                None => {
                    let more = timeout_at(due, self.more()).await;
                    if !more.map_err(|_| Fault::Slow(limit, Limit::FirstByte))?? {
                        return Err(server_left());
                    }
                }
            }
        }
    }

    /// Reads more of the reply, unless the client leaves first. False: the server closed.
    async fn more(&mut self) -> Result<bool, Fault> {
        tokio::select! {
            biased;
            filled = self.upstream.fill() => match filled {
                Ok(count) => Ok(count > 0),
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(HttpError::HeadTooLarge { head_bytes_max: BLOCK_BYTES }.into()),
                Err(error) => Err(Fault::ServerLeft(error)),
            },
            () = self.client.left() => Err(Fault::ClientLeft),
        }
    }

    /// The session that a reply opens belongs to its caller from here on.
    fn bind_session(&self, head: &ResponseHead<'_>) -> Result<(), Fault> {
        let Some(mcp) = &self.exchange.mcp else { return Ok(()) };
        let Some(id) = head.headers.only(Name::McpSessionId)? else { return Ok(()) };
        let Some(sessions) = mcp.sessions else { return Ok(()) };
        let bound = sessions.bind(mcp.caller, &mcp.server.identity, id, Instant::now());
        if bound { Ok(()) } else { Err(Fault::Session) }
    }

    fn content(&self, head: &ResponseHead<'_>) -> Result<Content, Fault> {
        let Some(mcp) = &self.exchange.mcp else { return Ok(Content::Other) };
        if matches!(head.framing, Framing::None) {
            return Ok(Content::Other);
        }
        let content_type = head.headers.only(Name::ContentType)?.unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let events = media_type.eq_ignore_ascii_case("text/event-stream");
        let must_read = events || (mcp.shown().is_some() && is_success(head.status));
        if must_read && head.headers.count(Name::ContentEncoding) > 0 {
            // It was asked for none: Accept-Encoding is removed on the way in.
            return Err(unreadable("reply", "it is compressed though that was not asked for"));
        }
        Ok(match mcp.shown() {
            _ if events => Content::Events,
            Some(shown) if is_success(head.status) => Content::Shown(shown),
            Some(_) | None => Content::Other,
        })
    }

    /// A body that nobody reads: each run of bytes goes on as it comes.
    async fn bytes(&mut self, body: &mut Body, outgoing: Outgoing) -> Result<(), Fault> {
        let chunked = matches!(outgoing, Outgoing::Chunked);
        while !body.is_done() {
            let run = body.next(self.upstream.buffer.bytes())?;
            let (consumed, count) = (run.consumed, run.data.len());
            let mut is_full = false;
            if count > 0 {
                if chunked && count <= TOGETHER_BYTES_MAX {
                    put_chunk(self.out.vec(), run.data);
                    self.queued += count;
                    is_full = self.out.len() >= QUEUED_BYTES_MAX;
                } else {
                    if chunked {
                        http1::write_chunk_head(self.out.vec(), count);
                    }
                    let end: &[u8] = if chunked { http1::CHUNK_END } else { b"" };
                    let mut parts = [IoSlice::new(&self.out), IoSlice::new(run.data), IoSlice::new(end)];
                    let held = self.upstream.buffer.held();
                    self.begun = true;
                    write(self.client, &mut self.charge, held, &mut parts, self.exchange.limits).await?;
                    self.wrote(count);
                }
            }
            self.upstream.buffer.consume(consumed);
            if is_full {
                self.flush().await?;
            }
            if consumed == 0 && !body.is_done() {
                self.wait(body, false).await?;
            }
        }
        if chunked {
            self.out.vec().extend_from_slice(http1::LAST_CHUNK);
        }
        self.flush().await
    }

    /// Waits for more of the body; what is ready goes out before. An event stream may be silent for as long as it likes.
    async fn wait(&mut self, body: &mut Body, is_stream: bool) -> Result<(), Fault> {
        self.flush().await?;
        let more = if is_stream {
            self.more().await?
        } else {
            let limit = self.exchange.limits.reply_idle_max;
            timeout(limit, self.more()).await.map_err(|_| Fault::Slow(limit, Limit::ReplyIdle))??
        };
        if more || body.end() { Ok(()) } else { Err(server_left()) }
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.flush_beside(self.upstream.buffer.held()).await
    }

    /// The same while so many bytes are `held` besides.
    async fn flush_beside(&mut self, held: usize) -> Result<(), Fault> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.begun = true;
        let held = held + self.out.capacity();
        let mut parts = [IoSlice::new(&self.out)];
        write(self.client, &mut self.charge, held, &mut parts, self.exchange.limits).await?;
        self.wrote(0);
        Ok(())
    }

    fn wrote(&mut self, body_bytes: usize) {
        self.out.clear();
        self.bytes += (std::mem::take(&mut self.queued) + body_bytes) as u64;
    }

    /// Reads a whole body of at most `reply_bytes_max`. Room for what will be shown of it is charged with it.
    async fn whole(&mut self, body: &mut Body) -> Result<Vec<u8>, Fault> {
        let bytes_max = self.exchange.limits.reply_bytes_max;
        let mut whole = Vec::new();
        while !body.is_done() {
            let run = body.next(self.upstream.buffer.bytes())?;
            whole.extend_from_slice(run.data);
            let consumed = run.consumed;
            self.upstream.buffer.consume(consumed);
            if whole.len() > bytes_max {
                return Err(Fault::TooLarge { what: "list", bytes_max, limit: Limit::ReplyBytes });
            }
            let is_waiting = consumed == 0 && !body.is_done();
            if is_waiting || whole.len() > BLOCK_BYTES {
                self.charge.at_least(2 * whole.len())?;
            }
            if is_waiting {
                self.wait(body, false).await?;
            }
        }
        Ok(whole)
    }

    async fn held_and_shown(&mut self, what: Shown, head: &[u8], body: &mut Body) -> Result<(), Fault> {
        let limit = self.exchange.limits.list_time_max;
        let whole = timeout(limit, self.whole(body)).await;
        let whole = whole.map_err(|_| Fault::Slow(limit, Limit::ListTime))??;
        let mut shown = Vec::with_capacity(whole.len());
        events::show_whole(&whole, what, self.exchange, &mut shown).await?;
        let limits = self.exchange.limits.head();
        let parsed = http1::response_head(head, self.exchange.http_method, &limits)?;
        let head = parsed.ok_or_else(server_left)?;
        let outgoing = Outgoing::Length(shown.len() as u64);
        http1::write_response_head(self.out.vec(), &head, outgoing, self.exchange.close);
        self.begun = true;
        let mut parts = [IoSlice::new(&self.out), IoSlice::new(&shown)];
        let held = whole.len() + shown.len();
        write(self.client, &mut self.charge, held, &mut parts, self.exchange.limits).await?;
        self.wrote(shown.len());
        Ok(())
    }
}

/// Writes to the client. What is `held` meanwhile is charged where the client does not take it at once.
async fn write<S: Stream>(
    client: &mut Client<S>,
    charge: &mut Charge,
    held: usize,
    parts: &mut [IoSlice<'_>],
    limits: &Limits,
) -> Result<(), Fault> {
    let mut writing = pin!(client.write(parts, limits));
    let written = poll_fn(|cx| {
        let polled = writing.as_mut().poll(cx);
        if polled.is_pending()
            && let Err(exceeded) = charge.at_least(held)
        {
            return Poll::Ready(Err(exceeded));
        }
        polled.map(Ok)
    });
    written.await?.map_err(|error| {
        let is_slow = error.kind() == io::ErrorKind::TimedOut;
        if is_slow { Fault::SlowClient(limits.client_write_max) } else { Fault::ClientLeft }
    })
}

/// Whether all of a head is there that is not 1xx. Says nothing of its rules.
fn is_whole_and_final(bytes: &[u8]) -> bool {
    // `HTTP/1.1 200`
    bytes.get(9).is_some_and(|digit| matches!(digit, b'2'..=b'5')) && HEAD_END.find(bytes).is_some()
}

static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Events may be taken out, so their length is not known before. A reply without body may say how long it would be
/// (RFC 9110, 8.6).
fn outgoing(head: &ResponseHead<'_>, content: Content, http_method: &str) -> Result<Outgoing, HttpError> {
    let would_be = http_method == "HEAD" || head.status == 304;
    Ok(match head.framing {
        Framing::None if would_be => {
            let length = head.headers.only(Name::ContentLength)?.and_then(|length| length.parse().ok());
            length.map_or(Outgoing::None, Outgoing::Length)
        }
        Framing::None => Outgoing::None,
        Framing::Length(length) if content == Content::Other => Outgoing::Length(length),
        Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Outgoing::Chunked,
    })
}

fn server_left() -> Fault {
    Fault::ServerLeft(io::ErrorKind::UnexpectedEof.into())
}

fn unreadable(what: &'static str, problem: &str) -> Fault {
    Fault::Unreadable { what, problem: problem.to_owned() }
}

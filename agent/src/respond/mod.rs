//! Stage 6, respond: the reply goes back as it comes.
//!
//! What a declared server says is read before the client gets a byte of it: a reply in JSON when it is whole, a stream
//! event by event. A reply ends where its framing says; a byte beyond makes the connection useless for anyone else.

mod asks;
mod client;
mod content;
mod events;
mod fault;
mod pages;
mod paired;
mod shown;
mod tasks;
mod whole;

pub use asks::Asking;
pub use events::end_events;
pub use fault::Fault;
pub use pages::{Next, Pages};
pub use paired::PairedExchange;
pub use shown::PinExchange;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use client::ToClient;
use content::Content;
use memchr::memmem::Finder;
use toolgate_core::decision::Server;
use toolgate_core::http1::{self, Framing, HttpError, Name, Outgoing, ResponseHead};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::json::{self, Value};
use toolgate_core::mcp::{self, Envelope, Input, Owed, Revision};
use toolgate_core::policy::Ends;

use crate::bindings::{Bindings, Giving};
use crate::body::Body;
use crate::buffer::BLOCK_BYTES;
use crate::config::Resources;
use crate::deadline::timeout;
use crate::forward::Upstream;
use crate::limits::{Limit, Limits};
use crate::parse::{Client, Expected, Stream};
use crate::views::View;
use whole::Placed;

/// What a reply depends on besides its own bytes.
pub struct Exchange<'a> {
    /// The request's HTTP method.
    pub http_method: &'a str,
    /// To a declared server: what its reply is held to. `None`: passed on unread.
    pub mcp: Option<McpExchange<'a>>,
    /// Whether the connection may be no longer HTTP after the reply: after 101, or 2xx to CONNECT.
    pub upgrade: bool,
    /// Whether the client's connection ends with this reply.
    pub close: bool,
    /// The client has an event stream already, on which this reply goes on.
    pub begun: Cell<bool>,
    /// The limits.
    pub limits: &'a Limits,
}

impl Exchange<'_> {
    fn ends_http(&self, status: u16) -> bool {
        let is_tunnel = self.http_method == "CONNECT" && (200..300).contains(&status);
        self.upgrade && (status == 101 || is_tunnel)
    }
}

/// What the reply of a declared server is held to.
pub struct McpExchange<'a> {
    /// Who asked.
    pub caller: &'a Identity,
    /// Whom.
    pub server: &'a Server,
    /// Which ends of the call are here.
    pub ends: Ends,
    /// The generation that the request was decided on.
    pub resources: &'a Arc<Resources>,
    /// What it may say.
    pub owed: Owed<'a>,
    /// The pins of what the reply shows; `None` where there are none.
    pub pins: Option<PinExchange<'a>>,
    /// Where the ids that it gives are bound to the caller.
    pub bindings: &'a Bindings,
    /// Which of the server's endpoints they are of, where there are several.
    pub replica: Option<SocketAddr>,
    /// What the request asked for, and in which session.
    pub expected: &'a Expected,
    /// The pages that were asked for in the caller's place; `None`: none can be.
    pub pages: Option<&'a Pages>,
    /// What the caller of a stream may see of lists: it is told when that changes.
    pub view: Cell<Option<Box<View<'a>>>>,
    /// Counts what is held back because it is of tasks that are not the caller's.
    pub others_tasks: &'a Cell<usize>,
    /// Policy is only observed: lists are shown whole.
    pub observe: bool,
    /// Whether what the server asks, or gives, may pass to the caller.
    pub may_ask: &'a dyn Fn(Asking<'_>) -> bool,
    /// The reply is a stream on which answers come to what is sent to its endpoint.
    pub paired: Option<&'a PairedExchange<'a>>,
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
    /// It is a page that was not shown, since the caller may see nothing of it: the next one is to be asked for.
    pub next: Option<Next>,
}

/// Why a reply did not come, or not whole.
#[derive(Debug)]
pub struct Broken {
    /// Who is at fault.
    pub fault: Fault,
    /// Bytes of the body that the client got.
    pub bytes: u64,
    /// What can still be said to the client.
    pub seen: Seen,
}

/// What a client has seen of a reply that broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it still needs an answer.
    Nothing,
    /// Whole events of a stream, which goes on if the client is to be told.
    Events {
        /// None of them is the answer.
        unanswered: bool,
    },
    /// A status and perhaps more: nothing can be said any more.
    Part,
}

/// Streams the reply that `upstream` owes to `client`.
///
/// # Errors
/// [`Broken`], which says what can still be said to the client.
pub async fn stream<S: Stream>(
    upstream: &mut Upstream,
    client: &mut Client<S>,
    exchange: &Exchange<'_>,
) -> Result<Replied, Broken> {
    let has_begun = exchange.begun.get();
    let client = ToClient::new(client, exchange.limits, if has_begun { Seen::Part } else { Seen::Nothing });
    let mut reply =
        Reply { upstream, client, exchange, opened: None, next: None, has_answer: false, abandoned: false };
    let run = reply.run().await;
    let bytes = reply.client.bytes;
    match run {
        Ok((status, keep_alive)) => {
            let upgraded = exchange.ends_http(status);
            let is_cut = reply.upstream.cut || reply.abandoned;
            let reusable = upgraded || (keep_alive && !is_cut && reply.upstream.buffer.is_empty());
            let beyond = if upgraded || reply.abandoned { 0 } else { reply.upstream.buffer.bytes().len() };
            Ok(Replied { status, bytes, reusable, beyond, next: reply.next })
        }
        Err(fault) => {
            // The events before are whole as long as there is nothing of this one.
            let is_between = has_begun && bytes == 0 && reply.client.seen == Seen::Part;
            let seen = if is_between { Seen::Events { unanswered: true } } else { reply.client.seen };
            Err(Broken { fault, bytes, seen })
        }
    }
}

impl McpExchange<'_> {
    /// What is given to the caller now.
    fn giving(&self) -> Giving<'_> {
        let Self { caller, server, replica, .. } = self;
        Giving { caller, server: &server.identity, replica: *replica, now: Instant::now() }
    }

    /// Keeps the revision in which the server opens a session, by its answer to `initialize`.
    fn agreed(&self, reply: Value<'_>, opened: Option<&str>) -> Result<(), Fault> {
        const KEY: &str = "protocolVersion";
        let (Some(result), Some(session)) = (reply.get("result"), opened) else { return Ok(()) };
        if result.collides(KEY) {
            return Err(unreadable("answer to `initialize`", "it has `protocolVersion` in two cases"));
        }
        let date = result.get(KEY).and_then(Value::as_str);
        let revision = date.and_then(|date| Revision::named(date.as_bytes()));
        // The latest has no sessions, and no `initialize`.
        if let Some(revision) = revision.filter(|revision| *revision != Revision::July2026) {
            self.bindings.agreed(self.caller, &self.server.identity, session, revision);
        }
        Ok(())
    }
}

thread_local! {
    static SCRATCH: RefCell<json::Scratch> = RefCell::new(json::Scratch::default());
}

struct Reply<'r, 'e, S> {
    upstream: &'r mut Upstream,
    client: ToClient<'r, S>,
    exchange: &'r Exchange<'e>,
    /// The session that it opens.
    opened: Option<Box<str>>,
    /// Where the list goes on of which it shows nothing.
    next: Option<Next>,
    /// The client got the answer that it waits for, in a stream.
    has_answer: bool,
    /// The server's stream goes on, and nobody waits for the rest.
    abandoned: bool,
}

impl<S: Stream> Reply<'_, '_, S> {
    async fn run(&mut self) -> Result<(u16, bool), Fault> {
        if let Err(fault) = self.wait_for_head().await {
            if !matches!(fault, Fault::ClientLeft) {
                self.upstream.failed(&fault);
            }
            return Err(fault);
        }
        let parsed = http1::response_head(
            self.upstream.buffer.bytes(),
            self.exchange.http_method,
            &self.exchange.limits.head(),
        )?;
        let Some(head) = parsed else { return Err(server_left()) };
        let (head_bytes, status, keep_alive, framing) =
            (head.bytes, head.status, head.keep_alive, head.framing);
        self.upstream.answered(status);
        if self.exchange.ends_http(status) {
            self.client.out.vec().extend_from_slice(&self.upstream.buffer.bytes()[..head_bytes]);
            self.upstream.buffer.consume(head_bytes);
            self.flush().await?;
            return Ok((status, true));
        }
        Self::session(&head, self.exchange, &mut self.opened)?;
        let content = content::of(&head, self.exchange.mcp.as_ref())?;
        let has_begun = self.exchange.begun.get();
        if has_begun && !content::is_success(status) {
            return Err(Fault::NoAnswer { status });
        }
        if content == Content::Whole {
            let bytes = self.upstream.buffer.bytes();
            // As nearly always: what was read once is sent from where it lies.
            if let Placed::Whole { text, end } = whole::placed(framing, head_bytes, bytes)? {
                let held = self.upstream.buffer.held();
                self.next = self.client.deliver(&head, &bytes[text], held, self.exchange).await?;
                self.upstream.buffer.consume(end);
            } else {
                self.held(head_bytes, framing).await?;
            }
        } else {
            let outgoing = outgoing(&head, content, self.exchange.http_method)?;
            if !has_begun {
                http1::write_response_head(self.client.out.vec(), &head, outgoing, self.exchange.close);
            }
            self.upstream.buffer.consume(head_bytes);
            let mut body = Body::new(framing);
            if content == Content::Events {
                match self.exchange.mcp.as_ref().and_then(|mcp| Some((mcp, mcp.paired?))) {
                    Some((mcp, paired)) => self.paired(&mut body, mcp, paired).await?,
                    None => self.events(&mut body).await?,
                }
            } else {
                self.bytes(&mut body, outgoing).await?;
            }
        }
        Ok((status, keep_alive && framing != Framing::UntilClose))
    }

    /// Waits for the final head.
    async fn wait_for_head(&mut self) -> Result<(), Fault> {
        let limit = self.exchange.limits.first_byte_max;
        timeout(limit, self.final_head()).await.map_err(|_| Fault::Slow(limit, Limit::FirstByte))?
    }

    /// Interim heads (1xx, RFC 9110 15.2) end here.
    async fn final_head(&mut self) -> Result<(), Fault> {
        loop {
            let bytes = self.upstream.buffer.bytes();
            if is_whole_and_final(bytes) {
                return Ok(()); // as nearly always, and it is parsed but once
            }
            match http1::response_head(bytes, self.exchange.http_method, &self.exchange.limits.head())? {
                Some(head) if head.status == 101 && !self.exchange.upgrade => {
                    return Err(unreadable("reply", "101 to no upgrade"));
                }
                Some(head) if head.status < 200 && head.status != 101 => {
                    let interim = head.bytes;
                    self.upstream.buffer.consume(interim);
                }
                Some(_) => return Ok(()),
                None => {
                    if !self.more(BLOCK_BYTES).await? {
                        return Err(server_left());
                    }
                }
            }
        }
    }

    /// Reads more of the reply, at most until so many bytes wait, unless the client leaves first. False: the server
    /// closed.
    async fn more(&mut self, bytes_max: usize) -> Result<bool, Fault> {
        tokio::select! {
            biased;
            filled = self.upstream.fill(bytes_max) => match filled {
                Ok(count) => Ok(count > 0),
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(HttpError::HeadTooLarge { head_bytes_max: BLOCK_BYTES }.into()),
                Err(error) => Err(Fault::of_end(error)),
            },
            () = self.client.left() => Err(Fault::ClientLeft),
        }
    }

    /// The session that a reply opens belongs to its caller from here on; one that it ends is nobody's before the caller hears
    /// of that: what comes next on another connection must not use it.
    fn session(
        head: &ResponseHead<'_>,
        exchange: &Exchange<'_>,
        opened: &mut Option<Box<str>>,
    ) -> Result<(), Fault> {
        let Some(mcp) = &exchange.mcp else { return Ok(()) };
        if let Some(ended) = mcp.expected.session()
            && mcp.expected.ends_session
            && content::is_success(head.status)
        {
            mcp.bindings.end_session(&mcp.server.identity, ended);
        }
        let Some(id) = head.headers.only(Name::McpSessionId)? else { return Ok(()) };
        if !mcp.expected.initialize {
            return Ok(());
        }
        let bound = mcp.bindings.bind_session(mcp.giving(), id);
        *opened = Some(id.into());
        if bound { Ok(()) } else { Err(Fault::Session) }
    }

    /// A body that nobody reads: each run of bytes goes on as it comes.
    async fn bytes(&mut self, body: &mut Body, outgoing: Outgoing) -> Result<(), Fault> {
        let chunked = matches!(outgoing, Outgoing::Chunked);
        while !body.is_done() {
            let run = body.next(self.upstream.buffer.bytes())?;
            let consumed = run.consumed;
            self.client.run(run.data, chunked, self.upstream.held()).await?;
            self.upstream.buffer.consume(consumed);
            if self.client.is_full() {
                self.flush().await?;
            }
            if consumed == 0 && !body.is_done() {
                self.wait(body, false).await?;
            }
        }
        if chunked {
            self.client.out.vec().extend_from_slice(http1::LAST_CHUNK);
        }
        self.flush().await
    }

    /// Waits for more of the body; what is ready goes out before. An event stream may be silent for as long as it likes.
    async fn wait(&mut self, body: &mut Body, is_stream: bool) -> Result<(), Fault> {
        self.flush().await?;
        let more = if is_stream {
            self.more(BLOCK_BYTES).await?
        } else {
            let limit = self.exchange.limits.reply_idle_max;
            timeout(limit, self.more(BLOCK_BYTES))
                .await
                .map_err(|_| Fault::Slow(limit, Limit::ReplyIdle))??
        };
        if more || body.end() { Ok(()) } else { Err(server_left()) }
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.client.flush(self.upstream.held()).await
    }
}

/// Whether all of a head is there that is not 1xx. Says nothing of its rules.
fn is_whole_and_final(bytes: &[u8]) -> bool {
    // `HTTP/1.1 200`
    bytes.get(9).is_some_and(|digit| matches!(digit, b'2'..=b'5')) && HEAD_END.find(bytes).is_some()
}

static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

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
        Framing::Length(length) if content == Content::Unread => Outgoing::Length(length),
        Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Outgoing::Chunked,
    })
}

/// Reads a message of the server's: `what` it is read from.
fn message<'t>(
    text: &'t [u8],
    what: &'static str,
    limits: &Limits,
) -> Result<(Envelope<'t>, Value<'t>, Input<'t>), Fault> {
    let read = SCRATCH.with_borrow_mut(|scratch| mcp::reply_envelope(text, scratch, &limits.json()));
    read.map_err(|error| unreadable(what, &error.to_string()))
}

fn server_left() -> Fault {
    Fault::ServerLeft(io::ErrorKind::UnexpectedEof.into())
}

fn unreadable(what: &'static str, problem: &str) -> Fault {
    Fault::Unreadable { what, problem: problem.to_owned() }
}

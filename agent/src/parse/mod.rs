//! Stage 3, parse: bytes of a client -> one whole HTTP request -> what it asks for.
//!
//! The body stays where it was read; everything parsed from it borrows it.

mod again;
mod answer;
mod asked;
mod broken;
mod expected;

pub use again::Again;
use answer::answer_head;
pub use answer::write_all_vectored;
pub use asked::{Asked, Refused, Shadow, asked, opens_mcp_websocket, shadow};
pub use broken::{Broken, http_limit};
pub use expected::Expected;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::deadline::timeout;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use toolgate_core::denial::Answer;
use toolgate_core::http1::{
    self, Addressed, ChunkedDecoder, Framing, Guess, HttpError, Invoked, KeptHead, RequestHead,
};
use toolgate_core::tls::{self, Hello};

use crate::buffer::{BLOCK_BYTES, Buffer, PARKED_BYTES};
use crate::limits::{Limit, Limits};
use crate::shares::{Charge, Share};

/// Both directions of a connection: TCP today, TLS or a Unix socket as well.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A request's head lies in the buffer: what of it does not borrow.
#[derive(Debug, Clone, Copy)]
pub struct HeadAt {
    /// Bytes of the head.
    pub bytes: usize,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the connection can go on after this request.
    pub keep_alive: bool,
    /// The method, of those that matter for a reply's framing.
    pub http_method: &'static str,
    /// The client offers to go on in HTTP/2 without TLS, which is not read here: a server may leave that alone.
    pub offers_http2: bool,
    expect_continue: bool,
}

impl HeadAt {
    /// The same, of a connection that goes on under one more condition.
    #[must_use]
    pub fn going_on_if(self, condition: bool) -> Self {
        Self { keep_alive: self.keep_alive && condition, ..self }
    }
}

/// Whom a proxy is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whom {
    /// A name, or an address; of IPv6 in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// By CONNECT: what follows is a connection to it.
    pub by_tunnel: bool,
}

impl std::fmt::Display for Whom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Where a request's body is.
#[derive(Debug)]
pub enum BodyAt {
    /// In the read buffer, behind the head.
    InPlace(usize),
    /// It came in chunks: joined here.
    Joined(Vec<u8>),
}

/// One whole request, borrowed from the read buffer.
pub struct Request<'b> {
    /// Its head.
    pub head: RequestHead<'b>,
    /// Its body, without framing.
    pub body: &'b [u8],
    /// It was addressed by App ID: the head is what of it is for the server.
    pub addressed: Option<Addressed>,
}

/// The client's side of a connection.
pub struct Client<S> {
    io: S,
    buffer: Buffer,
    /// What came while the request before it was sent.
    later: Buffer,
    /// For what waits in the buffers.
    charge: Charge,
    /// The last head that was read; its memory serves for the next.
    kept: Option<Box<KeptHead>>,
    /// What it sends is addressed by App ID.
    invokes: bool,
    /// How the request was whose head was read.
    addressed: Option<Addressed>,
    /// It has ended its side, between two requests: nothing comes any more.
    has_ended: bool,
}

/// Sees a client leave while its request, which lies in the read buffer, is sent.
pub struct Watch<'c, S> {
    io: &'c mut S,
    later: &'c mut Buffer,
}

impl<S: Stream> Watch<'_, S> {
    /// Waits for `work`, or for the client to leave: `None`.
    pub async fn unless_left<T>(&mut self, work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = left(self.io, self.later) => None,
        }
    }
}

impl<S: Stream> Client<S> {
    /// A client that has said nothing yet.
    pub fn new(io: S, share: Arc<Share>) -> Self {
        let (buffer, later) = (Buffer::default(), Buffer::default());
        let (kept, addressed) = (None, None);
        Self {
            io,
            buffer,
            later,
            charge: Charge::new(share),
            kept,
            invokes: false,
            addressed,
            has_ended: false,
        }
    }

    /// Whose requests are addressed by App ID.
    pub fn invokes(&mut self) {
        self.invokes = true;
    }

    /// Reads until it is clear whether the client speaks HTTP/1.1. `None`: it left, or was silent, without a word.
    pub async fn guess(&mut self, silence_max: Duration) -> Option<Guess> {
        let guessing = async {
            loop {
                let guess = http1::looks_like_http(self.buffer.bytes());
                if !matches!(guess, Guess::Maybe) {
                    return Some(guess);
                }
                if self.buffer.fill(&mut self.io, BLOCK_BYTES).await.unwrap_or(0) == 0 {
                    self.has_ended = self.buffer.is_empty();
                    return if self.has_ended { None } else { Some(Guess::No) };
                }
            }
        };
        timeout(silence_max, guessing).await.unwrap_or(None)
    }

    /// Waits for the next request's head. `None`: the client closed, or was idle, between two requests.
    ///
    /// # Errors
    /// [`Broken`] when what came is no head.
    pub async fn head(&mut self, limits: &Limits) -> Result<Option<HeadAt>, Broken> {
        if self.buffer.is_empty() {
            let first = timeout(limits.client_idle_max, self.buffer.fill(&mut self.io, BLOCK_BYTES)).await;
            if !matches!(first, Ok(Ok(1..))) {
                self.has_ended = matches!(first, Ok(Ok(0)));
                return Ok(None);
            }
        }
        let time_max = limits.head_time_max;
        let read = timeout(time_max, self.rest_of_head(limits)).await;
        let slow = |_| Broken::Slow { what: "head", time_max, limit: Limit::HeadTime };
        read.map_err(slow)?.map(Some)
    }

    async fn rest_of_head(&mut self, limits: &Limits) -> Result<HeadAt, Broken> {
        let read = if self.invokes { http1::invoked_head } else { http1::request_head };
        loop {
            if let Some(head) = read(self.buffer.bytes(), &limits.head())? {
                return Ok(keep(&mut self.kept, &head));
            }
            self.fill(BLOCK_BYTES).await?;
        }
    }

    /// Reads the head that `head` has found to be for a proxy.
    ///
    /// # Errors
    /// [`Broken::Http`] when no proxy should take it.
    pub fn head_for_proxy(&mut self, limits: &Limits) -> Result<(HeadAt, Whom), Broken> {
        let head = http1::proxy_head(self.buffer.bytes(), &limits.head())?;
        let (head, whom) = head.ok_or(Broken::ClientLeft)?; // it was whole before
        let by_tunnel = head.method == "CONNECT";
        let whom = Whom { host: whom.host.to_owned(), port: whom.port, by_tunnel };
        Ok((keep(&mut self.kept, &head), whom))
    }

    /// Whom the request is for whose head was read; from here on that head is what of it is for them. `None`: nobody.
    ///
    /// # Errors
    /// [`Broken::Http`] where that can be read in two ways.
    pub fn invoked(&mut self) -> Result<Option<String>, Broken> {
        let kept = self.kept.as_mut().ok_or(Broken::ClientLeft)?;
        let head = kept.on(self.buffer.bytes()).ok_or(Broken::ClientLeft)?; // it was there before
        let Some(Invoked { app, head, addressed }) = http1::invoked(&head)? else { return Ok(None) };
        **kept = KeptHead::of(&head);
        self.addressed = Some(addressed);
        Ok(Some(app.into_owned()))
    }

    /// Reads until it is clear whom a client means that may speak TLS.
    pub async fn hello(&mut self, time_max: Duration) -> Hello {
        let reading = async {
            loop {
                let hello = tls::client_hello(self.buffer.bytes());
                if hello != Hello::Maybe
                    || self.buffer.fill(&mut self.io, BLOCK_BYTES).await.unwrap_or(0) == 0
                {
                    return hello;
                }
            }
        };
        timeout(time_max, reading).await.unwrap_or(Hello::Maybe)
    }

    /// Waits for the whole body of the request whose head was read.
    ///
    /// # Errors
    /// [`Broken`] when it is too large, broken or does not come.
    pub async fn body(&mut self, head: &HeadAt, limits: &Limits) -> Result<BodyAt, Broken> {
        let time_max = limits.body_time_max;
        let read = match head.framing {
            Framing::None | Framing::UntilClose => Ok(Ok(BodyAt::InPlace(0))),
            Framing::Length(length) => timeout(time_max, self.sized_body(head, length, limits)).await,
            Framing::Chunked => timeout(time_max, self.chunked_body(head, limits)).await,
        };
        read.map_err(|_| Broken::Slow { what: "body", time_max, limit: Limit::BodyTime })?
    }

    async fn sized_body(&mut self, head: &HeadAt, length: u64, limits: &Limits) -> Result<BodyAt, Broken> {
        let bytes_max = limits.body_bytes_max;
        let length = usize::try_from(length).ok().filter(|length| *length <= bytes_max);
        let length = length.ok_or(Broken::BodyTooLarge { bytes_max })?;
        let whole = head.bytes + length;
        self.go_ahead(head, whole).await?;
        while self.buffer.bytes().len() < whole {
            self.fill(whole.max(BLOCK_BYTES)).await?;
        }
        Ok(BodyAt::InPlace(length))
    }

    /// Joins the chunks behind the head, and takes them out of the buffer.
    async fn chunked_body(&mut self, head: &HeadAt, limits: &Limits) -> Result<BodyAt, Broken> {
        let bytes_max = limits.body_bytes_max;
        self.go_ahead(head, head.bytes + 1).await?;
        let head_copy = self.buffer.bytes()[..head.bytes].to_vec();
        self.buffer.consume(head.bytes);
        let mut joined = Vec::new();
        let mut decoder = ChunkedDecoder::new();
        while !decoder.is_done() {
            let decoded = decoder.decode(self.buffer.bytes())?;
            joined.extend_from_slice(decoded.data);
            let consumed = decoded.consumed;
            self.buffer.consume(consumed);
            if joined.len() > bytes_max {
                return Err(Broken::BodyTooLarge { bytes_max });
            }
            if joined.capacity() > BLOCK_BYTES {
                self.charge.at_least(joined.capacity())?;
            }
            if consumed == 0 && !decoder.is_done() {
                self.fill(BLOCK_BYTES).await?;
            }
        }
        // The head stands before the body again: `request` reads both from one place.
        let mut whole = head_copy;
        whole.append(&mut joined);
        Ok(BodyAt::Joined(whole))
    }

    /// Answers `Expect: 100-continue` when a part of the `whole` bytes is still to come (RFC 9110, 10.1.1).
    ///
    /// # Errors
    /// [`Broken::ClientLeft`].
    pub async fn go_ahead(&mut self, head: &HeadAt, whole: usize) -> Result<(), Broken> {
        if head.expect_continue && self.buffer.bytes().len() < whole {
            self.io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| Broken::ClientLeft)?;
        }
        Ok(())
    }

    /// Reads more of a request. What waits for it, and what is larger than a block, is charged.
    async fn fill(&mut self, bytes_max: usize) -> Result<(), Broken> {
        let Self { io, buffer, charge, .. } = self;
        let filled = poll_fn(|cx| {
            let polled = buffer.poll_fill(cx, io, bytes_max);
            if polled.is_pending() {
                buffer.park();
            }
            if (polled.is_pending() || buffer.held() > BLOCK_BYTES)
                && let Err(exceeded) = charge.at_least(buffer.held())
            {
                return Poll::Ready(Err(exceeded));
            }
            polled.map(Ok)
        });
        match filled.await? {
            Ok(1..) => Ok(()),
            Ok(0) => Err(Broken::ClientLeft),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                Err(HttpError::HeadTooLarge { head_bytes_max: BLOCK_BYTES }.into())
            }
            Err(_) => Err(Broken::ClientLeft),
        }
    }

    /// The request whose head and body were read, and who sees the client leave meanwhile.
    ///
    /// # Errors
    /// None in practice: the head was parsed before, and is where it was.
    pub fn request<'b>(
        &'b mut self,
        head: &HeadAt,
        body: &'b BodyAt,
    ) -> Result<(Request<'b>, Watch<'b, S>), Broken> {
        let Self { io, buffer, later, kept, addressed, .. } = self;
        let (bytes, end) = match body {
            BodyAt::InPlace(length) => (buffer.bytes(), head.bytes + length),
            BodyAt::Joined(whole) => (&whole[..], whole.len()),
        };
        let kept = kept.as_ref().and_then(|kept| kept.on(bytes));
        let head = kept.filter(|kept| kept.bytes == head.bytes).ok_or(Broken::ClientLeft)?;
        let body = &bytes[head.bytes..end];
        Ok((Request { head, body, addressed: *addressed }, Watch { io, later }))
    }

    /// Whether the request whose head was read may carry MCP, to whomever it goes.
    pub fn may_be_mcp(&self, limits: &Limits) -> bool {
        self.kept_head().is_none_or(|head| asked::looks_like_mcp(&head, limits))
    }

    /// The head that was read, as long as it is in the buffer.
    pub fn kept_head(&self) -> Option<RequestHead<'_>> {
        self.kept.as_ref()?.on(self.buffer.bytes())
    }

    /// Forgets the request that was read.
    pub fn done(&mut self, head: &HeadAt, body: &BodyAt) {
        match body {
            BodyAt::InPlace(length) => self.buffer.consume(head.bytes + length),
            BodyAt::Joined(_) => {}
        }
        self.buffer.append(&mut self.later);
        self.charge.release();
    }

    /// Writes all of `parts`, as few system calls as the socket allows.
    ///
    /// # Errors
    /// When the client left or does not take it within `client_write_max`.
    pub async fn write(&mut self, parts: &mut [IoSlice<'_>], limits: &Limits) -> io::Result<()> {
        timeout(limits.client_write_max, write_all_vectored(&mut self.io, parts))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Answers in the place of the server.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn answer(&mut self, answer: &Answer, close: bool, limits: &Limits) -> io::Result<()> {
        let head = answer_head(answer, close || answer.close);
        self.write(&mut [IoSlice::new(&head), IoSlice::new(&answer.body)], limits).await
    }

    /// Who sees the client leave while something is sent in its place; what it sends meanwhile waits in the buffer.
    pub fn watch(&mut self) -> Watch<'_, S> {
        Watch { io: &mut self.io, later: &mut self.buffer }
    }

    /// Resolves when the client left; what it sends meanwhile waits in the buffer.
    pub async fn left(&mut self) {
        left(&mut self.io, &mut self.buffer).await;
    }

    /// Memory that its messages hold is charged to this share.
    pub fn share(&self) -> &Arc<Share> {
        self.charge.share()
    }

    /// Whether bytes wait that no request has used.
    pub fn has_more(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether it has left, and everything that it said is read.
    pub fn has_left(&self) -> bool {
        self.has_ended
    }

    /// The connection, and what of it was read and not used.
    pub fn into_parts(self) -> (S, Buffer) {
        (self.io, self.buffer)
    }

    /// Both halves of what is there: unread bytes and the connection.
    pub fn parts(&mut self) -> (&mut S, &mut Buffer) {
        (&mut self.io, &mut self.buffer)
    }

    /// The same where the unread bytes are sent, and the client may leave meanwhile.
    pub fn watched(&mut self) -> (Watch<'_, S>, &mut Buffer) {
        self.buffer.append(&mut self.later);
        (Watch { io: &mut self.io, later: &mut self.later }, &mut self.buffer)
    }

    /// Ends the connection: what was written arrives, then the end. What the client still sends is read and thrown
    /// away for a moment: closing with unread bytes would send a reset, which can overtake the answer.
    pub async fn close(mut self, limits: &Limits) {
        if self.has_ended {
            return;
        }
        let lingering = async {
            self.io.shutdown().await?;
            loop {
                let waiting = self.buffer.bytes().len();
                self.buffer.consume(waiting);
                if self.buffer.fill(&mut self.io, BLOCK_BYTES).await? == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        // However it ends, the connection is gone afterwards.
        let _ = timeout(limits.linger_time_max, lingering).await;
    }
}

/// Remembers a head in place of the one before.
fn keep(before: &mut Option<Box<KeptHead>>, head: &RequestHead<'_>) -> HeadAt {
    let kept = KeptHead::of(head);
    match before {
        Some(before) => **before = kept,
        None => *before = Some(Box::new(kept)),
    }
    HeadAt {
        bytes: head.bytes,
        framing: head.framing,
        keep_alive: head.keep_alive,
        http_method: expected::framing_method(head.method),
        offers_http2: asked::upgrades_to(head, "h2c"),
        expect_continue: head.expect_continue,
    }
}

/// Resolves when the client left. What it sends meanwhile, up to a little, waits in `buffer`; then it is no longer
/// watched, and backpressure does the rest.
async fn left<S: Stream>(io: &mut S, buffer: &mut Buffer) {
    loop {
        let filled = poll_fn(|cx| {
            let polled = buffer.poll_fill(cx, io, PARKED_BYTES);
            if polled.is_pending() {
                buffer.park();
            }
            polled
        });
        match filled.await {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => std::future::pending().await,
            Ok(0) | Err(_) => return,
        }
    }
}

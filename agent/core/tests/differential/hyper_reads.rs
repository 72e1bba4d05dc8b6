//! hyper as a reader of whole connections, driven by hand: everything it could wait for is there already.

use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Version};
use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// No reader needs more steps for the messages of these tests, a byte at a time or at once.
const POLLS_MAX: usize = 10_000;
const POLLS_AT_ONCE_MAX: usize = 50;

/// A message as hyper reads it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The method, or the status.
    pub(crate) start: String,
    /// Path and query; empty for replies.
    pub(crate) target: String,
    /// Names in lower case, sorted; values of one name in their order.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// None: it did not end as it should.
    pub(crate) body: Option<Vec<u8>>,
}

/// What the other side says: one part after each head that it was sent.
struct Peer<'b> {
    parts: Vec<&'b [u8]>,
    /// Bytes of one read.
    step: usize,
    /// Whether the first part waits for nothing.
    begins: bool,
    closes: bool,
    heads: usize,
    last_bytes: [u8; 4],
}

impl Peer<'_> {
    /// A client that says all at once and closes.
    fn client(bytes: &[u8], step: usize) -> Peer<'_> {
        Peer { parts: vec![bytes], step, begins: true, closes: true, heads: 0, last_bytes: [0; 4] }
    }
}

impl Read for Peer<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let peer = self.get_mut();
        let said = usize::from(peer.begins) + peer.heads;
        let part = peer.parts.iter_mut().take(said).find(|part| !part.is_empty());
        let Some(part) = part else {
            let all_said = peer.parts.iter().all(|part| part.is_empty());
            return if peer.closes && all_said { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let (now, later) = part.split_at(part.len().min(peer.step).min(buf.remaining()));
        buf.put_slice(now);
        *part = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Peer<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let peer = self.get_mut();
        for &byte in buf {
            peer.last_bytes.rotate_left(1);
            peer.last_bytes[3] = byte;
            peer.heads += usize::from(!peer.begins && &peer.last_bytes == b"\r\n\r\n");
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Names in lower case, sorted, each with its values in their order.
pub(crate) fn sorted<'h>(headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn headers(map: &hyper::HeaderMap) -> Vec<(String, Vec<u8>)> {
    sorted(map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
}

async fn whole<B: Body<Data = Bytes>>(body: B) -> Option<Vec<u8>> {
    body.collect().await.ok().map(|body| body.to_bytes().to_vec())
}

/// The requests of a connection that says `bytes`, `step` at a time, and closes.
pub(crate) fn requests(bytes: &[u8], step: usize) -> Vec<Seen> {
    let all = Rc::new(RefCell::new(Vec::new()));
    let serve = |request: Request<Incoming>| {
        let all = Rc::clone(&all);
        async move {
            let (head, body) = request.into_parts();
            assert_eq!(head.version, Version::HTTP_11);
            let body = whole(body).await;
            all.borrow_mut().push(Seen {
                start: head.method.to_string(),
                target: head.uri.to_string(),
                headers: headers(&head.headers),
                body,
            });
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    };
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(Peer::client(bytes, step), service_fn(serve))
    );
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..POLLS_MAX {
        if connection.as_mut().poll(&mut cx).is_ready() {
            break;
        }
    }
    all.take()
}

/// The replies to requests with these methods on one connection, where the server says one part after each.
pub(crate) fn replies(methods: &[&str], parts: &[&[u8]], closes: bool) -> Vec<Seen> {
    let parts = parts.to_vec();
    let peer = Peer { parts, step: usize::MAX, begins: false, closes, heads: 0, last_bytes: [0; 4] };
    let mut cx = Context::from_waker(Waker::noop());
    let shaken = pin!(hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(peer)).poll(&mut cx);
    let Poll::Ready(Ok((mut sender, connection))) = shaken else { return Vec::new() };
    let mut connection = pin!(connection);
    let mut all = Vec::new();
    for method in methods {
        let mut asked = pin!(async {
            sender.ready().await.ok()?;
            let request = Request::builder().method(Method::from_bytes(method.as_bytes()).ok()?);
            let request = request.header("host", "a").body(Empty::new()).ok()?;
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            let body = whole(body).await;
            let start = head.status.as_u16().to_string();
            Some(Seen { start, target: String::new(), headers: headers(&head.headers), body })
        });
        let mut answered = None;
        for _ in 0..POLLS_AT_ONCE_MAX {
            let _ended = connection.as_mut().poll(&mut cx);
            if let Poll::Ready(reply) = asked.as_mut().poll(&mut cx) {
                answered = reply;
                break;
            }
        }
        match answered {
            Some(reply) => all.push(reply),
            None => break,
        }
    }
    all
}

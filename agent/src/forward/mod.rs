//! Stage 5, forward: what was permitted goes to its server, and nothing else does.
//!
//! An upstream connection serves one (caller, server). It waits in its thread's pool between two requests; one that
//! says anything while it waits is closed.

mod endpoints;
mod error;
mod external;
mod passage;
mod pool;
mod shared;
mod tls;
mod undeclared;

pub use endpoints::{Bound, BoundBy, candidates_now};
pub use error::ForwardError;
pub use external::{Refusal, refusal};
pub use passage::{first_to_speak, pass, relay, secure};
pub use pool::Pool;
pub use tls::{CertificateRefused, Connectors, TlsError};
pub use undeclared::{Undeclared, dial, send_undeclared};

use std::borrow::Cow;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use crate::deadline::timeout;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWrite as _;
use tokio::net::{TcpSocket, TcpStream};
use toolgate_core::decision::{Passage, Permitted, Place, Server};
use toolgate_core::http1::{self, Changes, Outgoing, OwnHeader};
use toolgate_core::identity::Identity;

use crate::buffer::{BLOCK_BYTES, Buffer, Scratch};
use crate::io::Io;
use crate::limits::Limits;
use crate::names::Names;
use crate::netns::{Namespace, Namespaces};
use crate::parse::{Asked, Request};
use crate::peer::{self, Mutual, Protocol, Tethers};
use crate::replicas::{Busy, Replicas};
use crate::svid::Svids;
use shared::Alone;

/// Bodies beyond it have a connection to another agent of their own: there they are copied once less, and nobody waits behind
/// them.
const SHARED_BODY_BYTES_MAX: usize = 8 * 1024;

/// Whom an upstream connection serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The caller.
    pub caller: Identity,
    /// The server: what was proven of a connection holds for it alone.
    pub server: Identity,
    /// Where it is, and how it proves itself: with another place it is another leg.
    pub place: Place,
    /// The name by which a local server must prove itself: its client speaks TLS, which is read here, and so is it spoken to.
    pub tls: Option<ServerName<'static>>,
    /// It goes on a connection to the server's agent that others of this caller share.
    pub shares: bool,
}

/// The place is compared alone: few have had several.
impl Hash for Leg {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.caller.hash(state);
        self.server.hash(state);
    }
}

/// What a thread connects with.
pub struct Ways<'w> {
    /// Connections that wait.
    pub pool: &'w Pool,
    /// Where the agent is, and what leads back to it.
    pub namespaces: &'w Namespaces,
    /// Where names lead.
    pub names: &'w Names,
    /// TLS to external servers.
    pub connectors: &'w Connectors,
    /// How the endpoints of servers with several are.
    pub replicas: &'w Replicas,
    /// Whom callers are shown as to other agents, and which of those are believed.
    pub svids: &'w Svids,
    /// What ends connections to other agents in time.
    pub tethers: &'w Tethers,
}

/// A connection to a server. Only this module writes to it.
pub struct Upstream {
    io: Io,
    /// Bytes of the reply that is awaited have come.
    speaking: bool,
    /// What the server said and nobody has read yet.
    pub buffer: Buffer,
    /// The server's address.
    pub address: SocketAddr,
    /// The server replied before it had the whole request: nothing can be sent after that.
    pub cut: bool,
    /// The endpoint that it goes to, of several: it counts as busy.
    busy: Option<Busy>,
    /// It is for calls that are alone.
    alone: Option<Rc<Alone>>,
    /// What it gives is bound to its address: its server may be at others.
    binds: bool,
}

/// Sends a permitted request over a connection of this caller to this server, and returns that connection: the
/// reply is the next that it says. `traceparent` comes in the place of the caller's, unless it is empty. `bound`: which of the
/// server's endpoints the request must go to.
///
/// # Errors
/// [`ForwardError`]; the request may have reached the server in the case of `Send`.
pub async fn send(
    permitted: Permitted<&Asked<'_>>,
    (leg, bound): (&Leg, Option<Bound>),
    server: &Server,
    traceparent: &str,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let mut upstream = match &leg.place {
        Place::Local { address } => endpoints::at(leg, *address, ways, limits).await?,
        Place::Peer { endpoints, .. } => endpoints::reach(leg, endpoints, bound, ways, limits).await?,
        Place::External(external) => endpoints::reach(leg, &external.endpoints, bound, ways, limits).await?,
    };
    let asked = permitted.into_inner();
    let invoked = asked.request.addressed;
    let (host, own): (_, &[OwnHeader]) = match (&leg.place, invoked) {
        (Place::External(external), _) => (Cow::Borrowed(&*external.authority), &external.own_headers),
        (Place::Local { .. } | Place::Peer { .. }, Some(_)) => (Cow::Owned(server.host()), &[]),
        (Place::Local { .. } | Place::Peer { .. }, None) => (Cow::Borrowed(""), &[]),
    };
    let (resumes, base) = (asked.last_event.is_some(), server.base(invoked));
    let changes = Changes { resumes, traceparent, host: &host, invoked, base, own };
    upstream
        .write_request(&asked.request, changes, limits)
        .await
        .inspect_err(|error| upstream.failed(error))?;
    Ok(upstream)
}

/// Dials a declared server for traffic that its rules let pass unread.
///
/// # Errors
/// [`ForwardError`] when nothing answers there.
pub async fn dial_declared(
    _permitted: &Permitted<Passage>,
    server: &Server,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let (plain, address) = match &server.place {
        Place::Local { address } | Place::Peer { address, .. } => {
            (connect(*address, ways.namespaces.home(), limits).await?, *address)
        }
        Place::External(external) => endpoints::dial(external, &server.identity, ways, limits).await?,
    };
    Ok(Upstream::new(Io::Plain(plain), address))
}

/// Where a request to a server goes. `tls`: the name by which a local one must prove itself, where its client speaks TLS.
#[must_use]
pub fn leg(caller: &Identity, server: &Server, tls: Option<&ServerName<'static>>, asked: &Asked<'_>) -> Leg {
    let tls = tls.filter(|_| matches!(server.place, Place::Local { .. })).cloned();
    let shares = matches!(server.place, Place::Peer { .. })
        && asked.ends_by_itself()
        && asked.request.body.len() <= SHARED_BODY_BYTES_MAX;
    Leg { caller: caller.clone(), server: server.identity.clone(), place: server.place.clone(), tls, shares }
}

async fn connect_local(
    leg: &Leg,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let plain = connect(address, ways.namespaces.home(), limits).await?;
    let upstream = Upstream::new(Io::Plain(plain), address);
    match &leg.tls {
        Some(name) => upstream.secured(name, ways.connectors, limits).await,
        None => Ok(upstream),
    }
}

/// Connects to the agent in front of a server, at one of its endpoints: for the first of these protocols that it speaks.
async fn connect_peer(
    leg: &Leg,
    address: SocketAddr,
    protocols: &[Protocol],
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Mutual, ForwardError> {
    let plain = connect(address, ways.namespaces.home(), limits).await?;
    let limit = limits.handshake_time_max;
    let shaking = peer::connect(plain, address, &leg.caller, &leg.server, protocols, ways.svids);
    let mutual = timeout(limit, shaking)
        .await
        .map_err(|_| ForwardError::HandshakeTimeout { address, limit })?
        .map_err(|cause| ForwardError::Peer { address, cause })?;
    ways.tethers.hold(&mutual.tether);
    Ok(mutual)
}

/// A socket stays in the namespace that it is made in.
async fn connect(address: SocketAddr, from: &Namespace, limits: &Limits) -> Result<TcpStream, ForwardError> {
    let limit = limits.connect_time_max;
    let make = || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let made = from.within(make).map_err(|source| ForwardError::Namespace { address, source })?;
    let socket = made.map_err(|source| ForwardError::connecting(address, source))?;
    let connected = timeout(limit, socket.connect(address)).await;
    connected
        .map_err(|_| ForwardError::ConnectTimeout { address, limit })?
        .and_then(|io| io.set_nodelay(true).map(|()| io))
        .map_err(|source| ForwardError::connecting(address, source))
}

impl Upstream {
    fn new(io: Io, address: SocketAddr) -> Self {
        Self {
            io,
            speaking: false,
            buffer: Buffer::default(),
            address,
            cut: false,
            busy: None,
            alone: None,
            binds: false,
        }
    }

    /// Which of the server's endpoints it goes to, where there may be several.
    #[must_use]
    pub fn replica(&self) -> Option<SocketAddr> {
        self.binds.then_some(self.address)
    }

    /// Bytes that are held of what it said while its client does not read.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.held() + self.io.unread_bytes_max()
    }

    fn is_alone_at(&self, address: SocketAddr) -> bool {
        self.alone.is_some() && self.address == address
    }

    /// The server has answered. Who stands in for one that is away is as good as away; 503 is also what one caller is told
    /// that asks too much.
    pub fn answered(&self, status: u16) {
        match (&self.busy, status) {
            (None, _) => {}
            (Some(_), 502 | 504) => self.failed(&format_args!("status {status}")),
            (Some(busy), _) => busy.replica().succeeded(),
        }
    }

    /// The server has not answered, and not for its client's sake.
    pub fn failed(&self, reason: &dyn std::fmt::Display) {
        if let Some(busy) = &self.busy {
            busy.replica().failed(reason, Instant::now());
        }
    }

    /// Writes a request with exactly one framing, head and body in one system call.
    async fn write_request(
        &mut self,
        request: &Request<'_>,
        changes: Changes<'_>,
        limits: &Limits,
    ) -> Result<(), ForwardError> {
        let mut head = Scratch::default();
        let has_body = !request.body.is_empty() || matches!(request.head.method, "POST" | "PUT" | "PATCH");
        let framing = if has_body { Outgoing::Length(request.body.len() as u64) } else { Outgoing::None };
        http1::write_request_head(head.vec(), &request.head, framing, changes);
        self.write(&mut [IoSlice::new(&head), IoSlice::new(request.body)], limits).await?;
        self.speaking = self.cut;
        Ok(())
    }

    /// Reads once more of what the server says, at most until `bytes_max` wait; safe to cancel. 0: it closed.
    ///
    /// # Errors
    /// As [`Buffer::poll_fill`].
    pub async fn fill(&mut self, bytes_max: usize) -> io::Result<usize> {
        let Self { io, buffer, speaking, .. } = self;
        let mut waits_for_ack = *speaking;
        let filled = poll_fn(|cx| {
            let polled = buffer.poll_fill(cx, io, bytes_max);
            if polled.is_pending() {
                buffer.park();
            }
            if polled.is_pending()
                && std::mem::take(&mut waits_for_ack)
                && let Some(socket) = io.socket()
            {
                // A server that writes its reply in two segments waits for the first one's ACK (Nagle): do not delay it.
                // Best effort: without it the reply is slow, not wrong.
                let _ = socket2::SockRef::from(socket).set_tcp_quickack(true);
            }
            polled
        });
        let count = filled.await.map_err(|error| tls::of_certificate(error, io))?;
        *speaking = true;
        Ok(count)
    }

    /// Waits for `work`, or for the server to speak (`None`), whichever comes first.
    async fn unless_spoken<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = self.buffer.fill(&mut self.io, BLOCK_BYTES) => {
                self.cut = true;
                None
            }
        }
    }

    /// Writes all of `parts`, unless the server replies first: then the rest is not wanted.
    async fn write(&mut self, mut parts: &mut [IoSlice<'_>], limits: &Limits) -> Result<(), ForwardError> {
        let (address, limit) = (self.address, limits.send_time_max);
        let Self { io, buffer, .. } = self;
        IoSlice::advance_slices(&mut parts, 0);
        let either = poll_fn(|cx| {
            let polled = poll_write_all(cx, io, &mut parts);
            if polled.is_ready() {
                return polled.map_ok(|()| false);
            }
            match ready!(buffer.poll_fill(cx, io, BLOCK_BYTES))? {
                0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                _ => Poll::Ready(Ok(true)),
            }
        });
        let written =
            timeout(limit, either).await.map_err(|_| ForwardError::SendTimeout { address, limit })?;
        self.cut = written.map_err(|source| ForwardError::Send { address, source })?;
        Ok(())
    }
}

fn poll_write_all(cx: &mut Context<'_>, io: &mut Io, parts: &mut &mut [IoSlice<'_>]) -> Poll<io::Result<()>> {
    while !parts.is_empty() {
        match ready!(Pin::new(&mut *io).poll_write_vectored(cx, parts))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => IoSlice::advance_slices(parts, count),
        }
    }
    Pin::new(io).poll_flush(cx) // what TLS keeps back
}

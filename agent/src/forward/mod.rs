//! Stage 5, forward: what was permitted goes to its server, and nothing else does.
//!
//! An upstream connection serves one (caller, server). It waits in its thread's pool between two requests; one that
//! says anything while it waits is closed.

mod passage;
mod pool;

pub use passage::{first_to_speak, pass, relay};
pub use pool::Pool;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::deadline::timeout;
use tokio::io::AsyncWrite as _;
use tokio::net::{TcpSocket, TcpStream};
use toolgate_core::decision::{Passage, Permitted, Place, Server};
use toolgate_core::denial::Reason;
use toolgate_core::http1::{self, Changes, Outgoing};
use toolgate_core::identity::Identity;

use crate::buffer::{BLOCK_BYTES, Buffer, Scratch};
use crate::capture::Cookie;
use crate::io::Io;
use crate::limits::{Limit, Limits};
use crate::netns::{Namespace, Namespaces, NetnsError};
use crate::parse::{Asked, Request};
use crate::peer::{self, Tethers};
use crate::svid::Svids;

/// Why a permitted request did not reach its server.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No connection.
    #[error("cannot connect to {address}: {source}; is the server running?")]
    Connect {
        /// Where the server should be.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has nothing left to connect with: it says nothing about the server.
    #[error("cannot connect to {address}: {source}; {}", exhausted(source))]
    Exhausted {
        /// Where the server should be.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No connection in time.
    #[error("{address} did not accept a connection within {limit:?} ({})", Limit::ConnectTime)]
    ConnectTimeout {
        /// Where the server should be.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// Who is in front of the server is not proven.
    #[error("the agent at {address} is not trusted: {cause}")]
    Peer {
        /// Where it is.
        address: SocketAddr,
        /// Why not.
        cause: peer::ConnectError,
    },
    /// It did not prove who it is in time.
    #[error(
        "the agent at {address} did not finish the handshake within {limit:?} ({})",
        Limit::HandshakeTime
    )]
    HandshakeTimeout {
        /// Where it is.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// No socket in the caller's own network namespace.
    #[error("cannot dial {address} from the caller's network namespace: {source}")]
    Namespace {
        /// Where the client wanted to go.
        address: SocketAddr,
        /// Why.
        source: NetnsError,
    },
    /// The tunnel through a proxy that this client had.
    #[error("the tunnel through the proxy at {address} has ended")]
    TunnelEnded {
        /// Where the proxy is.
        address: SocketAddr,
    },
    /// A way around what is declared.
    #[error(
        "{address} is the port of a declared server by another of its addresses; connect to the declared one"
    )]
    Guarded {
        /// Where the client wanted to go.
        address: SocketAddr,
    },
    /// The kernel's programs are not told which link a client means.
    #[error(
        "{address} is a link-local address, and which link the client meant is not recorded: let it use another \
         address of the server, or exclude this one (capture.exclude)"
    )]
    LinkLocal {
        /// Where the client wanted to go.
        address: SocketAddr,
    },
    /// The client's body broke off or is no HTTP while it was streamed.
    #[error("the client's body broke off: {problem}")]
    ClientBody {
        /// What is wrong with it.
        problem: String,
    },
    /// The client left while its request was sent.
    #[error("the client left while its request was sent")]
    ClientLeft,
    /// It did not take the request.
    #[error("{address} closed while the request was sent: {source}")]
    Send {
        /// Where the server is.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not take the request in time.
    #[error("{address} did not take the request within {limit:?} ({})", Limit::SendTime)]
    SendTimeout {
        /// Where the server is.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
}

impl ForwardError {
    /// Why there is no connection: the server, or this host.
    fn connecting(address: SocketAddr, source: io::Error) -> Self {
        if exhausted(&source).is_empty() {
            Self::Connect { address, source }
        } else {
            Self::Exhausted { address, source }
        }
    }

    /// The label, and the status for the client.
    #[must_use]
    pub fn reason(&self) -> (Reason, u16) {
        match self {
            Self::Connect { .. } | Self::Send { .. } | Self::Namespace { .. } | Self::TunnelEnded { .. } => {
                (Reason::ServerUnreachable, 502)
            }
            Self::Exhausted { .. } => (Reason::Overload, 503),
            Self::Guarded { .. } | Self::LinkLocal { .. } => (Reason::Undeclared, 403),
            Self::Peer { .. } => (Reason::PeerUnproven, 502),
            Self::ConnectTimeout { .. } | Self::HandshakeTimeout { .. } | Self::SendTimeout { .. } => {
                (Reason::ServerTimeout, 504)
            }
            Self::ClientBody { .. } | Self::ClientLeft => (Reason::ClientLeft, 400),
        }
    }

    /// The limit that it ran into.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::ConnectTimeout { .. } => Some(Limit::ConnectTime),
            Self::SendTimeout { .. } => Some(Limit::SendTime),
            Self::HandshakeTimeout { .. } => Some(Limit::HandshakeTime),
            Self::Connect { .. }
            | Self::Exhausted { .. }
            | Self::Peer { .. }
            | Self::Namespace { .. }
            | Self::TunnelEnded { .. }
            | Self::Guarded { .. }
            | Self::LinkLocal { .. }
            | Self::ClientBody { .. }
            | Self::ClientLeft
            | Self::Send { .. } => None,
        }
    }
}

/// What the host has none left of; empty: it is another error.
fn exhausted(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => {
            "no port of `net.ipv4.ip_local_port_range` is left towards it: widen the range, or end what holds them"
        }
        Some(libc::EMFILE) => "the agent has all descriptors of its limit (`LimitNOFILE`, `ulimit -n`)",
        Some(libc::ENFILE) => "the host has no descriptors left (`fs.file-max`)",
        Some(libc::ENOBUFS | libc::ENOMEM) => "the kernel has no memory for a socket",
        Some(_) | None => "",
    }
}

/// Whom an upstream connection serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Leg {
    /// The caller.
    pub caller: Identity,
    /// The server: what was proven of a connection holds for it alone.
    pub server: Identity,
    /// The server's address.
    pub address: SocketAddr,
}

/// What a thread connects with.
pub struct Ways<'w> {
    /// Connections that wait.
    pub pool: &'w Pool,
    /// Where the agent is.
    pub home: &'w Namespace,
    /// Whom callers are shown as to other agents, and which of those are believed.
    pub svids: &'w Svids,
    /// What ends connections to other agents in time.
    pub tethers: &'w Tethers,
}

/// What no Server declares, as seen from the network namespace that it is dialled from: the caller's own.
#[derive(Clone, Copy)]
pub struct Undeclared<'n> {
    /// Where the client wanted to go.
    pub address: SocketAddr,
    /// Where it is.
    pub namespace: Cookie,
    /// Those that the agent can dial from.
    pub namespaces: &'n Namespaces,
    /// It was reached by a tunnel through a proxy: there is no other connection to it.
    pub is_tunnel: bool,
}

impl Undeclared<'_> {
    /// The same, through a tunnel where there is one.
    #[must_use]
    pub fn by(self, tunnel_to: Option<&str>) -> Self {
        Self { is_tunnel: tunnel_to.is_some(), ..self }
    }

    async fn connect(self, limits: &Limits) -> Result<Upstream, ForwardError> {
        let Self { address, namespace, namespaces, is_tunnel } = self;
        if is_tunnel {
            return Err(ForwardError::TunnelEnded { address });
        }
        // The guard lets the agent pass: what is not decided as for that server must not.
        if namespaces.guards(namespace, address) {
            return Err(ForwardError::Guarded { address });
        }
        if matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local()) {
            return Err(ForwardError::LinkLocal { address });
        }
        let from = namespaces.get(namespace).map_err(|source| ForwardError::Namespace { address, source })?;
        Ok(Upstream::new(Io::Plain(connect(address, &from, limits).await?), address))
    }
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
}

/// Sends a permitted request over a connection of this caller to this server, and returns that connection: the
/// reply is the next that it says. `traceparent` comes in the place of the caller's, unless it is empty.
///
/// # Errors
/// [`ForwardError`]; the request may have reached the server in the case of `Send`.
pub async fn send(
    permitted: Permitted<&Asked<'_>>,
    leg: &Leg,
    server: &Server,
    traceparent: &str,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let mut upstream = match (ways.pool.checkout(leg, limits), &server.place) {
        (Some(idle), _) => idle,
        (None, Place::Local) => {
            let plain = connect(leg.address, ways.home, limits).await?;
            Upstream::new(Io::Plain(plain), leg.address)
        }
        (None, Place::Peer(endpoints)) => connect_peer(leg, endpoints, ways, limits).await?,
    };
    let asked = permitted.into_inner();
    let host = asked.request.addressed.map(|addressed| (addressed, server.host()));
    let invoked = host.as_ref().map(|(addressed, host)| (*addressed, host.as_str()));
    let changes = Changes { resumes: asked.last_event.is_some(), traceparent, invoked };
    upstream.write_request(&asked.request, changes, limits).await?;
    Ok(upstream)
}

/// Sends permitted MCP to an address that no Server declares, over a connection of this client alone.
///
/// # Errors
/// As [`send`].
pub async fn send_undeclared(
    permitted: Permitted<&Request<'_>>,
    own: Option<Upstream>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let mut upstream = still_open(own, to, limits).await?;
    upstream.write_request(permitted.into_inner(), Changes::default(), limits).await?;
    Ok(upstream)
}

/// Dials where the client of a permitted passage wanted to go.
///
/// # Errors
/// [`ForwardError`] when nothing answers there.
pub async fn dial(
    _permitted: &Permitted<Passage>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    to.connect(limits).await
}

/// Dials a declared server for traffic that its rules let pass unread.
///
/// # Errors
/// [`ForwardError`] when nothing answers there.
pub async fn dial_declared(
    _permitted: &Permitted<Passage>,
    server: &Server,
    home: &Namespace,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    Ok(Upstream::new(Io::Plain(connect(server.address, home, limits).await?), server.address))
}

async fn still_open(
    own: Option<Upstream>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    if let Some(mut upstream) = own
        && matches!(pool::silence(&mut upstream), pool::Silence::Kept)
    {
        return Ok(upstream);
    }
    to.connect(limits).await
}

/// Where a server's requests go.
#[must_use]
pub fn leg(caller: &Identity, server: &Server) -> Leg {
    Leg { caller: caller.clone(), server: server.identity.clone(), address: server.address }
}

/// Connects to the agent in front of a server, at the first of its endpoints that answers. One that answers and does not
/// prove who it is ends the search: nobody may be made to look elsewhere.
async fn connect_peer(
    leg: &Leg,
    endpoints: &[SocketAddr],
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let mut failed = None;
    for &address in endpoints {
        let plain = match connect(address, ways.home, limits).await {
            Ok(plain) => plain,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        let limit = limits.handshake_time_max;
        let shaken =
            timeout(limit, peer::connect(plain, address, &leg.caller, &leg.server, ways.svids)).await;
        let mutual = shaken
            .map_err(|_| ForwardError::HandshakeTimeout { address, limit })?
            .map_err(|cause| ForwardError::Peer { address, cause })?;
        ways.tethers.hold(&mutual.tether);
        return Ok(Upstream::new(Io::Mutual(Box::new(mutual)), address));
    }
    let nowhere = || ForwardError::connecting(leg.address, io::ErrorKind::AddrNotAvailable.into());
    Err(failed.unwrap_or_else(nowhere))
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
        Self { io, speaking: false, buffer: Buffer::default(), address, cut: false }
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
            if polled.is_pending() && std::mem::take(&mut waits_for_ack) {
                // A server that writes its reply in two segments waits for the first one's ACK (Nagle): do not delay it.
                // Best effort: without it the reply is slow, not wrong.
                let _ = socket2::SockRef::from(io.socket()).set_tcp_quickack(true);
            }
            polled
        });
        let count = filled.await?;
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

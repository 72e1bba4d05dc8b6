//! Why a permitted request does not get there, and what becomes of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use toolgate_core::denial::Reason;

use super::{BoundBy, Refusal, TlsError};
use crate::limits::Limit;
use crate::names::NameError;
use crate::netns::NetnsError;
use crate::peer;

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
    /// What others waited for, too.
    #[error(transparent)]
    Shared(Arc<ForwardError>),
    /// The endpoint that has what the request is about is no more.
    #[error(
        "{address}, the endpoint that has what this is about, is gone{}: its client is to begin anew",
        cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default()
    )]
    ReplicaGone {
        /// Where it was.
        address: SocketAddr,
        /// What binds the request to it.
        by: BoundBy,
        /// Why it cannot be reached; `None`: its server does not have it any more.
        cause: Option<Box<ForwardError>>,
    },
    /// It has no address.
    #[error("the server has no address; name one in its Server")]
    Nowhere,
    /// Its name leads nowhere.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its name leads where it must not.
    #[error(
        "the name of {server} leads to {address}, which is {why}: only public addresses are dialled for an external server; \
         write `allow_private: true` if it is meant to be there"
    )]
    Refused {
        /// Its URL.
        server: Box<str>,
        /// Where its name leads to.
        address: SocketAddr,
        /// What is wrong with that.
        why: Refusal,
    },
    /// TLS with an external server does not stand.
    #[error("no TLS with {server} at {address}: {cause}")]
    Tls {
        /// Its URL.
        server: Box<str>,
        /// Where it is.
        address: SocketAddr,
        /// Why not.
        cause: Box<TlsError>,
    },
    /// It did not prove who it is in time.
    #[error("{address} did not finish the handshake within {limit:?} ({})", Limit::HandshakeTime)]
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
    pub(super) fn connecting(address: SocketAddr, source: io::Error) -> Self {
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
            Self::Connect { .. }
            | Self::Nowhere
            | Self::Send { .. }
            | Self::Namespace { .. }
            | Self::TunnelEnded { .. } => (Reason::ServerUnreachable, 502),
            Self::ReplicaGone { by, .. } => by.reason(),
            Self::Shared(error) => error.reason(),
            Self::Name(_) => (Reason::NameUnresolved, 502),
            Self::Refused { .. } => (Reason::AddressRefused, 502),
            Self::Tls { .. } => (Reason::ServerUnproven, 502),
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
            Self::Name(NameError::Slow { .. }) => Some(Limit::ResolveTime),
            Self::Shared(error) => error.limit(),
            Self::Name(_)
            | Self::Nowhere
            | Self::ReplicaGone { .. }
            | Self::Refused { .. }
            | Self::Tls { .. }
            | Self::Connect { .. }
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

//! A connection, whatever protects it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use toolgate_core::lanes::REPLY_WINDOW_BYTES;

use crate::ahead::Ahead;
use crate::peer::lanes::Lane;
use crate::peer::{Mutual, Tether};

/// Small messages are sent as one piece: to copy it costs less than to have the kernel gather it.
const JOINED_BYTES_MAX: usize = 2 * 1024;

/// Bytes both ways. One type and not a parameter: the path through it is there once.
pub enum Io {
    /// Within a host, or to an external server that has no other.
    Plain(TcpStream),
    /// TLS with somebody who is no agent.
    Tls(Box<TlsStream<Ahead>>),
    /// Between two agents.
    Mutual(Box<Mutual>),
    /// Between two agents, on a connection that others share, and what that hangs on.
    Lane(Lane, Rc<Tether>),
}

impl Io {
    /// The socket below, where it is its own.
    #[must_use]
    pub fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(tls) => Some(tls.get_ref().0.socket()),
            Self::Mutual(mutual) => Some(mutual.socket()),
            Self::Lane(..) => None,
        }
    }

    /// Bytes of the other end that may wait here for a reader, uncounted elsewhere.
    #[must_use]
    pub fn unread_bytes_max(&self) -> usize {
        match self {
            Self::Plain(_) | Self::Tls(_) | Self::Mutual(_) => 0, // the kernel holds them
            Self::Lane(..) => REPLY_WINDOW_BYTES,
        }
    }

    /// What it hangs on between two agents.
    #[must_use]
    pub fn tether(&self) -> Option<&Tether> {
        match self {
            Self::Plain(_) | Self::Tls(_) => None,
            Self::Mutual(mutual) => Some(&mutual.tether),
            Self::Lane(_, tether) => Some(tether),
        }
    }

    /// Whether it may take one more request, as far as this end knows.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Tls(_) => true,
            Self::Mutual(mutual) => mutual.tether.takes_more(),
            Self::Lane(lane, tether) => lane.takes_more() && tether.takes_more(),
        }
    }
}

impl AsyncRead for Io {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, space),
            Self::Tls(io) => Pin::new(&mut **io).poll_read(cx, space),
            Self::Mutual(io) => Pin::new(io).poll_read(cx, space),
            Self::Lane(io, _) => Pin::new(io).poll_read(cx, space),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tls(io) => Pin::new(&mut **io).poll_write(cx, bytes),
            Self::Mutual(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Lane(io, _) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => {
                let bytes: usize = parts.iter().map(|part| part.len()).sum();
                if bytes > JOINED_BYTES_MAX {
                    return Pin::new(io).poll_write_vectored(cx, parts);
                }
                let mut joined = SmallVec::<[u8; JOINED_BYTES_MAX]>::new();
                parts.iter().for_each(|part| joined.extend_from_slice(part));
                Pin::new(io).poll_write(cx, &joined)
            }
            Self::Tls(io) => Pin::new(&mut **io).poll_write_vectored(cx, parts),
            Self::Mutual(io) => Pin::new(io).poll_write_vectored(cx, parts),
            Self::Lane(io, _) => Pin::new(io).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())), // nothing waits in a socket of ours
            Self::Tls(io) => Pin::new(&mut **io).poll_flush(cx),
            Self::Mutual(io) => Pin::new(io).poll_flush(cx),
            Self::Lane(io, _) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_shutdown(cx),
            Self::Mutual(io) => Pin::new(io).poll_shutdown(cx),
            Self::Lane(io, _) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

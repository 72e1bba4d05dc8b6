//! A connection between two agents, as bytes.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::{Protocol, Tether};
use crate::ahead::Ahead;

/// The most bytes that are encrypted and not yet sent: a message of 64 KiB goes in one write.
const UNSENT_BYTES_MAX: usize = 128 * 1024;

/// Mutual TLS over TCP.
pub struct Mutual {
    tls: TlsStream<Ahead>,
    /// What is spoken within.
    pub protocol: Protocol,
    /// What it hangs on.
    pub tether: Rc<Tether>,
}

impl Mutual {
    pub(super) fn new(mut tls: TlsStream<Ahead>, protocol: Protocol, tether: Rc<Tether>) -> Self {
        match &mut tls {
            TlsStream::Client(tls) => tls.get_mut().1.set_buffer_limit(Some(UNSENT_BYTES_MAX)),
            TlsStream::Server(tls) => tls.get_mut().1.set_buffer_limit(Some(UNSENT_BYTES_MAX)),
        }
        Self { tls, protocol, tether }
    }

    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        self.tls.get_ref().0.socket()
    }
}

/// The tether has a descriptor of its own, and others may hold it: without this the connection would not end before them.
impl Drop for Mutual {
    fn drop(&mut self) {
        // One that has ended cannot be ended again.
        let _ = SockRef::from(self.socket()).shutdown(Shutdown::Both);
    }
}

impl AsyncRead for Mutual {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, space)
    }
}

impl AsyncWrite for Mutual {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    /// Says close_notify, then ends.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

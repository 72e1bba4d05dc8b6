//! A socket below TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::Buffer;

/// The most bytes that are read ahead: eight records, in which a message of 64 KiB is whole.
const AHEAD_BYTES_MAX: usize = 128 * 1024;

/// A socket that is read in large pieces: rustls asks for one record at a time, its head and its body apart.
pub struct Ahead {
    io: TcpStream,
    buffer: Buffer,
}

impl Ahead {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(io: TcpStream) -> Self {
        Self::after(io, Buffer::default())
    }

    /// What is in `buffer` was read before.
    #[must_use]
    pub fn after(io: TcpStream, buffer: Buffer) -> Self {
        Self { io, buffer }
    }

    /// The socket itself.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.io
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, buffer } = &mut *self;
        if buffer.is_empty() && ready!(buffer.poll_fill(cx, io, AHEAD_BYTES_MAX))? == 0 {
            return Poll::Ready(Ok(()));
        }
        let count = buffer.bytes().len().min(space.remaining());
        space.put_slice(&buffer.bytes()[..count]);
        buffer.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

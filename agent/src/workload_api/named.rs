//! A connection whose client may name the socket's path as `:authority`, percent-encoded (gRPC's C core: Python, C++, Ruby). `h2`
//! refuses that as malformed, and nobody here asks for the name: its `%` are read as `.`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The name of the header as these clients say it: with its length, and without Huffman's code (HPACK, RFC 7541, 6.2.1).
const NAME: &[u8] = b"\x0a:authority";
/// Longer values have their length in several bytes, and no socket's path is so long.
const VALUE_BYTES_MAX: u8 = 126;

/// What hyper reads.
pub(super) struct Named {
    io: UnixStream,
    /// HPACK says it once for a connection.
    is_read: bool,
}

impl Named {
    pub(super) fn new(io: UnixStream) -> Self {
        Self { io, is_read: false }
    }
}

/// Whether there was one.
fn read_as_a_name(bytes: &mut [u8]) -> bool {
    let at = bytes.windows(NAME.len()).position(|window| window == NAME);
    let Some((count, rest)) = at.and_then(|at| bytes.get_mut(at + NAME.len()..)?.split_first_mut()) else {
        return false;
    };
    if *count > VALUE_BYTES_MAX {
        return true;
    }
    for byte in rest.iter_mut().take(usize::from(*count)).filter(|byte| **byte == b'%') {
        *byte = b'.';
    }
    true
}

impl AsyncRead for Named {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = space.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, space))?;
        if !self.is_read
            && let Some(new) = space.filled_mut().get_mut(before..)
        {
            self.is_read = read_as_a_name(new);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Named {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

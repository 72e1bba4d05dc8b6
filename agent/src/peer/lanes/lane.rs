//! One call after another, on a connection that others share.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::State;

/// Bytes both ways. Shutting it down ends this direction; dropping it breaks off what is not over.
pub struct Lane {
    state: Rc<RefCell<State>>,
    id: u32,
}

impl Lane {
    pub(super) fn new(state: Rc<RefCell<State>>, id: u32) -> Self {
        Self { state, id }
    }

    /// Whether one more request may be said on it.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.state.borrow().takes_more()
    }
}

impl AsyncRead for Lane {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.state.borrow_mut().read(self.id, cx, space)
    }
}

impl AsyncWrite for Lane {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.state.borrow_mut().write(self.id, cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was said is the driver's to send.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.borrow_mut().end_lane(self.id);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.state.borrow_mut().close_lane(self.id);
    }
}

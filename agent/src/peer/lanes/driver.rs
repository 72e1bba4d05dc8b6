//! Moves the bytes of a connection's lanes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use toolgate_core::lanes::End;

use super::state::State;
use super::{Lane, STUCK_BYTES};
use crate::buffer::{BLOCK_BYTES, Buffer};

/// The only one that reads and writes the connection. When it is dropped all lanes are over.
pub struct Driver<S> {
    io: S,
    end: End,
    state: Rc<RefCell<State>>,
    /// What came and is no whole frame yet, or waits for a lane to be closed.
    input: Buffer,
    /// All has been said that will be.
    is_closing: bool,
}

impl<S> Driver<S> {
    pub(super) fn new(io: S, state: Rc<RefCell<State>>) -> Self {
        Self { io, end: End::Connecting, state, input: Buffer::default(), is_closing: false }
    }

    /// The accepting end of a connection.
    #[must_use]
    pub fn accepting(io: S) -> Self {
        let state = Rc::new(RefCell::new(State::new(End::Accepting)));
        Self { io, end: End::Accepting, state, input: Buffer::default(), is_closing: false }
    }

    /// Tells the other end to open no more lanes.
    pub fn leave(&self) {
        self.state.borrow_mut().leave();
    }

    /// Ends the connection with its last lane.
    pub fn close(&self) {
        self.state.borrow_mut().close();
    }

    /// Whether nobody uses it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.borrow().is_idle()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Moves bytes until the other end opens a lane; safe to cancel. `None`: the connection has ended.
    ///
    /// # Errors
    /// It broke, or what came is not of this protocol (`InvalidData`).
    pub async fn next(&mut self) -> io::Result<Option<Lane>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Lane>>> {
        let polled = self.poll_moved(cx);
        match &polled {
            Poll::Pending | Poll::Ready(Ok(Some(_))) => {}
            Poll::Ready(Ok(None)) => self.over(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the other agent closed the connection",
            )),
            Poll::Ready(Err(error)) => self.over(super::state::again(error)),
        }
        polled
    }

    fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Lane>>> {
        self.state.borrow_mut().driven(cx);
        let has_ended = match self.poll_input(cx) {
            Poll::Ready(Ok(Some(lane))) => {
                return Poll::Ready(Ok(Some(Lane::new(Rc::clone(&self.state), lane))));
            }
            Poll::Ready(Ok(None)) => true,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => false,
        };
        if has_ended {
            return Poll::Ready(Ok(None));
        }
        let written = self.poll_output(cx)?;
        if self.state.borrow().unsent().len() > STUCK_BYTES {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the other agent takes nothing",
            )));
        }
        self.is_closing |= written.is_ready() && self.state.borrow().is_done(self.end);
        if self.is_closing {
            return Pin::new(&mut self.io).poll_shutdown(cx).map_ok(|()| None);
        }
        Poll::Pending
    }

    /// Reads, and gives out what came: a lane that was opened; `None`: the end.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u32>>> {
        loop {
            loop {
                let received = self.state.borrow_mut().received(self.input.bytes())?;
                let Some((count, opened)) = received else { break };
                self.input.consume(count);
                if opened.is_some() {
                    return Poll::Ready(Ok(opened));
                }
            }
            if self.state.borrow().is_held_up() {
                return Poll::Pending; // it is woken when a lane is closed
            }
            let polled = self.input.poll_fill(cx, &mut self.io, BLOCK_BYTES);
            if polled.is_pending() {
                self.input.park();
            }
            if ready!(polled)? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Sends all that was said, in as few pieces as can be.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        while !state.unsent().is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, state.unsent()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.sent(count);
        }
        drop(state);
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<S> Driver<S> {
    fn over(&self, why: io::Error) {
        self.state.borrow_mut().over(why);
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.over(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was closed"));
    }
}

//! What a connection's lanes and its driver share.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;
use toolgate_core::lanes::{End, Event, REPLY_WINDOW_BYTES, Step, Table};

use super::{LANES_MAX, UNSENT_BYTES_MAX};
use crate::buffer::Scratch;

/// What a lane's reader has not taken yet.
#[derive(Default)]
struct Inbox {
    bytes: Scratch,
    taken: usize,
}

impl Inbox {
    fn put(&mut self, bytes: &[u8]) {
        let vec = self.bytes.vec();
        if self.taken >= REPLY_WINDOW_BYTES / 2 {
            vec.drain(..self.taken);
            self.taken = 0;
        }
        vec.extend_from_slice(bytes);
    }

    fn take(&mut self, space: &mut ReadBuf<'_>) -> usize {
        let rest = &self.bytes[self.taken..];
        let count = rest.len().min(space.remaining());
        space.put_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.bytes.len() {
            self.clear();
        }
        count
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
    }
}

/// A lane's own.
#[derive(Default)]
pub(super) struct Own {
    inbox: Inbox,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Own {
    fn wake(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn wait(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

pub(super) struct State {
    table: Table<Own>,
    /// What was said and not sent yet, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    driver: Option<Waker>,
    /// A lane waits for room in `out`.
    is_full: bool,
    /// The next lane is not to be opened before one that is over is closed here.
    is_held_up: bool,
    /// Nobody asks for lanes any more.
    is_closing: bool,
    /// Why it is over.
    over: Option<io::Error>,
}

impl State {
    pub(super) fn new(end: End) -> Self {
        Self {
            table: Table::new(end, LANES_MAX),
            out: Vec::new(),
            sent: 0,
            driver: None,
            is_full: false,
            is_held_up: false,
            is_closing: false,
            over: None,
        }
    }

    pub(super) fn open(&mut self) -> Option<u32> {
        if self.over.is_some() {
            return None;
        }
        let opened = self.table.open(&mut self.out);
        wake(&mut self.driver);
        opened
    }

    pub(super) fn takes_more(&self) -> bool {
        self.over.is_none() && !self.table.is_leaving()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn leave(&mut self) {
        self.table.leave(&mut self.out);
        wake(&mut self.driver);
    }

    pub(super) fn close(&mut self) {
        self.is_closing = true;
        wake(&mut self.driver);
    }

    /// Whether the connection has served.
    pub(super) fn is_done(&self, end: End) -> bool {
        self.table.is_empty() && (self.is_closing || (end == End::Connecting && self.table.is_leaving()))
    }

    pub(super) fn read(
        &mut self,
        lane: u32,
        cx: &Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(known) = self.table.lane(lane) else { return Poll::Ready(Ok(())) };
        if !known.own.inbox.is_empty() {
            let count = known.own.inbox.take(space);
            let before = self.out.len();
            self.table.took(lane, count, &mut self.out);
            if self.out.len() > before {
                wake(&mut self.driver);
            }
            return Poll::Ready(Ok(()));
        }
        if known.is_reset() {
            return Poll::Ready(Err(reset()));
        }
        if known.other_has_ended() {
            return Poll::Ready(Ok(()));
        }
        if let Some(over) = &self.over {
            return Poll::Ready(Err(again(over)));
        }
        wait(&mut known.own.reader, cx);
        Poll::Pending
    }

    pub(super) fn write(
        &mut self,
        lane: u32,
        cx: &Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(over) = &self.over {
            return Poll::Ready(Err(again(over)));
        }
        let Some(known) = self.table.lane(lane).filter(|known| !known.has_ended()) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if known.is_reset() {
            return Poll::Ready(Err(reset()));
        }
        if parts.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let room = UNSENT_BYTES_MAX.saturating_sub(self.out.len() - self.sent);
        let said = self.table.say(lane, parts.iter().map(|part| &**part), room, &mut self.out);
        if said > 0 {
            wake(&mut self.driver);
            return Poll::Ready(Ok(said));
        }
        self.is_full |= room == 0;
        if let Some(known) = self.table.lane(lane) {
            wait(&mut known.own.writer, cx);
        }
        Poll::Pending
    }

    pub(super) fn end_lane(&mut self, lane: u32) {
        self.table.end(lane, &mut self.out);
        wake(&mut self.driver);
    }

    /// Its handle is gone. The driver may wait for that, too.
    pub(super) fn close_lane(&mut self, lane: u32) {
        self.table.close(lane, &mut self.out);
        wake(&mut self.driver);
    }

    /// The driver's turn: it is woken for what is said from here on.
    pub(super) fn driven(&mut self, cx: &Context<'_>) {
        wait(&mut self.driver, cx);
    }

    /// Takes the next frame of what came: how many bytes it had, and the lane that it opens. `None`: there is no whole
    /// one, or none that can be taken now.
    pub(super) fn received(&mut self, bytes: &[u8]) -> io::Result<Option<(usize, Option<u32>)>> {
        let invalid = |broken| io::Error::new(io::ErrorKind::InvalidData, broken);
        let step = self.table.received(bytes).map_err(invalid)?;
        self.is_held_up = step == Step::Wait;
        let Step::Frame(count, event) = step else { return Ok(None) };
        match event {
            Event::Opened(lane) => return Ok(Some((count, Some(lane)))),
            Event::Data(lane, bytes) => self.tell(lane, |own| {
                own.inbox.put(bytes);
                wake(&mut own.reader);
            }),
            Event::Ended(lane) => self.tell(lane, |own| wake(&mut own.reader)),
            Event::Reset(lane) => self.tell(lane, |own| {
                own.inbox.clear();
                own.wake();
            }),
            Event::Credit(lane) => self.tell(lane, |own| wake(&mut own.writer)),
            Event::Leaving | Event::Late => {}
        }
        Ok(Some((count, None)))
    }

    fn tell(&mut self, lane: u32, what: impl FnOnce(&mut Own)) {
        if let Some(known) = self.table.lane(lane) {
            what(&mut known.own);
        }
    }

    /// Whether nothing more is to be read before a lane is closed here.
    pub(super) fn is_held_up(&self) -> bool {
        self.is_held_up
    }

    /// What is still to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// So many bytes of it were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            if self.table.is_empty() {
                self.out = Vec::new(); // who is idle holds nothing
            }
            if std::mem::take(&mut self.is_full) {
                self.table.lanes().for_each(|lane| wake(&mut lane.own.writer));
            }
        } else if self.sent >= UNSENT_BYTES_MAX {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The connection is over, and with it all lanes; the first reason counts.
    pub(super) fn over(&mut self, why: io::Error) {
        self.over.get_or_insert(why);
        self.out.clear();
        self.sent = 0;
        self.table.lanes().for_each(|lane| lane.own.wake());
    }
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the other agent broke it off")
}

/// The same error once more, for another call: what TLS said stays what it is.
pub(super) fn again(error: &io::Error) -> io::Error {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => io::Error::new(error.kind(), tls.clone()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

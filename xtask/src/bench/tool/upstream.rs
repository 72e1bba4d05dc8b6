//! The server behind all contestants: one thread, epoll, replies made once.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::message::{self, Flow, Kind, REPLY_HEADER};

/// Bytes of a head; a longer one closes its connection.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The largest body: what the bench asks, and some more.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Between two events of a stream.
const EVENT_EVERY: Duration = Duration::from_secs(1);
/// Of each event of a flood.
const FLOOD_BYTES: usize = 16 * 1024;

/// One connection: what was read of a request, what is left to write of a reply.
struct Served {
    stream: TcpStream,
    head: Vec<u8>,
    /// Bytes of the body still to come, and what it asks for.
    body: Option<(usize, Asked)>,
    /// The reply that is not written yet, and how much of it is.
    out: Option<(Asked, usize)>,
    events: Option<Events>,
}

/// The events of an open stream.
struct Events {
    flow: Flow,
    /// When the next one is due; a flood's always is.
    due: Instant,
    /// The next one's.
    number: u64,
    /// What the socket did not take.
    pending: Vec<u8>,
}

/// What decides which reply it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Reply { kind: Kind, bytes: usize },
    Stream(Flow),
}

/// Serves on all these addresses until it is ended.
pub(crate) fn serve(addresses: &[String]) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
    let mut listeners = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        listener.set_nonblocking(true).context("a listener that blocks")?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).context("no epoll")?;
        listeners.push(listener);
    }
    println!("serving");
    let mut server = Server {
        epoll,
        served: Vec::new(),
        free: Vec::new(),
        first: listeners.len(),
        replies: HashMap::new(),
        block: vec![0; 256 * 1024],
    };
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = server.epoll.wait(&mut events, server.until_due()).context("epoll fails")?;
        for event in &events[..count] {
            let index = usize::try_from(event.data()).context("no index")?;
            match listeners.get(index) {
                Some(listener) => server.accept(listener)?,
                None => server.go_on(index),
            }
        }
        server.tell();
    }
}

struct Server {
    epoll: Epoll,
    served: Vec<Option<Served>>,
    free: Vec<usize>,
    /// The number of the first connection: the listeners are before it.
    first: usize,
    replies: HashMap<Asked, Vec<u8>>,
    block: Vec<u8>,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        while let Ok((stream, _peer)) = listener.accept() {
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_err() {
                continue; // it left already
            }
            let index = self.free.pop().unwrap_or(self.served.len());
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            let number = (index + self.first) as u64;
            self.epoll.add(stream.as_fd(), EpollEvent::new(flags, number)).context("no epoll")?;
            let served = Some(Served { stream, head: Vec::new(), body: None, out: None, events: None });
            if index == self.served.len() {
                self.served.push(served);
            } else {
                self.served[index] = served;
            }
        }
        Ok(())
    }

    /// How long nothing has to be told.
    fn until_due(&self) -> EpollTimeout {
        let due = self.served.iter().flatten().filter_map(|served| served.events.as_ref()?.due_at());
        let wait = due.min().map(|due| due.saturating_duration_since(Instant::now()));
        // Rounded up to the millisecond that epoll knows.
        wait.map_or(EpollTimeout::NONE, |wait| {
            EpollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(EpollTimeout::ZERO)
        })
    }

    /// Tells what is due.
    fn tell(&mut self) {
        let now = Instant::now();
        for index in 0..self.served.len() {
            let events = self.served[index].as_ref().and_then(|served| served.events.as_ref());
            if events.and_then(Events::due_at).is_some_and(|due| due <= now) {
                self.go_on(index + self.first);
            }
        }
    }

    fn go_on(&mut self, number: usize) {
        let index = number - self.first;
        let Some(served) = self.served.get_mut(index).and_then(Option::as_mut) else { return };
        if served.go_on(&mut self.block, &mut self.replies).is_err() {
            self.served[index] = None; // closed, and out of the epoll thereby
            self.free.push(index);
        }
    }
}

impl Served {
    /// Reads and writes until neither goes on. An error: it is over.
    fn go_on(&mut self, block: &mut [u8], replies: &mut HashMap<Asked, Vec<u8>>) -> io::Result<()> {
        loop {
            if !self.write(replies)? {
                return Ok(());
            }
            let count = match self.stream.read(block) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.took(&block[..count])?;
            // Less than there is room for: the next read would find nothing, and epoll tells of more.
            if count < block.len() {
                self.write(replies)?;
                return Ok(());
            }
        }
    }

    fn took(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        while !bytes.is_empty() {
            if let Some((left, asked)) = self.body {
                let count = left.min(bytes.len());
                bytes = &bytes[count..];
                self.body = Some((left - count, asked));
            } else {
                let before = self.head.len();
                self.head.extend_from_slice(bytes);
                let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else {
                    return if self.head.len() > HEAD_BYTES_MAX { Err(broken()) } else { Ok(()) };
                };
                bytes = &bytes[end + 4 - before..];
                self.head.truncate(end);
                self.body =
                    Some(asked(&self.head).filter(|(bytes, _)| *bytes <= BODY_BYTES_MAX).ok_or_else(broken)?);
                self.head.clear();
            }
            if let Some((0, asked)) = self.body {
                self.body = None;
                // Nobody here asks twice before the answer.
                if self.out.replace((asked, 0)).is_some() {
                    return Err(broken());
                }
            }
        }
        Ok(())
    }

    /// Writes what is to be written. Whether the reply is written whole.
    fn write(&mut self, replies: &mut HashMap<Asked, Vec<u8>>) -> io::Result<bool> {
        if !self.write_reply(replies)? {
            return Ok(false);
        }
        match &mut self.events {
            Some(events) => events.write(&mut self.stream).map(|()| true),
            None => Ok(true),
        }
    }

    fn write_reply(&mut self, replies: &mut HashMap<Asked, Vec<u8>>) -> io::Result<bool> {
        let Some((asked, mut written)) = self.out else { return Ok(true) };
        let reply = replies.entry(asked).or_insert_with(|| match asked {
            Asked::Reply { kind, bytes } => message::reply(kind, bytes),
            Asked::Stream(_) => message::STREAM_REPLY.to_vec(),
        });
        while written < reply.len() {
            match self.stream.write(&reply[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.out = Some((asked, written));
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out = None;
        if let Asked::Stream(flow) = asked {
            let due = Instant::now() + EVENT_EVERY;
            self.events = Some(Events { flow, due, number: 0, pending: Vec::new() });
        }
        Ok(true)
    }
}

impl Events {
    /// When there is something to be told that the socket may take.
    fn due_at(&self) -> Option<Instant> {
        (self.flow == Flow::Seconds && self.pending.is_empty()).then_some(self.due)
    }

    /// Writes what is due, and no more than the socket takes.
    fn write(&mut self, to: &mut TcpStream) -> io::Result<()> {
        loop {
            if self.pending.is_empty() && !self.make()? {
                return Ok(());
            }
            match to.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether another event was due.
    fn make(&mut self) -> io::Result<bool> {
        let padding = match self.flow {
            Flow::Silent => return Ok(false),
            Flow::Seconds if Instant::now() < self.due => return Ok(false),
            Flow::Seconds => 0,
            Flow::Flood => FLOOD_BYTES,
        };
        let now = message::now_ns().map_err(io::Error::other)?;
        self.pending = message::event(self.number, now, padding);
        self.number += 1;
        self.due += EVENT_EVERY;
        Ok(true)
    }
}

/// Length of the body, and what it asks for.
fn asked(head: &[u8]) -> Option<(usize, Asked)> {
    let head = std::str::from_utf8(head).ok()?;
    let (mut kind, mut flow, mut length) = (Kind::Text, Flow::Silent, None);
    for line in head.split("\r\n").skip(1) {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case(REPLY_HEADER) {
            (kind, flow) = (Kind::named(value.trim()), Flow::named(value.trim()));
        }
    }
    if head.starts_with("GET ") {
        return Some((0, Asked::Stream(flow)));
    }
    let bytes = length?;
    Some((bytes, Asked::Reply { kind, bytes }))
}

//! Streams whose events are numbered: none may be missing or out of turn, and each tells when it was sent.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::Deserialize;

use super::message::{self, Flow};

/// Who does not answer within this is an error, not a wait.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A stream that is silent for longer has lost an event.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Between two looks at the clock.
const WAIT_MAX_MS: u16 = 100;

/// All open ones.
#[derive(Default)]
pub(super) struct Listeners {
    read: Vec<Listener>,
    /// Those that nobody reads.
    unread: Vec<TcpStream>,
    epoll: Option<Epoll>,
    delays: Vec<u32>,
}

/// One stream.
struct Listener {
    stream: TcpStream,
    /// What is not a whole chunk yet.
    raw: Vec<u8>,
    /// What is not a whole event yet.
    data: Vec<u8>,
    next: u64,
    heard: Instant,
}

#[derive(Deserialize)]
struct Event {
    params: Params,
}

#[derive(Deserialize)]
struct Params {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    number: u64,
    at_ns: i64,
}

impl Listeners {
    /// Opens more of them; `read`: with an event each second, else a flood that nobody reads.
    pub(super) fn open(&mut self, address: SocketAddr, count: usize, read: bool) -> Result<()> {
        let epoll = match self.epoll.take() {
            Some(epoll) => epoll,
            None => Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?,
        };
        for _ in 0..count {
            let flow = if read { Flow::Seconds } else { Flow::Flood };
            let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX).context("cannot connect")?;
            stream.set_read_timeout(Some(ANSWER_MAX)).context("no timeout")?;
            stream.write_all(&message::stream_request(&address.to_string(), flow)).context("cannot ask")?;
            head(&mut stream)?;
            stream.set_nonblocking(true).context("it blocks")?;
            if read {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, self.read.len() as u64);
                epoll.add(&stream, event).context("no epoll")?;
                let (raw, data) = (Vec::new(), Vec::new());
                self.read.push(Listener { stream, raw, data, next: 0, heard: Instant::now() });
            } else {
                self.unread.push(stream);
            }
        }
        self.epoll = Some(epoll);
        self.delays.clear();
        Ok(())
    }

    /// Reads for so long; returns the delays of all events since streams were opened, in nanoseconds.
    pub(super) fn hear(&mut self, time: Duration, block: &mut [u8]) -> Result<&[u32]> {
        let epoll = self.epoll.as_ref().context("nothing is open")?;
        let until = Instant::now() + time;
        let mut ready = [EpollEvent::empty(); 256];
        while Instant::now() < until {
            let count = epoll.wait(&mut ready, EpollTimeout::from(WAIT_MAX_MS)).context("epoll fails")?;
            for event in &ready[..count] {
                let index = usize::try_from(event.data()).context("no index")?;
                let listener = self.read.get_mut(index).context("no stream")?;
                listener.go_on(block, &mut self.delays).with_context(|| format!("stream {index}"))?;
            }
        }
        for (index, listener) in self.read.iter().enumerate() {
            ensure!(
                listener.heard.elapsed() < SILENCE_MAX,
                "stream {index} is silent after {}",
                listener.next
            );
        }
        Ok(&self.delays)
    }
}

impl Listener {
    fn go_on(&mut self, block: &mut [u8], delays: &mut Vec<u32>) -> Result<()> {
        match self.stream.read(block) {
            Ok(0) => bail!("it was closed after {} events", self.next),
            Ok(count) => self.raw.extend_from_slice(&block[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("cannot read"),
        }
        let now = message::now_ns()?;
        while let Some(chunk) = self.chunk()? {
            self.data.extend(chunk);
            while let Some(end) = self.data.windows(2).position(|window| window == b"\n\n") {
                let event: Vec<u8> = self.data.drain(..end + 2).collect();
                self.took(&event, now, delays)?;
            }
        }
        Ok(())
    }

    /// The next whole chunk.
    fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(end) = self.raw.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&self.raw[..end]).context("no size of a chunk")?;
        let size = usize::from_str_radix(size, 16).with_context(|| format!("no size of a chunk: {size}"))?;
        let whole = end + 2 + size + 2;
        if self.raw.len() < whole {
            return Ok(None);
        }
        ensure!(size > 0, "it ended after {} events", self.next);
        let chunk = self.raw.drain(..whole).skip(end + 2).take(size).collect();
        Ok(Some(chunk))
    }

    fn took(&mut self, event: &[u8], now_ns: i64, delays: &mut Vec<u32>) -> Result<()> {
        let text = std::str::from_utf8(event).context("an event that is no text")?;
        // Comments are no events.
        let Some(data) = text.lines().find_map(|line| line.strip_prefix("data: ")) else { return Ok(()) };
        let event: Event = serde_json::from_str(data).with_context(|| format!("no event: {data}"))?;
        let Data { number, at_ns } = event.params.data;
        ensure!(number == self.next, "event {number} in the place of {}", self.next);
        self.next += 1;
        self.heard = Instant::now();
        delays.push(u32::try_from(now_ns - at_ns).unwrap_or(u32::MAX));
        Ok(())
    }
}

/// Reads a head, and not a byte more.
fn head(stream: &mut TcpStream) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).context("no reply")?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "not 200: {}", String::from_utf8_lossy(&head));
    Ok(())
}

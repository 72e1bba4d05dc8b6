//! One connection of the load: a request, its whole reply, the next.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Who does not accept within this is an error, not a wait.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Bytes of a reply's head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Ends a chunked body; the bench's data has no such bytes.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How much of the reply is known to come.
enum Reading {
    Head(Vec<u8>),
    Length(usize),
    /// The last bytes that were read.
    Chunked([u8; 5]),
}

/// An open connection.
pub(crate) struct Connection {
    /// The socket, which does not block.
    pub(crate) stream: TcpStream,
    /// When the request that is under way was begun.
    pub(crate) since: Instant,
    written: usize,
    reading: Reading,
}

impl Connection {
    /// Connects; blocks meanwhile.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let since = Instant::now();
        let stream = TcpStream::connect_timeout(&address, CONNECT_MAX)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true).context("no TCP_NODELAY")?;
        stream.set_nonblocking(true).context("it blocks")?;
        Ok(Self { stream, since, written: 0, reading: Reading::Head(Vec::new()) })
    }

    /// Begins the next request.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<()> {
        self.written = 0;
        self.reading = Reading::Head(Vec::new());
        self.write(request)
    }

    fn write(&mut self, request: &[u8]) -> Result<()> {
        while self.written < request.len() {
            match self.stream.write(&request[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot send a request"),
            }
        }
        Ok(())
    }

    /// Goes on with what the socket is ready for. Whether the reply is whole.
    pub(crate) fn go_on(&mut self, request: &[u8], block: &mut [u8]) -> Result<bool> {
        self.write(request)?;
        loop {
            match self.stream.read(block) {
                Ok(0) => bail!("the connection was closed in the middle of a reply"),
                Ok(count) => {
                    if self.took(&block[..count])? {
                        return Ok(true);
                    }
                    if count < block.len() {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("cannot read a reply"),
            }
        }
    }

    fn took(&mut self, bytes: &[u8]) -> Result<bool> {
        match &mut self.reading {
            Reading::Head(head) => {
                head.extend_from_slice(bytes);
                let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else {
                    if head.len() > HEAD_BYTES_MAX {
                        bail!("a reply without end of its head");
                    }
                    return Ok(false);
                };
                let whole = std::mem::take(head);
                let (head, body) = whole.split_at(end + 4);
                self.reading = framing(head)?;
                // A refusal is told in the result: it must not count as a fast reply.
                if body.windows(9).take(400).any(|window| window == b"\"isError\"") {
                    bail!("it was refused: {}", String::from_utf8_lossy(&body[..body.len().min(400)]));
                }
                self.took(body)
            }
            Reading::Length(left) => {
                *left = left.checked_sub(bytes.len()).context("more bytes than the reply has")?;
                Ok(*left == 0)
            }
            Reading::Chunked(last) => {
                let kept = bytes.len().min(last.len());
                last.rotate_left(kept);
                let from = last.len() - kept;
                last[from..].copy_from_slice(&bytes[bytes.len() - kept..]);
                Ok(last == LAST_CHUNK)
            }
        }
    }

    /// Whether the first bytes of a stream's body have come: then it is open.
    pub(crate) fn stream_is_open(&mut self, request: &[u8], block: &mut [u8]) -> Result<bool> {
        self.go_on(request, block)?;
        Ok(matches!(&self.reading, Reading::Chunked(last) if *last != [0; 5]))
    }
}

fn framing(head: &[u8]) -> Result<Reading> {
    let head = std::str::from_utf8(head).context("a head that is no text")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("not 200: {head}");
    }
    for line in head.split("\r\n").skip(1) {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(Reading::Length(value.trim().parse().context("no length")?));
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Reading::Chunked([0; 5]));
        }
    }
    bail!("a reply without framing: {head}")
}

//! The client's end of an HTTP/1.1 connection, byte for byte: a test sends exactly what it wants to have sent.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::PATIENCE;

/// What a test reads to the end of, at most.
const REST_BYTES_MAX: usize = 1 << 20;

/// One connection, with what was read too far.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// What `Host` says.
    host: String,
    buffer: Vec<u8>,
}

/// A reply, whole.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Status line and headers as they came.
    pub head: String,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

/// A reply whose body is still coming.
#[derive(Debug)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Status line and headers as they came.
    pub text: String,
}

impl Connection {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// The socket takes no timeout.
    pub fn new(stream: TcpStream, host: SocketAddr) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout")?;
        stream.set_nodelay(true).context("cannot switch off Nagle")?;
        Ok(Self { stream, host: host.to_string(), buffer: Vec::new() })
    }

    /// The same that names another `Host`.
    #[must_use]
    pub fn naming(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    /// The other end's address.
    ///
    /// # Errors
    /// It is gone.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.stream.peer_addr().context("the other end is gone")
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("cannot send")
    }

    /// Sends a request to `/mcp`; `headers` are whole lines, each with its CRLF.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn request(&mut self, method: &str, headers: &str, body: &[u8]) -> Result<()> {
        let length = if method == "POST" {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
        } else {
            String::new()
        };
        let host = &self.host;
        let accept = "Accept: application/json, text/event-stream";
        let head = format!("{method} /mcp HTTP/1.1\r\nHost: {host}\r\n{accept}\r\n{headers}{length}\r\n");
        self.send(&[head.as_bytes(), body].concat())
    }

    /// Sends a message and reads its whole reply.
    ///
    /// # Errors
    /// There is no reply.
    pub fn post(&mut self, body: &[u8]) -> Result<Reply> {
        self.request("POST", "", body)?;
        self.reply()
    }

    /// Reads a head.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn head(&mut self) -> Result<Head> {
        let end = self.read_until(b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&self.take(end)).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Head { status: status.with_context(|| format!("not a status line: `{text}`"))?, text })
    }

    /// Reads a whole reply.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn reply(&mut self) -> Result<Reply> {
        let head = self.head()?;
        let mut body = Vec::new();
        if head.is_chunked() {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        } else if let Some(length) = head.header("content-length") {
            let length = length.parse().context("not a length")?;
            self.read_at_least(length)?;
            body = self.take(length);
        } else if !matches!(head.status, 202 | 204 | 304) {
            while self.read_more()? > 0 {}
            body = std::mem::take(&mut self.buffer);
        }
        Ok(Reply { status: head.status, head: head.text, body })
    }

    /// The next chunk of a chunked body; none: the body has ended.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.read_until(b"\r\n")?;
        let line = self.take(line);
        let size = String::from_utf8_lossy(&line);
        let size =
            usize::from_str_radix(size.trim(), 16).with_context(|| format!("not a chunk: `{size}`"))?;
        self.read_at_least(size + 2)?;
        let mut chunk = self.take(size + 2);
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    /// The next event of a chunked event stream, with its blank line; none: the stream has ended.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn event(&mut self) -> Result<Option<String>> {
        let mut event = Vec::new();
        while let Some(chunk) = self.chunk()? {
            event.extend(chunk);
            if event.ends_with(b"\n\n") || event.ends_with(b"\r\n\r\n") {
                return Ok(Some(String::from_utf8_lossy(&event).into_owned()));
            }
        }
        Ok(None)
    }

    /// Reads what comes until the other end closes; an error is an abrupt end.
    ///
    /// # Errors
    /// Reset, kept open, or endless.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        while self.read_more()? > 0 {
            ensure!(self.buffer.len() <= REST_BYTES_MAX, "no end after {} bytes", self.buffer.len());
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads up to `end`, and returns it all.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn through(&mut self, end: &str) -> Result<String> {
        let bytes = self.read_until(end.as_bytes())?;
        Ok(String::from_utf8_lossy(&self.take(bytes)).into_owned())
    }

    /// Sends bytes from a thread of their own: the other end may never take them all.
    ///
    /// # Errors
    /// The socket cannot be shared.
    pub fn send_meanwhile(&self, bytes: Vec<u8>) -> Result<()> {
        let mut stream = self.stream.try_clone().context("cannot share the connection")?;
        std::thread::spawn(move || {
            let _refused_as_it_may_be = stream.write_all(&bytes);
        });
        Ok(())
    }

    /// Reads exactly that many bytes.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn exactly(&mut self, bytes: usize) -> Result<Vec<u8>> {
        self.read_at_least(bytes)?;
        Ok(self.take(bytes))
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn finish(&mut self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write).context("cannot shut down")
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(bytes);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Where `end` ends in what was read.
    fn read_until(&mut self, end: &[u8]) -> Result<usize> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(at + end.len());
            }
            self.read_some()?;
        }
    }

    fn read_at_least(&mut self, bytes: usize) -> Result<()> {
        while self.buffer.len() < bytes {
            self.read_some()?;
        }
        Ok(())
    }

    fn read_some(&mut self) -> Result<()> {
        if self.read_more()? == 0 {
            bail!("the connection ended after `{}`", String::from_utf8_lossy(&self.buffer));
        }
        Ok(())
    }

    fn read_more(&mut self) -> Result<usize> {
        let mut some = [0_u8; 16 * 1024];
        let read = self.stream.read(&mut some).context("cannot read")?;
        self.buffer.extend_from_slice(some.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl Head {
    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.text, name)
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }
}

impl Reply {
    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON-RPC message: the body, or the last event of an event stream.
    ///
    /// # Errors
    /// There is none.
    pub fn message(&self) -> Result<Value> {
        let text = self.text();
        let last = text.lines().rev().find_map(|line| line.strip_prefix("data:")).unwrap_or(&text);
        serde_json::from_str(last).with_context(|| format!("no message in `{text}`"))
    }
}

/// The value of a header in a head, by its name in lower case.
#[must_use]
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

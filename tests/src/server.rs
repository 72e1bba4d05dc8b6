//! An MCP server for the tests: it tells what really reached it, byte for byte, and plays what the test says.
//!
//! It answers `initialize` (with a session id), `tools/list` (`TOOLS`) and `tools/call` by itself, or as
//! [`Server::answers`] was told; a call of the tool `stream`, `GET`, and what has the header `X-Variant: stream`, open an
//! event stream whose events the test sends one at a time.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::PATIENCE;

/// What `tools/list` names.
pub const TOOLS: [&str; 5] = ["echo", "add", "read_file", "delete_everything", "stream"];

/// One request, as it reached the server.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which of the server's connections it came on, from 0.
    pub connection: usize,
    /// Request line and headers as they came.
    pub head: String,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

/// A running server. Dropped: it accepts nothing more.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    requests: Receiver<Request>,
    shared: Arc<Shared>,
    left: Receiver<usize>,
    listener: TcpListener,
}

#[derive(Debug)]
struct Shared {
    requests: Mutex<Sender<Request>>,
    left: Mutex<Sender<usize>>,
    /// The open event stream, if any: where the test's events go.
    stream: Mutex<Option<TcpStream>>,
    opened: AtomicUsize,
    sessions: AtomicUsize,
    ended: AtomicBool,
    /// By method and variant, as text.
    results: Mutex<HashMap<(String, String), Arc<str>>>,
}

impl Server {
    /// Starts it on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// There is none.
    pub fn start() -> Result<Self> {
        Self::at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts it where it is told.
    ///
    /// # Errors
    /// It is no address of this namespace, or in use.
    pub fn at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        let address = listener.local_addr().context("a listener without address")?;
        let (requests_in, requests) = channel();
        let (left_in, left) = channel();
        let shared = Arc::new(Shared {
            requests: Mutex::new(requests_in),
            left: Mutex::new(left_in),
            stream: Mutex::new(None),
            opened: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            results: Mutex::default(),
        });
        let its = Arc::clone(&shared);
        let incoming = listener.try_clone().context("cannot share the listener")?;
        std::thread::spawn(move || {
            for stream in incoming.incoming() {
                if its.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let its = Arc::clone(&its);
                let number = its.opened.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let _broken_by_the_test = serve(stream, number, &its);
                    let _nobody_asks = lock(&its.left).send(number);
                });
            }
        });
        Ok(Self { address, requests, shared, left, listener })
    }

    /// Its next session has this number: those of two servers are to be told apart.
    pub fn numbers_sessions_from(&self, number: usize) {
        self.shared.sessions.store(number, Ordering::SeqCst);
    }

    /// From now on, the result for this method; `variant`: for requests whose header `X-Variant` says so, or none says.
    pub fn answers(&self, method: &str, variant: &str, result: &Value) {
        let result = result.to_string().into();
        lock(&self.shared.results).insert((method.to_owned(), variant.to_owned()), result);
    }

    /// Waits for the next request that reaches it.
    ///
    /// # Errors
    /// None does.
    pub fn request(&self) -> Result<Request> {
        self.requests.recv_timeout(PATIENCE).context("no request reached the server")
    }

    /// Requests that reached it and were not asked for yet.
    #[must_use]
    pub fn requests_now(&self) -> Vec<Request> {
        self.requests.try_iter().collect()
    }

    /// Waits until a connection has ended, and tells which.
    ///
    /// # Errors
    /// None does.
    pub fn left(&self) -> Result<usize> {
        self.left.recv_timeout(PATIENCE).context("no connection of the server has ended")
    }

    /// How many connections were opened to it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// Sends one event on the open event stream.
    ///
    /// # Errors
    /// None is open.
    pub fn send_event(&self, data: &Value) -> Result<()> {
        self.send_raw(format!("event: message\ndata: {data}\n\n").as_bytes())
    }

    /// Sends bytes on the open event stream, as one chunk.
    ///
    /// # Errors
    /// None is open.
    pub fn send_raw(&self, bytes: &[u8]) -> Result<()> {
        let mut stream = lock(&self.shared.stream);
        let stream = stream.as_mut().context("no event stream is open")?;
        stream.write_all(&chunk(bytes)).context("cannot send an event")
    }

    /// Ends the open event stream as it should end.
    ///
    /// # Errors
    /// None is open.
    pub fn end_stream(&self) -> Result<()> {
        let mut stream = lock(&self.shared.stream).take().context("no event stream is open")?;
        stream.write_all(b"0\r\n\r\n").context("cannot end the stream")
    }

    /// Breaks the open event stream off in the middle.
    ///
    /// # Errors
    /// None is open.
    pub fn break_stream(&self) -> Result<()> {
        let stream = lock(&self.shared.stream).take().context("no event stream is open")?;
        stream.shutdown(Shutdown::Both).context("cannot break the stream off")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Ends `accept`, and the port with it. A connect would not wake it: while an agent guards the port, none comes.
        let _ended_already = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

impl Request {
    /// A header's value, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        crate::http::header(&self.head, name)
    }

    /// `POST`, `GET` or `DELETE`.
    #[must_use]
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// One connection: one request after another, until the client leaves.
fn serve(mut stream: TcpStream, connection: usize, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true).context("cannot switch off Nagle")?;
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, connection, &mut buffer)? {
        let reply = reply(&request, shared);
        if let Some(reply) = reply {
            // Told before it is answered: who has the answer finds the request among those told.
            lock(&shared.requests).send(request).context("the test has ended")?;
            stream.write_all(&reply).context("the client has left")?;
        } else {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            {
                // Who has the head finds the stream open, and no event goes before it.
                let mut open = lock(&shared.stream);
                *open = Some(stream.try_clone().context("cannot share the stream")?);
                stream.write_all(head.as_bytes()).context("the client has left")?;
            }
            lock(&shared.requests).send(request).context("the test has ended")?;
        }
    }
    Ok(())
}

/// None: the client has left.
fn read_request(stream: &mut TcpStream, connection: usize, buffer: &mut Vec<u8>) -> Result<Option<Request>> {
    let Some(end) = read_until(stream, buffer, b"\r\n\r\n")? else { return Ok(None) };
    let head = String::from_utf8_lossy(&take(buffer, end)).into_owned();
    let mut body = Vec::new();
    if crate::http::header(&head, "transfer-encoding").is_some() {
        loop {
            let Some(end) = read_until(stream, buffer, b"\r\n")? else { return Ok(None) };
            let line = take(buffer, end);
            let size =
                usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).context("not a chunk")?;
            if !read_at_least(stream, buffer, size + 2)? {
                return Ok(None);
            }
            let mut chunk = take(buffer, size + 2);
            chunk.truncate(size);
            body.extend(chunk);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = crate::http::header(&head, "content-length") {
        let length = length.parse().context("not a length")?;
        if !read_at_least(stream, buffer, length)? {
            return Ok(None);
        }
        body = take(buffer, length);
    }
    Ok(Some(Request { connection, head, body }))
}

/// What the server says to a request; none: an event stream.
fn reply(request: &Request, shared: &Shared) -> Option<Vec<u8>> {
    let message = request.json();
    let id = message.get("id").cloned().unwrap_or_default();
    let tool = message.pointer("/params/name").and_then(Value::as_str).unwrap_or_default();
    let method = message.get("method").and_then(Value::as_str);
    let variant = request.header("x-variant").unwrap_or_default().to_owned();
    let given = method.and_then(|method| lock(&shared.results).get(&(method.to_owned(), variant)).cloned());
    let answer = |result: Value, headers: &str| {
        let result = given.clone().unwrap_or_else(|| result.to_string().into());
        let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}");
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
        Some(format!("{head}{headers}\r\n{body}").into_bytes())
    };
    if request.header("x-variant") == Some("stream") {
        return None;
    }
    match (request.method(), method) {
        ("GET", _) => None,
        ("DELETE", _) => Some(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()),
        (_post, Some("initialize")) => {
            let number = shared.sessions.fetch_add(1, Ordering::SeqCst);
            let result = json!({
                "protocolVersion": "2025-11-25", "capabilities": { "tools": {} },
                "serverInfo": { "name": "test", "version": "1" }
            });
            answer(result, &format!("Mcp-Session-Id: session-{number}\r\n"))
        }
        // The second page is the last, and empty.
        (_post, Some("tools/list")) if message.pointer("/params/cursor").is_some() => {
            answer(json!({ "tools": [] }), "")
        }
        (_post, Some("tools/list")) => {
            let tools = TOOLS.map(|name| json!({ "name": name, "inputSchema": { "type": "object" } }));
            answer(json!({ "tools": tools, "nextCursor": "next" }), "")
        }
        (_post, Some("tools/call")) if tool == "stream" => None,
        (_post, Some("tools/call")) => answer(
            json!({ "content": [{ "type": "text", "text": format!("{tool} done") }], "isError": false }),
            "",
        ),
        (_post, Some(_other)) if !id.is_null() => answer(json!({}), ""),
        (_post, _notification) => Some(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_vec()),
    }
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn take(buffer: &mut Vec<u8>, bytes: usize) -> Vec<u8> {
    let rest = buffer.split_off(bytes);
    std::mem::replace(buffer, rest)
}

fn read_until(stream: &mut TcpStream, buffer: &mut Vec<u8>, end: &[u8]) -> Result<Option<usize>> {
    loop {
        if let Some(at) = buffer.windows(end.len()).position(|window| window == end) {
            return Ok(Some(at + end.len()));
        }
        if !read_more(stream, buffer)? {
            return Ok(None);
        }
    }
}

fn read_at_least(stream: &mut TcpStream, buffer: &mut Vec<u8>, bytes: usize) -> Result<bool> {
    while buffer.len() < bytes {
        if !read_more(stream, buffer)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<bool> {
    let mut some = [0_u8; 16 * 1024];
    let read = stream.read(&mut some).context("cannot read")?;
    buffer.extend_from_slice(some.get(..read).unwrap_or_default());
    Ok(read > 0)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

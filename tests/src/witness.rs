//! A server that tells who reached it, by every family and address, over TCP and UDP. Its answers hold a secret: who has
//! an answer with it was answered by this server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;
const DATAGRAM_BYTES_MAX: usize = 2048;

/// A running server. Dropped: it accepts nothing more.
#[derive(Debug)]
pub struct Witness {
    /// Where it listens: at all addresses, TCP and UDP.
    pub port: u16,
    /// What only its answers hold.
    pub nonce: String,
    shared: Arc<Shared>,
    listener: TcpListener,
}

/// One message that reached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The tool that was called; of a datagram: all of it.
    pub tool: String,
    /// Who sent it.
    pub peer: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    nonce: String,
    arrivals: Mutex<Vec<Arrival>>,
    connections: Mutex<Vec<TcpStream>>,
    ears: Mutex<Vec<(UdpSocket, JoinHandle<()>)>>,
    ended: AtomicBool,
}

impl Witness {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// There is none.
    pub fn start() -> Result<Self> {
        Self::at(0)
    }

    /// Starts it on a port of the test's choice.
    ///
    /// # Errors
    /// It is taken.
    pub fn at(port: u16) -> Result<Self> {
        let listener: TcpListener = socket(Type::STREAM, None, port)?.into();
        let port = listener.local_addr().context("a listener without address")?.port();
        let nonce = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("no random number")?;
        let nonce = nonce.trim().to_owned();
        let shared = Arc::new(Shared {
            nonce: nonce.clone(),
            arrivals: Mutex::default(),
            connections: Mutex::default(),
            ears: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let its = Arc::clone(&shared);
        let accepting = listener.try_clone().context("cannot share a listener")?;
        std::thread::spawn(move || {
            while let Ok((stream, peer)) = accepting.accept() {
                if let Ok(too) = stream.try_clone() {
                    its.connections.lock().unwrap_or_else(PoisonError::into_inner).push(too);
                }
                let its = Arc::clone(&its);
                std::thread::spawn(move || {
                    let _left_or_broken_off = serve(&stream, peer, &its);
                    // Its copy among the connections would keep it open.
                    let _gone_already = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        let witness = Self { port, nonce, shared, listener };
        witness.hear_datagrams(port)?;
        Ok(witness)
    }

    /// Hears UDP at another port too.
    ///
    /// # Errors
    /// It is taken.
    pub fn hear_datagrams(&self, port: u16) -> Result<()> {
        self.hear(socket(Type::DGRAM, None, port)?.into())
    }

    /// Hears UDP-Lite at its port.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn hear_udp_lite(&self) -> Result<()> {
        self.hear(socket(Type::DGRAM, Some(Protocol::from(libc::IPPROTO_UDPLITE)), self.port)?.into())
    }

    fn hear(&self, socket: UdpSocket) -> Result<()> {
        let its = Arc::clone(&self.shared);
        let too = socket.try_clone().context("cannot share a socket")?;
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; DATAGRAM_BYTES_MAX];
            while let Ok((length, peer)) = socket.recv_from(&mut bytes) {
                if its.ended.load(Ordering::SeqCst) {
                    break;
                }
                let tool = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
                let answer = format!("{} {tool}.", its.nonce);
                its.arrived(tool, peer);
                let _gone = socket.send_to(answer.as_bytes(), peer);
            }
        });
        self.shared.ears.lock().unwrap_or_else(PoisonError::into_inner).push((too, thread));
        Ok(())
    }

    /// Whether a call of that tool has reached it.
    #[must_use]
    pub fn saw(&self, tool: &str) -> bool {
        self.shared.lock().iter().any(|arrival| arrival.tool == tool)
    }

    /// Ends all connections that it has: nothing keeps them, and whoever holds their other ends learns it.
    pub fn hang_up(&self) {
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..) {
            let _gone_already = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// All that has reached it so far.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.lock().clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the threads; each socket is closed with its last descriptor.
        let _not_listening = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        for (ear, thread) in self.shared.ears.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _not_connected = shutdown(ear.as_raw_fd(), Shutdown::Both);
            // Its port is free when it has ended.
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, tool: String, peer: SocketAddr) {
        self.lock().push(Arrival { tool, peer });
    }
}

/// At all addresses of both families.
fn socket(kind: Type, protocol: Option<Protocol>, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, protocol).context("cannot make a socket")?;
    socket.set_only_v6(false).context("cannot listen for both families")?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true).context("cannot reuse the address")?;
    }
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&all.into()).with_context(|| format!("cannot bind {all}"))?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG).context("cannot listen")?;
    }
    Ok(socket)
}

/// One connection, until either side leaves.
fn serve(stream: &TcpStream, peer: SocketAddr, shared: &Shared) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<usize>().ok().filter(|&length| length <= BODY_BYTES_MAX)?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let message: Value = serde_json::from_slice(&body).ok()?;
        let tool = message.pointer("/params/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let text = format!("{} {tool}.", shared.nonce);
        // Told before it is answered: who has the answer finds the call among those told.
        shared.arrived(tool, peer);
        let result = json!({ "content": [{ "type": "text", "text": text }], "isError": false });
        let reply = json!({ "jsonrpc": "2.0", "id": message.get("id"), "result": result }).to_string();
        let length = reply.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        (&mut &*stream).write_all([head, reply].concat().as_bytes()).ok()?;
    }
}

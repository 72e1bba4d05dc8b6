//! Ways to connect a TCP socket from inside the captured cgroup.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, opcode, types};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::ask::{Ask, At as _, Stopped, Tried, stopped};
use crate::speak;

/// `TCP_FASTOPEN_CONNECT` (tcp(7), kernel 4.11).
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// Padding of six bytes in a destination-options header (RFC 8200, 4.2).
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
/// How long the kernel's poller of a ring looks before it sleeps, in milliseconds.
const POLLER_MS: u32 = 200;
const RING_ENTRIES: u32 = 8;
/// `SOCK_DCCP` (socket(2)).
const SOCK_DCCP: i32 = 6;

/// Sets an option that is a number.
pub(crate) fn set(socket: &Socket, level: i32, option: i32, value: i32) -> Result<(), Stopped> {
    set_bytes(socket, level, option, &value.to_ne_bytes())
}

/// Sets an option that is a structure.
pub(crate) fn set_bytes(socket: &Socket, level: i32, option: i32, value: &[u8]) -> Result<(), Stopped> {
    let bytes = libc::socklen_t::try_from(value.len()).map_err(|_| stopped("option", "too long"))?;
    // SAFETY: the pointer is to `bytes` bytes that live until the call returns.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), bytes) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).at("option") }
}

/// A TCP socket as the words say: `protocol=`, `from=`, `device=`, `destination_options=`.
pub(crate) fn socket(ask: &Ask, to: SocketAddr) -> Result<Socket, Stopped> {
    let protocol = i32::try_from(ask.number("protocol")?).map_err(|_| stopped("start", "no protocol"))?;
    let protocol = (protocol != 0).then(|| Protocol::from(protocol));
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, protocol).at("socket")?;
    socket.set_write_timeout(Some(speak::SILENCE)).at("timeout")?;
    if ask.find("destination_options").is_some() {
        set_bytes(&socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &PADDING)?;
    }
    if let Some(device) = ask.find("device") {
        socket.bind_device(Some(device.as_bytes())).at("device")?;
    }
    if ask.find("from").is_some() {
        socket.set_reuse_address(true).at("option")?;
        socket.bind(&ask.address("from")?.into()).at("bind")?;
    }
    Ok(socket)
}

/// Says the call on a connected socket.
pub(crate) fn said(socket: Socket, ask: &Ask) -> Tried {
    let host = ask.find("host").map_or_else(|| ask.word("to"), Ok)?;
    speak::call(TcpStream::from(socket), ask.tool()?, host, speak::Then::More)
}

/// An ordinary connect; after it the call.
pub(crate) fn plain(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    said(socket, ask)
}

/// Nothing but the connect, for ports that speak no protocol.
pub(crate) fn connects(ask: &Ask) -> Tried {
    let to = ask.to()?;
    socket(ask, to)?.connect(&to.into()).at("connect")?;
    Ok("connected".to_owned())
}

/// A connect that does not wait, as asynchronous clients do it.
pub(crate) fn nonblocking(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = socket(ask, to)?;
    socket.set_nonblocking(true).at("nonblocking")?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error).at("connect"),
        Ok(()) | Err(_) => {}
    }
    let limit = PollTimeout::try_from(speak::SILENCE).map_err(|_| stopped("poll", "too long"))?;
    let borrowed = std::os::fd::AsFd::as_fd(&socket);
    poll(&mut [PollFd::new(borrowed, PollFlags::POLLOUT)], limit).at("poll")?;
    if let Some(error) = socket.take_error().at("poll")? {
        return Err(error).at("connect");
    }
    said(socket, ask)
}

/// TCP Fast Open: the first bytes go with the SYN, and no connect(2) is called.
pub(crate) fn fast_open(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = socket(ask, to)?;
    let host = ask.find("host").map_or_else(|| ask.word("to"), Ok)?;
    let request = speak::request(ask.tool()?, host, speak::Then::More);
    socket.send_to_with_flags(&request, &to.into(), libc::MSG_FASTOPEN).at("send")?;
    speak::answer(TcpStream::from(socket))
}

/// TCP Fast Open the other way: the connect waits for the first bytes.
pub(crate) fn fast_open_connect(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = socket(ask, to)?;
    set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)?;
    socket.connect(&to.into()).at("connect")?;
    said(socket, ask)
}

/// A connect by `io_uring`; `poller=` by the kernel's own thread.
pub(crate) fn ring(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let mut ring = if ask.find("poller").is_some() {
        IoUring::builder().setup_sqpoll(POLLER_MS).build(RING_ENTRIES)
    } else {
        IoUring::new(RING_ENTRIES)
    }
    .at("ring")?;
    let socket = socket(ask, to)?;
    ring_connect(&mut ring, &socket, to)?;
    said(socket, ask)
}

/// One connect through a ring.
pub(crate) fn ring_connect(ring: &mut IoUring, socket: &Socket, to: SocketAddr) -> Result<(), Stopped> {
    let address = SockAddr::from(to);
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
    // SAFETY: address and socket live until the completion is read below.
    unsafe { ring.submission().push(&entry.build()) }.map_err(|_| stopped("ring", "it is full"))?;
    ring.submit_and_wait(1).at("ring")?;
    let result = ring.completion().next().map_or(-libc::EIO, |done| done.result());
    if result < 0 { Err(Stopped::from_errno("connect", -result)) } else { Ok(()) }
}

/// Connects to `first=`, dissolves that (`AF_UNSPEC`), then connects to the server.
pub(crate) fn again(ask: &Ask) -> Tried {
    let (first, to) = (ask.address("first")?, ask.to()?);
    let socket = socket(ask, to)?;
    socket.connect(&first.into()).at("first connect")?;
    dissolve(&socket)?;
    socket.connect(&to.into()).at("connect")?;
    said(socket, ask)
}

/// Asks to connect once more while the first connect is under way or done.
pub(crate) fn twice(ask: &Ask) -> Tried {
    let (first, to) = (ask.address("first")?, ask.to()?);
    let socket = socket(ask, to)?;
    socket.connect(&first.into()).at("first connect")?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EISCONN) => {}
        other => other.at("connect")?,
    }
    said(socket, ask)
}

fn dissolve(socket: &Socket) -> Result<(), Stopped> {
    // A `sockaddr` of family AF_UNSPEC, which is zero.
    let unspecified = [0_u8; 16];
    // SAFETY: the pointer is to 16 bytes that live until the call returns.
    let done = unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), 16) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).at("dissolve") }
}

/// A socket of a stream protocol that is no TCP: made is all that it needs to be.
pub(crate) fn other_protocol(ask: &Ask) -> Tried {
    let domain = match ask.word("family")? {
        "4" => Domain::IPV4,
        "6" => Domain::IPV6,
        "vsock" => Domain::VSOCK,
        other => return Err(stopped("start", format!("no family `{other}`"))),
    };
    let kind = match ask.find("kind") {
        None => Type::STREAM,
        Some("dccp") => Type::from(SOCK_DCCP),
        Some("raw") => Type::RAW,
        Some(other) => return Err(stopped("start", format!("no kind `{other}`"))),
    };
    let protocol = i32::try_from(ask.number("protocol")?).map_err(|_| stopped("start", "no protocol"))?;
    Socket::new(domain, kind, (protocol != 0).then(|| Protocol::from(protocol))).at("socket")?;
    Ok("made".to_owned())
}

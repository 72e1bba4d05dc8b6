//! Ways to send what is no TCP: UDP in its forms, raw and packet sockets.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::ask::{Ask, At as _, Stopped, Tried, stopped};
use crate::speak::SILENCE;
use crate::tcp::set;

const UDP: u8 = 17;
const UDP_LITE: i32 = 136;
const UDP_HEADER_BYTES: u16 = 8;
/// `IPV6_CHECKSUM` (RFC 3542, 3.1): the kernel fills in the checksum at that place.
const IPV6_CHECKSUM: i32 = 7;
const UDP_CHECKSUM_AT: i32 = 6;
const ETH_P_IPV6: u16 = 0x86dd;
const REPLY_BYTES_MAX: usize = 2048;

fn datagram_socket(ask: &Ask, to: SocketAddr) -> Result<Socket, Stopped> {
    let protocol = if ask.find("lite").is_some() { Protocol::from(UDP_LITE) } else { Protocol::UDP };
    // `six=`: an IPv6 socket, also for an IPv4 address.
    let domain = if ask.find("six").is_some() { Domain::IPV6 } else { Domain::for_address(to) };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).at("socket")?;
    socket.set_read_timeout(Some(SILENCE)).at("timeout")?;
    Ok(socket)
}

/// A connected UDP socket, as QUIC libraries use it.
pub(crate) fn connected(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = datagram_socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    socket.send(ask.tool()?.as_bytes()).at("send")?;
    reply(&socket)
}

/// One that is connected before this process joins the captured cgroup.
pub(crate) fn connected_before(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = datagram_socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    ask.join()?;
    socket.send(ask.tool()?.as_bytes()).at("send")?;
    reply(&socket)
}

/// A datagram with its destination.
pub(crate) fn sent(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = datagram_socket(ask, to)?;
    socket.send_to(ask.tool()?.as_bytes(), &to.into()).at("send")?;
    reply(&socket)
}

/// The same with a destination of family `AF_UNSPEC`, which IPv4 takes for its own.
pub(crate) fn sent_without_family(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = datagram_socket(ask, to)?;
    let address = SockAddr::from(to);
    let length = usize::try_from(address.len()).unwrap_or_default();
    // SAFETY: a socket address is at least that many initialised bytes.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), length) };
    let mut bytes = bytes.to_vec();
    if let Some(family) = bytes.get_mut(..2) {
        family.copy_from_slice(&0_u16.to_ne_bytes());
    }
    let tool = ask.tool()?.as_bytes();
    // SAFETY: both pointers are to as many bytes as is said, which live until the call returns.
    let done = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            tool.as_ptr().cast(),
            tool.len(),
            0,
            bytes.as_ptr().cast(),
            address.len(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error()).at("send");
    }
    reply(&socket)
}

fn reply(socket: &Socket) -> Tried {
    let mut bytes = [MaybeUninit::uninit(); REPLY_BYTES_MAX];
    let length = socket.recv(&mut bytes).at("receive")?;
    Ok(format!("answered {}", String::from_utf8_lossy(initialised(&bytes, length)).escape_debug()))
}

fn initialised(bytes: &[MaybeUninit<u8>], length: usize) -> &[u8] {
    let bytes = bytes.get(..length).unwrap_or_default();
    // SAFETY: the kernel has written the first `length` bytes; both types have one layout.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), bytes.len()) }
}

/// A UDP header and the tool's name behind it; without checksum.
fn segment(from: u16, to: u16, tool: &str) -> Result<Vec<u8>, Stopped> {
    let length = u16::try_from(tool.len()).map_err(|_| stopped("start", "too long a name"))?;
    let head = [from, to, UDP_HEADER_BYTES + length, 0];
    let mut bytes: Vec<u8> = head.iter().flat_map(|field| field.to_be_bytes()).collect();
    bytes.extend_from_slice(tool.as_bytes());
    Ok(bytes)
}

/// Where answers to a datagram come that no UDP socket has sent: bound, and nothing else.
fn ear(to: SocketAddr) -> Result<(UdpSocket, u16), Stopped> {
    let socket = UdpSocket::bind((to.ip(), 0)).at("bind")?;
    socket.set_read_timeout(Some(SILENCE)).at("timeout")?;
    let port = socket.local_addr().at("bind")?.port();
    Ok((socket, port))
}

fn heard(ear: &UdpSocket) -> Tried {
    let mut bytes = [0; REPLY_BYTES_MAX];
    let (length, _from) = ear.recv_from(&mut bytes).at("receive")?;
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
    Ok(format!("answered {}", text.escape_debug()))
}

/// A datagram that is made by hand and sent by a raw socket.
pub(crate) fn raw(ask: &Ask) -> Tried {
    let mut to = ask.to()?;
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::UDP)).at("socket")?;
    let (ear, port) = ear(to)?;
    let segment = segment(port, to.port(), ask.tool()?)?;
    if to.is_ipv6() {
        set(&socket, libc::IPPROTO_IPV6, IPV6_CHECKSUM, UDP_CHECKSUM_AT)?;
        // A raw socket's port is its protocol, or none.
        to.set_port(0);
    }
    socket.send_to(&segment, &to.into()).at("send")?;
    heard(&ear)
}

/// The same below IP, by a packet socket on the loopback device. For `::1` only: IPv4 takes it for a martian.
pub(crate) fn packet(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket =
        Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ETH_P_IPV6.to_be()))))
            .at("socket")?;
    let (ear, port) = ear(to)?;
    let frame = frame(segment(port, to.port(), ask.tool()?)?)?;
    let loopback = nix::net::if_::if_nametoindex("lo").at("device")?;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = ETH_P_IPV6.to_be();
    address.sll_ifindex = i32::try_from(loopback).unwrap_or_default();
    address.sll_halen = 6;
    let bytes = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: both pointers are to as many bytes as is said, which live until the call returns.
    let done = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            bytes,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error()).at("send");
    }
    heard(&ear)
}

/// An IPv6 packet from `::1` to `::1` (RFC 8200, 3 and 8.1).
fn frame(mut segment: Vec<u8>) -> Result<Vec<u8>, Stopped> {
    let length = u16::try_from(segment.len()).map_err(|_| stopped("start", "too long a name"))?;
    let own = Ipv6Addr::LOCALHOST.octets();
    let pseudo = [&own[..], &own, &u32::from(length).to_be_bytes(), &[0, 0, 0, UDP], &segment].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| {
            let high = u32::from(pair.first().copied().unwrap_or_default());
            (high << 8) + u32::from(pair.get(1).copied().unwrap_or_default())
        })
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let checksum = !u16::try_from(sum).unwrap_or_default();
    if let Some(place) = segment.get_mut(6..8) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[UDP, 64], &own, &own].concat();
    Ok([head, segment].concat())
}

//! Listening sockets of this network namespace, as sock_diag(7) tells them: each with the cgroup that it was made in,
//! which is what the kernel's programs go by.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h, net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const TCP_LISTEN: u32 = 10;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const MESSAGE_BYTES: usize = 72;
/// What the kernel puts into one answer of a dump.
const ANSWER_BYTES: usize = 32 * 1024;

/// A listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Socket {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// As `/proc/PID/fd` names it.
    pub(super) inode: u32,
    /// The cgroup it was made in (kernel 5.9).
    pub(super) cgroup_id: Option<u64>,
    /// `::` stands for IPv6 alone.
    pub(super) only_v6: bool,
}

impl Socket {
    /// How well it fits a connect to an address; the best serves it. `None`: not at all.
    pub(super) fn serves(&self, address: SocketAddr) -> Option<u8> {
        let (own, wanted) = (self.address.ip().to_canonical(), address.ip().to_canonical());
        if self.address.port() != address.port() {
            return None;
        }
        if own == wanted {
            return Some(2);
        }
        match (self.address.ip(), wanted) {
            (IpAddr::V4(any), IpAddr::V4(_)) if any.is_unspecified() => Some(1),
            (IpAddr::V6(any), IpAddr::V6(_)) if any.is_unspecified() => Some(1),
            (IpAddr::V6(any), IpAddr::V4(_)) if any.is_unspecified() && !self.only_v6 => Some(0),
            _other => None,
        }
    }
}

/// All of them.
///
/// # Errors
/// The kernel was built without CONFIG_INET_DIAG, or netlink may not be used.
pub(super) fn listening() -> io::Result<Vec<Socket>> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(&kernel, u8::try_from(family).unwrap_or_default(), &mut found)?;
    }
    Ok(found)
}

fn dump(kernel: &OwnedFd, family: u8, found: &mut Vec<Socket>) -> io::Result<()> {
    sendto(kernel.as_raw_fd(), &request(family), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES];
    loop {
        let bytes = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if read_answer(answer.get(..bytes).unwrap_or_default(), found)? {
            return Ok(());
        }
    }
}

/// nlmsghdr and inet_diag_req_v2: all TCP sockets of a family that listen.
fn request(family: u8) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &u32::try_from(REQUEST_BYTES).unwrap_or_default().to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST_DUMP.to_ne_bytes());
    put(HEADER_BYTES, &[family, u8::try_from(libc::IPPROTO_TCP).unwrap_or_default()]);
    put(HEADER_BYTES + 4, &(1_u32 << TCP_LISTEN).to_ne_bytes());
    request
}

/// The messages of one answer. Whether it was the last.
fn read_answer(mut answer: &[u8], found: &mut Vec<Socket>) -> io::Result<bool> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    while !answer.is_empty() {
        let length = usize::try_from(u32_at(answer, 0).ok_or_else(broken)?).map_err(io::Error::other)?;
        let body = answer.get(HEADER_BYTES..length).ok_or_else(broken)?;
        match u16_at(answer, 4).ok_or_else(broken)? {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = u32_at(body, 0).ok_or_else(broken)?.cast_signed();
                return Err(io::Error::from_raw_os_error(-errno));
            }
            SOCK_DIAG_BY_FAMILY => found.push(read_socket(body).ok_or_else(broken)?),
            _other => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// inet_diag_msg and its attributes.
fn read_socket(message: &[u8]) -> Option<Socket> {
    let port = u16::from_be_bytes(message.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    let v4 = libc::c_int::from(*message.first()?) == libc::AF_INET;
    let ip = match (v4, source) {
        (true, [a, b, c, d, ..]) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        (false, bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
    };
    let address = SocketAddr::new(ip, port);
    let mut socket = Socket { address, inode: u32_at(message, 68)?, cgroup_id: None, only_v6: false };
    let mut attributes = message.get(MESSAGE_BYTES..)?;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let value = attributes.get(4..usize::from(length))?;
        match kind {
            INET_DIAG_CGROUP_ID => {
                socket.cgroup_id = value.try_into().ok().map(u64::from_ne_bytes).filter(|&id| id > 0);
            }
            INET_DIAG_SKV6ONLY => socket.only_v6 = value.first().is_some_and(|&only| only != 0),
            _other => {}
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_special_listener_serves() {
        let table = [
            ("127.0.0.1:80", false, "127.0.0.1:80", Some(2)),
            ("127.0.0.1:80", false, "127.0.0.1:81", None),
            ("127.0.0.2:80", false, "127.0.0.1:80", None),
            ("0.0.0.0:80", false, "127.0.0.1:80", Some(1)),
            ("0.0.0.0:80", false, "[::1]:80", None),
            ("[::]:80", false, "127.0.0.1:80", Some(0)),
            ("[::]:80", true, "127.0.0.1:80", None),
            ("[::]:80", true, "[::1]:80", Some(1)),
            ("[::ffff:127.0.0.1]:80", false, "127.0.0.1:80", Some(2)),
        ];
        for (own, only_v6, wanted, expected) in table {
            let socket = Socket { address: own.parse().unwrap(), inode: 1, cgroup_id: None, only_v6 };
            assert_eq!(socket.serves(wanted.parse().unwrap()), expected, "{own} {wanted}");
        }
    }

    #[test]
    fn own_listeners_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let link = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
            let found = listening().unwrap().into_iter().find(|one| one.address == address).unwrap();
            assert_eq!(link.to_str(), Some(format!("socket:[{}]", found.inode).as_str()));
            assert!(found.cgroup_id.is_some());
            drop(listener);
            assert!(listening().unwrap().iter().all(|one| one.address != address));
        }
    }

    #[test]
    fn broken_answers_are_errors() {
        let mut found = Vec::new();
        let message = |kind: u16, body: &[u8]| {
            let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
            let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
            [header, body.to_vec()].concat()
        };
        let refused = read_answer(&message(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes()), &mut found);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(read_answer(&message(NLMSG_DONE, &[0; 4]), &mut found).unwrap());
        for cut in [3, 12, HEADER_BYTES + 20, HEADER_BYTES + MESSAGE_BYTES - 1] {
            let whole = message(SOCK_DIAG_BY_FAMILY, &[0; MESSAGE_BYTES]);
            assert!(read_answer(&whole[..cut], &mut found).is_err(), "{cut}");
        }
        // A length of nothing must not turn for ever.
        assert!(read_answer(&[0; 32], &mut found).is_err());
        let attribute = [&[0; MESSAGE_BYTES][..], &[1, 0, 0, 0]].concat();
        assert!(read_answer(&message(SOCK_DIAG_BY_FAMILY, &attribute), &mut found).is_err());
        assert!(found.is_empty());
    }
}

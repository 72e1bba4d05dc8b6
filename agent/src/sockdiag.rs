//! The kernel's own list of TCP sockets (sock_diag(7)), in the network namespace of the calling thread.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Nla as _,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// What `/proc/PID/fd` says of a socket: `socket:[INODE]`.
pub(crate) fn inode_of(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// `INET_DIAG_CGROUP_ID` (linux/inet_diag.h, since 5.9): the cgroup that the socket was made in.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// States in which a client can still say something.
const TALKING: StateFlags = StateFlags::ESTABLISHED.union(StateFlags::SYN_SENT).union(StateFlags::CLOSE_WAIT);

/// One socket.
#[derive(Debug, Clone)]
pub(crate) struct Socket {
    family: u8,
    id: SocketId,
    /// As `/proc/PID/fd` shows it.
    pub(crate) inode: u64,
    /// The cgroup that it was made in, which is what the kernel's programs go by.
    pub(crate) cgroup_id: Option<u64>,
    listens: bool,
    /// Where it listens, `::` stands for IPv6 alone.
    only_v6: bool,
}

impl Socket {
    fn of(response: &InetResponse) -> Self {
        let cgroup_id = response.nlas.iter().find_map(|nla| {
            let Nla::Other(other) = nla else { return None };
            let mut id = [0; 8];
            let fits = other.kind() == INET_DIAG_CGROUP_ID && other.value_len() == id.len();
            fits.then(|| other.emit_value(&mut id))?;
            Some(u64::from_ne_bytes(id)).filter(|&id| id > 0)
        });
        Self {
            only_v6: response.nlas.contains(&Nla::SkV6Only(true)),
            family: response.header.family,
            id: response.header.socket_id.clone(),
            inode: response.header.inode.into(),
            cgroup_id,
            listens: response.header.state == TCP_LISTEN,
        }
    }

    /// Where it goes; IPv4 in an IPv6 socket as IPv4.
    pub(crate) fn remote(&self) -> SocketAddr {
        address(self.id.destination_address, self.id.destination_port)
    }

    /// Where it comes from, or listens.
    pub(crate) fn local(&self) -> SocketAddr {
        address(self.id.source_address, self.id.source_port)
    }

    /// How well a listener fits a connect to an address; the best serves it. `None`: not at all.
    pub(crate) fn serves(&self, address: SocketAddr) -> Option<u8> {
        serves(SocketAddr::new(self.id.source_address, self.id.source_port), self.only_v6, address)
    }
}

fn serves(own: SocketAddr, only_v6: bool, address: SocketAddr) -> Option<u8> {
    let wanted = address.ip().to_canonical();
    if own.port() != address.port() {
        return None;
    }
    if own.ip().to_canonical() == wanted {
        return Some(2);
    }
    match (own.ip(), wanted) {
        (IpAddr::V4(any), IpAddr::V4(_)) if any.is_unspecified() => Some(1),
        (IpAddr::V6(any), IpAddr::V6(_)) if any.is_unspecified() => Some(1),
        (IpAddr::V6(any), IpAddr::V4(_)) if any.is_unspecified() && !only_v6 => Some(0),
        (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => None,
    }
}

fn address(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

/// A conversation with the kernel about the sockets of one namespace.
pub(crate) struct Diag(netlink_sys::Socket);

impl Diag {
    /// # Errors
    /// No netlink, or the kernel has no `CONFIG_INET_DIAG`: then [`Diag::clients`] says so.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// All TCP sockets that listen.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn listening(&self) -> io::Result<Vec<Socket>> {
        let mut all = self.dump(AF_INET, StateFlags::LISTEN)?;
        all.extend(self.dump(AF_INET6, StateFlags::LISTEN)?);
        Ok(all)
    }

    /// All TCP sockets that connected somewhere. What was accepted by a listener is left out: its own port is the
    /// listener's.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn clients(&self) -> io::Result<Vec<Socket>> {
        let states = || TALKING.union(StateFlags::LISTEN);
        let mut all = self.dump(AF_INET, states())?;
        all.extend(self.dump(AF_INET6, states())?);
        let listening: std::collections::HashSet<u16> =
            all.iter().filter(|socket| socket.listens).map(|socket| socket.id.source_port).collect();
        all.retain(|socket| !socket.listens && !listening.contains(&socket.id.source_port));
        Ok(all)
    }

    fn dump(&self, family: u8, states: StateFlags) -> io::Result<Vec<Socket>> {
        let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        self.send(NLM_F_REQUEST | NLM_F_DUMP, request(family, states, id))?;
        let mut found = Vec::new();
        loop {
            let whole = self.replies(|payload| match payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(Socket::of(&response));
                    Ok(false)
                }
                NetlinkPayload::Done(_) => Ok(true),
                NetlinkPayload::Error(error) => Err(error.to_io()),
                NetlinkPayload::Overrun(_) => Err(io::Error::other("the list was cut off")),
                NetlinkPayload::Noop | NetlinkPayload::InnerMessage(_) | _ => Ok(false),
            })?;
            if whole {
                return Ok(found);
            }
        }
    }

    /// Ends a connection: its process is told ECONNABORTED, its peer gets a reset.
    ///
    /// # Errors
    /// `Unsupported`: a kernel without `CONFIG_INET_DIAG_DESTROY`. `NotFound`: it has ended already.
    pub(crate) fn destroy(&self, socket: &Socket) -> io::Result<()> {
        let wanted = SockDiagDestroy::new(request(socket.family, StateFlags::all(), socket.id.clone()));
        self.send(NLM_F_REQUEST | NLM_F_ACK, wanted)?;
        self.replies(|payload| {
            // An acknowledgement is an error of code 0.
            let NetlinkPayload::Error(answer) = payload else {
                return Err(io::Error::other("the kernel did not say what became of it"));
            };
            if answer.code.is_none() { Ok(true) } else { Err(answer.to_io()) }
        })
        .map(drop)
    }

    fn send<M: NetlinkSerializable>(&self, flags: u16, message: M) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    /// Reads one datagram of the kernel's, until `each` has what it waits for.
    fn replies(
        &self,
        mut each: impl FnMut(NetlinkPayload<SockDiagMessage>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let (bytes, _) = self.0.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).unwrap_or(rest.len());
            if each(message.payload)? {
                return Ok(true);
            }
            // Messages begin at multiples of four (NLMSG_ALIGN).
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    let extensions = ExtensionFlags::empty();
    SockDiagMessage::InetRequest(InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        inode_of(link.to_str().unwrap()).unwrap()
    }

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
            let found = serves(own.parse().unwrap(), only_v6, wanted.parse().unwrap());
            assert_eq!(found, expected, "{own} {wanted}");
        }
    }

    #[test]
    fn own_listeners_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let listening = || Diag::open().unwrap().listening().unwrap();
            let found = listening().into_iter().find(|one| one.local() == address).unwrap();
            assert_eq!(found.inode, inode(&listener));
            assert!(found.cgroup_id.is_some());
            drop(listener);
            assert!(listening().iter().all(|one| one.local() != address));
        }
    }

    #[test]
    fn connections_are_found_from_the_side_that_made_them() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let clients = Diag::open().unwrap().clients().unwrap();
            let found: Vec<_> = clients.iter().filter(|socket| socket.remote() == address).collect();
            assert!(matches!(found[..], [one] if one.inode == inode(&client)), "{any}: {found:?}");
            assert_eq!(found[0].local(), client.local_addr().unwrap());
            assert!(found[0].cgroup_id.is_some(), "every kernel since 5.9 says where it was made");
            assert!(!clients.iter().any(|socket| socket.inode == inode(&accepted)), "{any}");
        }
    }

    #[test]
    fn a_connection_that_was_ended_is_an_error_to_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let diag = Diag::open().unwrap();
        let clients = diag.clients().unwrap();
        let found = clients.iter().find(|socket| socket.inode == inode(&client)).unwrap();
        // Needs CAP_NET_ADMIN; privileged tests have it (tests/tests/existing.rs).
        match diag.destroy(found) {
            Ok(()) => {
                let error = client.read(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
                let again = diag.destroy(found).unwrap_err();
                assert_eq!(again.kind(), io::ErrorKind::NotFound, "{again}");
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }
}

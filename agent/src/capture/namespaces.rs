//! The network namespaces that the agent listens in, named by the kernel's cookies.

use std::{
    collections::BTreeSet,
    io,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, SkStorage, SockMap},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef};
use toolgate_ebpf_common::{LISTENERS_MAX, Namespace, ROUTES_IPV6, Record};

use super::{CaptureError, abi::Abi, plan::map_error, settings::is_absent};

/// A network namespace, by the number that the kernel gave it. None is given twice before the next boot;
/// the default is given to none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cookie(pub(super) u64);

impl std::fmt::Display for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What the programs know of namespaces, and tell.
pub(super) struct Namespaces {
    served: HashMap<MapData, u64, Abi<Namespace>>,
    learned: HashMap<MapData, u64, u64>,
    accepted: SkStorage<MapData, Abi<Record>>,
    /// By this process.
    own: BTreeSet<Cookie>,
}

impl Namespaces {
    pub(super) fn new(
        served: HashMap<MapData, u64, Abi<Namespace>>,
        learned: HashMap<MapData, u64, u64>,
        accepted: SkStorage<MapData, Abi<Record>>,
    ) -> Self {
        Self { served, learned, accepted, own: BTreeSet::new() }
    }

    /// What another agent served and this one does not: captured processes there are seen again, and refused until they
    /// are served. Returns what is served.
    pub(super) fn forget_others(&mut self) -> Result<BTreeSet<Cookie>, CaptureError> {
        let failed = map_error("NAMESPACES");
        let found: Vec<u64> = self.served.keys().collect::<Result<_, _>>().map_err(&failed)?;
        let others = found.into_iter().map(Cookie).filter(|cookie| !self.own.contains(cookie));
        others.collect::<Vec<_>>().into_iter().try_for_each(|cookie| self.remove(cookie))?;
        Ok(self.own.clone())
    }

    /// The program that sees the connect notes the cookie before there is a route: this needs neither an address nor a
    /// server, and no kernel that tells the cookie itself, as those since 5.14 do.
    pub(super) fn learn(&self, socket: &impl AsFd) -> Result<Cookie, CaptureError> {
        let failed = |cause| CaptureError::Host { what: "learning a network namespace's cookie", cause };
        let socket = SockRef::from(socket);
        let address: std::net::SocketAddr = if socket.domain().map_err(failed)? == Domain::IPV6 {
            (std::net::Ipv6Addr::LOCALHOST, DISCARD).into()
        } else {
            (std::net::Ipv4Addr::LOCALHOST, DISCARD).into()
        };
        let _no_route = socket.connect(&SockAddr::from(address));
        let own = cookie(&socket).map_err(failed)?;
        match self.learned.get(&own, 0) {
            Ok(found) => Ok(Cookie(found)),
            Err(error) if is_absent(&error) => Err(failed(io::Error::other(
                "the programs did not see its connect: it must be an unconnected UDP socket of this process",
            ))),
            Err(error) => Err(map_error("LEARNED")(error)),
        }
    }

    pub(super) fn insert(&mut self, cookie: Cookie, ipv6_routes: bool) -> Result<(), CaptureError> {
        self.served.insert(cookie.0, flags(ipv6_routes), 0).map_err(map_error("NAMESPACES"))?;
        self.own.insert(cookie);
        Ok(())
    }

    /// One that is not served stays so.
    pub(super) fn set_routes(&mut self, cookie: Cookie, ipv6_routes: bool) -> Result<(), CaptureError> {
        match self.served.insert(cookie.0, flags(ipv6_routes), BPF_EXIST) {
            Err(error) if !is_absent(&error) => Err(map_error("NAMESPACES")(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn remove(&mut self, cookie: Cookie) -> Result<(), CaptureError> {
        self.own.remove(&cookie);
        match self.served.remove(&cookie.0) {
            Err(error) if !is_absent(&error) => Err(map_error("NAMESPACES")(error)),
            _ => Ok(()),
        }
    }

    /// Accepted sockets inherit what a listener has: its namespace, and no record yet.
    pub(super) fn mark(&mut self, listener: &TcpListener, cookie: Cookie) -> Result<(), CaptureError> {
        let empty = Record { netns_cookie: cookie.0, ..Record::default() };
        self.accepted.insert(listener, Abi(empty), 0).map_err(map_error("ACCEPTED"))
    }
}

/// The kernel removes a socket from the map when it is closed, so also when the agent dies.
pub(super) fn fill(
    ebpf: &mut Ebpf,
    listeners: &[TcpListener],
    listeners6: &[TcpListener],
) -> Result<(), CaptureError> {
    let name = "LISTENERS";
    let map = ebpf.map_mut(name).ok_or(CaptureError::WrongObject { name })?;
    let mut map = SockMap::try_from(map).map_err(map_error(name))?;
    let slots = (0..).zip(listeners).chain((LISTENERS_MAX..).zip(listeners6));
    for (slot, listener) in slots {
        map.set(slot, listener, 0).map_err(map_error(name))?;
    }
    Ok(())
}

const BPF_EXIST: u64 = 2;
/// The port of RFC 863: a connected UDP socket sends nothing.
const DISCARD: u16 = 9;

fn flags(ipv6_routes: bool) -> Abi<Namespace> {
    Abi(Namespace { flags: if ipv6_routes { ROUTES_IPV6 } else { 0 }, reserved: 0 })
}

/// The cookie of the socket itself, which every kernel tells.
fn cookie(socket: &SockRef<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut bytes: libc::socklen_t = 8;
    // SAFETY: the pointers are to 8 bytes and their length, as the option wants.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

//! What is done and seen from inside a namespace: every function here speaks of the one that this thread is in.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, Socket, Type};

use super::NetnsError;

/// Connections that wait for `accept`, for each listener.
const BACKLOG: i32 = 1_024;

/// linux/route.h and linux/ipv6_route.h: routes that are no way out.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;
const RTF_ANYCAST: u32 = 0x0010_0000;
const RTF_LOCAL: u32 = 0x8000_0000;

/// The listeners of one namespace.
#[derive(Debug)]
pub struct Listeners {
    /// At 127.0.0.1.
    pub v4: Vec<TcpListener>,
    /// At ::1; none where there is no IPv6.
    pub v6: Vec<TcpListener>,
}

impl Listeners {
    /// As many of each family. Where another process holds the port already they get any: which socket answers is
    /// decided by `sk_lookup`, not by who holds the port.
    pub(super) fn open(port: u16, count: usize) -> Result<Self, NetnsError> {
        let failed = |cause| NetnsError::Inside { what: "listen at loopback", cause };
        let v4 = at_port(Ipv4Addr::LOCALHOST.into(), port, count).map_err(failed)?;
        let v6 = match at_port(Ipv6Addr::LOCALHOST.into(), port, count) {
            Ok(listeners) => listeners,
            Err(error) if is_without_ipv6(&error) => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { v4, v6 })
    }

    /// By their addresses.
    #[must_use]
    pub fn sorted(all: Vec<TcpListener>) -> Self {
        let is_v4 = |listener: &TcpListener| listener.local_addr().is_ok_and(|address| address.is_ipv4());
        let (v4, v6) = all.into_iter().partition(is_v4);
        Self { v4, v6 }
    }

    /// The same sockets once more.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn again(&self) -> io::Result<Vec<TcpListener>> {
        self.v4.iter().chain(&self.v6).map(TcpListener::try_clone).collect()
    }

    /// The same once more, in the shares of as many threads: each has one of each family, as long as there are any.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn shared(&self, threads: usize) -> io::Result<Vec<Vec<TcpListener>>> {
        let mut shares: Vec<_> = (0..threads).map(|_| Vec::new()).collect();
        for family in [&self.v4, &self.v6] {
            for (index, listener) in family.iter().enumerate() {
                shares[index % threads].push(listener.try_clone()?);
            }
        }
        Ok(shares)
    }
}

fn at_port(address: IpAddr, port: u16, count: usize) -> io::Result<Vec<TcpListener>> {
    let all = |port| (0..count).map(|_| listener(SocketAddr::new(address, port))).collect();
    match all(port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            tracing::warn!(%address, port, "a process in a served namespace holds the agent's port: it gets nothing there");
            all(0)
        }
        other => other,
    }
}

/// Whether a listener failed for want of IPv6: none in the kernel, or none on `lo`.
pub(crate) fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// A listener, non-blocking, which others of the same user may join.
///
/// # Errors
/// The address is in use, or not to be had.
pub fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Brings `lo` up where it is down, as a plain `unshare -n` leaves it: captured connections are turned to it. Whether
/// that was needed.
pub(super) fn raise_loopback() -> Result<bool, NetnsError> {
    let failed = |what, cause| NetnsError::Inside { what, cause };
    let socket =
        Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(|cause| failed("make a socket", cause))?;
    // SAFETY: a C struct of integers, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the request is an `ifreq` with a name, as this call reads and fills it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(failed("read the state of `lo`", io::Error::last_os_error()));
    }
    // SAFETY: the call above has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
    if flags & up != 0 {
        return Ok(false);
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above; this call reads name and flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(failed("bring `lo` up", io::Error::last_os_error()));
    }
    Ok(true)
}

/// The addresses that are assigned here.
pub(super) fn addresses() -> Result<BTreeSet<IpAddr>, NetnsError> {
    let all = getifaddrs()
        .map_err(|errno| NetnsError::Inside { what: "list addresses (getifaddrs)", cause: errno.into() })?;
    let address = |one: nix::ifaddrs::InterfaceAddress| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(all.filter_map(address).collect())
}

/// Whether IPv6 leads beyond this host and its links. Without IPv6 it does not.
#[must_use]
pub fn ipv6_leads_out() -> bool {
    // One that cannot be read is one that IPv6 does not have.
    fs::read_to_string("/proc/thread-self/net/ipv6_route").is_ok_and(|table| table.lines().any(leads_out))
}

/// A line of `ipv6_route`: destination, its length, source, its length, next hop, metric, references, use, flags, device.
fn leads_out(line: &str) -> bool {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [destination, length, .., flags, device] = fields.as_slice() else { return false };
    let (Ok(destination), Ok(length), Ok(flags)) = (
        u128::from_str_radix(destination, 16),
        u8::from_str_radix(length, 16),
        u32::from_str_radix(flags, 16),
    ) else {
        return false;
    };
    let usable = flags & RTF_UP != 0 && flags & (RTF_REJECT | RTF_LOCAL | RTF_ANYCAST) == 0;
    let address = Ipv6Addr::from_bits(destination);
    let on_link = address.is_unicast_link_local() || address.is_multicast() || address.is_loopback();
    usable && *device != "lo" && !on_link && (length == 0 || !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_that_lead_out() {
        let check = |expected: bool, line: &str| assert_eq!(leads_out(line), expected, "{line}");
        let zeros = "00000000000000000000000000000000";
        let default = |flags: &str, device: &str| {
            format!(
                "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 {flags} {device}"
            )
        };
        let to = |destination: &str, length: &str, flags: &str| {
            format!("{destination} {length} {zeros} 00 {zeros} 00000100 00000001 00000000 {flags} eth0")
        };
        check(true, &default("00000003", "eth0"));
        // What every namespace has: unreachable, on `lo`.
        check(false, &default("00200200", "lo"));
        check(false, &default("00000201", "eth0"));
        check(true, &to("20010db8000000000000000000000000", "40", "00000001"));
        check(true, &to("fd000000000000000000000000000000", "40", "00000001"));
        check(true, &to("0064ff9b000000000000000000000000", "60", "00000001"));
        check(false, &to("fe800000000000000000000000000000", "40", "00000001"));
        check(false, &to("ff000000000000000000000000000000", "08", "00000001"));
        // An address of its own, and an anycast one.
        check(false, &to("20010db8000000000000000000000007", "80", "80200001"));
        check(false, &to("20010db8000000000000000000000000", "80", "00100001"));
        check(false, "");
    }

    #[test]
    fn addresses_of_this_host() {
        assert!(addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}

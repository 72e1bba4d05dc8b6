//! One network namespace: an open descriptor, and the cookie that the kernel's programs know it by.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nix::sched::{CloneFlags, setns};

use super::{NetnsError, inside};
use crate::capture::{Cookie, Kernel};

/// The namespace of this thread, whatever it is in.
const OWN: &str = "/proc/thread-self/ns/net";
/// linux/sockios.h, since 4.10: a descriptor of the namespace that a socket is in.
const SIOCGSKNS: libc::c_ulong = 0x894c;

/// A way into a namespace, which lives as long as this is open.
#[derive(Debug)]
pub struct Door {
    descriptor: Arc<File>,
    inode: u64,
    /// `None`: the agent's own, where its threads are.
    home: Option<Arc<File>>,
}

impl Door {
    /// The namespace that the agent's threads are in.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn home() -> Result<Self, NetnsError> {
        let failed = |cause| NetnsError::Inside { what: "open `/proc/thread-self/ns/net`", cause };
        let descriptor = File::open(OWN).map_err(failed)?;
        let inode = descriptor.metadata().map_err(failed)?.ino();
        Ok(Self { descriptor: Arc::new(descriptor), inode, home: None })
    }

    /// Another one, by a path below `/proc`; `self` is home.
    ///
    /// # Errors
    /// The process or thread has ended.
    pub(super) fn other(&self, path: &Path) -> io::Result<Self> {
        let descriptor = File::open(path)?;
        let inode = descriptor.metadata()?.ino();
        Ok(Self { descriptor: Arc::new(descriptor), inode, home: Some(Arc::clone(&self.descriptor)) })
    }

    /// The one that a socket was made in, whoever is in it; `self` is home.
    ///
    /// # Errors
    /// No descriptor is left, or CAP_NET_ADMIN is missing.
    pub(super) fn of_socket(&self, socket: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: this call takes no argument, and returns a new descriptor or -1.
        let made = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us alone.
        let descriptor = unsafe { File::from_raw_fd(made) };
        let inode = descriptor.metadata()?.ino();
        Ok(Self { descriptor: Arc::new(descriptor), inode, home: Some(Arc::clone(&self.descriptor)) })
    }

    /// Its number below `/proc`: nobody else's as long as this is open.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Does `work` on this thread, inside the namespace. What it makes belongs there: sockets stay where they were made.
    /// Not to be nested. The process is aborted if there is no way back, since the thread would go on in a namespace
    /// that is not its own.
    ///
    /// # Errors
    /// [`NetnsError::Enter`]; nothing was done then.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let Some(home) = &self.home else { return Ok(work()) };
        setns(&self.descriptor, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { cause: errno.into() })?;
        let _back = WayBack(home); // also when `work` panics
        Ok(work())
    }

    /// The kernel's name for it.
    ///
    /// # Errors
    /// No socket can be made inside, or the programs did not tell.
    pub fn cookie(&self, kernel: &Kernel) -> Result<Cookie, NetnsError> {
        self.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
                .map_err(|cause| NetnsError::Inside { what: "make a UDP socket", cause })?;
            Ok(kernel.namespace_of(&socket)?)
        })?
    }
}

struct WayBack<'h>(&'h File);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if let Err(errno) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "no way back from a network namespace: the agent ends, captured processes are refused");
            std::process::abort();
        }
    }
}

/// A namespace that the agent listens in.
#[derive(Debug)]
pub struct Namespace {
    /// As the kernel's records have it.
    pub cookie: Cookie,
    door: Door,
    addresses: ArcSwap<BTreeSet<IpAddr>>,
}

impl Namespace {
    /// The namespace behind a door.
    #[must_use]
    pub fn new(cookie: Cookie, door: Door) -> Self {
        Self { cookie, door, addresses: ArcSwap::default() }
    }

    /// As [`Door::within`].
    ///
    /// # Errors
    /// [`NetnsError::Enter`].
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        self.door.within(work)
    }

    /// Its descriptor.
    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// As [`Door::inode`].
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.door.inode()
    }

    /// Looks again which addresses it has. Whether they are others than before.
    pub(super) fn look_at_addresses(&self) -> Result<bool, NetnsError> {
        let now = self.within(inside::addresses)??;
        let changed = **self.addresses.load() != now;
        if changed {
            self.addresses.store(Arc::new(now));
        }
        Ok(changed)
    }

    /// What may change inside: `lo`, which is brought up again where `raise` says so, routes and addresses. Whether
    /// addresses did.
    pub(super) fn look_again(&self, kernel: &Kernel, ipv6_routes: &mut bool, raise: bool) -> bool {
        let looked = self.within(|| {
            if raise && inside::raise_loopback()? {
                tracing::warn!(namespace = %self.cookie, "brought `lo` up again: captured connections go by it");
            }
            Ok(inside::ipv6_leads_out())
        });
        let told = looked.and_then(|looked| looked).and_then(|now| {
            if now != *ipv6_routes {
                kernel.set_routes(self.cookie, now)?;
                tracing::info!(namespace = %self.cookie, ipv6_routes = now, "IPv6 routes changed");
                *ipv6_routes = now;
            }
            self.look_at_addresses()
        });
        told.unwrap_or_else(|error| {
            tracing::warn!(namespace = %self.cookie, %error, "cannot look into a served namespace");
            false
        })
    }

    /// Whether an address leads to this namespace itself, from inside or, unless it is loopback, from others.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.addresses.load().contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_no_way() {
        let home = Door::home().unwrap();
        assert_eq!(home.within(|| 7).unwrap(), 7);
    }
}

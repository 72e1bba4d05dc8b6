//! Ends connections with the SVIDs that opened them.

use std::cell::{Cell, RefCell};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::SystemTime;

use socket2::SockRef;
use toolgate_core::identity::Identity;

use crate::svid::{Peer, Svid, Trust};

/// Why a connection was ended from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// One of the two SVIDs is over.
    #[error("the SVID that opened the connection is over")]
    Over,
    /// The other end's was revoked.
    #[error("the SVID of the other end was revoked")]
    Revoked,
}

/// What a connection between two agents hangs on. It is held beside the connection.
#[derive(Debug)]
pub struct Tether {
    /// Who is at the other end, as proven.
    pub peer: Peer,
    /// The same as a workload or a server.
    pub identity: Identity,
    address: SocketAddr,
    /// From here on it takes no new request, so that those that run come to their end.
    retires: SystemTime,
    ends: SystemTime,
    /// Of our own: the connection itself belongs to who reads and writes it.
    socket: OwnedFd,
    cut: Cell<Option<Cut>>,
}

impl Tether {
    /// Of a connection that was just proven.
    pub(super) fn new(
        own: &Svid,
        (peer, identity): (Peer, Identity),
        address: SocketAddr,
        socket: OwnedFd,
    ) -> Rc<Self> {
        let ends = own.not_after.min(peer.not_after);
        let opened = SystemTime::now();
        let retires = opened + ends.duration_since(opened).unwrap_or_default() / 4 * 3;
        Rc::new(Self { peer, identity, address, retires, ends, socket, cut: Cell::new(None) })
    }

    /// Whether it may take one more request.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.cut.get().is_none() && SystemTime::now() < self.retires
    }

    /// Why it was ended from here; `None`: it was not.
    #[must_use]
    pub fn cut(&self) -> Option<Cut> {
        self.cut.get()
    }

    fn hold(&self, now: SystemTime, trust: &Trust) {
        let cut = if trust.revoked.covers(&self.peer) {
            Cut::Revoked
        } else if now >= self.ends {
            Cut::Over
        } else {
            return;
        };
        self.cut.set(Some(cut));
        tracing::info!(peer = %self.peer.id, address = %self.address, reason = %cut, "connection ended");
        // What is connected can be shut down; who reads and writes it sees its end.
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }
}

/// All that one thread holds.
#[derive(Default)]
pub struct Tethers {
    held: RefCell<Vec<Weak<Tether>>>,
}

impl Tethers {
    /// Holds one more, for as long as its connection lives.
    pub fn hold(&self, tether: &Rc<Tether>) {
        self.held.borrow_mut().push(Rc::downgrade(tether));
    }

    /// Ends what is over or revoked.
    pub fn look(&self, now: SystemTime, trust: &Trust) {
        self.held.borrow_mut().retain(|held| {
            let Some(tether) = held.upgrade() else { return false };
            tether.hold(now, trust);
            tether.cut().is_none()
        });
    }

    /// Whether there is nothing to look at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.borrow().is_empty()
    }
}

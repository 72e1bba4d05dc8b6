//! What the successor got.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use super::{HandoverError, Role};
use crate::capture::Cookie;
use crate::inspect::Kept;
use crate::netns::Listeners;

/// What the successor got.
pub struct Heritage {
    pub(super) port: u16,
    /// Captured connections at home.
    pub(super) outbound: Vec<TcpListener>,
    /// Captured connections elsewhere.
    pub(super) namespaces: BTreeMap<Cookie, Vec<TcpListener>>,
    pub(super) others: Vec<(Role, OwnedFd)>,
    /// The authority of TLS that is read.
    pub(super) inspection: Option<Kept>,
}

impl Heritage {
    /// The port of the listeners is that of all connections that wait in them.
    ///
    /// # Errors
    /// [`HandoverError::Port`]
    pub(in crate::app) fn check_port(&self, port: u16) -> Result<(), HandoverError> {
        if port == self.port { Ok(()) } else { Err(HandoverError::Port { from: self.port, to: port }) }
    }

    /// The authority that clients believe already.
    pub(in crate::app) fn take_inspection(&mut self) -> Option<Kept> {
        self.inspection.take()
    }

    /// The listeners at home, and those of each other namespace.
    pub(in crate::app) fn listeners(self) -> (Listeners, BTreeMap<Cookie, Listeners>) {
        let others = self.namespaces.into_iter().map(|(cookie, all)| (cookie, Listeners::sorted(all)));
        (Listeners::sorted(self.outbound), others.collect())
    }

    /// A listener for that role, if the predecessor had it at the same place.
    fn take(&mut self, role: &Role) -> Option<OwnedFd> {
        let at = self.others.iter().position(|(given, _)| given == role)?;
        Some(self.others.swap_remove(at).1)
    }

    /// As a Unix listener.
    pub(crate) fn take_unix(&mut self, role: &Role) -> Option<UnixListener> {
        self.take(role).map(UnixListener::from)
    }

    /// As a TCP listener.
    pub(crate) fn take_tcp(&mut self, role: &Role) -> Option<TcpListener> {
        self.take(role).map(TcpListener::from)
    }
}

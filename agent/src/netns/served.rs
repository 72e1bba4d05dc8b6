//! The namespaces that the agent listens in, as all threads see them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{Door, Namespace, NetnsError};
use crate::capture::{Cookie, Kernel};

/// Read without a lock; changed by the keeper alone.
#[derive(Debug)]
pub struct Namespaces {
    home: Arc<Namespace>,
    others: ArcSwap<BTreeMap<Cookie, Arc<Namespace>>>,
    /// As the kernel's programs were told last.
    guarded: ArcSwap<BTreeSet<(Cookie, u16)>>,
    changed: Notify,
}

impl Namespaces {
    /// Only home yet.
    ///
    /// # Errors
    /// `/proc` or the programs do not tell which namespace that is.
    pub fn at_home(kernel: &Kernel) -> Result<Self, NetnsError> {
        let door = Door::home()?;
        let home = Namespace::new(door.cookie(kernel)?, door);
        home.look_at_addresses()?;
        Ok(Self::of(home))
    }

    /// Only this one.
    #[must_use]
    pub fn of(home: Namespace) -> Self {
        Self {
            home: Arc::new(home),
            others: ArcSwap::default(),
            guarded: ArcSwap::default(),
            changed: Notify::new(),
        }
    }

    /// Where the agent's own threads are.
    #[must_use]
    pub fn home(&self) -> &Arc<Namespace> {
        &self.home
    }

    /// One that is served.
    ///
    /// # Errors
    /// [`NetnsError::NotServed`].
    pub fn get(&self, cookie: Cookie) -> Result<Arc<Namespace>, NetnsError> {
        if cookie == self.home.cookie {
            return Ok(Arc::clone(&self.home));
        }
        self.others.load().get(&cookie).cloned().ok_or(NetnsError::NotServed { cookie })
    }

    /// All of them, home first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        std::iter::once(Arc::clone(&self.home)).chain(self.others.load().values().cloned()).collect()
    }

    /// The ports that these servers listen at where the agent is: home, and for addresses that are no loopback the
    /// served namespaces.
    #[must_use]
    pub fn listening(&self, servers: impl Iterator<Item = SocketAddr>) -> Vec<(Cookie, u16)> {
        let all = self.all();
        let at = |server: SocketAddr| {
            let own = |namespace: &&Arc<Namespace>| {
                let loopback = server.ip().to_canonical().is_loopback();
                namespace.has(server.ip()) && (!loopback || namespace.cookie == self.home.cookie)
            };
            all.iter().filter(own).map(move |namespace| (namespace.cookie, server.port())).collect::<Vec<_>>()
        };
        servers.flat_map(at).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Remembers which ports accept the agent alone.
    pub fn guard(&self, guarded: &[(Cookie, u16)]) {
        self.guarded.store(Arc::new(guarded.iter().copied().collect()));
    }

    /// Whether a destination, dialled from the namespace `from`, is the port of a guarded server by any of its addresses.
    #[must_use]
    pub fn guards(&self, from: Cookie, destination: SocketAddr) -> bool {
        let guarded = self.guarded.load();
        let loopback = destination.ip().to_canonical().is_loopback();
        self.all().iter().any(|namespace| {
            guarded.contains(&(namespace.cookie, destination.port()))
                && namespace.has(destination.ip())
                && (!loopback || namespace.cookie == from)
        })
    }

    /// Returns when namespaces came, went, or changed their addresses since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn publish(&self, others: BTreeMap<Cookie, Arc<Namespace>>) {
        self.others.store(Arc::new(others));
    }

    pub(super) fn notify(&self) {
        self.changed.notify_one();
    }
}

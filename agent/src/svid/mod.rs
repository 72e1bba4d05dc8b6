//! The identities that this node can show, and whom it believes: SVIDs of its workloads and servers, trust bundles,
//! revocations.
//!
//! One thread owns the [source](source) and renews; the path reads what it has published, without a lock or a wait. A
//! workload that is new waits for its first SVID alone.

mod error;
mod join;
mod jwt;
mod owner;
mod source;
pub(crate) mod tls;
mod trust;
mod verify;
mod workload_api;

pub use self::error::{SvidError, VerifyError};
pub use self::join::{JoinError, JoinPlan, Joined};
pub use self::jwt::JwtKey;
pub use self::source::{Operation, Source};
pub use self::trust::{Bundle, Revoked, Serial, Trust};
pub use self::verify::{Peer, Role, verify};
pub use self::workload_api::{Provider, ProviderError, ProviderPlan};

pub(crate) use self::jwt::{jwks, verify_jwt};
pub(crate) use self::source::{NodeAsk, Own};
pub(crate) use self::tls::{PeerVerifier, provider};
pub(crate) use self::trust::hex;
pub(crate) use self::verify::{shown_by, validity};

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot, watch};
use toolgate_core::identity::Identity;

use self::owner::{Begin, Order};
use crate::ca::Holder;

/// Orders that wait for the thread; who has one more waits for its place.
const ORDERS_MAX: usize = 256;

/// What a workload or a server shows: an X509-SVID with its key, which is in memory only.
#[derive(Debug)]
pub struct Svid {
    /// Whose it is.
    pub identity: Identity,
    /// Its chain, leaf first, without the root; and its key.
    pub certified: Arc<CertifiedKey>,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when; a connection that it opened ends with it.
    pub not_after: SystemTime,
    /// Its number.
    pub serial: Serial,
    /// When the next one is to be there.
    renew_at: SystemTime,
    /// Asked for since it was made: what nobody uses is not renewed.
    is_used: AtomicBool,
}

impl Svid {
    /// The leaf and what leads to the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whether it is valid by this clock.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// An SVID of a process that has the key itself.
pub(crate) struct Held {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// PKCS#8
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) not_after: SystemTime,
    pub(crate) renew_at: SystemTime,
    serial: Serial,
}

/// All that is known, by whose it is.
type Known = HashMap<Identity, Arc<Svid>>;

/// What the thread publishes.
struct Published {
    svids: ArcSwap<Known>,
    trust: ArcSwap<Trust>,
    changed: watch::Sender<u64>,
    /// Why what is due of the source is not done.
    failing: ArcSwapOption<String>,
}

/// The SVIDs of this node. Cheap to clone. When all clones are dropped the thread ends, and the keys with it.
#[derive(Clone)]
pub struct Svids {
    published: Arc<Published>,
    orders: mpsc::Sender<Order>,
}

impl Svids {
    /// Starts the thread that owns a source.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(source: Source) -> Result<Self, SvidError> {
        let trust = source.trust();
        Self::with(trust, Begin::With(source))
    }

    /// The same for a source that is opened when something is first asked of it, so that who uses no identity pays
    /// nothing for it. Until then nobody is believed.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn on_demand(
        open: impl Fn() -> Result<Source, SvidError> + Send + 'static,
    ) -> Result<Self, SvidError> {
        Self::with(Trust::default(), Begin::OnDemand(Box::new(open)))
    }

    fn with(trust: Trust, begin: Begin) -> Result<Self, SvidError> {
        let published = Arc::new(Published {
            svids: ArcSwap::default(),
            trust: ArcSwap::from_pointee(trust),
            changed: watch::Sender::new(0),
            failing: ArcSwapOption::empty(),
        });
        let (orders, incoming) = mpsc::channel(ORDERS_MAX);
        owner::start(begin, Arc::clone(&published), incoming)?;
        Ok(Self { published, orders })
    }

    /// The SVID of a workload or server that has one already. Neither locks nor waits. `None`: [`obtain`](Self::obtain) it.
    #[must_use]
    pub fn svid(&self, identity: &Identity) -> Option<Arc<Svid>> {
        let known = self.published.svids.load();
        let svid = known.get(identity).filter(|svid| svid.is_valid(SystemTime::now()))?;
        if !svid.is_used.load(Ordering::Relaxed) {
            svid.is_used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(svid))
    }

    /// The same for one that may be new: waits until it is issued.
    ///
    /// # Errors
    /// Why it has none.
    pub async fn obtain(&self, identity: &Identity) -> Result<Arc<Svid>, SvidError> {
        if let Some(svid) = self.svid(identity) {
            return Ok(svid);
        }
        let identity = identity.clone();
        self.ask(|answer| Order::Issue { identity, answer }).await?
    }

    /// An SVID that leaves the agent, with its key: the same until its half life, or its revocation.
    pub(crate) async fn hold(&self, identity: &Identity, holder: Holder) -> Result<Arc<Held>, SvidError> {
        let identity = identity.clone();
        self.ask(|answer| Order::Hold { identity, holder, answer }).await?
    }

    /// A JWT-SVID for somebody.
    pub(crate) async fn jwt(&self, identity: &Identity, audience: Vec<String>) -> Result<String, SvidError> {
        let identity = identity.clone();
        self.ask(|answer| Order::Jwt { identity, audience, answer }).await?
    }

    /// Why nothing new comes from the source, if that is so.
    #[must_use]
    pub fn failing(&self) -> Option<Arc<String>> {
        self.published.failing.load_full()
    }

    /// Whom this node believes now.
    #[must_use]
    pub fn trust(&self) -> arc_swap::Guard<Arc<Trust>> {
        self.published.trust.load()
    }

    /// Changes with every SVID, bundle and revocation, and when the source begins or ceases to fail: the value counts that.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.published.changed.subscribe()
    }

    /// What an operator asks of the authority, and its answer.
    ///
    /// # Errors
    /// This agent is no authority, or why it does not do it.
    pub async fn operate(&self, operation: Operation) -> Result<serde_json::Value, SvidError> {
        self.ask(|answer| Order::Operate { operation, answer }).await?
    }

    /// What a node asks of this authority.
    pub(crate) async fn node(&self, ask: NodeAsk) -> Result<serde_json::Value, SvidError> {
        self.ask(|answer| Order::Node { ask, answer }).await?
    }

    /// What this authority shows to nodes.
    pub(crate) async fn own(&self) -> Result<Own, SvidError> {
        self.ask(|answer| Order::Own { answer }).await?
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, SvidError> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| SvidError::Gone)?;
        answered.await.map_err(|_| SvidError::Gone)
    }
}

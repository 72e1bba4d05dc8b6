//! Where names lead: the addresses of the names that Servers have, looked up before anybody needs them.
//!
//! One thread asks (`/etc/hosts` first, then DNS) and asks again when an answer is over; the path reads what it has
//! published, without a lock or a wait. Without such a name there is no thread and no resolver.
//!
//! - `owner`: the thread: what is asked when, and for how long an answer counts
//! - `resolver`: one look at a name

mod owner;
mod resolver;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::limits::{Limit, Limits};

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is asked for the first time.
    #[error(
        "`{name}` was not resolved within {limit:?} ({}); is the name server of `/etc/resolv.conf` up?",
        Limit::ResolveTime
    )]
    Slow {
        /// The name.
        name: Box<str>,
        /// The limit.
        limit: Duration,
    },
    /// DNS says so.
    #[error("`{name}` has no address: {cause}; correct the `url`, or add the name to `/etc/hosts` or DNS")]
    Missing {
        /// The name.
        name: Box<str>,
        /// What was answered.
        cause: Box<str>,
    },
    /// DNS says nothing.
    #[error("`{name}` cannot be resolved: {cause}; is the name server of `/etc/resolv.conf` up?")]
    Unanswered {
        /// The name.
        name: Box<str>,
        /// What happened.
        cause: Box<str>,
    },
    /// Nobody resolves names.
    #[error("`{name}` cannot be resolved: the thread that does it has ended; start the agent again")]
    Ended {
        /// The name.
        name: Box<str>,
    },
}

/// What is known of a name.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Its addresses, at most `addresses_per_name_max`: of the last answer, or of one before if the last was none.
    pub addresses: Vec<IpAddr>,
    /// The same with those that it had before: who has asked earlier may still use them.
    pub lately: Vec<(IpAddr, Instant)>,
    /// Addresses of the last answer that are not used, being more than the limit.
    pub beyond: usize,
    /// Why the last look has failed.
    pub error: Option<NameError>,
    /// It was looked up at least once.
    is_looked_up: bool,
}

type All = HashMap<Box<str>, Arc<Known>>;

struct Published {
    known: ArcSwap<All>,
    changed: watch::Sender<u64>,
}

/// The names of this node.
pub struct Names {
    published: Arc<Published>,
    wanted: watch::Sender<BTreeSet<Box<str>>>,
    is_started: Mutex<bool>,
    limits: Limits,
}

impl Names {
    /// None yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let published = Published { known: ArcSwap::default(), changed: watch::Sender::new(0) };
        let wanted = watch::Sender::new(BTreeSet::new());
        Self { published: Arc::new(published), wanted, is_started: Mutex::new(false), limits: limits.clone() }
    }

    /// These names are looked up from now on, others no more.
    pub fn follow(&self, names: BTreeSet<Box<str>>) {
        let mut is_started = self.is_started.lock().unwrap_or_else(PoisonError::into_inner);
        if names.is_empty() && !*is_started {
            return;
        }
        self.wanted.send_replace(names);
        if !*is_started {
            let started = owner::start(Arc::clone(&self.published), self.wanted.subscribe(), &self.limits);
            *is_started =
                started.inspect_err(|error| tracing::error!(%error, "names are not resolved")).is_ok();
        }
    }

    /// Returns when all names were looked up once, or have taken too long.
    pub async fn settled(&self) {
        let wanted = self.wanted.borrow().clone();
        let mut changed = self.published.changed.subscribe();
        let settled = changed.wait_for(|_| {
            let known = self.published.known.load();
            wanted.iter().all(|name| known.get(name).is_some_and(|known| known.is_looked_up))
        });
        if tokio::time::timeout(self.limits.resolve_time_max, settled).await.is_err() {
            tracing::warn!("not all names of Servers are resolved yet: {} is over", Limit::ResolveTime);
        }
    }

    /// The addresses of a name; waits for the first look at it.
    ///
    /// # Errors
    /// [`NameError`].
    pub async fn addresses(&self, name: &str) -> Result<Arc<Known>, NameError> {
        if let Some(known) = self.known(name).filter(|known| known.is_looked_up) {
            return found(known);
        }
        let limit = self.limits.resolve_time_max;
        let mut changed = self.published.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(known) = self.known(name).filter(|known| known.is_looked_up) {
                    return found(known);
                }
                if changed.changed().await.is_err() {
                    return Err(NameError::Ended { name: name.into() });
                }
            }
        };
        let slow = |_| NameError::Slow { name: name.into(), limit };
        crate::deadline::timeout(limit, waiting).await.map_err(slow)?
    }

    /// What is known of a name now.
    #[must_use]
    pub fn known(&self, name: &str) -> Option<Arc<Known>> {
        self.published.known.load().get(name).cloned()
    }

    /// Changes with every answer that is another than the one before.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.published.changed.subscribe()
    }
}

fn found(known: Arc<Known>) -> Result<Arc<Known>, NameError> {
    match &known.error {
        Some(error) if known.addresses.is_empty() => Err(error.clone()),
        Some(_) | None => Ok(known),
    }
}

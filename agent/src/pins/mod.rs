//! What servers offer, as it was seen and approved.
//!
//! One thread owns the [store](Store) and decides what changes; the path reads what it has published, without a lock. A
//! list that shows what nobody knew waits until that is on disk; any other list, and every call, waits for nothing.

mod error;
mod owner;
mod store;
#[cfg(test)]
mod tests;

pub use self::error::StoreError;
pub use self::owner::{Change, Chosen, PinsError, Which};
pub use self::store::{Kept, Place};

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use toolgate_core::identity::Identity;
use toolgate_core::pin::{self, Limited, News, Pinning, Seen};

use self::owner::{Order, Owner};
use self::store::Store;
use crate::limits::{Limit, Limits};

/// Orders that wait for the thread; who has one more waits for its place.
const ORDERS_MAX: usize = 64;

/// The pins of this node. Dropped: the thread ends, and closes the file.
pub struct Pins {
    now: Arc<ArcSwap<pin::Pins>>,
    orders: mpsc::Sender<Order>,
    limits: pin::Limits,
}

/// What a reply has shown that is to be told of it.
#[derive(Debug, Default)]
pub struct Findings {
    /// Definitions that nobody knew.
    pub news: RefCell<Vec<News>>,
    /// How many definitions were kept back.
    pub left_out: Cell<usize>,
    /// How many would have been, if pins counted.
    pub passed: Cell<usize>,
    /// The limits that kept some from being kept.
    pub limited: RefCell<Vec<Limit>>,
    /// Tasks of other callers' that were held back.
    pub others_tasks: Cell<usize>,
    /// Pages of a list that were asked for since those before held nothing for the caller.
    pub pages: Cell<usize>,
    /// How often the caller was told that it may see other lists.
    pub told: Cell<usize>,
}

impl Pins {
    /// Opens the store in a state directory, and starts its thread.
    ///
    /// # Errors
    /// [`StoreError`]: the file cannot be used, and is left as it is.
    pub fn open(state_directory: &Path, limits: &Limits) -> Result<Self, StoreError> {
        let (store, pins) = Store::open(state_directory)?;
        let now = Arc::new(ArcSwap::from_pointee(pins.clone()));
        let (orders, incoming) = mpsc::channel(ORDERS_MAX);
        let limits = pin::Limits {
            per_server_max: limits.definitions_per_server_max,
            per_name_max: limits.definitions_per_name_max,
            bytes_max: limits.definition_bytes_max,
            per_server_bytes_max: limits.definitions_per_server_bytes_max,
            callers_max: limits.definition_callers_max,
        };
        let owner = Owner::new(store, pins, Arc::clone(&now), limits);
        let thread = std::thread::Builder::new().name("toolgate-store".to_owned());
        let started = thread.spawn(move || owner.run(incoming));
        started.map_err(|cause| StoreError::File { path: state_directory.to_owned(), cause })?;
        Ok(Self { now, orders, limits })
    }

    /// What is known and approved now.
    #[must_use]
    pub fn now(&self) -> arc_swap::Guard<Arc<pin::Pins>> {
        self.now.load()
    }

    /// The limits of what is kept.
    #[must_use]
    pub fn limits(&self) -> &pin::Limits {
        &self.limits
    }

    /// Notes what a caller was given; when this returns it counts, and what is new is on disk if it is approved.
    pub async fn observe(
        &self,
        server: &Identity,
        caller: &Identity,
        all: Vec<Seen>,
        pinning: Pinning,
    ) -> (Vec<News>, Vec<Limited>) {
        let (server, caller) = (server.clone(), caller.clone());
        let observed = self.ask(|answer| Order::Observe { server, caller, all, pinning, answer }).await;
        observed.unwrap_or_else(|StoreGone| {
            // It would not be noticed any more that something changes: nothing is approved then.
            self.now.store(Arc::default());
            tracing::error!("the store's thread has ended: nothing is approved until the agent is restarted");
            Default::default()
        })
    }

    /// All that is kept of a server, for its operator.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn kept(&self, server: &Identity) -> Result<Vec<Kept>, StoreError> {
        let server = server.clone();
        self.ask(|answer| Order::Kept { server, answer }).await.unwrap_or(Err(StoreError::Gone))
    }

    /// What an operator's words name.
    ///
    /// # Errors
    /// [`PinsError`]: nothing, or not one alone.
    pub fn choose(&self, server: &Identity, which: &Which) -> Result<Vec<Chosen>, PinsError> {
        owner::choose(&self.now(), server, which)
    }

    /// Does it, for `by`: on disk when this returns.
    ///
    /// # Errors
    /// Nothing of it is done.
    pub async fn change(&self, change: Change, chosen: Vec<Chosen>, by: &str) -> Result<(), StoreError> {
        let by = by.to_owned();
        let done = self.ask(|answer| Order::Change { change, chosen, by, answer }).await;
        done.unwrap_or(Err(StoreError::Gone))
    }

    /// Reads the store again: another agent wrote it until now.
    pub async fn reload(&self) -> Result<(), StoreError> {
        self.ask(|answer| Order::Reload { answer }).await.unwrap_or(Err(StoreError::Gone))
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, StoreGone> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| StoreGone)?;
        answered.await.map_err(|_| StoreGone)
    }
}

/// Its thread has ended.
struct StoreGone;

/// The limit of the configuration.
#[must_use]
pub fn limit(reached: Limited) -> Limit {
    match reached {
        Limited::PerServer => Limit::DefinitionsPerServer,
        Limited::PerName => Limit::DefinitionsPerName,
        Limited::Bytes => Limit::DefinitionBytes,
        Limited::PerServerBytes => Limit::DefinitionsPerServerBytes,
        Limited::Callers => Limit::DefinitionCallers,
    }
}

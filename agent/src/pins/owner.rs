//! The thread that owns the store: one order after another, what it knows published after each.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use toolgate_core::identity::Identity;
use toolgate_core::pin::{self, Digest, Kind, Known, Limited, News, Pinning, Pins, Seen};

use super::StoreError;
use super::store::{Kept, Place, Store};

/// What is asked of the thread.
pub(super) enum Order {
    Observe {
        server: Identity,
        caller: Identity,
        all: Vec<Seen>,
        pinning: Pinning,
        answer: oneshot::Sender<(Vec<News>, Vec<Limited>)>,
    },
    Kept {
        server: Identity,
        answer: oneshot::Sender<Result<Vec<Kept>, StoreError>>,
    },
    Change {
        change: Change,
        chosen: Vec<Chosen>,
        by: String,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Reload {
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// What an operator does to definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// They may be listed and called.
    Approve,
    /// They may not any more; those that were not approved are forgotten.
    Revoke,
}

/// Which definitions of a server an operator names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// All that are pending.
    Pending,
    /// What can be done of one name.
    Named {
        /// Its kind, as [`Kind::as_str`].
        kind: String,
        /// Its name.
        name: String,
        /// The first digits of the one that is meant.
        digest: Option<String>,
        /// What is to be done with it.
        change: Change,
    },
}

/// Why nothing is done.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// Nothing of that name.
    #[error(
        "no {kind} `{name}` of `{server}` was seen; `toolgate tools list {server}` shows those that were"
    )]
    Unknown {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The server.
        server: String,
    },
    /// Nothing to do.
    #[error("nothing of `{server}` is pending")]
    NonePending {
        /// The server.
        server: String,
    },
    /// All of that name are approved.
    #[error("the {kind} `{name}` of `{server}` is approved already")]
    Approved {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The server.
        server: String,
    },
    /// More than one could be meant.
    #[error(
        "several definitions of the {kind} `{name}` of `{server}` are pending: say which by --digest: {digests}"
    )]
    Several {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The server.
        server: String,
        /// Their first digits.
        digests: String,
    },
    /// No such digest, or more than one.
    #[error("`{digest}` is not the beginning of one digest of the {kind} `{name}` of `{server}` alone")]
    Digest {
        /// As it was given.
        digest: String,
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The server.
        server: String,
    },
}

/// One definition that is meant.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Its keys.
    pub place: Place,
    /// What was known of it.
    pub known: Known,
}

/// So many digits of a digest are shown where one is to be named.
const DIGITS: usize = 12;

/// What an operator's words name.
pub(super) fn choose(pins: &Pins, server: &Identity, which: &Which) -> Result<Vec<Chosen>, PinsError> {
    let chosen = |kind, name: &Arc<str>, known: Known| Chosen {
        place: Place { server: server.clone(), kind, name: Arc::clone(name), digest: known.digest },
        known,
    };
    let (kind, name, digest, change) = match which {
        Which::Pending => {
            let all = pins.of_server(server).flat_map(|(kind, name, pin)| {
                let pending = pin.known().iter().filter(|known| !known.is_approved);
                pending.map(move |known| chosen(kind, name, *known))
            });
            let all: Vec<_> = all.collect();
            let none = PinsError::NonePending { server: server.to_string() };
            return if all.is_empty() { Err(none) } else { Ok(all) };
        }
        Which::Named { kind, name, digest, change } => (kind, name, digest, change),
    };
    let words = || (kind.clone(), name.clone(), server.to_string());
    let unknown = || {
        let (kind, name, server) = words();
        PinsError::Unknown { kind, name, server }
    };
    let of_kind = Kind::named(kind).ok_or_else(unknown)?;
    let pin = pins.pin(server, of_kind, name).ok_or_else(unknown)?;
    let name_kept: Arc<str> = name.as_str().into();
    let all = |wanted: &dyn Fn(&Known) -> bool| -> Vec<Chosen> {
        let wanted = pin.known().iter().filter(|known| wanted(known));
        wanted.map(|known| chosen(of_kind, &name_kept, *known)).collect()
    };
    if let Some(digest) = digest {
        let found = all(&|known| known.digest.to_string().starts_with(digest.as_str()));
        let (kind, name, server) = words();
        let none = PinsError::Digest { digest: digest.clone(), kind, name, server };
        return if found.len() == 1 { Ok(found) } else { Err(none) };
    }
    if *change == Change::Revoke {
        return Ok(all(&|_| true));
    }
    let pending = all(&|known| !known.is_approved);
    let (kind, name, server) = words();
    match pending.as_slice() {
        [] => Err(PinsError::Approved { kind, name, server }),
        [_] => Ok(pending),
        [_, _, ..] => {
            let digits = |one: &Chosen| first_digits(one.place.digest);
            let digests = pending.iter().map(digits).collect::<Vec<_>>().join(", ");
            Err(PinsError::Several { kind, name, server, digests })
        }
    }
}

fn first_digits(digest: Digest) -> String {
    let mut digits = digest.to_string();
    digits.truncate(DIGITS);
    digits
}

/// What the thread has.
pub(super) struct Owner {
    store: Store,
    pins: Pins,
    now: Arc<ArcSwap<Pins>>,
    limits: pin::Limits,
    /// What could not be written when it was seen, with who was given it.
    unwritten: Vec<(Identity, String, News)>,
}

impl Owner {
    pub(super) fn new(store: Store, pins: Pins, now: Arc<ArcSwap<Pins>>, limits: pin::Limits) -> Self {
        Self { store, pins, now, limits, unwritten: Vec::new() }
    }

    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        while let Some(order) = orders.blocking_recv() {
            if !self.obey(order) {
                return;
            }
        }
    }

    /// Who asked may have left: then nobody misses the answer. False: the thread is to end, and nothing is approved.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Observe { server, caller, all, pinning, answer } => {
                let observed = self.observe(&server, &caller, all, pinning);
                self.publish();
                let _ = answer.send(observed);
            }
            Order::Kept { server, answer } => {
                let kept = self.write().and_then(|()| self.store.of_server(&server));
                let _ = answer.send(kept);
            }
            Order::Change { change, chosen, by, answer } => {
                let done = self.write().and_then(|()| self.change(change, &chosen, &by));
                self.publish();
                let _ = answer.send(done);
            }
            Order::Reload { answer } => {
                let loaded = self.store.load().map(|pins| self.pins = pins);
                // With what was known before, something would be approved that is not any more.
                let is_over = loaded.is_err();
                if is_over {
                    self.pins = Pins::default();
                }
                self.publish();
                let _ = answer.send(loaded);
                return !is_over;
            }
        }
        true
    }

    fn publish(&self) {
        self.now.store(Arc::new(self.pins.clone()));
    }

    fn observe(
        &mut self,
        server: &Identity,
        caller: &Identity,
        all: Vec<Seen>,
        pinning: Pinning,
    ) -> (Vec<News>, Vec<Limited>) {
        let (mut news, limited) = self.pins.observe(server, caller, all, pinning, &self.limits);
        self.unwritten.extend(news.iter().map(|one| (server.clone(), caller.to_string(), one.clone())));
        if let Err(error) = self.write() {
            tracing::error!(%error, "definitions are not kept yet, and so not approved by themselves");
            // What is approved must be so after a power loss, too.
            for one in news.iter_mut().chain(self.unwritten.iter_mut().map(|(_, _, one)| one)) {
                if std::mem::take(&mut one.is_approved) {
                    let seen = &one.seen;
                    self.pins.set(server, seen.kind, &seen.name, seen.digest, false);
                }
            }
        }
        for one in &mut news {
            one.seen.text = None; // who is told does not need it
        }
        (news, limited)
    }

    /// Writes what is not written yet.
    fn write(&mut self) -> Result<(), StoreError> {
        if !self.unwritten.is_empty() {
            self.store.insert(&self.unwritten)?;
            self.unwritten.clear();
        }
        Ok(())
    }

    fn change(&mut self, change: Change, chosen: &[Chosen], by: &str) -> Result<(), StoreError> {
        let places = |wanted: bool| {
            let wanted = chosen.iter().filter(move |one| one.known.is_approved == wanted);
            wanted.map(|one| one.place.clone()).collect::<Vec<_>>()
        };
        match change {
            Change::Approve => {
                let all: Vec<Place> = chosen.iter().map(|one| one.place.clone()).collect();
                self.store.approve(&all, by)?;
                for Place { server, kind, name, digest } in &all {
                    self.pins.set(server, *kind, name, *digest, true);
                }
            }
            Change::Revoke => {
                let (approved, pending) = (places(true), places(false));
                self.store.revoke(&approved, &pending)?;
                for Place { server, kind, name, digest } in &approved {
                    self.pins.set(server, *kind, name, *digest, false);
                }
                for Place { server, kind, name, digest } in &pending {
                    self.pins.forget(server, *kind, name, *digest);
                }
            }
        }
        Ok(())
    }
}

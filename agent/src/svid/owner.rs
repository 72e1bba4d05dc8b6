//! The thread that owns the source of SVIDs: it issues what is asked for, and renews before it is over.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use toolgate_core::identity::Identity;

use super::join::JoinError;
use super::source::{NodeAsk, Operation, Own, Source};
use super::workload_api::Given;
use super::{Held, Known, Published, Svid, SvidError, Trust};
use crate::ca::{self, Holder, Issued, Validity};

/// The clock may be set at any time: how late that is noticed at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The least time between two looks: lives may be configured down to seconds.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);
/// A part of an SVID's half life by which renewals are spread.
const JITTER: u32 = 8;

/// What fails where rotation, renewal of the node, or a fetch does.
const DUE: &str = "what is due of this node's identity is not done";

/// What is asked of the thread.
pub(super) enum Order {
    Issue { identity: Identity, answer: oneshot::Sender<Result<Arc<Svid>, SvidError>> },
    Hold { identity: Identity, holder: Holder, answer: oneshot::Sender<Result<Arc<Held>, SvidError>> },
    Jwt { identity: Identity, audience: Vec<String>, answer: oneshot::Sender<Result<String, SvidError>> },
    Operate { operation: Operation, answer: oneshot::Sender<Result<Value, SvidError>> },
    Node { ask: NodeAsk, answer: oneshot::Sender<Result<Value, SvidError>> },
    Own { answer: oneshot::Sender<Result<Own, SvidError>> },
}

impl Order {
    /// Answers it with why there is no source.
    fn refuse(self, error: SvidError) {
        match self {
            Self::Issue { answer, .. } => drop(answer.send(Err(error))),
            Self::Hold { answer, .. } => drop(answer.send(Err(error))),
            Self::Jwt { answer, .. } => drop(answer.send(Err(error))),
            Self::Operate { answer, .. } | Self::Node { answer, .. } => drop(answer.send(Err(error))),
            Self::Own { answer } => drop(answer.send(Err(error))),
        }
    }
}

/// What the thread begins with.
pub(super) enum Begin {
    /// An open source.
    With(Source),
    /// One that is opened by the first order.
    OnDemand(Box<dyn Fn() -> Result<Source, SvidError> + Send>),
}

impl Begin {
    /// The source, and the order that has opened it. `None`: nobody will ask any more.
    fn source(self, orders: &mut mpsc::Receiver<Order>) -> Option<(Source, Option<Order>)> {
        let open = match self {
            Self::With(source) => return Some((source, None)),
            Self::OnDemand(open) => open,
        };
        loop {
            let order = orders.blocking_recv()?;
            match open() {
                Ok(source) => return Some((source, Some(order))),
                Err(error) => order.refuse(error),
            }
        }
    }
}

pub(super) fn start(
    begin: Begin,
    published: Arc<Published>,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), SvidError> {
    let thread = std::thread::Builder::new().name("toolgate-svids".to_owned());
    let run = move || {
        let Some((source, first)) = begin.source(&mut orders) else { return };
        let mut owner = Owner { source, published, held: HashMap::new(), failing: BTreeSet::new() };
        owner.publish_trust();
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                if let Some(order) = first {
                    owner.obey(order).await;
                }
                owner.run(orders).await;
            }),
            Err(error) => tracing::error!(%error, "SVIDs are not issued: no runtime"),
        }
    };
    thread.spawn(run).map(drop).map_err(|cause| SvidError::Thread { cause })
}

struct Owner {
    source: Source,
    published: Arc<Published>,
    /// What left the agent, and is good for who asks again.
    held: HashMap<(Identity, bool), Arc<Held>>,
    /// What fails, as it was logged when it began to.
    failing: BTreeSet<String>,
}

impl Owner {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        // One that has joined learns at once what changed meanwhile.
        self.look(SystemTime::now()).await;
        loop {
            let wait = self.until_the_next(SystemTime::now());
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                () = self.source.stirs() => self.look(SystemTime::now()).await,
                () = tokio::time::sleep(wait) => self.look(SystemTime::now()).await,
            }
        }
    }

    /// Who asked may have left: then nobody misses the answer.
    async fn obey(&mut self, order: Order) {
        let now = SystemTime::now();
        match order {
            Order::Issue { identity, answer } => {
                let known = self.published.svids.load().get(&identity).cloned();
                // Another thread may have asked for the same a moment ago.
                let issued = match known.filter(|svid| svid.is_valid(now)) {
                    Some(svid) => Ok(svid),
                    None => self.issue(&identity, now).await,
                };
                // Who has its SVID must be able to believe others: what came with it is published first.
                match (self.source.given(), &issued) {
                    (Some(given), _) => self.take(given, now),
                    (None, Ok(svid)) => self.publish(vec![Arc::clone(svid)]),
                    (None, Err(_)) => {}
                }
                let _ = answer.send(issued);
            }
            Order::Hold { identity, holder, answer } => {
                let _ = answer.send(self.hold(identity, holder, now).await);
            }
            Order::Jwt { identity, audience, answer } => {
                let signed = self.source.jwt(&identity, audience, now).await;
                // The first one has made a key.
                self.publish_trust();
                let _ = answer.send(signed);
            }
            Order::Operate { operation, answer } => {
                let mut done = self.source.operate(operation, now);
                if let Ok(status) = &mut done
                    && status.get("source").is_some()
                {
                    status["svids"] = self.svids();
                }
                self.publish_trust();
                let _ = answer.send(done);
            }
            Order::Node { ask, answer } => {
                let _ = answer.send(self.source.node(ask, now));
            }
            Order::Own { answer } => {
                let _ = answer.send(self.source.own(now));
            }
        }
    }

    /// The SVIDs that there are, for the operator.
    fn svids(&self) -> Value {
        let shown = |time| humantime::format_rfc3339_seconds(time).to_string();
        let known = self.published.svids.load();
        let mut svids: Vec<&Arc<Svid>> = known.values().collect();
        svids.sort_by_key(|svid| &svid.identity);
        let told = svids.into_iter().map(|svid| {
            json!({
                "spiffe_id": svid.identity.spiffe_id(),
                "serial": svid.serial.to_string(),
                "not_after": shown(svid.not_after),
                "renewed_at": shown(svid.renew_at),
            })
        });
        told.collect()
    }

    /// Rotates and fetches what is due, renews what is half over, and forgets what nobody used.
    async fn look(&mut self, now: SystemTime) {
        match self.source.look(now).await {
            Ok(is_new) => {
                self.failing.remove(DUE);
                self.tell_failing(None);
                if is_new {
                    self.publish_trust();
                }
            }
            Err(error) => {
                // An authority that says no has said it of what processes of this node have, too: they are looked at again.
                if let SvidError::Join(JoinError::Refused { .. }) = &error {
                    self.held.clear();
                }
                self.tell_failing(Some(&error));
                // It may have joined before something failed.
                self.publish_trust();
                self.fails(DUE, &error);
            }
        }
        self.held.retain(|_, held| now < held.not_after);
        if let Some(given) = self.source.given() {
            return self.take(given, now);
        }
        let known = self.published.svids.load_full();
        let due = known.values().filter(|svid| svid.renew_at <= now || now < svid.not_before);
        let (used, unused): (Vec<_>, Vec<_>) = due.partition(|svid| svid.is_used.load(Ordering::Relaxed));
        let mut renewed = Vec::new();
        for svid in used {
            let what = format!("the SVID of {} is not renewed", svid.identity);
            match self.issue(&svid.identity, now).await {
                Ok(svid) => {
                    self.failing.remove(&what);
                    renewed.push(svid);
                }
                Err(error) => self.fails(&what, &error),
            }
        }
        let is_over = |svid: &&&Arc<Svid>| !svid.is_valid(now);
        let forgotten: Vec<Identity> =
            unused.iter().filter(is_over).map(|svid| svid.identity.clone()).collect();
        if !forgotten.is_empty() {
            let mut known = Known::clone(&known);
            known.retain(|identity, _| !forgotten.contains(identity));
            self.published.svids.store(Arc::new(known));
        }
        if !renewed.is_empty() {
            self.publish(renewed);
        }
    }

    fn tell_failing(&self, why: Option<&SvidError>) {
        let before = self.published.failing.swap(why.map(|error| Arc::new(error.to_string())));
        if before.is_some() != why.is_some() {
            self.published.changed.send_modify(|count| *count += 1);
        }
    }

    /// Says it once, until it has worked again.
    fn fails(&mut self, what: &str, error: &SvidError) {
        if self.failing.insert(what.to_owned()) {
            tracing::error!("{what}: {error}; what there is goes on");
        }
    }

    fn until_the_next(&self, now: SystemTime) -> Duration {
        let known = self.published.svids.load();
        let lives = known.values().map(|svid| (svid.renew_at, svid.not_after)).chain(self.source.own_life());
        let in_time = |(renew_at, not_after): (SystemTime, SystemTime)| {
            // One whose time has come and that is still there is not used, or could not be renewed.
            let again = || not_after.duration_since(now).unwrap_or(LOOK_EVERY) / 4;
            renew_at.duration_since(now).unwrap_or_else(|_| again())
        };
        let next = lives.map(in_time).min().unwrap_or(LOOK_EVERY);
        next.clamp(LOOK_EVERY_MIN, LOOK_EVERY)
    }

    async fn issue(&mut self, identity: &Identity, now: SystemTime) -> Result<Arc<Svid>, SvidError> {
        let issued = self.source.issue(identity, Holder::Agent, now).await;
        // A node that could not join before does it for the first SVID that it needs.
        self.publish_trust();
        let (issued, key) = issued?;
        svid(identity.clone(), issued, &key, now).map(Arc::new)
    }

    async fn hold(
        &mut self,
        identity: Identity,
        holder: Holder,
        now: SystemTime,
    ) -> Result<Arc<Held>, SvidError> {
        let which = (identity, holder.is_agent());
        if let Some(held) = self.held.get(&which)
            && now < held.renew_at
            && !self.published.trust.load().revoked.serials.contains(&held.serial)
        {
            return Ok(Arc::clone(held));
        }
        let (issued, key) = self.source.issue(&which.0, holder, now).await?;
        let not_after = issued.validity.not_after;
        let renew_at = now + not_after.duration_since(now).unwrap_or_default() / 2;
        let held = Held { chain: issued.chain, key, not_after, renew_at, serial: issued.serial };
        let held = Arc::new(held);
        self.held.insert(which, Arc::clone(&held));
        Ok(held)
    }

    /// All that there is from now on, of a source that tells it.
    fn take(&mut self, given: Vec<Given>, now: SystemTime) {
        self.publish_trust();
        let known = self.published.svids.load_full();
        let mut taken = Known::new();
        for Given { identity, issued, key } in given {
            match known.get(&identity).filter(|svid| svid.serial == issued.serial) {
                Some(svid) => drop(taken.insert(identity, Arc::clone(svid))),
                None => match svid(identity.clone(), issued, &key, now) {
                    Ok(svid) => drop(taken.insert(identity, Arc::new(svid))),
                    Err(error) => self.fails(DUE, &error),
                },
            }
        }
        let is_same = taken.len() == known.len()
            && taken
                .iter()
                .all(|(identity, svid)| known.get(identity).is_some_and(|known| Arc::ptr_eq(known, svid)));
        if !is_same {
            self.published.svids.store(Arc::new(taken));
            self.published.changed.send_modify(|count| *count += 1);
        }
    }

    fn publish(&self, svids: Vec<Arc<Svid>>) {
        let mut known = Known::clone(&self.published.svids.load());
        known.extend(svids.into_iter().map(|svid| (svid.identity.clone(), svid)));
        self.published.svids.store(Arc::new(known));
        self.published.changed.send_modify(|count| *count += 1);
    }

    /// If anything of it is new.
    fn publish_trust(&self) {
        let before = self.published.trust.load();
        let trust = self.source.trust();
        let roots = |trust: &Trust| -> Vec<_> {
            trust.bundles.iter().map(|(name, bundle)| (name.clone(), bundle.roots.clone())).collect()
        };
        let is_same = trust.jwt_keys == before.jwt_keys && trust.revoked == before.revoked;
        if roots(&trust) == roots(&before) && is_same {
            return;
        }
        let generation = before.generation + 1;
        self.published.trust.store(Arc::new(Trust { generation, ..trust }));
        self.published.changed.send_modify(|count| *count += 1);
    }
}

/// An SVID of what was issued for a key.
fn svid(
    identity: Identity,
    issued: Issued,
    key: &PrivateKeyDer<'_>,
    now: SystemTime,
) -> Result<Svid, SvidError> {
    let failed = |cause: String| SvidError::Key { identity: identity.clone(), cause };
    let Validity { not_before, not_after } = issued.validity;
    let signing = any_supported_type(key).map_err(|error| failed(error.to_string()))?;
    let half = not_after.duration_since(now).unwrap_or_default() / 2;
    let spread = half / JITTER * u32::from(random_byte()) / u32::from(u8::MAX);
    Ok(Svid {
        certified: Arc::new(CertifiedKey::new(issued.chain, signing)),
        not_before,
        not_after,
        serial: issued.serial,
        renew_at: now + half.saturating_sub(spread),
        is_used: AtomicBool::new(false),
        identity,
    })
}

/// Without randomness nothing is spread, and all is well otherwise.
fn random_byte() -> u8 {
    ca::random::<1>().map_or(0, |[byte]| byte)
}

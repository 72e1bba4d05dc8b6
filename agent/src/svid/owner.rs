//! The thread that owns the source of SVIDs: it issues what is asked for, and renews before it is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use super::{Known, Published, Revoked, Svid, SvidError, Trust};
use crate::ca::{self, Authority, CertifyError, Issued, Level, Validity};

/// The clock may be set at any time: how late that is noticed at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The least time between two looks: lives may be configured down to seconds.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);
/// A part of an SVID's half life by which renewals are spread.
const JITTER: u32 = 8;

/// Who issues.
pub enum Source {
    /// This node's own authority.
    Embedded(Box<Authority>),
}

impl Source {
    /// Whom it says to believe.
    #[must_use]
    pub(super) fn trust(&self) -> Trust {
        match self {
            Self::Embedded(authority) => {
                let trust_domain: Box<str> = authority.trust_domain().into();
                let revoked = Revoked { trust_domain: trust_domain.clone(), ..Revoked::default() };
                let bundles = BTreeMap::from([(trust_domain, Arc::clone(authority.bundle()))]);
                Trust { generation: 1, bundles, revoked: Arc::new(revoked) }
            }
        }
    }
}

/// What an operator asks of the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// What there is.
    Status,
    /// Rotate now.
    Rotate(Level),
    /// All of it in one text, under `backup`.
    Backup,
}

/// What is asked of the thread.
pub(super) enum Order {
    Issue { identity: Identity, answer: oneshot::Sender<Result<Arc<Svid>, SvidError>> },
    Operate { operation: Operation, answer: oneshot::Sender<Result<Value, SvidError>> },
}

pub(super) fn start(
    source: Source,
    published: Arc<Published>,
    orders: mpsc::Receiver<Order>,
) -> Result<(), SvidError> {
    let thread = std::thread::Builder::new().name("toolgate-svids".to_owned());
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(Owner { source, published }.run(orders)),
            Err(error) => tracing::error!(%error, "SVIDs are not issued: no runtime"),
        }
    };
    thread.spawn(run).map(drop).map_err(|cause| SvidError::Thread { cause })
}

struct Owner {
    source: Source,
    published: Arc<Published>,
}

impl Owner {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let wait = self.until_the_next(SystemTime::now());
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                () = tokio::time::sleep(wait) => self.look(SystemTime::now()),
            }
        }
    }

    /// Who asked may have left: then nobody misses the answer.
    fn obey(&mut self, order: Order) {
        match order {
            Order::Issue { identity, answer } => {
                let known = self.published.svids.load().get(&identity).cloned();
                let now = SystemTime::now();
                // Another thread may have asked for the same a moment ago.
                let issued = match known.filter(|svid| svid.is_valid(now)) {
                    Some(svid) => Ok(svid),
                    None => self.issue(&identity, now).inspect(|svid| self.publish(vec![Arc::clone(svid)])),
                };
                let _ = answer.send(issued);
            }
            Order::Operate { operation, answer } => {
                let _ = answer.send(self.operate(&operation, SystemTime::now()));
            }
        }
    }

    fn operate(&mut self, operation: &Operation, now: SystemTime) -> Result<Value, SvidError> {
        let Source::Embedded(authority) = &mut self.source;
        match operation {
            Operation::Status => {}
            Operation::Backup => return Ok(json!({ "backup": authority.backup(now)? })),
            Operation::Rotate(level) => {
                authority.rotate_now(*level, now)?;
                self.publish_trust();
            }
        }
        self.status()
    }

    fn status(&self) -> Result<Value, SvidError> {
        let Source::Embedded(authority) = &self.source;
        let mut status = authority.status()?;
        let shown = |time| humantime::format_rfc3339_seconds(time).to_string();
        let known = self.published.svids.load();
        let mut svids: Vec<&Arc<Svid>> = known.values().collect();
        svids.sort_by_key(|svid| &svid.identity);
        let svids = svids.into_iter().map(|svid| {
            json!({
                "spiffe_id": svid.identity.spiffe_id(),
                "serial": svid.serial.to_string(),
                "not_after": shown(svid.not_after),
                "renewed_at": shown(svid.renew_at),
            })
        });
        status["source"] = "embedded".into();
        status["svids"] = svids.collect();
        Ok(status)
    }

    /// Rotates what is due, renews what is half over, and forgets what nobody used.
    fn look(&mut self, now: SystemTime) {
        let Source::Embedded(authority) = &mut self.source;
        match authority.rotate(now) {
            Ok(false) => {}
            Ok(true) => self.publish_trust(),
            Err(error) => tracing::error!(%error, "the authority does not rotate: what there is goes on"),
        }
        let known = self.published.svids.load_full();
        let due = known.values().filter(|svid| svid.renew_at <= now || now < svid.not_before);
        let (used, unused): (Vec<_>, Vec<_>) = due.partition(|svid| svid.is_used.load(Ordering::Relaxed));
        let mut renewed = Vec::new();
        for svid in used {
            match self.issue(&svid.identity, now) {
                Ok(svid) => renewed.push(svid),
                Err(error) => tracing::error!(identity = %svid.identity, %error, "an SVID is not renewed"),
            }
        }
        let is_over = |svid: &&&Arc<Svid>| !svid.is_valid(now);
        let forgotten: Vec<Identity> =
            unused.iter().filter(is_over).map(|svid| svid.identity.clone()).collect();
        if !forgotten.is_empty() {
            self.published.svids.rcu(|known| {
                let mut known = Known::clone(known);
                known.retain(|identity, _| !forgotten.contains(identity));
                known
            });
        }
        if !renewed.is_empty() {
            self.publish(renewed);
        }
    }

    fn until_the_next(&self, now: SystemTime) -> Duration {
        let known = self.published.svids.load();
        let in_time = |svid: &Arc<Svid>| {
            // One whose time has come and that is still there is not used, or could not be renewed.
            let again = || svid.not_after.duration_since(now).unwrap_or(LOOK_EVERY) / 4;
            svid.renew_at.duration_since(now).unwrap_or_else(|_| again())
        };
        let next = known.values().map(in_time).min().unwrap_or(LOOK_EVERY);
        next.clamp(LOOK_EVERY_MIN, LOOK_EVERY)
    }

    fn issue(&self, identity: &Identity, now: SystemTime) -> Result<Arc<Svid>, SvidError> {
        let Source::Embedded(authority) = &self.source;
        if identity.trust_domain() != authority.trust_domain() {
            let (identity, ours) = (identity.clone(), authority.trust_domain().to_owned());
            return Err(SvidError::Foreign { identity, ours });
        }
        let key =
            KeyPair::generate().map_err(|error| SvidError::Authority(CertifyError::from(error).into()))?;
        let issued = authority.issue(&SpiffeId::from(identity), None, &key, now)?;
        svid(identity.clone(), issued, &key, now).map(Arc::new)
    }

    fn publish(&self, svids: Vec<Arc<Svid>>) {
        let mut known = Known::clone(&self.published.svids.load());
        known.extend(svids.into_iter().map(|svid| (svid.identity.clone(), svid)));
        self.published.svids.store(Arc::new(known));
        self.published.changed.send_modify(|count| *count += 1);
    }

    fn publish_trust(&self) {
        let generation = self.published.trust.load().generation + 1;
        self.published.trust.store(Arc::new(Trust { generation, ..self.source.trust() }));
        self.published.changed.send_modify(|count| *count += 1);
    }
}

/// An SVID of what was issued for a key.
fn svid(identity: Identity, issued: Issued, key: &KeyPair, now: SystemTime) -> Result<Svid, SvidError> {
    let failed = |cause: String| SvidError::Key { identity: identity.clone(), cause };
    let Validity { not_before, not_after } = issued.validity;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = any_ecdsa_type(&private).map_err(|error| failed(error.to_string()))?;
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

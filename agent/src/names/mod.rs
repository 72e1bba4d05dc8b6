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
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use toolgate_core::decision::Endpoint;

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
    #[error(
        "`{name}` has no address: {cause}; correct the `url` or the endpoint, or add the name to `/etc/hosts` or DNS"
    )]
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

/// What is asked of name servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    /// The addresses of a name (A, AAAA).
    Addresses(Arc<str>),
    /// Where a service is (SRV, RFC 2782), and the addresses of that.
    Service(Arc<str>),
}

impl Question {
    /// What is asked for an endpoint; `None`: it is known.
    #[must_use]
    pub fn of(endpoint: &Endpoint) -> Option<Self> {
        match endpoint {
            Endpoint::Address(_) => None,
            Endpoint::Name { name, .. } => Some(Self::Addresses(name.clone())),
            Endpoint::Service(name) => Some(Self::Service(name.clone())),
        }
    }

    /// The name that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Addresses(name) | Self::Service(name) => name,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(name) => f.write_str(name),
            Self::Service(name) => write!(f, "srv:{name}"),
        }
    }
}

/// One place that a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Of a service: less is tried before more.
    pub priority: u16,
    /// The address.
    pub ip: IpAddr,
    /// Of a service: its port.
    pub port: Option<u16>,
}

impl Found {
    /// With the port that is meant where none was found.
    #[must_use]
    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }

    fn shown(self) -> String {
        self.port.map_or_else(|| self.ip.to_string(), |port| SocketAddr::new(self.ip, port).to_string())
    }
}

/// What is known of a name.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Where it leads, at most `addresses_per_name_max`: by the last answer, or by one before if the last was none.
    pub found: Vec<Found>,
    /// The same with those of answers before: who has asked earlier may still go there.
    pub lately: Vec<(Found, Instant)>,
    /// Addresses of the last answer that are not used, being more than the limit.
    pub beyond: usize,
    /// Why the last look has failed.
    pub error: Option<NameError>,
    /// It was looked up at least once.
    is_looked_up: bool,
}

type All = HashMap<Question, Arc<Known>>;

struct Published {
    known: ArcSwap<All>,
    changed: watch::Sender<u64>,
}

/// The names of this node.
pub struct Names {
    published: Arc<Published>,
    wanted: watch::Sender<BTreeSet<Question>>,
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

    /// These are asked from now on, others no more.
    pub fn follow(&self, names: BTreeSet<Question>) {
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

    /// What is known of a name; waits for the first look at it.
    ///
    /// # Errors
    /// [`NameError`].
    pub async fn answer(&self, name: &Question) -> Result<Arc<Known>, NameError> {
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
                    return Err(NameError::Ended { name: name.name().into() });
                }
            }
        };
        let slow = |_| NameError::Slow { name: name.name().into(), limit };
        crate::deadline::timeout(limit, waiting).await.map_err(slow)?
    }

    /// What is known of a name now.
    #[must_use]
    pub fn known(&self, name: &Question) -> Option<Arc<Known>> {
        self.published.known.load().get(name).cloned()
    }

    /// Changes with every answer that is another than the one before.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.published.changed.subscribe()
    }
}

/// Where names lead now, in words, for who checks a configuration; nothing without names.
///
/// # Errors
/// No runtime can be had.
pub fn look(questions: BTreeSet<Question>, limits: &Limits) -> std::io::Result<String> {
    if questions.is_empty() {
        return Ok(String::new());
    }
    let names = Names::new(limits);
    names.follow(questions.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut lines = vec!["names:".to_owned()];
    for question in questions {
        lines.push(match runtime.block_on(names.answer(&question)) {
            Ok(known) => {
                let all: Vec<String> = known.found.iter().map(|found| found.shown()).collect();
                let beyond = match known.beyond {
                    0 => String::new(),
                    beyond => format!(", and {beyond} more that are not used ({})", Limit::AddressesPerName),
                };
                format!("  {question} leads to {}{beyond}", all.join(", "))
            }
            Err(error) => format!("  {error}"),
        });
    }
    Ok(lines.join("\n") + "\n")
}

fn found(known: Arc<Known>) -> Result<Arc<Known>, NameError> {
    match &known.error {
        Some(error) if known.found.is_empty() => Err(error.clone()),
        Some(_) | None => Ok(known),
    }
}

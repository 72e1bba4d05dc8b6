//! Clients that do not believe the node's authority: what `toolgate discover` shows of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::bounded::CALLER_SHARE;
use crate::limits::Limits;

/// Whose client, and for which host.
type Key = (String, Arc<str>);

#[derive(Debug)]
struct Seen {
    connections: u64,
    says: String,
    at: SystemTime,
}

/// One host, as one caller's clients went to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Untrusts {
    /// Whose.
    pub caller: String,
    /// Which certificate was not believed.
    pub host: Arc<str>,
    /// How often.
    pub connections: u64,
    /// How the last one put it.
    pub says: String,
    /// When, RFC 3339.
    pub last: String,
}

/// All since the agent started.
pub struct Untrusting {
    seen: Mutex<HashMap<Key, Seen>>,
    max: usize,
}

impl Untrusting {
    /// None was seen yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self { seen: Mutex::default(), max: limits.discovered_max }
    }

    /// A client did not believe what it was shown in the place of `host`.
    pub fn saw(&self, caller: String, host: &Arc<str>, says: String, now: SystemTime) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (caller, Arc::clone(host));
        if !all.contains_key(&key) {
            // A caller that goes everywhere loses its own first.
            let its = all.keys().filter(|(caller, _)| *caller == key.0).count();
            let is_greedy = its >= (self.max / CALLER_SHARE).max(1);
            if is_greedy || all.len() >= self.max {
                let candidates = all.iter().filter(|((caller, _), _)| !is_greedy || *caller == key.0);
                if let Some(oldest) = candidates.min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone()) {
                    all.remove(&oldest);
                }
            }
        }
        let seen = all.entry(key).or_insert(Seen { connections: 0, says: String::new(), at: now });
        (seen.connections, seen.says, seen.at) = (seen.connections + 1, says, now);
    }

    /// All of them, by caller and host.
    #[must_use]
    pub fn all(&self) -> Vec<Untrusts> {
        let all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |((caller, host), seen): (&Key, &Seen)| Untrusts {
            caller: caller.clone(),
            host: Arc::clone(host),
            connections: seen.connections,
            says: seen.says.clone(),
            last: humantime::format_rfc3339_seconds(seen.at).to_string(),
        };
        let mut all: Vec<Untrusts> = all.iter().map(told).collect();
        all.sort_by(|one, other| (&one.caller, &one.host).cmp(&(&other.caller, &other.host)));
        all
    }
}

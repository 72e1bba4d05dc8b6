//! Session ids, bound to the (caller, server) that got them.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use toolgate_core::decision::SessionUse;
use toolgate_core::identity::Identity;

const SHARDS: usize = 16;
/// The most bytes of a session id: longer ones are not bound, so they stay unknown.
const ID_BYTES_MAX: usize = 512;

struct Bound {
    caller: Identity,
    used: Instant,
}

/// Server identity and session id.
type Key = (Identity, Box<str>);

/// All sessions of the node.
pub struct Sessions {
    shards: [Mutex<HashMap<Key, Bound>>; SHARDS],
    hasher: RandomState,
    shard_max: usize,
    idle_max: Duration,
}

impl Sessions {
    /// No sessions yet; at most `count_max`, each for `idle_max` after its last use.
    #[must_use]
    pub fn new(count_max: usize, idle_max: Duration) -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            shard_max: count_max.div_ceil(SHARDS),
            idle_max,
        }
    }

    fn shard(&self, id: &str) -> MutexGuard<'_, HashMap<Key, Bound>> {
        let index = usize::try_from(self.hasher.hash_one(id) % SHARDS as u64).unwrap_or_default();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds a session that `server` opened for `caller`. False: it belongs to another caller, or there is no room.
    pub fn bind(&self, caller: &Identity, server: &Identity, id: &str, now: Instant) -> bool {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return false;
        }
        let mut shard = self.shard(id);
        let key = (server.clone(), id.into());
        if let Some(bound) = shard.get(&key) {
            return bound.caller == *caller;
        }
        if shard.len() >= self.shard_max {
            shard.retain(|_, bound| now.duration_since(bound.used) < self.idle_max);
        }
        if shard.len() >= self.shard_max {
            return false;
        }
        shard.insert(key, Bound { caller: caller.clone(), used: now });
        true
    }

    /// Whose session it is that `caller` names to `server`. Foreign and unknown ones look the same.
    #[must_use]
    pub fn used_by(
        &self,
        caller: &Identity,
        server: &Identity,
        id: Option<&str>,
        now: Instant,
    ) -> SessionUse {
        let Some(id) = id else { return SessionUse::None };
        match self.shard(id).get_mut(&(server.clone(), id.into())) {
            Some(bound) if bound.caller == *caller && now.duration_since(bound.used) < self.idle_max => {
                bound.used = now;
                SessionUse::Own
            }
            Some(_) | None => SessionUse::Unknown,
        }
    }

    /// Forgets a session that its caller ended.
    pub fn end(&self, server: &Identity, id: &str) {
        self.shard(id).remove(&(server.clone(), id.into()));
    }

    /// How many are bound.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(app: &str) -> Identity {
        Identity::new("example.org", "default", app).unwrap()
    }

    #[test]
    fn a_session_serves_only_who_got_it_where_it_was_got() {
        let sessions = Sessions::new(64, Duration::from_secs(10));
        let now = Instant::now();
        assert!(sessions.bind(&id("alice"), &id("docs"), "s1", now));
        let check = |caller: &str, server: &str, session: Option<&str>, at: Instant| {
            sessions.used_by(&id(caller), &id(server), session, at)
        };
        assert_eq!(check("alice", "docs", Some("s1"), now), SessionUse::Own);
        assert_eq!(check("alice", "docs", None, now), SessionUse::None);
        assert_eq!(check("bob", "docs", Some("s1"), now), SessionUse::Unknown);
        assert_eq!(check("alice", "mail", Some("s1"), now), SessionUse::Unknown);
        assert_eq!(check("alice", "docs", Some("s2"), now), SessionUse::Unknown);
        assert!(!sessions.bind(&id("bob"), &id("docs"), "s1", now), "it is alice's");
        let late = now + Duration::from_secs(10);
        assert_eq!(check("alice", "docs", Some("s1"), late), SessionUse::Unknown);
        sessions.end(&id("docs"), "s1");
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn the_number_of_sessions_is_bounded_and_expired_ones_make_room() {
        let sessions = Sessions::new(SHARDS, Duration::from_secs(10));
        let now = Instant::now();
        let bound = |at: Instant| {
            let bind = |n: &usize| sessions.bind(&id("a"), &id("s"), &format!("{at:?}{n}"), at);
            (0..2_000).filter(bind).count()
        };
        assert_eq!(bound(now), SHARDS);
        assert_eq!(bound(now), SHARDS, "the same ones, no others");
        assert_eq!(bound(now + Duration::from_secs(11)), SHARDS, "in the place of the expired ones");
    }
}

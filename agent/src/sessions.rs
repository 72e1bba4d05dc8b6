//! Session ids, bound to the (caller, server) that got them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use toolgate_core::decision::SessionUse;
use toolgate_core::identity::Identity;

const SHARDS: usize = 16;
/// The most bytes of a session id: longer ones are not bound, so they stay unknown.
const ID_BYTES_MAX: usize = 512;

struct Bound {
    caller: Identity,
    used: Instant,
}

/// A caller may hold one in so many of the sessions that there is room for.
const CALLER_SHARE: usize = 8;

fn forget_oldest(shard: &mut HashMap<Key, Bound>, of: impl Fn(&Bound) -> bool) {
    let oldest = shard.iter().filter(|(_, bound)| of(bound)).min_by_key(|(_, bound)| bound.used);
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        shard.remove(&key);
    }
}

/// Server identity and session id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    server: Identity,
    id: Box<str>,
}

/// The same, borrowed: what is looked up for each request costs no allocation.
trait Named {
    fn name(&self) -> (&Identity, &str);
}

impl Named for Key {
    fn name(&self) -> (&Identity, &str) {
        (&self.server, &self.id)
    }
}

impl Named for (&Identity, &str) {
    fn name(&self) -> (&Identity, &str) {
        *self
    }
}

impl<'n> Borrow<dyn Named + 'n> for Key {
    fn borrow(&self) -> &(dyn Named + 'n) {
        self
    }
}

/// As `Key` derives it.
impl Hash for dyn Named + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Named + '_ {}

/// A binding on its way to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    server: Name,
    caller: Name,
    id: Box<str>,
    /// Since it was last used.
    idle_ms: u64,
}

/// An identity by its parts: trust domain, namespace, App ID.
type Name = (String, String, String);

fn name(identity: &Identity) -> Name {
    let part = str::to_owned;
    (part(identity.trust_domain()), part(identity.namespace()), part(identity.app_id()))
}

fn identity((trust_domain, namespace, app_id): &Name) -> Option<Identity> {
    Identity::new(trust_domain, namespace, app_id).ok()
}

fn binding(Key { server, id }: &Key, bound: &Bound) -> Binding {
    let idle_ms = u64::try_from(bound.used.elapsed().as_millis()).unwrap_or(u64::MAX);
    Binding { server: name(server), caller: name(&bound.caller), id: id.clone(), idle_ms }
}

/// Tells another process of a binding.
pub type Tell = Box<dyn Fn(&Binding) + Send + Sync>;

/// All sessions of the node.
pub struct Sessions {
    shards: [Mutex<HashMap<Key, Bound>>; SHARDS],
    hasher: RandomState,
    shard_max: usize,
    idle_max: Duration,
    /// Who is told of new bindings, too: this process hands over.
    successor: RwLock<Option<Tell>>,
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
            successor: RwLock::default(),
        }
    }

    /// All bindings; `successor` is told of what is bound from now on.
    #[must_use]
    pub fn export(&self, successor: Tell) -> Vec<Binding> {
        // Before the look at the shards: what is bound in between is told twice, not never.
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.iter().map(|(key, bound)| binding(key, bound)));
        }
        all
    }

    /// Nobody is told any more: the successor has failed.
    pub fn export_no_more(&self) {
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Binds what another process had bound. A session that is bound already stays as it is.
    pub fn import(&self, bindings: &[Binding]) {
        let now = Instant::now();
        for one in bindings {
            let (Some(caller), Some(server)) = (identity(&one.caller), identity(&one.server)) else {
                continue;
            };
            let used = now.checked_sub(Duration::from_millis(one.idle_ms)).unwrap_or(now);
            self.bind(&caller, &server, &one.id, used);
        }
    }

    fn shard(&self, id: &str) -> MutexGuard<'_, HashMap<Key, Bound>> {
        let index = usize::try_from(self.hasher.hash_one(id) % SHARDS as u64).unwrap_or_default();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds a session that `server` opened for `caller`. False: it belongs to another caller, or is no id.
    ///
    /// There is always room: a caller that opens sessions without end loses its own oldest ones first. Who comes back
    /// to such a one is told 404 and opens another, as MCP has it (2025-03-26, session management).
    pub fn bind(&self, caller: &Identity, server: &Identity, id: &str, now: Instant) -> bool {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return false;
        }
        let mut shard = self.shard(id);
        let key = Key { server: server.clone(), id: id.into() };
        if let Some(bound) = shard.get_mut(&key) {
            let own = bound.caller == *caller;
            if own {
                bound.used = now;
            }
            return own;
        }
        self.make_room(&mut shard, caller, now);
        let bound = Bound { caller: caller.clone(), used: now };
        if let Some(successor) = &*self.successor.read().unwrap_or_else(PoisonError::into_inner) {
            successor(&binding(&key, &bound));
        }
        shard.insert(key, bound);
        true
    }

    fn make_room(&self, shard: &mut HashMap<Key, Bound>, caller: &Identity, now: Instant) {
        let caller_max = (self.shard_max / CALLER_SHARE).max(1);
        if shard.len() < caller_max {
            return;
        }
        shard.retain(|_, bound| now.duration_since(bound.used) < self.idle_max);
        if shard.values().filter(|bound| bound.caller == *caller).count() >= caller_max {
            forget_oldest(shard, |bound| bound.caller == *caller);
        }
        if shard.len() >= self.shard_max {
            forget_oldest(shard, |_| true);
        }
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
        match self.shard(id).get_mut(&(server, id) as &dyn Named) {
            Some(bound) if bound.caller == *caller && now.duration_since(bound.used) < self.idle_max => {
                bound.used = now;
                SessionUse::Own
            }
            Some(_) | None => SessionUse::Unknown,
        }
    }

    /// Forgets a session that its caller ended.
    pub fn end(&self, server: &Identity, id: &str) {
        self.shard(id).remove(&(server, id) as &dyn Named);
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
    fn sessions_are_handed_over_with_their_callers_and_ages() {
        let now = Instant::now();
        let (old, new) =
            (Sessions::new(64, Duration::from_secs(10)), Sessions::new(64, Duration::from_secs(10)));
        assert!(old.bind(&id("alice"), &id("docs"), "s1", now));
        let (successor, later) = std::sync::mpsc::channel();
        let exported = old.export(Box::new(move |binding| successor.send(binding.clone()).unwrap()));
        assert_eq!(exported.len(), 1);
        let text = serde_json::to_string(&exported).unwrap();
        new.import(&serde_json::from_str::<Vec<Binding>>(&text).unwrap());
        assert!(old.bind(&id("bob"), &id("docs"), "s2", now), "bound while it drains");
        new.import(&later.try_iter().collect::<Vec<_>>());
        let used = |caller: &str, session: &str, at: Instant| {
            new.used_by(&id(caller), &id("docs"), Some(session), at)
        };
        assert_eq!(used("alice", "s1", now), SessionUse::Own);
        assert_eq!(used("bob", "s2", now), SessionUse::Own);
        assert_eq!(used("bob", "s1", now), SessionUse::Unknown);
        let aged = Binding { idle_ms: 9_000, ..exported[0].clone() };
        let third = Sessions::new(64, Duration::from_secs(10));
        third.import(&[aged]);
        let at = Instant::now() + Duration::from_secs(2);
        let used = third.used_by(&id("alice"), &id("docs"), Some("s1"), at);
        assert_eq!(used, SessionUse::Unknown, "its age went with it");
    }

    #[test]
    fn a_caller_that_opens_sessions_without_end_loses_its_own() {
        let sessions = Sessions::new(64 * SHARDS, Duration::from_secs(3600));
        let start = Instant::now();
        assert!(sessions.bind(&id("calm"), &id("docs"), "kept", start));
        for n in 0..10_000 {
            let now = start + Duration::from_millis(n);
            assert!(sessions.bind(&id("greedy"), &id("docs"), &format!("g{n}"), now));
        }
        assert!(sessions.count() <= 1 + 64 * SHARDS / CALLER_SHARE, "{}", sessions.count());
        let now = start + Duration::from_secs(11);
        let used =
            |caller: &str, session: &str| sessions.used_by(&id(caller), &id("docs"), Some(session), now);
        assert_eq!(used("calm", "kept"), SessionUse::Own);
        assert_eq!(used("greedy", "g9999"), SessionUse::Own, "the newest stay");
        assert_eq!(used("greedy", "g0"), SessionUse::Unknown);
    }

    #[test]
    fn the_number_of_sessions_is_bounded_whoever_opens_them() {
        let sessions = Sessions::new(SHARDS, Duration::from_secs(10));
        for n in 0..2_000 {
            assert!(sessions.bind(&id(&format!("c{n}")), &id("s"), &format!("s{n}"), Instant::now()));
        }
        assert_eq!(sessions.count(), SHARDS);
    }
}

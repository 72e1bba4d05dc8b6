//! Ids that a server gave to a caller: they belong to that (caller, server), and to nobody else.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use toolgate_core::decision::Use;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::Revision;

use crate::bounded::{Owned, make_room};
use crate::events::EventIds;
use crate::given::Given;
use crate::limits::Limits;

const SHARDS: usize = 16;
/// The most bytes of an id, and of the tool that it keeps: longer ones are not bound, so they stay unknown.
pub(crate) const ID_BYTES_MAX: usize = 512;

/// What an id names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A session (MCP 2025-03-26).
    #[default]
    Session,
    /// A task (MCP 2025-11-25); it keeps the tool whose call made it.
    Task,
}

struct Bound {
    caller: Identity,
    /// The tool whose call gave it.
    tool: Option<Arc<str>>,
    /// That the session was opened in, once that is known.
    revision: Option<Revision>,
    /// Which of the server's endpoints gave it, where there are several.
    replica: Option<SocketAddr>,
    used: Instant,
}

impl Owned for Bound {
    type Owner = Identity;

    fn owner(&self) -> &Identity {
        &self.caller
    }

    fn at(&self) -> Instant {
        self.used
    }
}

/// Server identity and id.
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
    #[serde(default)]
    kind: Kind,
    server: Name,
    caller: Name,
    id: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool: Option<Arc<str>>,
    /// By its date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replica: Option<SocketAddr>,
    /// Since it was last used.
    idle_ms: u64,
}

/// An identity by its parts: trust domain, namespace, App ID.
pub(crate) type Name = (String, String, String);

pub(crate) fn name(identity: &Identity) -> Name {
    let part = str::to_owned;
    (part(identity.trust_domain()), part(identity.namespace()), part(identity.app_id()))
}

pub(crate) fn identity((trust_domain, namespace, app_id): &Name) -> Option<Identity> {
    Identity::new(trust_domain, namespace, app_id).ok()
}

fn binding(kind: Kind, Key { server, id }: &Key, bound: &Bound) -> Binding {
    let idle_ms = u64::try_from(bound.used.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (server, caller) = (name(server), name(&bound.caller));
    let revision = bound.revision.map(|revision| revision.as_str().into());
    let (id, tool, replica) = (id.clone(), bound.tool.clone(), bound.replica);
    Binding { kind, server, caller, id, tool, revision, replica, idle_ms }
}

/// Tells another process of a binding.
pub type Tell = Box<dyn Fn(&Binding) + Send + Sync>;

/// All ids of one kind.
struct Table {
    shards: [Mutex<HashMap<Key, Bound>>; SHARDS],
    shard_max: usize,
    idle_max: Duration,
}

/// All ids of the node that are bound to their callers.
pub struct Bindings {
    sessions: Table,
    tasks: Table,
    /// Ids of events have a table of their own kind.
    pub events: EventIds,
    /// So has what its caller comes back with.
    pub given: Given,
    hasher: RandomState,
    /// Who is told of new bindings, too: this process hands over.
    successor: RwLock<Option<Tell>>,
}

/// What is bound to an id that its own caller has named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whose it is.
    pub whose: Use,
    /// The tool whose call gave it, where it is the caller's own.
    pub tool: Option<Arc<str>>,
    /// The revision that it was opened in, likewise.
    pub revision: Option<Revision>,
    /// Which of the server's endpoints gave it, where there are several.
    pub replica: Option<SocketAddr>,
}

/// Who gave an id to whom.
#[derive(Debug, Clone, Copy)]
pub struct Giving<'g> {
    /// To whom.
    pub caller: &'g Identity,
    /// Who.
    pub server: &'g Identity,
    /// Which of the server's endpoints, where there are several.
    pub replica: Option<SocketAddr>,
    /// When.
    pub now: Instant,
}

impl Bindings {
    /// Nothing is bound yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            sessions: Table::new(limits.sessions_max, limits.session_idle_max),
            tasks: Table::new(limits.tasks_max, limits.task_idle_max),
            events: EventIds::new(limits),
            given: Given::new(limits.given_max, limits.given_time_max),
            hasher: RandomState::new(),
            successor: RwLock::default(),
        }
    }

    fn table(&self, kind: Kind) -> &Table {
        match kind {
            Kind::Session => &self.sessions,
            Kind::Task => &self.tasks,
        }
    }

    /// All bindings; `successor` is told of what is bound from now on.
    #[must_use]
    pub fn export(&self, successor: Tell) -> Vec<Binding> {
        // Before the look at the shards: what is bound in between is told twice, not never.
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        let mut all = Vec::new();
        for kind in [Kind::Session, Kind::Task] {
            for shard in &self.table(kind).shards {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend(shard.iter().map(|(key, bound)| binding(kind, key, bound)));
            }
        }
        all
    }

    /// Nobody is told any more: the successor has failed.
    pub fn export_no_more(&self) {
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Binds what another process had bound. An id that is bound already stays as it is.
    pub fn import(&self, bindings: &[Binding]) {
        let now = Instant::now();
        for one in bindings {
            let (Some(caller), Some(server)) = (identity(&one.caller), identity(&one.server)) else {
                continue;
            };
            let used = now.checked_sub(Duration::from_millis(one.idle_ms)).unwrap_or(now);
            let giving = Giving { caller: &caller, server: &server, replica: one.replica, now: used };
            self.put(one.kind, giving, &one.id, one.tool.clone());
            if let Some(revision) = one.revision.as_deref().and_then(|date| Revision::named(date.as_bytes()))
            {
                self.agreed(&caller, &server, &one.id, revision);
            }
        }
    }

    fn shard(&self, kind: Kind, id: &str) -> MutexGuard<'_, HashMap<Key, Bound>> {
        let index = usize::try_from(self.hasher.hash_one(id) % SHARDS as u64).unwrap_or_default();
        self.table(kind).shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds a session that `server` opened for `caller`. False: it belongs to another caller, or is no id.
    ///
    /// There is always room: a caller that opens sessions without end loses its own oldest ones first. Who comes back
    /// to such a one is told 404 and opens another, as MCP has it (2025-03-26, session management).
    pub fn bind_session(&self, giving: Giving<'_>, id: &str) -> bool {
        self.put(Kind::Session, giving, id, None)
    }

    /// The revision that `server` has opened the caller's session in.
    pub fn agreed(&self, caller: &Identity, server: &Identity, id: &str, revision: Revision) {
        let key = Key { server: server.clone(), id: id.into() };
        let mut shard = self.shard(Kind::Session, id);
        let Some(bound) = shard.get_mut(&key).filter(|bound| bound.caller == *caller) else { return };
        bound.revision = Some(revision);
        if let Some(successor) = &*self.successor.read().unwrap_or_else(PoisonError::into_inner) {
            successor(&binding(Kind::Session, &key, bound));
        }
    }

    /// Binds a task that `server` made of a call of `tool`, in the same way.
    pub fn bind_task(&self, giving: Giving<'_>, id: &str, tool: &str) -> bool {
        self.put(Kind::Task, giving, id, Some(tool.into()))
    }

    fn put(&self, kind: Kind, giving: Giving<'_>, id: &str, tool: Option<Arc<str>>) -> bool {
        let Giving { caller, server, replica, now } = giving;
        let is_too_long = |text: &str| text.len() > ID_BYTES_MAX;
        if id.is_empty() || is_too_long(id) || tool.as_deref().is_some_and(is_too_long) {
            return false;
        }
        let mut shard = self.shard(kind, id);
        let key = Key { server: server.clone(), id: id.into() };
        let table = self.table(kind);
        // One that has expired is free: a server may count its ids.
        let is_alive = |bound: &&mut Bound| now.duration_since(bound.used) < table.idle_max;
        if let Some(bound) = shard.get_mut(&key).filter(is_alive) {
            let own = bound.caller == *caller;
            if own {
                // Whoever gave it last has it.
                (bound.used, bound.replica) = (now, replica);
            }
            return own;
        }
        make_room(&mut shard, caller, table.shard_max, table.idle_max, now);
        let bound = Bound { caller: caller.clone(), tool, revision: None, replica, used: now };
        if let Some(successor) = &*self.successor.read().unwrap_or_else(PoisonError::into_inner) {
            successor(&binding(kind, &key, &bound));
        }
        shard.insert(key, bound);
        true
    }

    /// Whose id it is that `caller` names to `server`.
    #[must_use]
    pub fn used_by(&self, kind: Kind, caller: &Identity, server: &Identity, id: &str, now: Instant) -> Found {
        let whose = |whose| Found { whose, ..Found::default() };
        match self.shard(kind, id).get_mut(&(server, id) as &dyn Named) {
            Some(bound) if now.duration_since(bound.used) >= self.table(kind).idle_max => whose(Use::Unknown),
            Some(bound) if bound.caller != *caller => whose(Use::Foreign),
            Some(bound) => {
                bound.used = now;
                let (tool, revision, replica) = (bound.tool.clone(), bound.revision, bound.replica);
                Found { whose: Use::Own, tool, revision, replica }
            }
            None => whose(Use::Unknown),
        }
    }

    /// Forgets a session that its caller ended.
    pub fn end_session(&self, server: &Identity, id: &str) {
        self.shard(Kind::Session, id).remove(&(server, id) as &dyn Named);
    }

    /// How many are bound.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        let shards = self.table(kind).shards.iter();
        shards.map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

impl Table {
    /// At most `count_max` ids, each for `idle_max` after its last use.
    fn new(count_max: usize, idle_max: Duration) -> Self {
        Self { shards: Default::default(), shard_max: count_max.div_ceil(SHARDS), idle_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounded::CALLER_SHARE;

    fn id(app: &str) -> Identity {
        Identity::new("example.org", "default", app).unwrap()
    }

    fn giving<'g>(caller: &'g Identity, server: &'g Identity, now: Instant) -> Giving<'g> {
        Giving { caller, server, replica: None, now }
    }

    /// Room for so many of each kind, for so long.
    fn bindings(count_max: usize, idle_max: Duration) -> Bindings {
        let limits = Limits {
            sessions_max: count_max,
            session_idle_max: idle_max,
            tasks_max: count_max,
            task_idle_max: idle_max,
            ..Limits::default()
        };
        Bindings::new(&limits)
    }

    #[test]
    fn an_id_serves_only_who_got_it_where_it_was_got() {
        let bindings = bindings(64, Duration::from_secs(3600));
        let now = Instant::now();
        let late = now + Duration::from_secs(3600);
        assert!(bindings.bind_session(giving(&id("alice"), &id("docs"), now), "s1"));
        assert!(bindings.bind_task(giving(&id("alice"), &id("docs"), now), "t1", "search"));
        for (kind, own, tool) in [(Kind::Session, "s1", None), (Kind::Task, "t1", Some("search"))] {
            let check = |caller: &str, server: &str, named: &str, at: Instant| {
                bindings.used_by(kind, &id(caller), &id(server), named, at).whose
            };
            assert_eq!(check("bob", "docs", own, now), Use::Foreign);
            assert_eq!(check("alice", "mail", own, now), Use::Unknown);
            assert_eq!(check("alice", "docs", "other", now), Use::Unknown);
            let found = bindings.used_by(kind, &id("alice"), &id("docs"), own, now);
            assert_eq!((found.whose, found.tool.as_deref()), (Use::Own, tool));
            assert_eq!(check("bob", "docs", own, late), Use::Unknown);
            assert_eq!(check("alice", "docs", own, late), Use::Unknown);
        }
        assert!(!bindings.bind_session(giving(&id("bob"), &id("docs"), now), "s1"), "it is alice's");
        assert!(!bindings.bind_task(giving(&id("bob"), &id("docs"), now), "t1", "search"), "it is alice's");
        assert!(
            !bindings.bind_task(giving(&id("bob"), &id("docs"), now), &"t".repeat(513), "search"),
            "too long"
        );
        assert!(bindings.bind_task(giving(&id("bob"), &id("docs"), now), "s1", "search"), "another kind");
        assert!(
            bindings.bind_task(giving(&id("bob"), &id("docs"), late), "t1", "search"),
            "nobody's any more"
        );
        assert_eq!(bindings.used_by(Kind::Task, &id("alice"), &id("docs"), "t1", late).whose, Use::Foreign);
        bindings.end_session(&id("docs"), "s1");
        assert_eq!((bindings.count(Kind::Session), bindings.count(Kind::Task)), (0, 2));
    }

    #[test]
    fn ids_are_handed_over_with_their_callers_tools_and_ages() {
        let now = Instant::now();
        // Room for all of a caller's, however they fall on the shards.
        let [old, new] = [(); 2].map(|()| bindings(64 * SHARDS, Duration::from_secs(10)));
        assert!(old.bind_session(giving(&id("alice"), &id("docs"), now), "s1"));
        assert!(old.bind_task(giving(&id("alice"), &id("docs"), now), "t1", "search"));
        old.agreed(&id("alice"), &id("docs"), "s1", Revision::June2025);
        let replica = Some("192.0.2.1:80".parse().unwrap());
        let (alice, docs) = (id("alice"), id("docs"));
        assert!(old.bind_session(Giving { replica, ..giving(&alice, &docs, now) }, "s3"));
        let (successor, later) = std::sync::mpsc::channel();
        let exported = old.export(Box::new(move |binding| successor.send(binding.clone()).unwrap()));
        assert_eq!(exported.len(), 3);
        let text = serde_json::to_string(&exported).unwrap();
        new.import(&serde_json::from_str::<Vec<Binding>>(&text).unwrap());
        assert!(old.bind_session(giving(&id("bob"), &id("docs"), now), "s2"), "bound while it drains");
        assert!(old.bind_task(giving(&id("bob"), &id("docs"), now), "t2", "add"), "bound while it drains");
        old.agreed(&id("bob"), &id("docs"), "s2", Revision::November2025);
        old.agreed(&id("bob"), &id("docs"), "s1", Revision::March2025);
        new.import(&later.try_iter().collect::<Vec<_>>());
        let used = |kind, caller: &str, named: &str| {
            let found = new.used_by(kind, &id(caller), &id("docs"), named, now);
            (found.whose, found.tool.as_deref().map(str::to_owned))
        };
        let agreed = |caller: &str, named: &str| {
            new.used_by(Kind::Session, &id(caller), &id("docs"), named, now).revision
        };
        let of = |named| new.used_by(Kind::Session, &id("alice"), &id("docs"), named, now).replica;
        assert_eq!((of("s3"), of("s1")), (replica, None));
        assert_eq!(agreed("alice", "s1"), Some(Revision::June2025), "bob cannot agree for her");
        assert_eq!(agreed("bob", "s2"), Some(Revision::November2025), "told after the session");
        assert_eq!(agreed("bob", "s1"), None, "another's");
        assert_eq!(used(Kind::Session, "alice", "s1"), (Use::Own, None));
        assert_eq!(used(Kind::Session, "bob", "s2"), (Use::Own, None));
        assert_eq!(used(Kind::Session, "bob", "s1"), (Use::Foreign, None));
        assert_eq!(used(Kind::Task, "alice", "t1"), (Use::Own, Some("search".to_owned())));
        assert_eq!(used(Kind::Task, "bob", "t2"), (Use::Own, Some("add".to_owned())));
        assert_eq!(used(Kind::Task, "bob", "t1"), (Use::Foreign, None));
        let aged =
            Binding { idle_ms: 9_000, ..exported.iter().find(|one| &*one.id == "s1").unwrap().clone() };
        let third = bindings(64, Duration::from_secs(10));
        third.import(&[aged]);
        let at = Instant::now() + Duration::from_secs(2);
        let used = third.used_by(Kind::Session, &id("alice"), &id("docs"), "s1", at);
        assert_eq!(used.whose, Use::Unknown, "its age went with it");
    }

    #[test]
    fn an_older_agents_bindings_are_sessions() {
        let text = r#"[{"server":["example.org","default","docs"],"caller":["example.org","default","alice"],
                       "id":"s1","idle_ms":0}]"#;
        let bindings = bindings(64, Duration::from_secs(10));
        bindings.import(&serde_json::from_str::<Vec<Binding>>(text).unwrap());
        assert_eq!(bindings.count(Kind::Session), 1);
    }

    #[test]
    fn a_caller_that_opens_sessions_without_end_loses_its_own() {
        let sessions = bindings(64 * SHARDS, Duration::from_secs(3600));
        let start = Instant::now();
        assert!(sessions.bind_session(giving(&id("calm"), &id("docs"), start), "kept"));
        for n in 0..10_000 {
            let now = start + Duration::from_millis(n);
            assert!(sessions.bind_session(giving(&id("greedy"), &id("docs"), now), &format!("g{n}")));
        }
        let count = sessions.count(Kind::Session);
        assert!(count <= 1 + 64 * SHARDS / CALLER_SHARE, "{count}");
        let now = start + Duration::from_secs(11);
        let used = |caller: &str, session: &str| {
            sessions.used_by(Kind::Session, &id(caller), &id("docs"), session, now).whose
        };
        assert_eq!(used("calm", "kept"), Use::Own);
        assert_eq!(used("greedy", "g9999"), Use::Own, "the newest stay");
        assert_eq!(used("greedy", "g0"), Use::Unknown);
    }

    #[test]
    fn the_number_of_ids_is_bounded_whoever_got_them() {
        let bindings = bindings(SHARDS, Duration::from_secs(10));
        for n in 0..2_000 {
            let (caller, now) = (id(&format!("c{n}")), Instant::now());
            assert!(bindings.bind_session(giving(&caller, &id("s"), now), &format!("s{n}")));
            assert!(bindings.bind_task(giving(&caller, &id("s"), now), &format!("t{n}"), "search"));
        }
        assert_eq!((bindings.count(Kind::Session), bindings.count(Kind::Task)), (SHARDS, SHARDS));
    }
}

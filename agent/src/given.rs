//! What servers gave to callers to come back with, each bound to the (caller, server) that got it: the ids of requests that
//! a caller is to answer, and the states that it goes on with (MCP 2026-07-28, `requestState`).
//!
//! Kept as keyed digests, so that no server chooses how much memory one takes or where it lies.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use toolgate_core::decision::Use;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Id, Method};

use crate::bounded::{Owned, make_room};

const SHARDS: usize = 16;

/// Who was given something, by whom, in which session.
#[derive(Debug, Clone, Copy)]
pub struct Between<'a> {
    /// Who got it.
    pub caller: &'a Identity,
    /// Who gave it.
    pub server: &'a Identity,
    /// The session it was given in.
    pub session: Option<&'a str>,
}

/// What digests are keyed with, and what they are.
pub type Key = [u8; 32];

/// Something on its way to another process, with the key of its digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    what: Key,
    caller: Key,
    method: Option<Box<str>>,
    /// 0: it is taken.
    count: u32,
    age_ms: u64,
}

/// Tells another process of something.
pub type Tell = Box<dyn Fn(Key, Passed) + Send + Sync>;

struct One {
    /// Digest of the caller's names, to find its share.
    caller: Key,
    /// Of a request.
    method: Option<Method>,
    /// How often it was given and not taken.
    count: u32,
    at: Instant,
}

impl Owned for One {
    type Owner = Key;

    fn owner(&self) -> &Key {
        &self.caller
    }

    fn at(&self) -> Instant {
        self.at
    }
}

fn passed(what: Key, one: &One) -> Passed {
    let age_ms = u64::try_from(one.at.elapsed().as_millis()).unwrap_or(u64::MAX);
    let method = one.method.map(|method| method.as_str().into());
    Passed { what, caller: one.caller, method, count: one.count, age_ms }
}

/// All that was given and may come back.
pub struct Given {
    shards: [Mutex<HashMap<Key, One>>; SHARDS],
    /// This process's own, or that of the one which it took over from.
    secret: OnceLock<Key>,
    shard_max: usize,
    life: Duration,
    /// Who is told of what is given, too: this process hands over.
    successor: RwLock<Option<Tell>>,
}

fn random_key() -> Key {
    let random = RandomState::new();
    let mut key = Key::default();
    for (part, bytes) in key.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *bytes = random.hash_one(part).to_le_bytes();
    }
    key
}

impl Given {
    /// Nothing yet; at most `count_max`, each for `life`.
    #[must_use]
    pub fn new(count_max: usize, life: Duration) -> Self {
        Self {
            shards: Default::default(),
            secret: OnceLock::new(),
            shard_max: count_max.div_ceil(SHARDS),
            life,
            successor: RwLock::default(),
        }
    }

    /// The caller is given a request. There is always room: a caller whose servers ask without end loses its own oldest
    /// ones first, and answers to those are unexpected.
    pub fn asked(&self, between: Between<'_>, id: &Id<'_>, method: Method, now: Instant) {
        self.put(self.question(between, id), between.caller, Some(method), now);
    }

    /// The method of the request that the caller answers; it is answered then.
    pub fn answered(&self, between: Between<'_>, id: &Id<'_>, now: Instant) -> Option<Method> {
        let key = self.question(between, id);
        let mut shard = self.shard(&key);
        let one = shard.get_mut(&key)?;
        let method = one.method.filter(|_| now.duration_since(one.at) < self.life);
        one.count = if method.is_some() { one.count - 1 } else { 0 };
        self.tell(key, one);
        if one.count == 0 {
            shard.remove(&key);
        }
        method
    }

    /// The caller is given a state to go on with, as often as it likes: room is as for requests.
    pub fn gave_state(&self, caller: &Identity, server: &Identity, state: &str, now: Instant) {
        self.put(self.state(Some(caller), server, state), caller, None, now);
        self.put(self.state(None, server, state), caller, None, now);
    }

    /// Whose state it is that `caller` goes on with at `server`.
    #[must_use]
    pub fn state_of(&self, caller: &Identity, server: &Identity, state: &str, now: Instant) -> Use {
        let has =
            |key: Key| self.shard(&key).get(&key).is_some_and(|one| now.duration_since(one.at) < self.life);
        if has(self.state(Some(caller), server, state)) {
            Use::Own
        } else if has(self.state(None, server, state)) {
            Use::Foreign
        } else {
            Use::Unknown
        }
    }

    /// All that was given, and the key of its digests; `successor` is told of what changes from now on.
    #[must_use]
    pub fn export(&self, successor: Tell) -> (Key, Vec<Passed>) {
        // Before the look at the shards: what is given in between is told twice, not never.
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.iter().map(|(key, one)| passed(*key, one)));
        }
        (self.secret(), all)
    }

    /// Nobody is told any more: the successor has failed.
    pub fn export_no_more(&self) {
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes over what another process has given. Before anything is given here: digests with another key are no good.
    pub fn import(&self, secret: Key, all: &[Passed]) {
        if *self.secret.get_or_init(|| secret) != secret {
            return;
        }
        let now = Instant::now();
        for Passed { what, caller, method, count, age_ms } in all {
            let mut shard = self.shard(what);
            if *count == 0 {
                shard.remove(what);
                continue;
            }
            let at = now.checked_sub(Duration::from_millis(*age_ms)).unwrap_or(now);
            let method = method.as_deref().map(Method::from_name);
            make_room(&mut shard, caller, self.shard_max, self.life, now);
            shard.insert(*what, One { caller: *caller, method, count: *count, at });
        }
    }

    fn tell(&self, key: Key, one: &One) {
        if let Some(successor) = &*self.successor.read().unwrap_or_else(PoisonError::into_inner) {
            successor(self.secret(), passed(key, one));
        }
    }

    fn secret(&self) -> Key {
        *self.secret.get_or_init(random_key)
    }

    fn put(&self, key: Key, caller: &Identity, method: Option<Method>, now: Instant) {
        let caller = self.digest(&[], &[caller]);
        let mut shard = self.shard(&key);
        if let Some(one) = shard.get_mut(&key) {
            *one = One { caller, method, count: one.count.saturating_add(1), at: now };
            return self.tell(key, one);
        }
        make_room(&mut shard, &caller, self.shard_max, self.life, now);
        let one = One { caller, method, count: 1, at: now };
        self.tell(key, &one);
        shard.insert(key, one);
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, One>> {
        self.shards[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn question(&self, Between { caller, server, session }: Between<'_>, id: &Id<'_>) -> Key {
        let (kind, id) = match id {
            Id::Number { raw, .. } => ("number", *raw),
            Id::String { value, .. } => ("string", &**value),
        };
        let in_session = if session.is_some() { "session" } else { "none" };
        self.digest(&[in_session, session.unwrap_or_default(), kind, id], &[caller, server])
    }

    /// Of one caller's state, or of anybody's.
    fn state(&self, caller: Option<&Identity>, server: &Identity, state: &str) -> Key {
        match caller {
            Some(caller) => self.digest(&["state", state], &[caller, server]),
            None => self.digest(&["anybody's", state], &[server]),
        }
    }

    fn digest(&self, texts: &[&str], identities: &[&Identity]) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret());
        let mut add = |text: &str| {
            // With its length, so that no text goes on in the next.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for identity in identities {
            [identity.trust_domain(), identity.namespace(), identity.app_id()].into_iter().for_each(&mut add);
        }
        texts.iter().copied().for_each(add);
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::bounded::CALLER_SHARE;

    fn identity(app: &str) -> Identity {
        Identity::new("example.org", "default", app).unwrap()
    }

    const LIFE: Duration = Duration::from_secs(10);

    fn number(raw: &str) -> Id<'_> {
        Id::Number { value: 0, raw }
    }

    fn string(value: &str) -> Id<'_> {
        Id::String { value: Cow::Borrowed(value), raw: "" }
    }

    #[test]
    fn an_answer_is_expected_once_of_who_was_asked() {
        let given = Given::new(1024, LIFE);
        let (alice, bob, docs, mail) =
            (identity("alice"), identity("bob"), identity("docs"), identity("mail"));
        let now = Instant::now();
        let ours = Between { caller: &alice, server: &docs, session: Some("s") };
        given.asked(ours, &number("7"), Method::RootsList, now);
        let others = [
            (Between { caller: &bob, ..ours }, number("7")),
            (Between { server: &mail, ..ours }, number("7")),
            (Between { session: None, ..ours }, number("7")),
            (Between { session: Some("t"), ..ours }, number("7")),
            (ours, string("7")),
            (ours, number("8")),
        ];
        for (between, id) in others {
            assert_eq!(given.answered(between, &id, now), None, "{between:?} {id:?}");
        }
        assert_eq!(given.answered(ours, &number("7"), now), Some(Method::RootsList));
        assert_eq!(given.answered(ours, &number("7"), now), None, "it is answered");
        given.asked(ours, &string("q"), Method::Ping, now);
        assert_eq!(given.answered(ours, &string("q"), now + LIFE), None, "too late");
    }

    #[test]
    fn a_state_is_good_for_who_got_it_until_it_expires() {
        let given = Given::new(1024, LIFE);
        let (alice, bob, docs, mail) =
            (identity("alice"), identity("bob"), identity("docs"), identity("mail"));
        let now = Instant::now();
        for (caller, state) in [(&alice, "s"), (&alice, "both's"), (&bob, "both's")] {
            given.gave_state(caller, &docs, state, now);
        }
        for (caller, server, state, at, expected) in [
            (&alice, &docs, "s", now, Use::Own),
            (&alice, &docs, "s", now + LIFE / 2, Use::Own),
            (&alice, &docs, "s", now + LIFE, Use::Unknown),
            (&bob, &docs, "s", now, Use::Foreign),
            (&bob, &docs, "s", now + LIFE, Use::Unknown),
            (&alice, &mail, "s", now, Use::Unknown),
            (&alice, &docs, "t", now, Use::Unknown),
            (&alice, &docs, "", now, Use::Unknown),
            (&alice, &docs, "both's", now, Use::Own),
            (&bob, &docs, "both's", now, Use::Own),
        ] {
            assert_eq!(given.state_of(caller, server, state, at), expected, "{caller} {server} {state}");
        }
    }

    #[test]
    fn what_was_given_is_handed_over_and_what_is_taken_is_taken() {
        let [old, new] = [(); 2].map(|()| Given::new(64 * SHARDS, LIFE));
        let (alice, bob, docs) = (identity("alice"), identity("bob"), identity("docs"));
        let of = |caller| Between { caller, server: &docs, session: Some("s") };
        let now = Instant::now();
        old.gave_state(&alice, &docs, "before", now);
        for id in ["taken while it drains", "waits", "taken before"] {
            old.asked(of(&alice), &string(id), Method::RootsList, now);
        }
        assert!(old.answered(of(&alice), &string("taken before"), now).is_some());
        let (successor, later) = std::sync::mpsc::channel();
        let (secret, all) = old.export(Box::new(move |secret, one| successor.send((secret, one)).unwrap()));
        let text = serde_json::to_string(&all).unwrap();
        new.import(secret, &serde_json::from_str::<Vec<Passed>>(&text).unwrap());
        old.gave_state(&bob, &docs, "while it drains", now);
        old.asked(of(&bob), &string("asked while it drains"), Method::Ping, now);
        assert!(old.answered(of(&alice), &string("taken while it drains"), now).is_some());
        later.try_iter().for_each(|(secret, one)| new.import(secret, &[one]));
        for (caller, state, expected) in [
            (&alice, "before", Use::Own),
            (&bob, "before", Use::Foreign),
            (&bob, "while it drains", Use::Own),
            (&alice, "while it drains", Use::Foreign),
            (&alice, "never", Use::Unknown),
        ] {
            assert_eq!(new.state_of(caller, &docs, state, now), expected, "{caller} {state}");
        }
        for (caller, id, expected) in [
            (&bob, "waits", None),
            (&alice, "waits", Some(Method::RootsList)),
            (&alice, "waits", None),
            (&alice, "taken before", None),
            (&alice, "taken while it drains", None),
            (&bob, "asked while it drains", Some(Method::Ping)),
        ] {
            assert_eq!(new.answered(of(caller), &string(id), now), expected, "{caller} {id}");
        }
        let aged: Vec<_> = all.into_iter().map(|one| Passed { age_ms: 9_000, ..one }).collect();
        let third = Given::new(64 * SHARDS, LIFE);
        third.import(secret, &aged);
        let later = Instant::now() + Duration::from_secs(2);
        assert_eq!(third.state_of(&alice, &docs, "before", later), Use::Unknown, "its age went with it");
        third.import(random_key(), &aged);
        assert_eq!(third.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>(), aged.len());
    }

    /// Two stateless streams of one caller may both number from 0.
    #[test]
    fn what_was_asked_twice_is_answered_twice() {
        let given = Given::new(1024, LIFE);
        let (alice, docs) = (identity("alice"), identity("docs"));
        let (between, now) = (Between { caller: &alice, server: &docs, session: None }, Instant::now());
        given.asked(between, &number("0"), Method::RootsList, now);
        given.asked(between, &number("0"), Method::RootsList, now);
        let answered: Vec<_> = (0..3).map(|_| given.answered(between, &number("0"), now)).collect();
        assert_eq!(answered, [Some(Method::RootsList), Some(Method::RootsList), None]);
    }

    #[test]
    fn who_is_asked_without_end_loses_its_own() {
        let given = Given::new(64 * SHARDS, LIFE);
        let (calm, greedy, docs) = (identity("calm"), identity("greedy"), identity("docs"));
        let between = |caller| Between { caller, server: &docs, session: None };
        let now = Instant::now();
        given.asked(between(&calm), &string("kept"), Method::RootsList, now);
        for n in 0..10_000_u32 {
            let at = now + Duration::from_micros(n.into());
            given.asked(between(&greedy), &string(&n.to_string()), Method::RootsList, at);
        }
        let held: usize = given.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= 1 + 64 * SHARDS / CALLER_SHARE, "{held}");
        assert_eq!(given.answered(between(&calm), &string("kept"), now), Some(Method::RootsList));
        let at = now + Duration::from_millis(10);
        assert_eq!(given.answered(between(&greedy), &string("9999"), at), Some(Method::RootsList));
        assert_eq!(given.answered(between(&greedy), &string("0"), at), None);
    }
}

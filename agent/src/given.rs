//! What servers gave to callers to come back with, each bound to the (caller, server) that got it: the ids of requests that
//! a caller is to answer, and the states that it goes on with (MCP 2026-07-28, `requestState`).
//!
//! Kept as keyed digests, so that no server chooses how much memory one takes or where it lies.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

type Key = [u8; 32];

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

/// All that was given and may come back.
pub struct Given {
    shards: [Mutex<HashMap<Key, One>>; SHARDS],
    secret: Key,
    shard_max: usize,
    life: Duration,
}

impl Given {
    /// Nothing yet; at most `count_max`, each for `life`.
    #[must_use]
    pub fn new(count_max: usize, life: Duration) -> Self {
        let random = RandomState::new();
        let mut secret = Key::default();
        for (part, bytes) in secret.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = random.hash_one(part).to_le_bytes();
        }
        Self { shards: Default::default(), secret, shard_max: count_max.div_ceil(SHARDS), life }
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
        one.count -= 1;
        if one.count == 0 || method.is_none() {
            shard.remove(&key);
        }
        method
    }

    /// The caller is given a state to go on with, as often as it likes: room is as for requests.
    pub fn gave_state(&self, caller: &Identity, server: &Identity, state: &str, now: Instant) {
        self.put(self.digest(&["state", state], &[caller, server]), caller, None, now);
    }

    /// Whether the caller has got this state from this server.
    #[must_use]
    pub fn has_state(&self, caller: &Identity, server: &Identity, state: &str, now: Instant) -> bool {
        let key = self.digest(&["state", state], &[caller, server]);
        self.shard(&key).get(&key).is_some_and(|one| now.duration_since(one.at) < self.life)
    }

    fn put(&self, key: Key, caller: &Identity, method: Option<Method>, now: Instant) {
        let caller = self.digest(&[], &[caller]);
        let mut shard = self.shard(&key);
        if let Some(one) = shard.get_mut(&key) {
            *one = One { caller, method, count: one.count.saturating_add(1), at: now };
            return;
        }
        make_room(&mut shard, &caller, self.shard_max, self.life, now);
        shard.insert(key, One { caller, method, count: 1, at: now });
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

    fn digest(&self, texts: &[&str], identities: &[&Identity]) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
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
        given.gave_state(&alice, &docs, "s", now);
        for (caller, server, state, at, expected) in [
            (&alice, &docs, "s", now, true),
            (&alice, &docs, "s", now + LIFE / 2, true),
            (&alice, &docs, "s", now + LIFE, false),
            (&bob, &docs, "s", now, false),
            (&alice, &mail, "s", now, false),
            (&alice, &docs, "t", now, false),
            (&alice, &docs, "", now, false),
        ] {
            assert_eq!(given.has_state(caller, server, state, at), expected, "{caller} {server} {state}");
        }
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

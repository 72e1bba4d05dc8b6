//! Ids of server-sent events: a caller that lost a stream resumes it by the id of the last event that it got there
//! (`Last-Event-ID`; MCP 2025-11-25, transports). Of each stream the last ids are known, and the answer that it owed.
//!
//! Events come by the thousand and are resumed hardly ever: each costs a digest and a place in its stream's own ring, and
//! whose id one is, is searched for.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use toolgate_core::decision::Use;
use toolgate_core::identity::Identity;

use crate::bindings::{ID_BYTES_MAX, Name, identity, name};
use crate::bounded::CALLER_SHARE;
use crate::limits::Limits;

/// Ids of one stream that another process is told of: what a message of the hand-over holds.
const TOLD_MAX: usize = 256;
/// Callers of servers of whom any stream is known.
const CALLERS_MAX: usize = 4_096;

/// Of an id: two that are not the same cannot be made to have the same one.
type Digest = (u64, u64);

fn digest(id: &[u8]) -> Digest {
    // The first half of 256 bits.
    let hash = blake3::hash(id.trim_ascii());
    let (words, _) = hash.as_bytes().as_chunks();
    let word = |place: usize| words.get(place).copied().map(u64::from_le_bytes).unwrap_or_default();
    (word(0), word(1))
}

/// The request whose answer a stream owes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owes {
    /// Its id, as JSON.
    pub id: Box<str>,
    /// Its method.
    pub method: Box<str>,
    /// The tool that it calls.
    pub tool: Option<Box<str>>,
}

/// Whose stream it is, in which session, and what it owes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Of {
    caller: Identity,
    server: Identity,
    session: Option<Digest>,
    owes: Option<Arc<Owes>>,
}

/// What is known of one stream. Held by the stream itself as long as that is open.
pub struct Given {
    of: Of,
    last: Mutex<Last>,
}

struct Last {
    ids: VecDeque<Digest>,
    at: Instant,
}

impl Given {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_alive(self: &Arc<Self>, now: Instant, idle_max: Duration) -> bool {
        Arc::strong_count(self) > 1 || now.duration_since(self.last().at) < idle_max
    }

    fn has(&self, id: &Digest) -> bool {
        self.last().ids.contains(id)
    }
}

/// The streams of one caller to one server, in the order in which they began.
type Streams = Mutex<VecDeque<Arc<Given>>>;

fn lock(streams: &Streams) -> MutexGuard<'_, VecDeque<Arc<Given>>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream on its way to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    caller: Name,
    server: Name,
    session: Option<Digest>,
    owes: Option<Arc<Owes>>,
    ids: Vec<Digest>,
    /// Since its last event.
    idle_ms: u64,
}

fn stream(of: &Of, ids: Vec<Digest>, at: Instant) -> Stream {
    let (caller, server, owes) = (name(&of.caller), name(&of.server), of.owes.clone());
    let idle_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    Stream { caller, server, session: of.session, owes, ids, idle_ms }
}

/// Tells another process of a stream's new ids.
pub type Tell = Box<dyn Fn(&Stream) + Send + Sync>;

/// Who asks whom.
type Pair = (Identity, Identity);

/// The event ids of the node.
pub struct EventIds {
    callers: RwLock<HashMap<Pair, Arc<Streams>>>,
    count: AtomicUsize,
    streams_max: usize,
    per_stream_max: usize,
    idle_max: Duration,
    successor: RwLock<Option<Tell>>,
}

impl EventIds {
    /// None is known yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            callers: RwLock::default(),
            count: AtomicUsize::new(0),
            streams_max: limits.event_streams_max,
            per_stream_max: limits.events_per_stream_max,
            idle_max: limits.event_idle_max,
            successor: RwLock::default(),
        }
    }

    /// A stream on which `server` gives `caller` its first id.
    #[must_use]
    pub fn open(
        &self,
        caller: &Identity,
        server: &Identity,
        session: Option<&str>,
        owes: Option<Owes>,
    ) -> Arc<Given> {
        let session = session.map(|session| digest(session.as_bytes()));
        let (caller, server) = (caller.clone(), server.clone());
        self.add(Of { caller, server, session, owes: owes.map(Arc::new) }, Instant::now())
    }

    fn add(&self, of: Of, now: Instant) -> Arc<Given> {
        let is_too_long = |text: &str| text.len() > ID_BYTES_MAX;
        let is_kept = of
            .owes
            .as_ref()
            .is_none_or(|owes| !is_too_long(&owes.id) && !owes.tool.as_deref().is_some_and(is_too_long));
        let key = (of.caller.clone(), of.server.clone());
        let last = Mutex::new(Last { ids: VecDeque::new(), at: now });
        let given = Arc::new(Given { of, last });
        let Some(streams) = self.streams(key, now).filter(|_| is_kept) else { return given };
        if self.count.load(Ordering::Relaxed) >= self.streams_max {
            self.forget_one();
        }
        let mut streams = lock(&streams);
        while streams.front().is_some_and(|oldest| !oldest.is_alive(now, self.idle_max)) {
            self.pop(&mut streams, 0);
        }
        if streams.len() >= (self.streams_max / CALLER_SHARE).max(1) {
            // One that is open may have to be resumed yet.
            let ended = streams.iter().position(|given| Arc::strong_count(given) == 1);
            self.pop(&mut streams, ended.unwrap_or_default());
        }
        streams.push_back(Arc::clone(&given));
        self.count.fetch_add(1, Ordering::Relaxed);
        given
    }

    fn pop(&self, streams: &mut VecDeque<Arc<Given>>, place: usize) {
        if streams.remove(place).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The oldest stream of who has most.
    fn forget_one(&self) {
        let callers = self.callers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(most) = callers.values().max_by_key(|streams| lock(streams).len()) {
            self.pop(&mut lock(most), 0);
        }
    }

    /// `None`: there are too many callers.
    fn streams(&self, key: Pair, now: Instant) -> Option<Arc<Streams>> {
        if let Some(streams) = self.of(&key) {
            return Some(streams);
        }
        let mut callers = self.callers.write().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= CALLERS_MAX {
            callers.retain(|_, streams| {
                let mut streams = lock(streams);
                while streams.front().is_some_and(|oldest| !oldest.is_alive(now, self.idle_max)) {
                    self.pop(&mut streams, 0);
                }
                !streams.is_empty()
            });
        }
        let has_room = callers.len() < CALLERS_MAX;
        has_room.then(|| Arc::clone(callers.entry(key).or_default()))
    }

    fn of(&self, key: &Pair) -> Option<Arc<Streams>> {
        self.callers.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// An event of that id goes out on that stream.
    pub fn give(&self, given: &Given, id: &[u8], now: Instant) {
        let id = digest(id);
        self.keep(given, id, now);
        if let Some(successor) = &*self.successor.read().unwrap_or_else(PoisonError::into_inner) {
            successor(&stream(&given.of, vec![id], now));
        }
    }

    fn keep(&self, given: &Given, id: Digest, now: Instant) {
        let mut last = given.last();
        last.at = now;
        if last.ids.len() >= self.per_stream_max {
            last.ids.pop_front();
        }
        last.ids.push_back(id);
    }

    /// Whose event it is that `caller` names to `server`, and what its stream owes to its own caller. An id that two
    /// callers were given where there are no sessions is nobody's.
    #[must_use]
    pub fn used_by(
        &self,
        caller: &Identity,
        server: &Identity,
        session: Option<&str>,
        id: &[u8],
        now: Instant,
    ) -> (Use, Option<Arc<Owes>>) {
        let (id, session) = (digest(id), session.map(|session| digest(session.as_bytes())));
        let is_it = |given: &&Arc<Given>| given.is_alive(now, self.idle_max) && given.has(&id);
        let own = self.of(&(caller.clone(), server.clone())).and_then(|streams| {
            let streams = lock(&streams);
            // What was sent again is of the stream on which that was done last.
            let mut newest = streams.iter().rev().filter(|given| given.of.session == session);
            newest.find(is_it).map(|given| given.of.owes.clone())
        });
        let others = || {
            let callers = self.callers.read().unwrap_or_else(PoisonError::into_inner);
            let others = callers.iter().filter(|((other, of), _)| of == server && other != caller);
            others.map(|(_, streams)| Arc::clone(streams)).collect::<Vec<_>>()
        };
        let is_anothers = || others().iter().any(|streams| lock(streams).iter().any(|given| is_it(&given)));
        match own {
            Some(owes) if session.is_some() || !is_anothers() => (Use::Own, owes),
            Some(_) => (Use::Foreign, None),
            None if is_anothers() => (Use::Foreign, None),
            None => (Use::Unknown, None),
        }
    }

    /// All streams; `successor` is told of each id from now on.
    #[must_use]
    pub fn export(&self, successor: Tell) -> Vec<Stream> {
        // Before the look at the streams: what is given in between is told twice, not never.
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        let callers = self.callers.read().unwrap_or_else(PoisonError::into_inner);
        let streams = callers.values().flat_map(|streams| lock(streams).iter().cloned().collect::<Vec<_>>());
        let exported = |given: Arc<Given>| {
            let last = given.last();
            let before = last.ids.len().saturating_sub(TOLD_MAX);
            stream(&given.of, last.ids.iter().skip(before).copied().collect(), last.at)
        };
        streams.map(exported).collect()
    }

    /// Nobody is told any more: the successor has failed.
    pub fn export_no_more(&self) {
        *self.successor.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes over what another process has given.
    pub fn import(&self, streams: &[Stream]) {
        let now = Instant::now();
        for one in streams {
            let (Some(caller), Some(server)) = (identity(&one.caller), identity(&one.server)) else {
                continue;
            };
            let of = Of { caller, server, session: one.session, owes: one.owes.clone() };
            let at = now.checked_sub(Duration::from_millis(one.idle_ms)).unwrap_or(now);
            let given = self.same(&of).unwrap_or_else(|| self.add(of, at));
            one.ids.iter().for_each(|id| self.keep(&given, *id, at));
        }
    }

    /// The newest stream of the same caller that owes the same: what is told id by id is put together again.
    fn same(&self, of: &Of) -> Option<Arc<Given>> {
        let streams = self.of(&(of.caller.clone(), of.server.clone()))?;
        lock(&streams).iter().rev().find(|given| given.of == *of).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(app: &str) -> Identity {
        Identity::new("example.org", "default", app).unwrap()
    }

    fn event_ids(event_streams_max: usize, events_per_stream_max: usize) -> EventIds {
        EventIds::new(&Limits { event_streams_max, events_per_stream_max, ..Limits::default() })
    }

    fn owes(id: &str) -> Option<Owes> {
        Some(Owes { id: id.into(), method: "tools/call".into(), tool: Some("echo".into()) })
    }

    /// Whose id it is, and the id of the request whose answer is owed.
    fn check(ids: &EventIds, caller: &str, session: Option<&str>, event: &str) -> (Use, Option<String>) {
        let (whose, owes) = ids.used_by(&id(caller), &id("docs"), session, event.as_bytes(), Instant::now());
        (whose, owes.map(|owes| owes.id.to_string()))
    }

    fn given(ids: &EventIds, caller: &str, session: Option<&str>, owed: &str, events: &[&str]) -> Arc<Given> {
        let given = ids.open(&id(caller), &id("docs"), session, owes(owed).filter(|_| !owed.is_empty()));
        events.iter().for_each(|event| ids.give(&given, event.as_bytes(), Instant::now()));
        given
    }

    #[test]
    fn an_event_is_whose_stream_it_was_on() {
        let ids = event_ids(64, 8);
        given(&ids, "alice", Some("a"), "7", &["1", "2"]);
        given(&ids, "alice", Some("a"), "", &["3"]);
        given(&ids, "alice", Some("b"), "8", &["1", "4"]);
        let own = |owed: &str| (Use::Own, Some(owed.to_owned()));
        assert_eq!(check(&ids, "alice", Some("a"), "1"), own("7"));
        assert_eq!(check(&ids, "alice", Some("a"), " 2"), own("7"), "as a header carries it");
        assert_eq!(check(&ids, "alice", Some("a"), "3"), (Use::Own, None));
        assert_eq!(check(&ids, "alice", Some("b"), "1"), own("8"), "ids are of their session");
        assert_eq!(check(&ids, "alice", Some("a"), "4"), (Use::Unknown, None), "of another session");
        assert_eq!(check(&ids, "alice", None, "2"), (Use::Unknown, None));
        assert_eq!(check(&ids, "alice", Some("a"), "5"), (Use::Unknown, None));
        assert_eq!(check(&ids, "bob", Some("c"), "2"), (Use::Foreign, None));
        assert_eq!(check(&ids, "bob", Some("c"), "5"), (Use::Unknown, None));
        let (elsewhere, _) = ids.used_by(&id("alice"), &id("mail"), Some("a"), b"1", Instant::now());
        assert_eq!(elsewhere, Use::Unknown);
        // Sent again on the stream that resumed the first.
        given(&ids, "alice", Some("a"), "9", &["2"]);
        assert_eq!(check(&ids, "alice", Some("a"), "2"), own("9"));
        let late = Instant::now() + Limits::default().event_idle_max;
        let (whose, _) = ids.used_by(&id("alice"), &id("docs"), Some("a"), b"1", late);
        assert_eq!(whose, Use::Unknown, "it has expired");
    }

    #[test]
    fn an_id_that_two_were_given_without_sessions_is_nobodys() {
        let ids = event_ids(64, 8);
        given(&ids, "alice", None, "7", &["1", "2"]);
        given(&ids, "bob", None, "7", &["1"]);
        assert_eq!(check(&ids, "alice", None, "1"), (Use::Foreign, None));
        assert_eq!(check(&ids, "bob", None, "1"), (Use::Foreign, None));
        assert_eq!(check(&ids, "alice", None, "2"), (Use::Own, Some("7".to_owned())));
    }

    #[test]
    fn the_last_ids_of_the_last_streams_are_known() {
        let ids = event_ids(64, 8);
        let open = given(&ids, "alice", Some("a"), "", &["open"]);
        for stream in 0..100_usize {
            let events: Vec<String> = (0..20).map(|event| format!("{stream}-{event}")).collect();
            let events: Vec<&str> = events.iter().map(String::as_str).collect();
            given(&ids, "alice", Some("a"), "7", &events);
        }
        assert_eq!(check(&ids, "alice", Some("a"), "99-19").0, Use::Own);
        assert_eq!(check(&ids, "alice", Some("a"), "99-12").0, Use::Own);
        assert_eq!(check(&ids, "alice", Some("a"), "99-11").0, Use::Unknown, "eight of a stream");
        assert_eq!(check(&ids, "alice", Some("a"), "0-19").0, Use::Unknown, "the oldest are forgotten");
        assert_eq!(check(&ids, "alice", Some("a"), "open").0, Use::Own, "but for one that is open");
        drop(open);
        let count = |ids: &EventIds| {
            ids.callers.read().unwrap().values().map(|streams| lock(streams).len()).sum::<usize>()
        };
        assert_eq!(count(&ids), 64 / CALLER_SHARE);
        for caller in 0..100 {
            given(&ids, &format!("c{caller}"), None, "7", &["1"]);
        }
        assert_eq!((count(&ids), ids.count.load(Ordering::Relaxed)), (64, 64), "whoever opens them");
        given(&ids, "alice", Some("a"), &"7".repeat(513), &["long"]);
        assert_eq!(check(&ids, "alice", Some("a"), "long").0, Use::Unknown, "its request is not kept");
    }

    #[test]
    fn streams_are_handed_over_and_go_on() {
        let (old, new) = (event_ids(64, 8), event_ids(64, 8));
        let open = given(&old, "alice", Some("a"), "7", &["1"]);
        let (successor, later) = std::sync::mpsc::channel();
        let exported = old.export(Box::new(move |stream| successor.send(stream.clone()).unwrap()));
        let text = serde_json::to_string(&exported).unwrap();
        new.import(&serde_json::from_str::<Vec<Stream>>(&text).unwrap());
        old.give(&open, b"2", Instant::now());
        given(&old, "bob", Some("b"), "8", &["3"]);
        new.import(&later.try_iter().collect::<Vec<_>>());
        let own = |owed: &str| (Use::Own, Some(owed.to_owned()));
        assert_eq!(check(&new, "alice", Some("a"), "1"), own("7"));
        assert_eq!(check(&new, "alice", Some("a"), "2"), own("7"));
        assert_eq!(check(&new, "bob", Some("b"), "3"), own("8"));
        assert_eq!(check(&new, "bob", Some("b"), "2"), (Use::Foreign, None));
        assert_eq!(new.count.load(Ordering::Relaxed), 2, "what is told id by id is one stream");
    }
}

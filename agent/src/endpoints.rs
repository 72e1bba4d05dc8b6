//! Streams of servers that answer there what is sent to an endpoint (MCP 2024-11-05, HTTP with SSE). An endpoint belongs to
//! the caller whose open stream has named it; the requests that wait for their answers there are its own.
//!
//! A stream and what is sent to its endpoint may be on two threads: what they share is behind the stream's own lock, which
//! nobody holds while waiting.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use toolgate_core::decision::{Server, Use};
use toolgate_core::denial::{self, Reason};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Id, Revision};
use toolgate_core::policy::Ends;

use crate::config::Resources;
use crate::limits::Limit;
use crate::parse::Expected;
use crate::record::Entry;
use crate::shares::{self, Exceeded, Held, Share};

/// A server's identity and the target of requests to its endpoint.
type Key = (Identity, Box<str>);

/// The open streams that have named their endpoints: as many as there may be streams.
pub struct Endpoints {
    named: RwLock<HashMap<Key, Arc<Paired>>>,
    pending_max: usize,
}

/// A stream that is open. Dropped: it is not, and its endpoint is nobody's.
pub struct Open<'e> {
    endpoints: &'e Endpoints,
    /// What others may do with it.
    pub paired: Arc<Paired>,
}

/// One stream and what waits for it.
pub struct Paired {
    caller: Identity,
    server: Identity,
    /// Which of the server's endpoints the stream is at, where there are several.
    replica: Option<SocketAddr>,
    endpoint: OnceLock<Box<str>>,
    state: Mutex<State>,
    /// There is something to be told, or it is to end.
    called: Notify,
    pending_max: usize,
}

struct State {
    is_closed: bool,
    ends_since: Option<Instant>,
    /// What its messages are held to that name none.
    revision: Option<Revision>,
    waiting: HashMap<RequestId, Waiting>,
    /// Answers in the server's place.
    told: VecDeque<Told>,
}

struct Told {
    message: Vec<u8>,
    _charge: Held,
}

/// The id of a request, by kind and value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// An integer.
    Number(i64),
    /// A string.
    Text(Box<str>),
}

impl From<&Id<'_>> for RequestId {
    fn from(id: &Id<'_>) -> Self {
        match id {
            Id::Number { value, .. } => Self::Number(*value),
            Id::String { value, .. } => Self::Text(value.as_ref().into()),
        }
    }
}

/// A request whose answer is awaited on the stream, and all that the answer depends on.
pub struct Request {
    /// What the answer will be.
    pub expected: Expected,
    /// The generation that it was decided on.
    pub resources: Arc<Resources>,
    /// The server, as that generation has it.
    pub server: Arc<Server>,
    /// Which ends of the call are here.
    pub ends: Ends,
    /// Policy is only observed: lists are shown whole.
    pub observe: bool,
    /// How the client may name it when it asks its operator.
    pub request_id: String,
}

/// Where the record of a waiting request is.
enum Record {
    /// With who sends it.
    Sending,
    /// Here, until its answer is there.
    Kept(Entry),
    /// Written: its caller has cancelled it, and may be answered all the same.
    Closed,
}

struct Waiting {
    request: Arc<Request>,
    record: Record,
    /// Its answer, where that came before it was recorded that it was sent.
    outcome: Option<Outcome>,
    _charge: Held,
}

/// How the answer to a request went.
pub struct Outcome {
    /// Bytes of its event that the client got.
    pub bytes: u64,
    /// More for the record.
    pub note: Option<String>,
    /// What went wrong.
    pub fault: Option<(Reason, String)>,
}

impl Outcome {
    fn record(self, entry: &mut Entry) {
        entry.answered(self.bytes);
        if let Some((reason, detail)) = self.fault {
            entry.failed(reason, self.bytes, detail);
        }
        if let Some(note) = self.note {
            entry.noted(note);
        }
    }
}

/// Why nothing can be put to a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// It has ended.
    #[error("the stream has ended")]
    Ended,
    /// A request with the same id waits there.
    #[error("a request with the same id waits for its answer on this stream")]
    SameId,
    /// Too many wait there.
    #[error("{} is reached: {pending_max} requests wait on this stream", Limit::PendingPerStream)]
    Full {
        /// The limit.
        pending_max: usize,
    },
    /// There is no memory for it.
    #[error("no memory for what waits on a stream: {0}")]
    NoRoom(#[from] Exceeded),
}

impl NoPlace {
    /// The limit that it ran into.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Ended | Self::SameId => None,
            Self::Full { .. } => Some(Limit::PendingPerStream),
            Self::NoRoom(exceeded) => Some(exceeded.limit),
        }
    }
}

/// A request on its way. Dropped: it did not get there, and no answer to it is awaited.
pub struct Sending {
    paired: Arc<Paired>,
    id: RequestId,
    is_settled: bool,
}

impl Endpoints {
    /// None yet; on each stream so many requests may wait.
    #[must_use]
    pub fn new(pending_max: usize) -> Self {
        Self { named: RwLock::default(), pending_max }
    }

    /// A stream of `server`'s to `caller`, which has not named its endpoint.
    #[must_use]
    pub fn open(&self, caller: &Identity, server: &Identity, replica: Option<SocketAddr>) -> Open<'_> {
        let state = State {
            is_closed: false,
            ends_since: None,
            revision: Some(Revision::November2024),
            waiting: HashMap::new(),
            told: VecDeque::new(),
        };
        let paired = Paired {
            caller: caller.clone(),
            server: server.clone(),
            replica,
            endpoint: OnceLock::new(),
            state: Mutex::new(state),
            called: Notify::new(),
            pending_max: self.pending_max,
        };
        Open { endpoints: self, paired: Arc::new(paired) }
    }

    /// The stream names its endpoint. False: it has done so, or another open stream has that one.
    pub fn name(&self, paired: &Arc<Paired>, target: &str) -> bool {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        let key = (paired.server.clone(), target.into());
        if named.contains_key(&key) || paired.endpoint.set(target.into()).is_err() {
            return false;
        }
        named.insert(key, Arc::clone(paired));
        true
    }

    /// Whose endpoint it is that `caller` sends to, and the stream of its own.
    #[must_use]
    pub fn used_by(&self, caller: &Identity, server: &Identity, target: &str) -> (Use, Option<Arc<Paired>>) {
        let key = (server.clone(), target.into());
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        match named.get(&key) {
            Some(paired) if paired.caller == *caller => (Use::Own, Some(Arc::clone(paired))),
            Some(_) => (Use::Foreign, None),
            None => (Use::Unknown, None),
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let Self { endpoints, paired } = self;
        if let Some(endpoint) = paired.endpoint() {
            let key = (paired.server.clone(), endpoint.into());
            endpoints.named.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }
        paired.close(Reason::ClientLeft, "the stream has ended");
    }
}

impl Paired {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of the server's endpoints it is at, where there are several.
    #[must_use]
    pub fn replica(&self) -> Option<SocketAddr> {
        self.replica
    }

    /// Where its client sends to, once the server has said so.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.get().map(AsRef::as_ref)
    }

    /// The revision of messages that name none: 2024-11-05 until another is agreed on.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        self.state().revision
    }

    /// The server has agreed on a revision.
    pub fn agreed(&self, version: &str) {
        self.state().revision = Revision::named(version.as_bytes());
    }

    /// A request is about to be sent, whose answer is due on the stream.
    ///
    /// # Errors
    /// [`NoPlace`]: it must not be sent.
    pub fn expect(
        self: &Arc<Self>,
        id: RequestId,
        request: Request,
        share: &Arc<Share>,
    ) -> Result<Sending, NoPlace> {
        let bytes = size_of::<Waiting>() + size_of::<Request>() + request.expected.bytes();
        let charge = share.take(shares::Use::Memory, bytes)?;
        let mut state = self.state();
        if state.waiting.contains_key(&id) {
            return Err(NoPlace::SameId);
        }
        state.room(self.pending_max)?;
        let (request, record) = (Arc::new(request), Record::Sending);
        state.waiting.insert(id.clone(), Waiting { request, record, outcome: None, _charge: charge });
        Ok(Sending { paired: Arc::clone(self), id, is_settled: false })
    }

    /// Puts an answer in the server's place on the stream, between two of its events.
    ///
    /// # Errors
    /// [`NoPlace`]: it will not be told.
    pub fn tell(&self, message: Vec<u8>, share: &Arc<Share>) -> Result<(), NoPlace> {
        let charge = share.take(shares::Use::Memory, size_of::<Told>() + message.capacity())?;
        let mut state = self.state();
        state.room(self.pending_max)?;
        state.told.push_back(Told { message, _charge: charge });
        drop(state);
        self.called.notify_one();
        Ok(())
    }

    /// The next answer in the server's place.
    pub fn told(&self) -> Option<Vec<u8>> {
        self.state().told.pop_front().map(|told| told.message)
    }

    /// Resolves when there is something to be told, or the stream is to end. For one who waits at a time.
    pub async fn called(&self) {
        self.called.notified().await;
    }

    /// The request that an answer names, if that has none yet.
    #[must_use]
    pub fn waiting(&self, id: &RequestId) -> Option<Arc<Request>> {
        let state = self.state();
        let waiting = state.waiting.get(id).filter(|waiting| waiting.outcome.is_none())?;
        Some(Arc::clone(&waiting.request))
    }

    /// The client has the answer: another one would be one too many.
    pub fn passed(&self, id: &RequestId, outcome: Outcome) {
        let mut state = self.state();
        let Some(mut waiting) = state.waiting.remove(id) else { return };
        match waiting.record {
            Record::Sending => {
                waiting.outcome = Some(outcome);
                state.waiting.insert(id.clone(), waiting);
            }
            Record::Kept(mut entry) => outcome.record(&mut entry),
            Record::Closed => {}
        }
    }

    /// The caller has cancelled a request: nothing more is due to it, and what comes all the same is read as it would be.
    pub fn cancelled(&self, id: &RequestId) {
        let mut state = self.state();
        let Some(waiting) = state.waiting.get_mut(id) else { return };
        if let Record::Kept(mut entry) = std::mem::replace(&mut waiting.record, Record::Closed) {
            entry.noted("cancelled by its caller".to_owned());
        }
    }

    /// The stream is to end when nobody waits any more, or after a while.
    pub fn end(&self) {
        self.state().ends_since.get_or_insert_with(Instant::now);
        self.called.notify_one();
    }

    /// How long it may still go on where it is to end: not at all when nobody waits.
    #[must_use]
    pub fn ends_in(&self, time_max: Duration) -> Option<Duration> {
        let state = self.state();
        let since = state.ends_since?;
        let is_awaited = |waiting: &Waiting| waiting.outcome.is_none() && waiting.record.is_open();
        let is_idle = state.told.is_empty() && !state.waiting.values().any(is_awaited);
        Some(if is_idle { Duration::ZERO } else { time_max.saturating_sub(since.elapsed()) })
    }

    /// Nothing more comes: what is to be said to those who still wait for an answer.
    pub fn close(&self, reason: Reason, detail: &str) -> Vec<Vec<u8>> {
        let mut state = self.state();
        state.is_closed = true;
        let mut messages: Vec<_> = state.told.drain(..).map(|told| told.message).collect();
        let all = std::mem::take(&mut state.waiting);
        for (id, mut waiting) in all {
            if waiting.outcome.is_some() {
                state.waiting.insert(id, waiting);
                continue;
            }
            let Request { expected, request_id, .. } = &*waiting.request;
            let outcome =
                Outcome { bytes: 0, note: None, fault: Some((reason, format!("no answer: {detail}"))) };
            if waiting.record.is_open() {
                messages.push(denial::answer(reason, expected.failure(), request_id).body);
            }
            match waiting.record {
                Record::Sending => {
                    waiting.outcome = Some(outcome);
                    state.waiting.insert(id, waiting);
                }
                Record::Kept(mut entry) => outcome.record(&mut entry),
                Record::Closed => {}
            }
        }
        messages
    }
}

impl Record {
    fn is_open(&self) -> bool {
        match self {
            Self::Sending | Self::Kept(_) => true,
            Self::Closed => false,
        }
    }
}

impl State {
    /// Room for one more that waits; what was cancelled goes first.
    fn room(&mut self, pending_max: usize) -> Result<(), NoPlace> {
        if self.is_closed {
            return Err(NoPlace::Ended);
        }
        if self.waiting.len() + self.told.len() < pending_max {
            return Ok(());
        }
        let cancelled = self.waiting.iter().find(|(_, waiting)| !waiting.record.is_open());
        let id = cancelled.map(|(id, _)| id.clone()).ok_or(NoPlace::Full { pending_max })?;
        self.waiting.remove(&id);
        Ok(())
    }
}

impl Sending {
    /// It did not get there: no answer is awaited. False: it has one.
    #[must_use]
    pub fn withdraw(mut self) -> bool {
        self.is_settled = true;
        let withdrawn = self.paired.state().waiting.remove(&self.id);
        withdrawn.is_some_and(|waiting| waiting.outcome.is_none())
    }

    /// The server has it. Its record is closed when its answer has passed, or the stream has ended.
    pub fn settle(mut self, mut entry: Entry) {
        self.is_settled = true;
        let mut state = self.paired.state();
        let Some(waiting) = state.waiting.get_mut(&self.id) else { return };
        match (waiting.outcome.take(), &waiting.record) {
            (Some(outcome), _) => {
                outcome.record(&mut entry);
                state.waiting.remove(&self.id);
            }
            (None, Record::Closed) => entry.noted("cancelled by its caller".to_owned()),
            (None, Record::Sending | Record::Kept(_)) => waiting.record = Record::Kept(entry),
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_settled {
            self.paired.state().waiting.remove(&self.id);
        }
    }
}

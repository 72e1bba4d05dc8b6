//! The endpoints of a server that has several: which of them are well, how much each has to do, and which comes next.
//!
//! Health is what calls tell: an endpoint that fails several times in a row is left out for a while that grows, then one call
//! tries it. A server with one endpoint is not kept here: there is nothing to choose.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use toolgate_core::identity::Identity;

/// Failures in a row after which an endpoint is left out.
const FAILURES_MAX: u32 = 3;
/// For how long at first, and at most.
const EJECTED_FIRST: Duration = Duration::from_secs(5);
const EJECTED_MAX: Duration = Duration::from_secs(300);

/// One endpoint of one server.
#[derive(Debug)]
pub struct Replica {
    /// Where it is.
    pub address: SocketAddr,
    outstanding: AtomicUsize,
    ejections: AtomicU64,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// In a row.
    failures: u32,
    /// Left out until then; the first call after that tries it.
    ejected: Option<Ejected>,
    /// What the last failure was.
    reason: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy)]
struct Ejected {
    until: Instant,
    lasts: Duration,
    is_probed: bool,
}

/// How an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is called.
    Well,
    /// It is left out.
    Ejected {
        /// For so long yet.
        left: Duration,
    },
    /// The next call tries it, or one does.
    Probed,
}

/// Where an endpoint may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub address: SocketAddr,
    /// Less comes before more, as long as one of them is well (SRV, RFC 2782).
    pub priority: u16,
}

/// Endpoints that a server may have.
pub type Candidates = SmallVec<[Candidate; 4]>;

/// What an operator is shown of an endpoint.
#[derive(Debug, Clone)]
pub struct Shown {
    /// How it is.
    pub state: State,
    /// Calls that it has not answered yet.
    pub outstanding: usize,
    /// How often it was left out.
    pub ejections: u64,
    /// What its last failure was; `None`: it had none since it was well.
    pub reason: Option<Arc<str>>,
}

/// A call to an endpoint. Dropped: it is over.
#[derive(Debug)]
pub struct Busy(Arc<Replica>);

type OfServer = HashMap<SocketAddr, Arc<Replica>>;

/// All endpoints of servers that have several.
#[derive(Debug, Default)]
pub struct Replicas {
    known: RwLock<HashMap<Identity, OfServer>>,
    random: RandomState,
    asked: AtomicU64,
}

/// Endpoints in the order in which they are tried.
pub type Order = SmallVec<[Arc<Replica>; 4]>;

impl Replicas {
    /// In which order a server's endpoints are tried: one whose time of being left out is over, once; of two random ones
    /// that are well the one with less to do, then the others that are well. Where none is, those that are left out, the one
    /// whose time is over next first.
    #[must_use]
    pub fn order(&self, server: &Identity, candidates: &[Candidate], now: Instant) -> Order {
        let mut all: Order = self.all(server, candidates);
        let is_well = |(one, candidate): (&Arc<Replica>, &Candidate)| {
            (!one.is_left_out()).then(|| (Arc::clone(one), candidate.priority))
        };
        let well: SmallVec<[_; 4]> = all.iter().zip(candidates).filter_map(is_well).collect();
        let Some(first) = well.iter().map(|(_, priority)| *priority).min() else {
            all.sort_by_key(|one| one.lock().ejected.map(|ejected| ejected.until));
            return all;
        };
        let mut probed = all.iter().zip(candidates).filter(|(_, candidate)| candidate.priority <= first);
        let probed = probed.find(|(one, _)| one.begins_probe(now)).map(|(one, _)| Arc::clone(one));
        let of = |is_first: bool| {
            let fitting = well.iter().filter(move |(_, priority)| (*priority == first) == is_first);
            fitting.map(|(one, _)| Arc::clone(one))
        };
        let mut good: Order = of(true).collect();
        let len = good.len();
        let dice = self.dice();
        let turn = |dice: u64, below: usize| usize::try_from(dice % below as u64).unwrap_or_default();
        good.rotate_left(turn(dice, len));
        if len > 1 {
            let other = 1 + turn(dice >> 32, len - 1);
            let load = |one: &Replica| one.outstanding.load(Ordering::Relaxed);
            if load(&good[other]) < load(&good[0]) {
                good.swap(0, other);
            }
        }
        probed.into_iter().chain(good).chain(of(false)).collect()
    }

    /// The one of these endpoints at an address; `None`: none is there.
    #[must_use]
    pub fn one(
        &self,
        server: &Identity,
        candidates: &[Candidate],
        address: SocketAddr,
    ) -> Option<Arc<Replica>> {
        let place = candidates.iter().position(|one| one.address == address)?;
        self.all(server, candidates).get(place).cloned()
    }

    /// The endpoint at an address; `None`: it is not known.
    #[must_use]
    pub fn at(&self, server: &Identity, address: SocketAddr) -> Option<Arc<Replica>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(server)?.get(&address).cloned()
    }

    /// Forgets those of other servers.
    pub fn keep(&self, is_kept: impl Fn(&Identity) -> bool) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|server, _| is_kept(server));
    }

    fn all(&self, server: &Identity, candidates: &[Candidate]) -> Order {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(own) = known.get(server) {
                let found: Order =
                    candidates.iter().filter_map(|one| own.get(&one.address).cloned()).collect();
                if found.len() == candidates.len() {
                    return found;
                }
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let own = known.entry(server.clone()).or_default();
        // Those that it has no more: names lead to others every minute.
        let is_candidate = |address: &SocketAddr| candidates.iter().any(|one| one.address == *address);
        own.retain(|address, one| is_candidate(address) || one.outstanding.load(Ordering::Relaxed) > 0);
        let one = |candidate: &Candidate| {
            let address = candidate.address;
            Arc::clone(own.entry(address).or_insert_with(|| Arc::new(Replica::new(address))))
        };
        candidates.iter().map(one).collect()
    }

    fn dice(&self) -> u64 {
        self.random.hash_one(self.asked.fetch_add(1, Ordering::Relaxed))
    }
}

impl Replica {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            outstanding: AtomicUsize::new(0),
            ejections: AtomicU64::new(0),
            health: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its time of being left out is over, and this call is the one that tries it.
    fn begins_probe(&self, now: Instant) -> bool {
        let mut health = self.lock();
        let due = health.ejected.as_mut().filter(|ejected| now >= ejected.until && !ejected.is_probed);
        due.is_some_and(|ejected| {
            ejected.is_probed = true;
            true
        })
    }

    /// Whether it has failed too often, and not answered since.
    #[must_use]
    pub fn is_left_out(&self) -> bool {
        self.lock().ejected.is_some()
    }

    /// Counts a call until the guard is dropped.
    #[must_use]
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// It has answered.
    pub fn succeeded(&self) {
        let mut health = self.lock();
        if health.ejected.is_some() {
            tracing::info!(address = %self.address, "endpoint is well again");
        }
        *health = Health::default();
    }

    /// It has not.
    pub fn failed(&self, reason: &dyn std::fmt::Display, now: Instant) {
        let mut health = self.lock();
        health.failures = health.failures.saturating_add(1);
        health.reason = Some(reason.to_string().into());
        let lasts = match health.ejected {
            // What was under way when it was left out tells nothing new.
            Some(ejected) if now < ejected.until => return,
            Some(ejected) => (2 * ejected.lasts).min(EJECTED_MAX),
            None if health.failures < FAILURES_MAX => return,
            None => EJECTED_FIRST,
        };
        health.ejected = Some(Ejected { until: now + lasts, lasts, is_probed: false });
        self.ejections.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(address = %self.address, for_time = ?lasts, %reason, "endpoint is left out");
    }

    /// For an operator.
    #[must_use]
    pub fn shown(&self, now: Instant) -> Shown {
        let health = self.lock();
        let state = match health.ejected {
            None => State::Well,
            Some(ejected) if now < ejected.until => State::Ejected { left: ejected.until - now },
            Some(_) => State::Probed,
        };
        Shown {
            state,
            outstanding: self.outstanding.load(Ordering::Relaxed),
            ejections: self.ejections.load(Ordering::Relaxed),
            reason: health.reason.clone(),
        }
    }
}

impl Busy {
    /// The endpoint.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
        // A call that tried it and left before it had an answer: the next one tries again.
        if let Some(ejected) = &mut self.0.lock().ejected {
            ejected.is_probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 80);
    const B: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 80);

    fn docs() -> Identity {
        Identity::new("example.org", "default", "docs").unwrap()
    }

    fn candidates(addresses: &[SocketAddr]) -> Vec<Candidate> {
        addresses.iter().map(|address| Candidate { address: *address, priority: 0 }).collect()
    }

    fn order(replicas: &Replicas, now: Instant) -> Vec<SocketAddr> {
        replicas.order(&docs(), &candidates(&[A, B]), now).iter().map(|one| one.address).collect()
    }

    #[test]
    fn what_has_more_priority_comes_first_as_long_as_it_is_well() {
        let (replicas, now) = (Replicas::default(), Instant::now());
        let candidates = [(A, 1), (B, 2)].map(|(address, priority)| Candidate { address, priority });
        let first = || replicas.order(&docs(), &candidates, now)[0].address;
        let _busy = replicas.order(&docs(), &candidates, now)[0].busy();
        assert!((0..100).all(|_| first() == A));
        let a = replicas.at(&docs(), A).unwrap();
        (0..FAILURES_MAX).for_each(|_| a.failed(&"refused", now));
        assert!((0..100).all(|_| first() == B));
    }

    #[test]
    fn the_one_with_less_to_do_comes_first_and_both_come_where_they_are_alike() {
        let (replicas, now) = (Replicas::default(), Instant::now());
        let firsts: std::collections::HashSet<_> = (0..100).map(|_| order(&replicas, now)[0]).collect();
        assert_eq!(firsts.len(), 2);
        let _busy = replicas.at(&docs(), A).unwrap().busy();
        assert!((0..100).all(|_| order(&replicas, now) == [B, A]));
    }

    #[test]
    fn one_that_fails_is_left_out_for_a_time_that_grows_and_then_tried_by_one_call() {
        let (replicas, start) = (Replicas::default(), Instant::now());
        order(&replicas, start);
        let a = replicas.at(&docs(), A).unwrap();
        for _ in 1..FAILURES_MAX {
            a.failed(&"refused", start);
            assert_eq!(a.shown(start).state, State::Well);
        }
        a.failed(&"refused", start);
        let mut now = start;
        let mut lasts = EJECTED_FIRST;
        for _ in 0..8 {
            assert!((0..100).all(|_| order(&replicas, now) == [B]), "left out");
            assert_eq!(a.shown(now).state, State::Ejected { left: lasts });
            now += lasts;
            let tried = (0..100).filter(|_| order(&replicas, now).contains(&A)).count();
            assert_eq!(tried, 1, "by one call");
            let busy = a.busy();
            a.failed(&"refused", now);
            drop(busy);
            lasts = (2 * lasts).min(EJECTED_MAX);
        }
        assert_eq!(lasts, EJECTED_MAX);
        now += lasts;
        assert!((0..100).any(|_| order(&replicas, now).contains(&A)));
        a.succeeded();
        assert_eq!((a.shown(now).state, a.shown(now).reason), (State::Well, None));
        assert_eq!(a.shown(now).ejections, 9);
    }

    #[test]
    fn a_try_that_nobody_waited_for_is_made_again() {
        let (replicas, start) = (Replicas::default(), Instant::now());
        order(&replicas, start);
        let a = replicas.at(&docs(), A).unwrap();
        (0..FAILURES_MAX).for_each(|_| a.failed(&"refused", start));
        let now = start + EJECTED_FIRST;
        assert!((0..100).any(|_| order(&replicas, now).contains(&A)));
        drop(a.busy());
        assert!((0..100).any(|_| order(&replicas, now).contains(&A)));
    }

    #[test]
    fn where_all_are_left_out_the_one_whose_time_is_over_next_is_tried() {
        let (replicas, start) = (Replicas::default(), Instant::now());
        order(&replicas, start);
        for (address, at) in [(B, start), (A, start + Duration::from_secs(1))] {
            let one = replicas.at(&docs(), address).unwrap();
            (0..FAILURES_MAX).for_each(|_| one.failed(&"refused", at));
        }
        assert_eq!(order(&replicas, start + Duration::from_secs(2)), [B, A]);
    }

    #[test]
    fn what_a_server_has_no_more_is_forgotten() {
        let (replicas, now) = (Replicas::default(), Instant::now());
        order(&replicas, now);
        let _order = replicas.order(&docs(), &candidates(&[B, "192.0.2.3:80".parse().unwrap()]), now);
        assert!(replicas.at(&docs(), A).is_none());
        replicas.keep(|server| *server == docs());
        assert!(replicas.at(&docs(), B).is_some());
        replicas.keep(|server| *server != docs());
        assert!(replicas.at(&docs(), B).is_none());
    }

    #[test]
    fn what_has_less_priority_is_not_tried_for_the_sake_of_knowing() {
        let (replicas, start) = (Replicas::default(), Instant::now());
        let candidates = [(A, 1), (B, 2)].map(|(address, priority)| Candidate { address, priority });
        let order = |now| replicas.order(&docs(), &candidates, now).iter().map(|one| one.address).collect();
        let _: Vec<_> = order(start);
        let b = replicas.one(&docs(), &candidates, B).unwrap();
        (0..FAILURES_MAX).for_each(|_| b.failed(&"refused", start));
        assert!((0..100).all(|_| order(start + EJECTED_MAX) == vec![A]));
    }
}

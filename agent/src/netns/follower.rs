//! Follows the namespaces of captured processes: enters each that is new, listens there, and leaves those in which nobody
//! captured is left.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use toolgate_ebpf_common::NAMESPACES_MAX;

use super::discover::{self, Change};
use super::inside::{self, Listeners};
use super::keeper::{Keeper, Word};
use super::reserve::Reserve;
use super::{Door, Namespace, NetnsError, Order, events};
use crate::capture::{Cookie, SeenReader};

/// How often it looks without being told: a process that enters a namespace makes no event.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// After cgroups changed it looks at these, and from then on after twice as long each time: what enters a cgroup is often not
/// in its namespace yet.
const LOOK_SOON: Duration = Duration::from_millis(20);

/// Of a core's time, what looks may take on a host of very many cgroups: they are further apart there.
const SHARE: u32 = 50;

/// Threads that accept in one namespace: each has listeners of its own there, which cost memory of the kernel's.
const THREADS_MAX: usize = 8;

/// A namespace that is listened in, as the keeper sees it.
struct Served {
    namespace: Arc<Namespace>,
    ipv6_routes: bool,
    /// The captured cgroup that it counts for: that of a process in it.
    cgroup: Option<PathBuf>,
    /// For the next agent, and to serve it again after one that failed.
    listeners: Listeners,
}

/// Of the keeper's thread.
pub(super) struct Follower {
    given: Keeper,
    seen: Option<AsyncFd<SeenReader>>,
    watch: events::Watch,
    served: BTreeMap<Cookie, Served>,
    home_ipv6_routes: bool,
    reserve: Reserve,
    /// Namespaces that could not be served, by inode: told once.
    failing: BTreeSet<u64>,
    /// What the ring told of and was not found, until the next look.
    missed: BTreeSet<(u32, Cookie)>,
    /// When namespaces without captured processes were last left.
    emptied: Instant,
}

impl Follower {
    /// Of what the keeper was given; it does nothing yet.
    pub(super) fn new(given: Keeper) -> Self {
        Self {
            seen: events::ring(&given.kernel),
            watch: events::Watch::new(),
            reserve: Reserve::new(given.port),
            given,
            served: BTreeMap::new(),
            home_ipv6_routes: inside::ipv6_leads_out(),
            failing: BTreeSet::new(),
            missed: BTreeSet::new(),
            emptied: Instant::now(),
        }
    }

    /// Serves what there is at first.
    pub(super) async fn begin(&mut self) {
        let home = Arc::clone(self.given.namespaces.home());
        self.reserve.take(&home);
        self.inherit().await;
        self.look().await;
    }

    /// Follows until there are no more words.
    pub(super) async fn run(&mut self, mut told: mpsc::Receiver<Word>) {
        let mut next = Instant::now() + LOOK_EVERY;
        let mut changes = BTreeSet::new();
        let mut pause = LOOK_SOON;
        let mut soon = next;
        loop {
            tokio::select! {
                word = told.recv() => match word {
                    None => return,
                    Some(Word::GoOn) => {}
                    Some(Word::Rest(answer)) => {
                        // Who asked has left: then it goes on, or ends.
                        let _ = answer.send(self.listeners());
                        if told.recv().await.is_none() {
                            return;
                        }
                        self.serve_again().await;
                        next = Instant::now();
                    }
                },
                events = events::seen(&mut self.seen) => self.meet(&events).await,
                changed = self.watch.changed() => {
                    changes.extend(changed);
                    pause = LOOK_SOON;
                    soon = Instant::now() + pause;
                }
                () = sleep_until(soon), if !changes.is_empty() => {
                    self.look_at(&changes).await;
                    pause *= 2;
                    if pause >= LOOK_EVERY {
                        changes.clear();
                    }
                    soon = Instant::now() + pause;
                }
                () = sleep_until(next) => {
                    let begun = Instant::now();
                    self.look().await;
                    let ended = Instant::now();
                    next = ended + LOOK_EVERY.max((ended - begun) * SHARE);
                }
            }
        }
    }

    /// Looks at all captured processes: serves what is new, leaves what nobody is in, and looks again at the rest.
    async fn look(&mut self) {
        let (found, mut changed) = self.leave_empty().await;
        self.count(&found);
        self.failing.retain(|inode| found.contains_key(inode));
        changed |= self.admit_new(&found).await;
        changed |= self.look_again();
        if changed {
            self.given.namespaces.notify();
        }
    }

    /// Looks at what changed, and serves what is new there.
    async fn look_at(&mut self, changes: &BTreeSet<Change>) {
        let found = discover::by_inode(&self.processes(changes));
        if self.admit_new(&found).await {
            self.given.namespaces.notify();
        }
    }

    fn processes(&mut self, changes: &BTreeSet<Change>) -> BTreeSet<u32> {
        self.missed.clear();
        discover::processes(&self.given.roots, changes, |directory| self.watch.add(directory))
    }

    /// Serves what is not served yet. Whether there was anything.
    async fn admit_new(&mut self, found: &BTreeMap<u64, u32>) -> bool {
        let mut changed = false;
        let home = self.given.namespaces.home().inode();
        for (&inode, &tgid) in found.iter().filter(|(inode, _)| **inode != home) {
            if self.served.values().all(|served| served.namespace.inode() != inode) {
                changed |= self.admit(tgid, inode).await;
            }
        }
        changed
    }

    /// Gives the agent's port back in every namespace.
    pub(super) fn give_back(&self) {
        let home = self.given.namespaces.home();
        for namespace in self.served.values().map(|served| &served.namespace).chain([home]) {
            self.reserve.give_back(namespace);
        }
    }

    /// For which captured cgroups what was inherited counts.
    fn count(&mut self, found: &BTreeMap<u64, u32>) {
        for served in self.served.values_mut().filter(|served| served.cgroup.is_none()) {
            let process = found.get(&served.namespace.inode());
            served.cgroup = process.and_then(|&process| discover::captured_in(process, &self.given.roots));
        }
    }

    /// Serves what the agent before serves, with its listeners: who waits in them is not refused.
    async fn inherit(&mut self) {
        for (cookie, listeners) in std::mem::take(&mut self.given.heritage) {
            let home = self.given.namespaces.home().door();
            let first = listeners.v4.first().ok_or(io::ErrorKind::NotFound.into());
            let door = first.and_then(|listener| home.of_socket(listener));
            let served = match door {
                Ok(door) => self.serve(door, cookie, None, Some(listeners)).await.map(drop),
                Err(cause) => Err(NetnsError::Inside { what: "find the namespace of a listener", cause }),
            };
            if let Err(error) = served {
                tracing::error!(namespace = %cookie, %error, "a namespace that the agent before served is not: it is looked for");
            }
        }
    }

    /// All listeners once more.
    fn listeners(&self) -> io::Result<Vec<(Cookie, TcpListener)>> {
        let mut all = Vec::new();
        for (&cookie, served) in &self.served {
            all.extend(served.listeners.again()?.into_iter().map(|listener| (cookie, listener)));
        }
        Ok(all)
    }

    /// Another agent may have put its own listeners in the place of these, or have left a namespace.
    async fn serve_again(&mut self) {
        let kernel = &self.given.kernel;
        let mut lost = Vec::new();
        for (&cookie, served) in &self.served {
            let Listeners { v4, v6 } = &served.listeners;
            let again = served.namespace.within(|| kernel.serve(cookie, served.ipv6_routes, v4, v6));
            if let Err(error) = again.and_then(|again| Ok(again?)) {
                tracing::error!(namespace = %cookie, %error, "a namespace cannot be served as before: it is looked for");
                lost.push(cookie);
            }
        }
        for cookie in lost {
            self.leave(cookie).await;
        }
    }

    /// What captured processes connected from and is not served: the namespace of one of their threads.
    async fn meet(&mut self, events: &BTreeSet<(u32, Cookie)>) {
        let mut changed = false;
        for &(tgid, cookie) in events {
            if self.served.contains_key(&cookie) || self.missed.contains(&(tgid, cookie)) {
                continue;
            }
            match self.door_of_thread(tgid, cookie) {
                Some(door) => changed |= self.served_now(door, cookie, tgid).await,
                None => {
                    tracing::debug!(tgid, namespace = %cookie, "no thread is in the namespace that it connected from");
                    self.missed.insert((tgid, cookie));
                }
            }
        }
        if changed {
            self.given.namespaces.notify();
        }
    }

    fn door_of_thread(&self, tgid: u32, cookie: Cookie) -> Option<Door> {
        let home = self.given.namespaces.home();
        let mut tried = BTreeSet::from([home.inode()]);
        discover::threads(tgid).find_map(|path| {
            let door = home.door().other(&path).ok()?;
            if !tried.insert(door.inode()) {
                return None;
            }
            (door.cookie(&self.given.kernel).ok()? == cookie).then_some(door)
        })
    }

    /// Serves the namespace of a process that the look found.
    async fn admit(&mut self, tgid: u32, inode: u64) -> bool {
        let open = || {
            let home = self.given.namespaces.home().door();
            let path = format!("/proc/{tgid}/ns/net");
            let vanished = |cause| NetnsError::Vanished { tgid, cause };
            let door = home.other(Path::new(&path)).map_err(vanished)?;
            if door.inode() != inode {
                return Err(vanished(io::ErrorKind::NotFound.into()));
            }
            let cookie = door.cookie(&self.given.kernel)?;
            Ok((door, cookie))
        };
        match open() {
            Ok((door, cookie)) => self.served_now(door, cookie, tgid).await,
            Err(error) => {
                self.tell(inode, tgid, &error);
                false
            }
        }
    }

    async fn served_now(&mut self, door: Door, cookie: Cookie, tgid: u32) -> bool {
        let inode = door.inode();
        // What is left may not have been looked at since.
        if self.has_room(tgid).is_err() && self.emptied.elapsed() > LOOK_SOON {
            self.leave_empty().await;
        }
        let served = match self.has_room(tgid) {
            Ok(cgroup) => self.serve(door, cookie, cgroup, None).await,
            Err(error) => Err(error),
        };
        match served {
            Ok(ipv6_routes) => {
                tracing::info!(namespace = %cookie, tgid, ipv6_routes, "network namespace served");
                self.failing.remove(&inode);
                true
            }
            Err(error) => {
                self.tell(inode, tgid, &error);
                false
            }
        }
    }

    /// The captured cgroup of a process that shows a new namespace, which one more may be served of.
    fn has_room(&self, tgid: u32) -> Result<Option<PathBuf>, NetnsError> {
        // One of them is home.
        if self.served.len() + 1 >= NAMESPACES_MAX as usize {
            return Err(NetnsError::TooMany { max: NAMESPACES_MAX });
        }
        let cgroup = discover::captured_in(tgid, &self.given.roots);
        let max = self.given.per_cgroup_max;
        if self.served.values().filter(|served| served.cgroup == cgroup).count() >= max {
            return Err(NetnsError::Share { cgroup: cgroup.unwrap_or_default(), max });
        }
        Ok(cgroup)
    }

    /// Listens inside, unless there are listeners, then tells the programs, then the workers. What was begun is undone
    /// where one of them fails.
    async fn serve(
        &mut self,
        door: Door,
        cookie: Cookie,
        cgroup: Option<PathBuf>,
        listeners: Option<Listeners>,
    ) -> Result<bool, NetnsError> {
        let (kernel, port, reserve) = (&self.given.kernel, self.given.port, &mut self.reserve);
        let threads = self.given.workers.len().clamp(1, THREADS_MAX);
        let namespace = Namespace::new(cookie, door);
        let opened = namespace.within(|| {
            if inside::raise_loopback()? {
                tracing::info!(namespace = %cookie, "brought `lo` up: captured connections go by it");
            }
            let listeners = listeners.map_or_else(|| Listeners::open(port, threads), Ok)?;
            reserve.take(&namespace);
            let ipv6_routes = inside::ipv6_leads_out();
            kernel.serve(cookie, ipv6_routes, &listeners.v4, &listeners.v6)?;
            let failed = |cause| NetnsError::Inside { what: "share the listeners", cause };
            let accepting = listeners.shared(threads).map_err(failed)?;
            Ok((listeners, accepting, ipv6_routes))
        });
        let looked = opened.and_then(|opened| opened).and_then(|opened| {
            namespace.look_at_addresses()?;
            Ok(opened)
        });
        let (listeners, accepting, ipv6_routes) = match looked {
            Ok(opened) => opened,
            Err(error) => {
                self.forget(cookie);
                return Err(error);
            }
        };
        let namespace = Arc::new(namespace);
        self.served.insert(cookie, Served { namespace, ipv6_routes, cgroup, listeners });
        // Before the workers accept: what is accepted may be dialled from there.
        self.publish();
        for (worker, listeners) in self.workers_of(cookie).zip(accepting) {
            // No receiver: the worker has ended, and the agent ends.
            let _ = worker.send(Order::Serve { namespace: cookie, listeners }).await;
        }
        Ok(ipv6_routes)
    }

    /// Leaves the namespaces that no captured process is in. The others, and whether there were any to leave.
    async fn leave_empty(&mut self) -> (BTreeMap<u64, u32>, bool) {
        let processes = self.processes(&BTreeSet::from([Change::Any]));
        let found = discover::by_inode(&processes);
        let inode = |served: &Served| served.namespace.inode();
        let empty = self.served.iter().filter(|(_, served)| {
            !found.contains_key(&inode(served)) && !discover::has_thread_in(&processes, inode(served))
        });
        let empty: Vec<Cookie> = empty.map(|(cookie, _)| *cookie).collect();
        for &cookie in &empty {
            self.leave(cookie).await;
            tracing::info!(namespace = %cookie, "network namespace left: no captured process is in it");
        }
        self.emptied = Instant::now();
        (found, !empty.is_empty())
    }

    async fn leave(&mut self, cookie: Cookie) {
        self.forget(cookie);
        if let Some(served) = self.served.remove(&cookie) {
            self.reserve.give_back(&served.namespace);
        }
        self.publish();
        for worker in self.workers_of(cookie) {
            let _ = worker.send(Order::Leave { namespace: cookie }).await;
        }
    }

    fn forget(&self, cookie: Cookie) {
        if let Err(error) = self.given.kernel.leave(cookie) {
            tracing::error!(namespace = %cookie, %error, "a namespace that is not served any more is left in the kernel");
        }
    }

    /// What may change inside: `lo`, routes, addresses. Whether addresses did.
    fn look_again(&mut self) -> bool {
        let kernel = &self.given.kernel;
        let home = self.given.namespaces.home();
        let mut changed = home.look_again(kernel, &mut self.home_ipv6_routes, false);
        for served in self.served.values_mut() {
            changed |= served.namespace.look_again(kernel, &mut served.ipv6_routes, true);
        }
        changed
    }

    fn publish(&self) {
        let others = self.served.iter().map(|(cookie, served)| (*cookie, Arc::clone(&served.namespace)));
        self.given.namespaces.publish(others.collect());
    }

    /// The threads that accept in a namespace.
    fn workers_of(&self, cookie: Cookie) -> impl Iterator<Item = &mpsc::Sender<Order>> {
        let workers = &self.given.workers;
        // Cookies are not dense: taken as they are, all could begin with one thread.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(cookie);
        let first =
            usize::try_from(hash >> 32).unwrap_or_default().checked_rem(workers.len()).unwrap_or_default();
        workers.iter().cycle().skip(first).take(workers.len().min(THREADS_MAX))
    }

    /// Once for each namespace; one whose process is gone is not worth a warning.
    fn tell(&mut self, inode: u64, tgid: u32, error: &NetnsError) {
        if matches!(error, NetnsError::Vanished { .. }) {
            tracing::debug!(tgid, %error, "network namespace not served");
        } else if self.failing.insert(inode) {
            match error.limit() {
                Some(limit) => self.given.metrics.limits.count(limit, error),
                None => {
                    tracing::error!(tgid, inode, %error, "network namespace not served: captured processes in it are refused");
                }
            }
        }
    }
}

//! The thread that follows the namespaces of captured processes: it enters each that is new, listens there, and leaves
//! those in which nobody captured is left.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use toolgate_ebpf_common::NAMESPACES_MAX;

use super::discover::{self, Root};
use super::inside::{self, Listeners};
use super::{Door, Namespace, Namespaces, NetnsError, Order};
use crate::capture::{Cookie, Kernel, Seen, SeenReader};

/// How often it looks without being told: a process that enters a namespace makes no event.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// After cgroups changed, and from then on after twice as long each time: what enters a cgroup is often not in its
/// namespace yet.
const LOOK_SOON: Duration = Duration::from_millis(20);

/// What the thread is given.
pub struct Keeper {
    /// Where it tells all threads what is served.
    pub namespaces: Arc<Namespaces>,
    /// The programs.
    pub kernel: Arc<Kernel>,
    /// The captured cgroups.
    pub roots: Vec<Root>,
    /// Of `listen.outbound`.
    pub port: u16,
    /// One for each worker.
    pub workers: Vec<mpsc::Sender<Order>>,
}

/// The running thread. Dropped: it ends by itself.
#[derive(Debug)]
pub struct Keeping {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeping {
    /// Ends it: nothing is served anew when this returns, and what is served stays so.
    pub fn stop(self) {
        // No receiver: it has ended by itself.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread that follows network namespaces panicked: no new ones were served");
        }
    }
}

impl Keeper {
    /// Starts the thread, and waits until it serves what it finds at first.
    ///
    /// # Errors
    /// No thread, or no runtime for it.
    pub fn start(self) -> Result<Keeping, NetnsError> {
        let failed = |cause| NetnsError::Thread { cause };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let (looked, first) = std::sync::mpsc::channel();
        let run = move || {
            runtime.block_on(async move {
                let mut follower = Follower::new(self);
                follower.look().await;
                // No receiver: the start has failed meanwhile, and `stopped` says so.
                let _ = looked.send(());
                tokio::select! {
                    () = follower.run() => {}
                    _ = stopped => {}
                }
            });
        };
        let thread =
            std::thread::Builder::new().name("toolgate-netns".to_owned()).spawn(run).map_err(failed)?;
        // An error is a panic of the thread, which its end tells.
        let _ = first.recv();
        Ok(Keeping { stop, thread })
    }
}

/// A namespace that is listened in, as the keeper sees it.
struct Served {
    namespace: Arc<Namespace>,
    ipv6_routes: bool,
}

struct Follower {
    given: Keeper,
    seen: Option<AsyncFd<SeenReader>>,
    inotify: Option<AsyncFd<Fd>>,
    served: BTreeMap<Cookie, Served>,
    home_ipv6_routes: bool,
    /// Namespaces that could not be served, by inode: told once.
    failing: BTreeSet<u64>,
    /// What the ring told of and was not found, until the next look.
    missed: BTreeSet<(u32, Cookie)>,
}

struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Follower {
    fn new(given: Keeper) -> Self {
        let seen = given.kernel.seen().and_then(|reader| {
            // SAFETY: the reader owns its descriptor, and gives the same one as long as it lives.
            let ring = unsafe { AsyncFd::register_with_interest(reader, Interest::READABLE) };
            told("the ring of unknown namespaces", ring.map_err(io::Error::from))
        });
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = told("inotify", Inotify::init(flags).map_err(io::Error::from)).and_then(|inotify| {
            // SAFETY: it owns its descriptor, and gives the same one as long as it lives.
            let watch = unsafe { AsyncFd::register_with_interest(Fd(inotify), Interest::READABLE) };
            told("inotify", watch.map_err(io::Error::from))
        });
        Self {
            given,
            seen,
            inotify,
            served: BTreeMap::new(),
            home_ipv6_routes: inside::ipv6_leads_out(),
            failing: BTreeSet::new(),
            missed: BTreeSet::new(),
        }
    }

    async fn run(&mut self) {
        let mut pause = LOOK_EVERY;
        let mut next = Instant::now() + pause;
        loop {
            tokio::select! {
                events = seen(&mut self.seen) => self.meet(&events).await,
                () = cgroups_changed(&self.inotify) => {
                    pause = LOOK_SOON;
                    next = next.min(Instant::now() + pause);
                }
                () = sleep_until(next) => {
                    self.look().await;
                    pause = (pause * 2).min(LOOK_EVERY);
                    next = Instant::now() + pause;
                }
            }
        }
    }

    /// Looks at all captured processes: serves what is new, leaves what nobody is in, and looks again at the rest.
    async fn look(&mut self) {
        self.missed.clear();
        let processes = discover::processes(&self.given.roots, |directory| watch(&self.inotify, directory));
        let found = discover::by_inode(&processes);
        let mut changed = self.leave_empty(&processes, &found).await;
        self.failing.retain(|inode| found.contains_key(inode));
        let home = self.given.namespaces.home().inode();
        for (&inode, &tgid) in found.iter().filter(|(inode, _)| **inode != home) {
            if self.served.values().all(|served| served.namespace.inode() != inode) {
                changed |= self.admit(tgid, inode).await;
            }
        }
        changed |= self.look_again();
        if changed {
            self.given.namespaces.notify();
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
        match self.serve(door, cookie).await {
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

    /// Listens inside, then tells the programs, then the worker. What was begun is undone where one of them fails.
    async fn serve(&mut self, door: Door, cookie: Cookie) -> Result<bool, NetnsError> {
        // One of them is home.
        if self.served.len() + 1 >= NAMESPACES_MAX as usize {
            return Err(NetnsError::TooMany { max: NAMESPACES_MAX });
        }
        let (kernel, port) = (&self.given.kernel, self.given.port);
        let namespace = Namespace::new(cookie, door);
        let opened = namespace.within(|| {
            if inside::raise_loopback()? {
                tracing::info!(namespace = %cookie, "brought `lo` up: captured connections go by it");
            }
            let listeners = Listeners::open(port)?;
            let ipv6_routes = inside::ipv6_leads_out();
            kernel.serve(cookie, ipv6_routes, &listeners.v4, &listeners.v6)?;
            Ok((listeners, ipv6_routes))
        });
        let looked = opened.and_then(|opened| opened).and_then(|opened| {
            namespace.look_at_addresses()?;
            Ok(opened)
        });
        let (listeners, ipv6_routes) = match looked {
            Ok(opened) => opened,
            Err(error) => {
                self.forget(cookie);
                return Err(error);
            }
        };
        let namespace = Arc::new(namespace);
        self.served.insert(cookie, Served { namespace, ipv6_routes });
        // Before the worker accepts: what is accepted may be dialled from there.
        self.publish();
        self.order(cookie, Order::Serve { namespace: cookie, listeners: listeners.all() }).await;
        Ok(ipv6_routes)
    }

    /// Leaves the namespaces that no captured process is in.
    async fn leave_empty(&mut self, processes: &BTreeSet<u32>, found: &BTreeMap<u64, u32>) -> bool {
        let inode = |served: &Served| served.namespace.inode();
        let empty = self.served.iter().filter(|(_, served)| {
            !found.contains_key(&inode(served)) && !discover::has_thread_in(processes, inode(served))
        });
        let empty: Vec<Cookie> = empty.map(|(cookie, _)| *cookie).collect();
        for &cookie in &empty {
            self.forget(cookie);
            self.served.remove(&cookie);
            self.publish();
            self.order(cookie, Order::Leave { namespace: cookie }).await;
            tracing::info!(namespace = %cookie, "network namespace left: no captured process is in it");
        }
        !empty.is_empty()
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
        let mut changed = look_into(home, kernel, &mut self.home_ipv6_routes, false);
        for served in self.served.values_mut() {
            changed |= look_into(&served.namespace, kernel, &mut served.ipv6_routes, true);
        }
        changed
    }

    fn publish(&self) {
        let others = self.served.iter().map(|(cookie, served)| (*cookie, Arc::clone(&served.namespace)));
        self.given.namespaces.publish(others.collect());
    }

    async fn order(&self, cookie: Cookie, order: Order) {
        let workers = &self.given.workers;
        // Cookies are not dense: taken as they are, all could fall to one thread.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(cookie);
        let index = usize::try_from(hash >> 32).unwrap_or_default().checked_rem(workers.len());
        if let Some(worker) = index.and_then(|index| workers.get(index)) {
            // No receiver: the worker has ended, and the agent ends.
            let _ = worker.send(order).await;
        }
    }

    /// Once for each namespace; one whose process is gone is not worth a warning.
    fn tell(&mut self, inode: u64, tgid: u32, error: &NetnsError) {
        if matches!(error, NetnsError::Vanished { .. }) {
            tracing::debug!(tgid, %error, "network namespace not served");
        } else if self.failing.insert(inode) {
            tracing::error!(tgid, inode, %error, "network namespace not served: captured processes in it are refused");
        }
    }
}

fn look_into(namespace: &Namespace, kernel: &Kernel, ipv6_routes: &mut bool, raise: bool) -> bool {
    let looked = namespace.within(|| {
        if raise && inside::raise_loopback()? {
            tracing::warn!(namespace = %namespace.cookie, "brought `lo` up again: captured connections go by it");
        }
        Ok(inside::ipv6_leads_out())
    });
    let told = looked.and_then(|looked| looked).and_then(|now| {
        if now != *ipv6_routes {
            kernel.set_routes(namespace.cookie, now)?;
            tracing::info!(namespace = %namespace.cookie, ipv6_routes = now, "IPv6 routes changed");
            *ipv6_routes = now;
        }
        namespace.look_at_addresses()
    });
    told.unwrap_or_else(|error| {
        tracing::warn!(namespace = %namespace.cookie, %error, "cannot look into a served namespace");
        false
    })
}

/// Processes that connected from namespaces that are not served, each once.
async fn seen(ring: &mut Option<AsyncFd<SeenReader>>) -> BTreeSet<(u32, Cookie)> {
    let mut events = BTreeSet::new();
    let Some(ring) = ring else { return std::future::pending().await };
    match ring.readable_mut().await {
        Ok(mut ready) => {
            ready.get_inner_mut().drain(|Seen { tgid, namespace, .. }| {
                events.insert((tgid, namespace));
            });
            ready.clear_ready();
        }
        Err(error) => {
            tracing::error!(%error, "the kernel's ring of unknown namespaces cannot be read: they are looked for every {LOOK_EVERY:?}");
            std::future::pending::<()>().await;
        }
    }
    events
}

async fn cgroups_changed(inotify: &Option<AsyncFd<Fd>>) {
    let Some(inotify) = inotify else { return std::future::pending().await };
    match inotify.readable().await {
        Ok(mut ready) => {
            while inotify.get_ref().0.read_events().is_ok() {}
            ready.clear_ready();
        }
        Err(_) => std::future::pending().await, // looked at every two seconds
    }
}

/// Children that come and go, and `cgroup.events`, which changes with the first process and after the last. A
/// directory that cannot be watched, or not any more, is looked at every two seconds.
fn watch(inotify: &Option<AsyncFd<Fd>>, directory: &Path) {
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ONLYDIR;
    if let Some(inotify) = inotify
        && let Err(errno) = inotify.get_ref().0.add_watch(directory, flags)
        && errno != nix::Error::ENOENT
    {
        tracing::debug!(directory = %directory.display(), %errno, "not watched: looked at every two seconds");
    }
}

fn told<T>(what: &str, made: io::Result<T>) -> Option<T> {
    made.inspect_err(
        |error| tracing::warn!(%error, "no {what}: namespaces are looked for every {LOOK_EVERY:?}"),
    )
    .ok()
}

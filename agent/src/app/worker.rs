//! One thread for each core: its listener, its connections, its pool. Nothing moves between threads.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle as Task, spawn_local};
use tokio::time::MissedTickBehavior;

use toolgate_core::denial::Reason;

use super::heartbeat::{TICK_EVERY, Tick};
use super::spread::{Came, Spread};
use super::{AppError, Node};
use crate::capture::{Kernel, Taker};
use crate::deadline;
use crate::forward::{Pool, Ways};
use crate::io::Io;
use crate::netns::{self, Listeners, ORDERS_MAX, Order};
use crate::peer::Tethers;
use crate::proxy;
use crate::shares::{Share, Use};

/// After an accept that failed: out of descriptors or memory, it would fail again at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What a connection takes for as long as it is there. Most of them are idle.
const STATE_BYTES_MAX: usize = 3072;
/// Connections beyond the limit that a thread tells so at once; more are closed without a word.
const TURNED_AWAY_MAX: usize = 64;

/// What the agent does as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It accepts nothing yet: another agent still does.
    Waiting,
    /// It accepts and serves.
    Serving,
    /// It ends: running requests go on, new ones are told to come again.
    Stopping,
    /// Another agent accepts: what is here is served, and closed after the next answer.
    Leaving,
}

impl Phase {
    fn is_end(self) -> bool {
        matches!(self, Self::Stopping | Self::Leaving)
    }
}

/// What the connections of one thread share.
pub struct Worker {
    /// What all threads share.
    pub node: Arc<Node>,
    /// Idle upstream connections.
    pub pool: Pool,
    /// What ends connections between agents in time.
    pub tethers: Tethers,
    taker: RefCell<Taker>,
    index: usize,
    spread: Arc<Spread>,
    accepted: IntCounter,
    /// Other agents' connections.
    accepted_of_agents: IntCounter,
    connections: Cell<usize>,
    turned_away: Cell<usize>,
    pub(super) handshakes: Cell<usize>,
    working: Cell<usize>,
    rested: Notify,
    phase: watch::Receiver<Phase>,
}

/// What comes to a listener.
#[derive(Debug, Clone, Copy)]
enum Accepts {
    /// Connections of captured processes.
    Captured,
    /// Other agents.
    Peers,
}

/// What a thread accepts from as long as it runs.
struct OwnListeners {
    home: Vec<StdListener>,
    peers: Vec<StdListener>,
    /// What other threads have accepted for it.
    came: mpsc::Receiver<Came>,
}

/// A request that the end of the agent waits for.
pub struct Working<'w>(&'w Worker);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.set(self.0.working.get() - 1);
        self.0.rested.notify_one();
    }
}

impl Worker {
    fn new(
        node: Arc<Node>,
        index: usize,
        spread: Arc<Spread>,
        taker: Taker,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self {
            index,
            spread,
            accepted: node.metrics.accepted_by(index),
            accepted_of_agents: node.metrics.accepted_of_agents_by(index),
            node,
            pool: Pool::default(),
            tethers: Tethers::default(),
            taker: RefCell::new(taker),
            connections: Cell::new(0),
            turned_away: Cell::new(0),
            handshakes: Cell::new(0),
            working: Cell::new(0),
            rested: Notify::new(),
            phase,
        }
    }

    /// What its requests connect with.
    #[must_use]
    pub fn ways(&self) -> Ways<'_> {
        let (pool, tethers, node) = (&self.pool, &self.tethers, &*self.node);
        let Node { namespaces, names, connectors, replicas, svids, .. } = node;
        Ways { pool, namespaces, names, connectors, replicas, svids, tethers }
    }

    /// Marks a request as running until the guard is dropped.
    #[must_use]
    pub fn working(&self) -> Working<'_> {
        self.working.set(self.working.get() + 1);
        Working(self)
    }

    /// Whether the agent ends: running requests go on, new ones are told to come again.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.phase.borrow() == Phase::Stopping
    }

    /// Whether another agent has taken over: requests are served, and their connections closed.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        *self.phase.borrow() == Phase::Leaving
    }

    /// Resolves when the agent ends, or another one has taken over.
    pub async fn ending(&self) {
        let mut phase = self.phase.clone();
        // Without a sender it has ended.
        let _ = phase.wait_for(|phase| phase.is_end()).await;
    }

    /// Accepts at home and in the namespaces that the keeper gives to this thread, until the agent ends.
    async fn run(self: Rc<Self>, own: OwnListeners, mut orders: mpsc::Receiver<Order>, progress: Tick) {
        let mut phase = self.phase.clone();
        let limits = &self.node.limits;
        let mut tick = tokio::time::interval(TICK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(limits.upstream_idle_max / 2);
        let mut trusted = self.node.svids.changed();
        let OwnListeners { home, peers, mut came } = own;
        let peers = self.start_accepting(peers, Accepts::Peers);
        let home = self.start_accepting(home, Accepts::Captured);
        let mut accepting = HashMap::from([(self.node.namespaces.home().cookie, home)]);
        loop {
            tokio::select! {
                Some(order) = orders.recv() => match order {
                    Order::Serve { namespace, listeners } => {
                        let tasks = self.start_accepting(listeners, Accepts::Captured);
                        let before = accepting.insert(namespace, tasks);
                        before.into_iter().flatten().for_each(|task| task.abort());
                    }
                    Order::Leave { namespace } => {
                        accepting.remove(&namespace).into_iter().flatten().for_each(|task| task.abort());
                    }
                },
                Some(came) = came.recv() => self.take_peer(came),
                _ = sweep.tick() => self.pool.sweep(limits),
                _ = tick.tick() => {
                    progress.made();
                    if deadline::was_busy() {
                        self.node.pulse.worked();
                    }
                    self.end_untrusted();
                }
                Ok(()) = trusted.changed() => self.end_untrusted(),
                _ = phase.wait_for(|phase| phase.is_end()) => break,
            }
        }
        // Who would give more from here on keeps it.
        came.close();
        while let Some(came) = came.recv().await {
            self.take_peer(came);
        }
        for task in accepting.into_values().flatten().chain(peers) {
            if task.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("a listener's task panicked: what waited there was closed");
            }
        }
        let drained = async {
            // Who is still connected to an agent that has handed over may be about to ask.
            while self.working.get() > 0 || (self.is_leaving() && self.connections.get() > 0) {
                self.rested.notified().await;
            }
        };
        if tokio::time::timeout(limits.drain_time_max, drained).await.is_err() && self.working.get() > 0 {
            tracing::warn!(requests = self.working.get(), "requests cut off (drain_time_max)");
        }
    }

    /// Ends connections between agents whose SVIDs are over or revoked.
    fn end_untrusted(&self) {
        if !self.tethers.is_empty() {
            self.tethers.look(SystemTime::now(), &self.node.svids.trust());
        }
    }

    fn start_accepting(self: &Rc<Self>, listeners: Vec<StdListener>, accepts: Accepts) -> Vec<Task<()>> {
        let start = |listener| match TcpListener::from_std(listener) {
            Ok(listener) => Some(spawn_local(Rc::clone(self).accept(listener, accepts))),
            Err(error) => {
                tracing::error!(%error, "a listener that nothing can be accepted from");
                None
            }
        };
        listeners.into_iter().filter_map(start).collect()
    }

    /// One connection after another. At the end of the agent what has come already is served, too.
    async fn accept(self: Rc<Self>, listener: TcpListener, accepts: Accepts) {
        let mut phase = self.phase.clone();
        match phase.wait_for(|phase| *phase != Phase::Waiting).await.map(|phase| *phase) {
            Ok(Phase::Serving) => {}
            // It has not taken over: what waits is for the agent that still serves.
            Ok(Phase::Waiting | Phase::Stopping | Phase::Leaving) | Err(_) => return,
        }
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => self.accepted(stream, from, accepts),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection; trying again in {ACCEPT_AGAIN:?}");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                _ = phase.wait_for(|phase| phase.is_end()) => break,
            }
        }
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, from)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.accepted(stream, from, accepts);
            }
        }
    }

    fn accepted(self: &Rc<Self>, stream: TcpStream, from: SocketAddr, accepts: Accepts) {
        // Without it an answer in two writes waits for a delayed ACK (45 ms). It cannot fail on a live socket.
        let _ = stream.set_nodelay(true);
        match accepts {
            Accepts::Captured => self.accepted_captured(stream, from),
            Accepts::Peers => match stream.into_std() {
                Ok(stream) => {
                    if let Some(own) = self.spread.pass(self.index, (stream, from)) {
                        self.take_peer(own);
                    }
                }
                Err(error) => tracing::warn!(%from, %error, "a connection of another agent is closed"),
            },
        }
    }

    fn take_peer(self: &Rc<Self>, (stream, from): Came) {
        self.accepted_of_agents.inc();
        match TcpStream::from_std(stream) {
            Ok(stream) => self.accepted_peer(stream, from),
            Err(error) => tracing::warn!(%from, %error, "a connection of another agent is closed"),
        }
    }

    fn accepted_captured(self: &Rc<Self>, stream: TcpStream, from: SocketAddr) {
        let captured = match self.taker.borrow_mut().take(&stream, from) {
            Ok(captured) => captured,
            Err(error) => {
                self.node.metrics.refused(Reason::NoRecord);
                return tracing::warn!(%error, "connection refused");
            }
        };
        self.accepted.inc();
        let share = self.node.shares.of(&self.node.identify.sharer(&captured.process));
        let counted = match share.take(Use::Connection, 1) {
            Ok(counted) => counted,
            Err(exceeded) => {
                self.node.metrics.refused(Reason::Overload);
                self.node.metrics.limits.count(exceeded.limit, &exceeded);
                return self.turn_away(stream, share);
            }
        };
        let worker = Rc::clone(self);
        worker.came();
        spawn_local(async move {
            let work = proxy::connection(Io::Plain(stream), captured, share, &worker);
            deadline::connection(small(work)).await;
            drop(counted);
            worker.left();
        });
    }

    pub(super) fn came(&self) {
        self.connections.set(self.connections.get() + 1);
    }

    pub(super) fn left(&self) {
        self.connections.set(self.connections.get() - 1);
        self.rested.notify_one();
    }

    /// One connection too many.
    fn turn_away(self: &Rc<Self>, stream: TcpStream, share: Arc<Share>) {
        if self.turned_away.get() >= TURNED_AWAY_MAX {
            return;
        }
        self.turned_away.set(self.turned_away.get() + 1);
        let worker = Rc::clone(self);
        spawn_local(async move {
            proxy::one_too_many(Io::Plain(stream), share, &worker.node.limits).await;
            worker.turned_away.set(worker.turned_away.get() - 1);
        });
    }
}

/// A connection's work, whose state is always as large as the largest that it may come to: what few need, or only a request
/// that is served, has a place of its own (a box, or a room).
fn small<F: Future>(work: F) -> F {
    const { assert!(size_of::<F>() <= STATE_BYTES_MAX, "a connection's state is too large") };
    work
}

/// The listeners at home: one of each family for each thread.
///
/// # Errors
/// The port is in use, or may not be bound.
pub(super) fn listen(port: u16, threads: usize, adopted: bool) -> Result<Listeners, AppError> {
    let v4 = listen_at(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), threads, adopted)?;
    let v6 = match listen_at(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), threads, adopted) {
        Ok(listeners) => listeners,
        Err(AppError::Listen { cause, .. }) if netns::is_without_ipv6(&cause) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Listeners { v4, v6 })
}

fn listen_at(address: SocketAddr, threads: usize, adopted: bool) -> Result<Vec<StdListener>, AppError> {
    let all = |address| (0..threads).map(|_| netns::listener(address)).collect::<io::Result<_>>();
    // Alone first: with SO_REUSEPORT a second binder would succeed in silence.
    let bound = match StdListener::bind(address).map(drop) {
        // While there was no agent a listen() without bind can have got the port, which no hook sees. Who holds it is
        // given no connection: which sockets answer is decided by `sk_lookup`.
        Err(error) if adopted && error.kind() == io::ErrorKind::AddrInUse => {
            tracing::warn!(%address, "another process got the agent's port meanwhile: it gets nothing there");
            all(SocketAddr::new(address.ip(), 0))
        }
        Err(error) => Err(error),
        Ok(()) => all(address),
    };
    bound.map_err(|cause| AppError::Listen { address, cause })
}

/// The threads, and where the keeper of the namespaces tells them what else to accept from.
pub(super) struct Workers {
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) orders: Vec<mpsc::Sender<Order>>,
}

/// Starts the threads: as many as there are IPv4 listeners.
///
/// # Errors
/// No thread, no runtime, no handle of the map of records.
pub(super) fn spawn(
    node: &Arc<Node>,
    kernel: &Kernel,
    listeners: Listeners,
    mut peers: Vec<Vec<StdListener>>,
    phase: &watch::Receiver<Phase>,
) -> Result<Workers, AppError> {
    let failed = |cause| AppError::Start { what: "start a worker thread", cause };
    let mut workers = Workers { threads: Vec::new(), orders: Vec::new() };
    let mut v6 = listeners.v6.into_iter();
    let (spread, came) = Spread::new(listeners.v4.len());
    let spread = Arc::new(spread);
    for (index, (v4, came)) in listeners.v4.into_iter().zip(came).enumerate() {
        let own = OwnListeners {
            home: std::iter::once(v4).chain(v6.next()).collect(),
            peers: peers.pop().unwrap_or_default(),
            came,
        };
        let taker = kernel.taker().map_err(AppError::Capture)?;
        let (node, phase, progress) = (Arc::clone(node), phase.clone(), node.pulse.worker());
        let spread = Arc::clone(&spread);
        let (orders, given) = mpsc::channel(ORDERS_MAX);
        let (began, begun) = std::sync::mpsc::channel();
        let work = move || {
            // Of this thread alone: not a `LocalSet`, which asks all that the thread waits for at each wake of a connection.
            let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let (runtime, outcome) = match built {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Who started this thread waits for it.
            let _ = began.send(outcome);
            if let Some(runtime) = runtime {
                runtime.block_on(
                    Rc::new(Worker::new(node, index, spread, taker, phase)).run(own, given, progress),
                );
            }
        };
        let thread = std::thread::Builder::new().name(format!("toolgate-{index}"));
        workers.threads.push(thread.spawn(work).map_err(failed)?);
        begun.recv().unwrap_or_else(|_panicked| Err(io::ErrorKind::Other.into())).map_err(failed)?;
        workers.orders.push(orders);
    }
    Ok(workers)
}

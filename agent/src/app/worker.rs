//! One thread for each core: its listener, its connections, its pool. Nothing moves between threads.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local};

use toolgate_core::denial::Reason;

use super::{AppError, Node};
use crate::capture::{Kernel, Taker};
use crate::forward::Pool;
use crate::proxy;

/// Connections that wait for `accept`, for each thread.
const BACKLOG: i32 = 1_024;

/// After an accept that failed: out of descriptors or memory, it would fail again at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the connections of one thread share.
pub struct Worker {
    /// What all threads share.
    pub node: Arc<Node>,
    /// Idle upstream connections.
    pub pool: Pool,
    connections: Cell<usize>,
    working: Cell<usize>,
    rested: Notify,
    stopping: watch::Receiver<bool>,
}

/// A connection that is being served; counted until it is dropped, whatever ends it.
struct Counted(Rc<Worker>);

impl Counted {
    fn one_more(worker: Rc<Worker>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        Self(worker)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
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
    fn new(node: Arc<Node>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            node,
            pool: Pool::default(),
            connections: Cell::new(0),
            working: Cell::new(0),
            rested: Notify::new(),
            stopping,
        }
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
        *self.stopping.borrow()
    }

    async fn run(self: Rc<Self>, listener: TcpListener, mut taker: Taker) {
        let mut stopping = self.stopping.clone();
        let limits = &self.node.limits;
        let mut sweep = tokio::time::interval(limits.upstream_idle_max / 2);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.accepted(stream, peer, &mut taker),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection; trying again in {ACCEPT_AGAIN:?}");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                _ = sweep.tick() => self.pool.sweep(limits),
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        drop(listener);
        let drained = async {
            while self.working.get() > 0 {
                self.rested.notified().await;
            }
        };
        if tokio::time::timeout(limits.drain_time_max, drained).await.is_err() {
            tracing::warn!(requests = self.working.get(), "requests cut off (drain_time_max)");
        }
    }

    fn accepted(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, taker: &mut Taker) {
        let captured = match taker.take(&stream, peer) {
            Ok(captured) => captured,
            Err(error) => {
                self.node.metrics.refused(Reason::NoRecord);
                return tracing::warn!(%error, "connection refused");
            }
        };
        // Not before: a record that is left would be found by the next connection of that port.
        if self.connections.get() >= self.node.limits.connections_max {
            self.node.metrics.refused(Reason::Overload);
            tracing::warn!(limit = self.node.limits.connections_max, "connection refused (connections_max)");
            return;
        }
        // Without it an answer in two writes waits for a delayed ACK (45 ms). It cannot fail on a live socket.
        let _ = stream.set_nodelay(true);
        let counted = Counted::one_more(Rc::clone(self));
        spawn_local(async move { proxy::connection(stream, captured, &counted.0).await });
    }
}

/// Listeners on one port, one for each thread.
///
/// # Errors
/// The port is in use, or may not be bound.
pub(super) fn listen(address: SocketAddrV4, threads: usize) -> Result<Vec<StdListener>, AppError> {
    let bind = || {
        // Alone first: with SO_REUSEPORT a second binder would succeed in silence.
        drop(StdListener::bind(address)?);
        (0..threads).map(|_| listener(address)).collect::<io::Result<_>>()
    };
    bind().map_err(|cause| AppError::Listen { address, cause })
}

fn listener(address: SocketAddrV4) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts the threads.
///
/// # Errors
/// No thread, no runtime, no handle of the map of connections.
pub(super) fn spawn(
    node: &Arc<Node>,
    kernel: &Kernel,
    listeners: Vec<StdListener>,
    stopping: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, AppError> {
    let failed = |cause| AppError::Start { what: "start a worker thread", cause };
    let start = |(index, listener): (usize, StdListener)| {
        let taker = kernel.taker().map_err(AppError::Capture)?;
        let (node, stopping) = (Arc::clone(node), stopping.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let serve = move || async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => Rc::new(Worker::new(node, stopping)).run(listener, taker).await,
                Err(error) => tracing::error!(%error, "worker without listener"),
            }
        };
        let thread = std::thread::Builder::new().name(format!("toolgate-{index}"));
        thread.spawn(move || LocalSet::new().block_on(&runtime, serve())).map_err(failed)
    };
    listeners.into_iter().enumerate().map(start).collect()
}

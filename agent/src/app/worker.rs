//! One thread for each core: its listener, its connections, its pool. Nothing moves between threads.

use std::cell::Cell;
use std::net::{SocketAddr, SocketAddrV4, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local};

use super::Node;
use crate::capture::{Kernel, Taker};
use crate::forward::Pool;
use crate::proxy;

/// Connections that wait for `accept`, for each thread.
const BACKLOG: i32 = 1_024;

/// What the connections of one thread share.
pub struct Worker {
    /// What all threads share.
    pub node: Arc<Node>,
    /// Idle upstream connections.
    pub pool: Pool,
    connections: Cell<usize>,
    working: Cell<usize>,
    rested: Notify,
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
    fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            pool: Pool::default(),
            connections: Cell::new(0),
            working: Cell::new(0),
            rested: Notify::new(),
        }
    }

    /// Marks a request as running until the guard is dropped.
    #[must_use]
    pub fn working(&self) -> Working<'_> {
        self.working.set(self.working.get() + 1);
        Working(self)
    }

    async fn run(
        self: Rc<Self>,
        listener: TcpListener,
        mut taker: Taker,
        mut stopping: watch::Receiver<bool>,
    ) {
        let limits = &self.node.limits;
        let mut sweep = tokio::time::interval(limits.upstream_idle_max / 2);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.accepted(stream, peer, &mut taker),
                    // Out of descriptors, or the client left before: the next may do better.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        tokio::task::yield_now().await;
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
        if self.connections.get() >= self.node.limits.connections_max {
            tracing::warn!(limit = self.node.limits.connections_max, "connection refused (connections_max)");
            return;
        }
        let captured = stream
            .local_addr()
            .map_err(anyhow::Error::from)
            .and_then(|local| taker.take(peer, local).map_err(anyhow::Error::from));
        let captured = match captured {
            Ok(captured) => captured,
            Err(error) => {
                tracing::warn!(%peer, %error, "connection without a kernel record refused");
                return;
            }
        };
        // Without it an answer in two writes waits for a delayed ACK (45 ms). It cannot fail on a live socket.
        let _ = stream.set_nodelay(true);
        self.connections.set(self.connections.get() + 1);
        let worker = Rc::clone(self);
        spawn_local(async move {
            proxy::connection(stream, captured, &worker).await;
            worker.connections.set(worker.connections.get() - 1);
        });
    }
}

/// Listeners on one port, one for each thread.
///
/// # Errors
/// The port is in use, or may not be bound.
pub(super) fn listen(address: SocketAddrV4, threads: usize) -> anyhow::Result<Vec<StdListener>> {
    // Alone first: with SO_REUSEPORT a second binder would succeed in silence.
    drop(
        StdListener::bind(address)
            .with_context(|| format!("cannot listen at {address} (listen.outbound): is the port in use?"))?,
    );
    (0..threads)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("cannot listen at {address} (listen.outbound)"))
}

/// Starts the threads.
pub(super) fn spawn(
    node: &Arc<Node>,
    kernel: &Kernel,
    listeners: Vec<StdListener>,
    stopping: &watch::Receiver<bool>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let start = |(index, listener): (usize, StdListener)| {
        let taker = kernel.taker()?;
        let (node, stopping) = (Arc::clone(node), stopping.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("toolgate-{index}")).spawn(move || {
            let tasks = LocalSet::new();
            tasks.block_on(&runtime, async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => Rc::new(Worker::new(node)).run(listener, taker, stopping).await,
                    Err(error) => tracing::error!(%error, "worker without listener"),
                }
            });
        })?;
        Ok(thread)
    };
    listeners.into_iter().enumerate().map(start).collect()
}

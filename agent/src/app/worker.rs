//! One thread for each core: its listener, its connections, its pool. Nothing moves between threads.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, UdpSocket};
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

    async fn run(self: Rc<Self>, listener: TcpListener, listener6: Option<TcpListener>, mut taker: Taker) {
        let mut stopping = self.stopping.clone();
        let limits = &self.node.limits;
        let mut sweep = tokio::time::interval(limits.upstream_idle_max / 2);
        loop {
            tokio::select! {
                accepted = accept(&listener, listener6.as_ref()) => match accepted {
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
        drop((listener, listener6));
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

/// Whichever has a connection.
async fn accept(v4: &TcpListener, v6: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    let Some(v6) = v6 else { return v4.accept().await };
    tokio::select! {
        accepted = v4.accept() => accepted,
        accepted = v6.accept() => accepted,
    }
}

/// Listeners on one port of both families, one for each thread.
pub(super) struct Listeners {
    v4: Vec<StdListener>,
    /// None where the host has no IPv6.
    v6: Vec<StdListener>,
}

/// Listens at 127.0.0.1 and, where there is IPv6, at ::1.
///
/// # Errors
/// The port is in use, or may not be bound.
pub(super) fn listen(port: u16, threads: usize) -> Result<Listeners, AppError> {
    let bind = |address: SocketAddr| {
        let all = || {
            // Alone first: with SO_REUSEPORT a second binder would succeed in silence.
            drop(listener(address, false)?);
            (0..threads).map(|_| listener(address, true)).collect::<io::Result<Vec<_>>>()
        };
        all().map_err(|cause| AppError::Listen { address, cause })
    };
    let v4 = bind((Ipv4Addr::LOCALHOST, port).into())?;
    let v6 = match bind((Ipv6Addr::LOCALHOST, port).into()) {
        Err(AppError::Listen { cause, .. }) if is_no_ipv6(&cause) => Vec::new(),
        listeners => listeners?,
    };
    Ok(Listeners { v4, v6 })
}

/// IPv6 is not built in, or is switched off, or `lo` has no address of it.
fn is_no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn listener(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Captured connections of the agent's own namespace are given to its listeners from here on.
///
/// # Errors
/// The kernel's.
pub(super) fn serve_home(kernel: &Kernel, listeners: &Listeners) -> Result<(), AppError> {
    let failed = |cause| AppError::Start { what: "make a socket", cause };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
    let home = kernel.namespace_of(&socket).map_err(AppError::Capture)?;
    kernel.serve(home, has_ipv6_routes(), &listeners.v4, &listeners.v6).map_err(AppError::Capture)
}

/// Whether there is a route to an address that is nobody's (RFC 3849). Nothing is sent.
fn has_ipv6_routes() -> bool {
    let nobody = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok_and(|socket| socket.connect((nobody, 9)).is_ok())
}

/// Starts the threads.
///
/// # Errors
/// No thread, no runtime, no handle of the map of records.
pub(super) fn spawn(
    node: &Arc<Node>,
    kernel: &Kernel,
    listeners: Listeners,
    stopping: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, AppError> {
    let failed = |cause| AppError::Start { what: "start a worker thread", cause };
    let mut v6 = listeners.v6.into_iter();
    let start = |(index, v4): (usize, StdListener)| {
        let v6 = v6.next();
        let taker = kernel.taker().map_err(AppError::Capture)?;
        let (node, stopping) = (Arc::clone(node), stopping.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let serve = move || async move {
            match (TcpListener::from_std(v4), v6.map(TcpListener::from_std).transpose()) {
                (Ok(v4), Ok(v6)) => Rc::new(Worker::new(node, stopping)).run(v4, v6, taker).await,
                (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "worker without listener"),
            }
        };
        let thread = std::thread::Builder::new().name(format!("toolgate-{index}"));
        thread.spawn(move || LocalSet::new().block_on(&runtime, serve())).map_err(failed)
    };
    listeners.v4.into_iter().enumerate().map(start).collect()
}

//! What the operator asks: status, `exec`, `bypass`, `upgrade`, `tools` and `ca` on a Unix socket, metrics and readiness on TCP.
//!
//! And who calls by App ID without being captured is told so.
//!
//! Whoever may open the socket is root (mode 0600), and no captured process may use it, root or not. The TCP ports
//! are refused to captured processes in the kernel.

mod api;
mod authority;
pub mod client;
mod definitions;
mod endpoints;
mod exec;
mod inspection;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::app::{Heritage, Node, Role};
use crate::ca;
use crate::capture::Kernel;
use crate::config::AgentConfig;
use crate::workload_api;

/// Why the operator's sockets are not there.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A Unix socket.
    #[error("cannot listen at `{}` ({key}): {cause}", path.display())]
    Unix {
        /// The configuration's key.
        key: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A TCP port.
    #[error("cannot listen at {address} ({key}): {cause}; choose another port or free this one")]
    Tcp {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Bound before anything is attached, so that a port in use stops the start.
pub struct Sockets {
    admin: UnixListener,
    metrics: (SocketAddr, TcpListener),
    ready: (SocketAddr, TcpListener),
    /// Not the operator's: other nodes join there.
    authority: Option<(SocketAddr, TcpListener)>,
    /// Who is captured does not get there, but to the proxy.
    invoke: Option<(SocketAddr, TcpListener)>,
    /// Nor this one: processes get their SVIDs there.
    workload_api: Option<(UnixListener, SocketPath)>,
    /// Removed with the sockets.
    path: SocketPath,
}

struct SocketPath {
    path: PathBuf,
    is_ours: bool,
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if self.is_ours {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Sockets {
    /// Binds all, or takes what the agent before had at the same place. The caller holds the agent's lock: a socket
    /// file that exists was left by a dead agent.
    ///
    /// # Errors
    /// [`AdminError`] names the key.
    pub fn bind(agent: &AgentConfig, mut heritage: Option<&mut Heritage>) -> Result<Self, AdminError> {
        let mut tcp = |key, address, role: fn(SocketAddr) -> Role| {
            let given = heritage.as_deref_mut().and_then(|heritage| heritage.take_tcp(&role(address)));
            let listener = given.map_or_else(|| StdTcpListener::bind(address), Ok).and_then(|listener| {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            });
            listener.map(|listener| (address, listener)).map_err(|cause| AdminError::Tcp {
                key,
                address,
                cause,
            })
        };
        let metrics = tcp("listen.metrics", agent.listen.metrics, Role::Metrics)?;
        let ready = tcp("listen.ready", agent.listen.ready, Role::Ready)?;
        let authority = agent.listen.authority;
        let authority =
            authority.map(|address| tcp("listen.authority", address, Role::Authority)).transpose()?;
        let invoke = agent.listen.invoke;
        let invoke = invoke.map(|address| tcp("listen.invoke", address, Role::Invoke)).transpose()?;
        let mut unix = |key, path: &PathBuf, role: fn(PathBuf) -> Role, mode| {
            let given = heritage.as_deref_mut().and_then(|heritage| heritage.take_unix(&role(path.clone())));
            let is_ours = given.is_none();
            let listener = match given {
                Some(listener) => {
                    listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener))
                }
                None => bind_unix(path, mode),
            };
            let listener = listener.map_err(|cause| AdminError::Unix { key, path: path.clone(), cause })?;
            Ok((listener, SocketPath { path: path.clone(), is_ours }))
        };
        let (admin, path) = unix("listen.admin", &agent.listen.admin, Role::Admin, FOR_ROOT)?;
        let workload_api = agent.listen.workload_api.as_ref();
        let workload_api = workload_api
            .map(|path| unix("listen.workload_api", path, Role::WorkloadApi, FOR_ALL))
            .transpose()?;
        Ok(Self { admin, metrics, ready, authority, invoke, workload_api, path })
    }

    /// The socket files are this process's from now on, or another's.
    pub fn own(&mut self, is_ours: bool) {
        self.path.is_ours = is_ours;
        if let Some((_, path)) = &mut self.workload_api {
            path.is_ours = is_ours;
        }
    }

    /// What the next agent gets.
    pub(crate) fn estate(&self) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        let authority = self.authority.iter();
        let authority = authority.map(|(address, listener)| (Role::Authority(*address), listener.as_fd()));
        let invoke = self.invoke.iter();
        let invoke = invoke.map(|(address, listener)| (Role::Invoke(*address), listener.as_fd()));
        let operators = [
            (Role::Admin(self.path.path.clone()), self.admin.as_fd()),
            (Role::Metrics(self.metrics.0), self.metrics.1.as_fd()),
            (Role::Ready(self.ready.0), self.ready.1.as_fd()),
        ];
        let workload_api = self.workload_api.iter();
        let workload_api =
            workload_api.map(|(listener, at)| (Role::WorkloadApi(at.path.clone()), listener.as_fd()));
        operators.into_iter().chain(authority).chain(invoke).chain(workload_api)
    }
}

/// Who may open a socket.
const FOR_ROOT: u32 = 0o600;
const FOR_ALL: u32 = 0o666;

fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        std::fs::create_dir_all(dir)?;
        if mode == FOR_ALL {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Made for root alone from the first moment: chmod after bind would leave a gap.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// A binary that is to take over, and where its outcome is told: its process id, or why it did not.
pub type Upgrade = (Option<PathBuf>, oneshot::Sender<Result<u32, String>>);

/// What the handlers see.
#[derive(Clone)]
pub struct Context {
    /// What all threads share.
    pub node: Arc<Node>,
    /// The programs.
    pub kernel: Arc<Kernel>,
    /// Whom to ask for an upgrade.
    pub upgrades: mpsc::Sender<Upgrade>,
    /// Held as long as an answer is under way.
    pub answering: mpsc::Sender<Infallible>,
}

/// After an accept that failed: out of descriptors or memory, it would fail again at once.
const ACCEPT_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Answers until it is dropped; what was asked before is still answered then.
pub async fn serve(context: Context, sockets: &Sockets) {
    let nodes = ca::Listener::new(context.node.svids.clone());
    let processes = workload_api::Listener::new(Arc::clone(&context.node));
    loop {
        let accepted = tokio::select! {
            accepted = sockets.admin.accept() => accepted.and_then(|(stream, _)| {
                let peer = stream.peer_cred()?;
                answer(stream, context.clone(), Port::Admin(peer));
                Ok(())
            }),
            accepted = sockets.metrics.1.accept() => {
                accepted.map(|(stream, _)| answer(stream, context.clone(), Port::Metrics))
            }
            accepted = next(sockets.invoke.as_ref()) => {
                accepted.map(|(stream, _)| answer(stream, context.clone(), Port::Invoke))
            }
            accepted = next(sockets.authority.as_ref()) => accepted.map(|(stream, from)| {
                let (nodes, node) = (Rc::clone(&nodes), Arc::clone(&context.node));
                tokio::task::spawn_local(async move { nodes.serve(stream, from, &node.record).await });
            }),
            accepted = asking(sockets.workload_api.as_ref()) => accepted.map(|stream| {
                tokio::task::spawn_local(Rc::clone(&processes).serve(stream));
            }),
            accepted = sockets.ready.1.accept() => {
                accepted.map(|(stream, _)| answer(stream, context.clone(), Port::Ready))
            }
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept a connection; trying again in {ACCEPT_AGAIN:?}");
            tokio::time::sleep(ACCEPT_AGAIN).await;
        }
    }
}

/// The next connection; never, where nobody listens.
async fn next(listener: Option<&(SocketAddr, TcpListener)>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some((_, listener)) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// The next process that wants its SVID; never, where none gets any.
async fn asking(workload_api: Option<&(UnixListener, SocketPath)>) -> io::Result<UnixStream> {
    match workload_api {
        Some((listener, _)) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Where a request came in.
#[derive(Clone, Copy)]
enum Port {
    Admin(tokio::net::unix::UCred),
    Metrics,
    Ready,
    Invoke,
}

/// How long an operator's client may be silent before its head is read.
const HEAD_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);

fn answer<S>(stream: S, context: Context, port: Port)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let context = context.clone();
        async move { Ok::<Response<Full<Bytes>>, Infallible>(api::route(request, port, &context).await) }
    });
    tokio::task::spawn_local(async move {
        let served = http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection broke");
        }
    });
}

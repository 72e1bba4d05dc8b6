//! The hand-over from a running agent to the next: the next one is started beside it as its child, gets its sockets and
//! its lock, attaches, and takes over when it is ready. Nobody is refused meanwhile: the listeners, with all that wait in
//! them, are the same sockets.
//!
//! Both talk over a Unix socket at the child's standard input, one JSON message a datagram, descriptors attached:
//! predecessor: `lock`, `listener`..., `inspection` if there is one, `whole`; successor: `attached`, or `failed`; predecessor: `sessions`..., `streams`..., `given`..., `over`;
//! successor, of which nothing can fail any more: `taken`, or `failed`; from then on the successor serves, the predecessor
//! accepts no more, and `sessions`, `streams` and `given` go on as long as it drains.
//!
//! - `line`: the socket, and the messages
//! - `successor`: the next agent, as the running one sees it
//! - `predecessor`: the running one, as the next sees it; `heritage`: what it passes on

mod error;
mod heritage;
mod line;
mod predecessor;
mod successor;

pub use error::HandoverError;
pub(crate) use heritage::Heritage;
pub(in crate::app) use line::Line;
pub(in crate::app) use predecessor::{Inherited, Predecessor};
pub(in crate::app) use successor::Successor;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::Cookie;
use crate::inspect::Kept;

/// Spoken by both; another number is another language.
const VERSION: u32 = 2;
/// From the start of the successor until it is attached.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Until the other end takes a message, or answers one that needs no work.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// What a descriptor is that is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Captured connections at home.
    Outbound,
    /// Captured connections in another network namespace.
    Namespace(Cookie),
    /// `listen.admin`
    Admin(PathBuf),
    /// `listen.metrics`
    Metrics(SocketAddr),
    /// `listen.ready`
    Ready(SocketAddr),
    /// `listen.authority`
    Authority(SocketAddr),
    /// `listen.workload_api`
    WorkloadApi(PathBuf),
    /// `listen.invoke`
    Invoke(SocketAddr),
}

/// What the predecessor passes on.
pub(in crate::app) struct Estate {
    pub(in crate::app) lock: OwnedFd,
    pub(in crate::app) port: u16,
    pub(in crate::app) listeners: Vec<(Role, OwnedFd)>,
    /// The authority of TLS that is read: its key is nowhere else.
    pub(in crate::app) inspection: Option<Kept>,
}

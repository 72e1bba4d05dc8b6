//! What keeps the agent from starting, or from ending as it should.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{HandoverError, LockError, PlanError};
use crate::admin::AdminError;
use crate::capture::CaptureError;
use crate::config::Diagnostic;
use crate::config::watch::WatchError;
use crate::inspect::InspectError;
use crate::netns::NetnsError;
use crate::pins::StoreError;
use crate::record::AuditError;
use crate::svid::SvidError;

/// The agent's own errors, each with the next step. The cause stands in the text.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Every error of the configuration, each with its place.
    #[error("the configuration has errors\n\n{}", all(.0))]
    Configuration(Vec<Diagnostic>),
    /// Another agent.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The hand-over between two agents.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Cgroups.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Ports and sockets of the operator's.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The audit.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// SVIDs, and who issues them.
    #[error(transparent)]
    Svids(#[from] SvidError),
    /// TLS that is read.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// Reload on change.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The BPF programs.
    #[error("cannot capture: {0}")]
    Capture(CaptureError),
    /// Network namespaces.
    #[error(transparent)]
    Namespaces(#[from] NetnsError),
    /// The BPF programs, at the end.
    #[error("cannot detach: {0}; `toolgate detach` removes what is left")]
    Detach(CaptureError),
    /// The port of captured connections.
    #[error("cannot listen at {address} (listen.outbound): {cause}; choose another port or free this one")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The cgroup of `exec`.
    #[error("cannot make cgroup `{}`: {cause}; the agent needs root", path.display())]
    ExecRoot {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Threads, runtimes, signals.
    #[error("cannot {what}: {cause}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

fn all(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

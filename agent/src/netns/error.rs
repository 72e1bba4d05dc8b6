//! Why a network namespace is not served.

use std::io;
use std::path::PathBuf;

use crate::capture::CaptureError;
use crate::limits::Limit;

/// What keeps the agent out of a namespace. Captured processes in it stay refused.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The process that showed the way has ended, or is in another namespace by now.
    #[error("process {tgid} is not in this namespace any more: {cause}")]
    Vanished {
        /// In the host's PID namespace.
        tgid: u32,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No entry.
    #[error("cannot enter a network namespace (setns): {cause}; the agent needs CAP_SYS_ADMIN")]
    Enter {
        /// What the kernel said.
        cause: io::Error,
    },
    /// A socket or an answer of the kernel that is needed inside.
    #[error("cannot {what} inside the namespace: {cause}")]
    Inside {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// As many as the kernel's map holds.
    #[error("the agent listens in {max} network namespaces already (NAMESPACES_MAX): this one stays refused")]
    TooMany {
        /// The limit.
        max: u32,
    },
    /// As many as one captured cgroup may have: others are to have theirs.
    #[error(
        "captured cgroup `{}` has {max} network namespaces already (`namespaces_per_cgroup_max`): this one stays refused",
        cgroup.display()
    )]
    Share {
        /// Its directory; empty: what is in none by now.
        cgroup: PathBuf,
        /// The limit.
        max: usize,
    },
    /// A connection outlived the service of its namespace.
    #[error("network namespace {cookie} is not served any more: no captured process is in it")]
    NotServed {
        /// Which.
        cookie: crate::capture::Cookie,
    },
    /// The BPF side.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// No thread or runtime for the keeper.
    #[error("cannot start the thread that follows network namespaces: {cause}")]
    Thread {
        /// What the kernel said.
        cause: io::Error,
    },
}

impl NetnsError {
    /// The limit that it ran into, of those that can be set.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Share { .. } => Some(Limit::NamespacesPerCgroup),
            Self::Vanished { .. }
            | Self::Enter { .. }
            | Self::Inside { .. }
            | Self::TooMany { .. }
            | Self::NotServed { .. }
            | Self::Capture(_)
            | Self::Thread { .. } => None,
        }
    }
}

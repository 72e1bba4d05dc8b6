//! Why TLS cannot be read.

use std::io;
use std::path::PathBuf;

use crate::ca::CertifyError;

/// Why TLS cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A certificate.
    #[error(transparent)]
    Certify(#[from] CertifyError),
    /// The agent before has handed over something else.
    #[error("the authority of the agent before cannot be taken over: {problem}")]
    Kept {
        /// What is wrong.
        problem: String,
    },
    /// Core dumps.
    #[error("cannot do without core dumps, which would have the key of the authority: {cause}")]
    Core {
        /// What the kernel said.
        cause: io::Error,
    },
    /// Where clients find whom to believe.
    #[error("cannot write `{}`, which clients are to believe: {cause}", path.display())]
    Write {
        /// The file or its directory.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

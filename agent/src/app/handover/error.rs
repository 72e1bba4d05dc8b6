//! Why there is no hand-over.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why there is no hand-over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The binary.
    #[error("cannot start `{}`: {cause}", binary.display())]
    Start {
        /// Its path.
        binary: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The successor said why not.
    #[error("the new agent does not start: {error}")]
    Refused {
        /// Its words.
        error: String,
    },
    /// It ended without a word.
    #[error("the new agent ended before it was ready ({status}); the log has its words")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// The other end speaks another language, or none.
    #[error("{problem} in the hand-over; stop this agent and start the other one instead")]
    Language {
        /// What was not understood.
        problem: String,
    },
    /// The port of the listeners is compiled into nothing, but known to every connection that waits.
    #[error(
        "listen.outbound cannot change from {from} to {to} while captured connections wait; restart the agent instead"
    )]
    Port {
        /// The running agent's.
        from: u16,
        /// The new configuration's.
        to: u16,
    },
    /// The socket between the two.
    #[error("the two agents cannot talk: {cause}")]
    Channel {
        /// What the kernel said; `TimedOut`: nothing came.
        cause: io::Error,
    },
}

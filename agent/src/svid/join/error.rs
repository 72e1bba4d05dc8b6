//! Why this node has not joined, or does not get what it asks its authority for.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::ca::CaError;

/// Each with the next step.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Neither joined nor able to.
    #[error(
        "this node has not joined yet, and identity.token_file names no token: `toolgate ca token` on the authority makes one"
    )]
    NoToken,
    /// No token in its file.
    #[error("`{}` (identity.token_file) has no token: {problem}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Another trust domain's.
    #[error(
        "the authority is of trust domain `{found}`, and `trust_domain` says `{wanted}`: correct it, or join by another token"
    )]
    TrustDomain {
        /// Whose it is.
        found: String,
        /// What is configured.
        wanted: String,
    },
    /// What this node has of its membership.
    #[error(transparent)]
    File(CaError),
    /// The same, and it is no good.
    #[error("`{}` is damaged: {problem}; move its folder away, and join by a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The authority was away for too long, or this node was.
    #[error(
        "this node's certificate ended {}: if this clock is right, move `{}` away and join by a new token",
        humantime::format_rfc3339_seconds(*until), folder.display()
    )]
    Ended {
        /// Its folder.
        folder: PathBuf,
        /// When.
        until: SystemTime,
    },
    /// It cannot be reached, or is not who it should be.
    #[error("the authority at {authority} does not answer: {cause}")]
    Away {
        /// Where.
        authority: String,
        /// What happened.
        cause: String,
    },
    /// It failed a moment ago.
    #[error("{why} (a moment ago)")]
    Again {
        /// How.
        why: String,
    },
    /// It says no.
    #[error("the authority at {authority} refuses: {why}")]
    Refused {
        /// Where.
        authority: String,
        /// Its words.
        why: String,
    },
    /// It says what cannot be.
    #[error("the authority at {authority} gave an answer that is not believed: {problem}")]
    Nonsense {
        /// Where.
        authority: String,
        /// What is wrong.
        problem: String,
    },
}

//! Why no whole request came from a client.

use std::time::Duration;

use toolgate_core::http1::HttpError;

use crate::limits::Limit;
use crate::shares::Exceeded;

/// Why no whole request came from a client.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Not the HTTP/1.1 that this agent forwards.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The body exceeds `body_bytes_max`.
    #[error("the body exceeds {bytes_max} bytes ({})", Limit::BodyBytes)]
    BodyTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The head or the body did not arrive in time.
    #[error("the request's {what} did not arrive within {time_max:?} ({limit})")]
    Slow {
        /// Head or body.
        what: &'static str,
        /// The limit.
        time_max: Duration,
        /// Which.
        limit: Limit,
    },
    /// There is no memory left for what waits.
    #[error("no memory for the request: {0}")]
    NoRoom(#[from] Exceeded),
    /// The client closed or failed in the middle of a request.
    #[error("the client left in the middle of a request")]
    ClientLeft,
}

impl Broken {
    /// The limit that it ran into.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Http(error) => http_limit(error),
            Self::BodyTooLarge { .. } => Some(Limit::BodyBytes),
            Self::Slow { limit, .. } => Some(*limit),
            Self::NoRoom(exceeded) => Some(exceeded.limit),
            Self::ClientLeft => None,
        }
    }

    /// Whether it is a request as proxies get them.
    #[must_use]
    pub fn is_for_a_proxy(&self) -> bool {
        matches!(self, Self::Http(HttpError::AbsoluteForm { .. } | HttpError::AuthorityForm { .. }))
    }
}

/// The limit that a head or its chunks ran into.
#[must_use]
pub fn http_limit(error: &HttpError) -> Option<Limit> {
    let limits = [
        (matches!(error, HttpError::HeadTooLarge { .. }), Limit::HeadBytes),
        (matches!(error, HttpError::TargetTooLong { .. }), Limit::TargetBytes),
        (matches!(error, HttpError::TooManyHeaders { .. }), Limit::Headers),
        (matches!(error, HttpError::ChunkOverhead { .. }), Limit::ChunkOverhead),
    ];
    limits.into_iter().find_map(|(is_it, limit)| is_it.then_some(limit))
}

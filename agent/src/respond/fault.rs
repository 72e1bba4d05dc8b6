//! What goes wrong with a reply, and whose fault that is.

use std::io;
use std::time::Duration;

use toolgate_core::denial::Reason;
use toolgate_core::http1::HttpError;
use toolgate_core::mcp::NotOwed;

use crate::forward::CertificateRefused;
use crate::limits::Limit;
use crate::parse;
use crate::shares::Exceeded;

/// Whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The client closed, or does not take its reply.
    #[error("the client left before the reply ended")]
    ClientLeft,
    /// The server said something that is no HTTP/1.1 reply.
    #[error("the server's reply is broken: {0}")]
    Http(#[from] HttpError),
    /// The connection ended within the reply.
    #[error("the server closed in the middle of its reply: {0}")]
    ServerLeft(io::Error),
    /// It wants to know who calls, and does not believe what it was shown, or was shown nothing.
    #[error("the server closed: {0}")]
    CertificateRefused(CertificateRefused),
    /// Nothing came.
    #[error("the server sent nothing more within {0:?} ({1})")]
    Slow(Duration, Limit),
    /// The client does not take its reply in time.
    #[error("the client did not take its reply within {0:?} ({limit})", limit = Limit::ClientWrite)]
    SlowClient(Duration),
    /// There is no memory left for what waits.
    #[error("no memory for the reply: {0}")]
    NoRoom(#[from] Exceeded),
    /// A reply or an event exceeds its limit.
    #[error("the server's {what} exceeds {bytes_max} bytes ({limit})")]
    TooLarge {
        /// A reply or an event.
        what: &'static str,
        /// The limit.
        bytes_max: usize,
        /// Its name.
        limit: Limit,
    },
    /// It cannot be read, so nobody knows what it says.
    #[error("the server's {what} cannot be read: {problem}")]
    Unreadable {
        /// A reply, a list or an event.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// A message that nobody has asked for.
    #[error("the server's reply is not what was asked for: {0}")]
    NotOwed(#[from] NotOwed),
    /// What it asks of its caller before it goes on, no rule permits.
    #[error("the server's answer asks for `{method}`, which policy does not permit")]
    Asks {
        /// The name of its method.
        method: String,
    },
    /// No message where one is due.
    #[error("the server's reply has status {status} and no answer to the request")]
    NoAnswer {
        /// Its status.
        status: u16,
    },
    /// A stream was asked for.
    #[error("the server's reply has status {status} and is no event stream; a GET is for one alone")]
    NoStream {
        /// Its status.
        status: u16,
    },
    /// Page after page holds nothing for the caller.
    #[error(
        "the server's list has no end within {pages_max} pages that hold nothing for this caller ({})",
        Limit::ListPages
    )]
    Endless {
        /// The limit.
        pages_max: usize,
    },
    /// A page leads back to one before it.
    #[error("the server's list does not end: a cursor of it came before")]
    Circle,
    /// The next page of a list cannot be asked for.
    #[error("the next page of the list cannot be asked for: {detail}")]
    NextPage {
        /// Why, as the request for it would be answered.
        reason: Reason,
        /// For the audit.
        detail: String,
        /// The limit that it ran into.
        limit: Option<Limit>,
    },
    /// It sends the caller somewhere else.
    #[error(
        "the server's reply is a redirect ({status}): what is permitted here goes nowhere else; declare the address \
         and path that it leads to"
    )]
    Redirect {
        /// Its status.
        status: u16,
    },
    /// The session belongs to another caller, or there is no room for it.
    #[error("the server's session id cannot be bound to this caller")]
    Session,
    /// A stream does not begin with one endpoint of this server that is the caller's alone.
    #[error("the endpoint of the server's stream cannot be used: {problem}")]
    Endpoint {
        /// Why.
        problem: String,
    },
    /// The agent ends, and the stream with it.
    #[error("the agent ends")]
    Ending,
    /// The task belongs to another caller, or its id is none.
    #[error("the server's task id cannot be bound to this caller")]
    Task,
}

/// What can still be said to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// All: it is the agent that will not pass on what came, and both ends could go on.
    Everything,
    /// What goes behind a whole event: the server's end broke.
    BehindEvents,
    /// Nothing that would be read as it is meant.
    Nothing,
}

impl Fault {
    /// The connection to the server ended with an error.
    pub(super) fn of_end(error: io::Error) -> Self {
        match error.downcast() {
            Ok(refused) => Self::CertificateRefused(refused),
            Err(error) => Self::ServerLeft(error),
        }
    }

    /// The label.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.meaning().0
    }

    /// Whether it is the agent that will not pass on what came: then both ends could go on.
    pub(super) fn is_refusal(&self) -> bool {
        self.meaning().1 == Left::Everything
    }

    /// Whether all that the client has of a stream are whole events: then something can be said behind them.
    pub(super) fn ends_between_events(&self) -> bool {
        self.meaning().1 != Left::Nothing
    }

    fn meaning(&self) -> (Reason, Left) {
        match self {
            Self::ClientLeft | Self::SlowClient(_) => (Reason::ClientLeft, Left::Nothing),
            Self::Slow(..) => (Reason::ServerTimeout, Left::Nothing),
            Self::NoRoom(_) => (Reason::Overload, Left::Nothing),
            Self::Asks { .. } => (Reason::ServerRequest, Left::Everything),
            Self::NextPage { reason, .. } => (*reason, Left::Everything),
            Self::Ending => (Reason::ShuttingDown, Left::Everything),
            Self::Http(_) | Self::ServerLeft(_) => (Reason::ServerFault, Left::BehindEvents),
            Self::CertificateRefused(_) => (Reason::CertificateRefused, Left::BehindEvents),
            Self::TooLarge { .. }
            | Self::Unreadable { .. }
            | Self::NotOwed(_)
            | Self::Endless { .. }
            | Self::Circle
            | Self::Endpoint { .. }
            | Self::Task => (Reason::ServerFault, Left::Everything),
            Self::NoAnswer { .. } | Self::NoStream { .. } | Self::Redirect { .. } | Self::Session => {
                (Reason::ServerFault, Left::Nothing)
            }
        }
    }

    /// The limit that it ran into.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Http(error) => parse::http_limit(error),
            Self::Slow(_, limit) | Self::TooLarge { limit, .. } => Some(*limit),
            Self::SlowClient(_) => Some(Limit::ClientWrite),
            Self::NoRoom(exceeded) => Some(exceeded.limit),
            Self::NextPage { limit, .. } => *limit,
            Self::Endless { .. } => Some(Limit::ListPages),
            Self::ClientLeft
            | Self::ServerLeft(_)
            | Self::CertificateRefused(_)
            | Self::Unreadable { .. }
            | Self::NotOwed(_)
            | Self::Asks { .. }
            | Self::NoAnswer { .. }
            | Self::NoStream { .. }
            | Self::Circle
            | Self::Redirect { .. }
            | Self::Endpoint { .. }
            | Self::Ending
            | Self::Session
            | Self::Task => None,
        }
    }
}

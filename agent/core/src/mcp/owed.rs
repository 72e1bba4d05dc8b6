//! What a request is owed: one answer, to itself. Whether what a server says in its reply is that.

use super::message::{Envelope, Id};

/// What servers on the official Python SDK up to 1.x name as the id where they mean none, in errors whose HTTP status
/// says the same. No client of theirs numbers its requests so.
const NAMELESS: &str = "server-error";

/// What a reply may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed<'r> {
    /// One answer to the request with this id.
    Answer {
        /// As JSON.
        id: &'r str,
    },
    /// No message: what was sent is a notification, an answer of the client's, or the end of a session.
    Nothing,
    /// No message: what was sent is answered, if at all, on the stream that its client has opened (MCP 2024-11-05, HTTP
    /// with SSE).
    Elsewhere,
    /// Messages of the server's own: the client has opened a stream for them. What they answer, nobody has asked.
    Stream,
    /// The rest of a stream that broke: messages of the server's own, and the one answer that was owed there (MCP
    /// 2025-11-25, transports, resumability).
    Resumed {
        /// As JSON.
        id: &'r str,
    },
}

/// A message of the server's that nobody has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOwed {
    /// An id that is not the request's.
    #[error("it answers another request than was sent")]
    OtherId,
    /// An answer where no request was sent.
    #[error("it answers a request though none was sent")]
    NoRequest,
    /// A message that belongs on the client's stream.
    #[error("it is a message, which belongs on the stream that the client has opened")]
    Misplaced,
    /// An answer on such a stream to no request that waits for one there.
    #[error("it answers a request that was not sent, or has its answer")]
    NotPending,
    /// More behind the answer.
    #[error("it says more after the answer")]
    AfterAnswer,
    /// A request in the place of the answer.
    #[error("it is a request of the server's, in the place of an answer")]
    Request,
    /// A notification in the place of the answer.
    #[error("it is a notification of the server's, in the place of an answer")]
    Notification,
}

impl<'r> Owed<'r> {
    /// Whether it is an event stream that was asked for.
    #[must_use]
    pub fn is_stream(self) -> bool {
        match self {
            Owed::Stream | Owed::Resumed { .. } => true,
            Owed::Answer { .. } | Owed::Nothing | Owed::Elsewhere => false,
        }
    }

    /// The request that is to be answered.
    #[must_use]
    pub fn answer(self) -> Option<&'r str> {
        match self {
            Owed::Answer { id } | Owed::Resumed { id } => Some(id),
            Owed::Nothing | Owed::Elsewhere | Owed::Stream => None,
        }
    }

    /// Holds a reply that is one message to what is owed. `failed`: its HTTP status is that of an error, which may be
    /// about no request in particular.
    ///
    /// # Errors
    /// [`NotOwed`]: the client must not see it.
    pub fn admits(self, message: &Envelope<'_>, failed: bool) -> Result<(), NotOwed> {
        match message {
            // Not a stream, so nothing of it is resumed.
            Envelope::Response { id, is_error } if self.is_stream() => {
                Owed::Stream.answered_by(id.as_ref(), *is_error, failed)
            }
            Envelope::Response { id, is_error } => self.answered_by(id.as_ref(), *is_error, failed),
            Envelope::Request(..) => Err(NotOwed::Request),
            Envelope::Notification(_) => Err(NotOwed::Notification),
        }
    }

    /// The same of one message of a stream; `answered`: the answer has come, and ends it.
    ///
    /// # Errors
    /// [`NotOwed`]: the client must not see it.
    pub fn admits_event(self, message: &Envelope<'_>, answered: bool) -> Result<(), NotOwed> {
        match message {
            _ if answered => Err(NotOwed::AfterAnswer),
            _ if self == Owed::Elsewhere => Err(NotOwed::Misplaced),
            Envelope::Response { id, is_error } => self.answered_by(id.as_ref(), *is_error, false),
            Envelope::Request(..) | Envelope::Notification(_) => Ok(()),
        }
    }

    fn answered_by(self, id: Option<&Id<'_>>, is_error: bool, failed: bool) -> Result<(), NotOwed> {
        let named = id.filter(|id| !(failed && is_error && id.is_string(NAMELESS)));
        match (self, named) {
            (Owed::Answer { id: own } | Owed::Resumed { id: own }, Some(id)) if id.is(own) => Ok(()),
            (Owed::Answer { .. } | Owed::Resumed { .. }, Some(_)) => Err(NotOwed::OtherId),
            // An error about what could not be read has no id (JSON-RPC 2.0, 5; MCP 2025-11-25).
            (Owed::Answer { .. } | Owed::Resumed { .. }, None) => Ok(()),
            (Owed::Nothing | Owed::Elsewhere | Owed::Stream, None) if failed => Ok(()),
            (Owed::Nothing | Owed::Stream, _) => Err(NotOwed::NoRequest),
            (Owed::Elsewhere, _) => Err(NotOwed::Misplaced),
        }
    }
}

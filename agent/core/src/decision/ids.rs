//! The ids that a request names, as they were looked up.

use crate::denial::Reason;
use crate::mcp::{Method, Revision};

/// What an id that a request names is to its caller and server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Use {
    /// None is named.
    #[default]
    None,
    /// This caller got it from this server.
    Own,
    /// Another caller got it.
    Foreign,
    /// Nobody got it, or it has expired.
    Unknown,
}

/// The ids that a request names, looked up for its caller and server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids<'t> {
    /// Its session.
    pub session: Use,
    /// The revision that its own session was opened in, where that is known.
    pub revision: Option<Revision>,
    /// The task that it is about.
    pub task: Use,
    /// The tool whose call made that task, where it is the caller's own.
    pub tool: Option<&'t str>,
    /// The last event of the stream that it resumes.
    pub event: Use,
    /// The endpoint that it is sent to, where streams have one.
    pub endpoint: Use,
    /// Of an answer: the method of the server's request that this caller was given and has not answered.
    pub question: Option<Method>,
    /// The request state that it goes on with.
    pub state: Use,
}

impl Ids<'_> {
    /// Why none of this caller's requests may name its session; a foreign one looks like an unknown one to its caller.
    pub(super) fn session_refused(self) -> Option<Reason> {
        match self.session {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignSession),
            Use::Unknown => Some(Reason::UnknownSession),
        }
    }

    /// The same of the others.
    pub(super) fn refused(self) -> Option<Reason> {
        let task = match self.task {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignTask),
            Use::Unknown => Some(Reason::UnknownTask),
        };
        let event = || match self.event {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignEvent),
            Use::Unknown => Some(Reason::UnknownEvent),
        };
        let endpoint = || match self.endpoint {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignEndpoint),
            Use::Unknown => Some(Reason::UnknownEndpoint),
        };
        let state = || match self.state {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignState),
            Use::Unknown => Some(Reason::UnknownState),
        };
        task.or_else(event).or_else(endpoint).or_else(state)
    }
}

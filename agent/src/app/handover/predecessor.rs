//! The running agent, as the next one sees it.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::line::{Message, unexpected};
use super::{ANSWER_TIME_MAX, HandoverError, Heritage, Line, Role, START_TIME_MAX, VERSION};
use crate::app::AgentLock;
use crate::bindings::Bindings;

/// All of it, and from whom.
pub(in crate::app) struct Inherited {
    pub(in crate::app) predecessor: Predecessor,
    pub(in crate::app) lock: AgentLock,
    pub(in crate::app) heritage: Heritage,
}

/// The predecessor as its successor sees it.
#[derive(Clone)]
pub(in crate::app) struct Predecessor(Arc<Line>);

impl Predecessor {
    /// The one at this process's standard input, and what it passes on. Blocks.
    ///
    /// # Errors
    /// [`HandoverError`]: this process was not started by an agent.
    pub(in crate::app) fn meet() -> Result<Inherited, HandoverError> {
        let failed = |cause| HandoverError::Channel { cause };
        let line = Line::new(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)?;
        line.patience(Some(START_TIME_MAX))?;
        let gone = || HandoverError::Channel { cause: io::ErrorKind::UnexpectedEof.into() };
        let lock = match line.hear()?.ok_or_else(gone)? {
            (Message::Lock { version: VERSION }, mut descriptors) => {
                descriptors.pop().map(AgentLock::inherited).ok_or_else(gone)?
            }
            (other, _) => return Err(unexpected(&other)),
        };
        let (mut outbound, mut namespaces, mut others) =
            (Vec::new(), BTreeMap::<_, Vec<_>>::new(), Vec::new());
        let mut inspection = None;
        loop {
            match line.hear()?.ok_or_else(gone)? {
                (Message::Listener { role: Role::Outbound }, descriptors) => {
                    outbound.extend(descriptors.into_iter().map(TcpListener::from));
                }
                (Message::Listener { role: Role::Namespace(cookie) }, descriptors) => {
                    let listeners = descriptors.into_iter().map(TcpListener::from);
                    namespaces.entry(cookie).or_default().extend(listeners);
                }
                (Message::Listener { role }, descriptors) => {
                    others.extend(descriptors.into_iter().map(|descriptor| (role.clone(), descriptor)));
                }
                (Message::Inspection { authority }, _) => inspection = Some(authority),
                (Message::Whole { port }, _) => {
                    let heritage = Heritage { port, outbound, namespaces, others, inspection };
                    return Ok(Inherited { predecessor: Self(Arc::new(line)), lock, heritage });
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
    }

    /// This process gives up; `error` says why.
    pub(in crate::app) fn give_up(&self, error: &str) {
        // It has gone itself: then nobody waits for the reason.
        let _ = self.0.say(&Message::Failed { error: error.to_owned() }, &[]);
    }

    /// Says that all is attached, and waits for the word; the predecessor's bindings are known then. One that died
    /// meanwhile has nothing more to say. Blocks.
    ///
    /// # Errors
    /// [`HandoverError`]
    pub(in crate::app) fn wait_for_its_word(&self, ids: &Bindings) -> Result<(), HandoverError> {
        // Died: the next line says so.
        let _ = self.0.say(&Message::Attached, &[]);
        self.0.patience(Some(ANSWER_TIME_MAX))?;
        loop {
            match self.0.hear()? {
                Some((Message::Sessions { bindings }, _)) => ids.import(&bindings),
                Some((Message::Streams { streams }, _)) => ids.events.import(&streams),
                Some((Message::Given { secret, given }, _)) => ids.given.import(secret, &given),
                Some((Message::Over, _)) | None => return Ok(()),
                Some((other, _)) => return Err(unexpected(&other)),
            }
        }
    }

    /// Takes the word: from now on this process is the agent.
    ///
    /// # Errors
    /// [`HandoverError`]: the predecessor still is.
    pub(in crate::app) fn taken(&self) -> Result<(), HandoverError> {
        match self.0.say(&Message::Taken, &[]) {
            Err(HandoverError::Channel { cause }) if cause.kind() == io::ErrorKind::TimedOut => {
                Err(HandoverError::Channel { cause })
            }
            // Died: then there is nobody else.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes over what the predecessor still binds while it drains. Returns at its end. Blocks.
    pub(in crate::app) fn follow(&self, ids: &Bindings) {
        if let Err(error) = self.0.patience(None) {
            tracing::warn!(%error, "the last sessions and tasks of the agent before may be lost");
        }
        loop {
            match self.0.hear() {
                Ok(Some((Message::Sessions { bindings }, _))) => ids.import(&bindings),
                Ok(Some((Message::Streams { streams }, _))) => ids.events.import(&streams),
                Ok(Some((Message::Given { secret, given }, _))) => ids.given.import(secret, &given),
                Ok(Some((other, _))) => tracing::warn!(error = %unexpected(&other), "hand-over"),
                Ok(None) => return,
                Err(error) => {
                    return tracing::warn!(%error, "the last sessions and tasks of the agent before may be lost");
                }
            }
        }
    }
}

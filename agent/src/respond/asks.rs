//! What a server asks of its caller within an answer, and what it gives to come back with.

use toolgate_core::mcp::{Id, Input};

use super::{Fault, McpExchange, unreadable};

/// What a server asks, or gives to come back with.
#[derive(Debug, Clone, Copy)]
pub enum Asking<'m> {
    /// A request on a stream.
    Request {
        /// The name of its method.
        method: &'m str,
        /// What the answer will name.
        id: &'m Id<'m>,
        /// The session that this reply opens.
        opened: Option<&'m str>,
    },
    /// A request within an answer or a notification: the name of its method.
    Within(&'m str),
    /// A state to go on with. Nothing is asked.
    State(&'m str),
}

impl McpExchange<'_> {
    /// Whether the caller may get what a message asks within it; each request of it is recorded.
    pub(super) fn admits(&self, input: &Input<'_>, what: &'static str) -> Result<(), Fault> {
        if input.is_none() {
            return Ok(());
        }
        let broken = |error| unreadable(what, &format!("{error}"));
        let methods = input.methods().map_err(broken)?;
        let refused: Vec<_> =
            methods.into_iter().filter(|method| !(self.may_ask)(Asking::Within(method))).collect();
        if let Some(method) = refused.into_iter().next() {
            return Err(Fault::Asks { method: method.into_owned() });
        }
        if let Some(state) = input.state().map_err(broken)? {
            // Before the caller has it, so that it does not come back too early.
            (self.may_ask)(Asking::State(&state));
        }
        Ok(())
    }
}

//! Tasks of servers: each belongs to the caller whose call made it, and only that caller is told of it.

use std::time::Instant;

use toolgate_core::decision::Use;
use toolgate_core::mcp::json::{Malformed, Value};
use toolgate_core::mcp::{Input, list, task};

use super::{Fault, McpExchange};
use crate::bindings::Kind;

impl McpExchange<'_> {
    /// Binds the task that a tool's answer may be to its caller.
    pub(super) fn bind_task(&self, reply: Value<'_>, input: &Input<'_>) -> Result<(), Fault> {
        if !input.names_task() {
            return Ok(()); // as nearly always
        }
        let Some(tool) = self.expected.tool() else { return Ok(()) };
        for id in task::given(reply) {
            if !self.bindings.bind_task(self.giving(), &id, tool) {
                return Err(Fault::Task);
            }
        }
        Ok(())
    }

    /// Whether a notification of the server's may go to the caller: not where it tells of another's task.
    pub(super) fn may_be_told(&self, method: &str, notification: Value<'_>) -> bool {
        task::told(method, notification).is_none_or(|id| self.is_own_task(&id))
    }

    /// Appends a list of tasks as the caller may see it.
    pub(super) fn show_tasks(&self, reply: Value<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
        list::filter_tasks(reply, |id| self.is_own_task(id), out).map(drop)
    }

    /// Counts one that is not.
    fn is_own_task(&self, id: &str) -> bool {
        let server = &self.server.identity;
        let found = self.bindings.used_by(Kind::Task, self.caller, server, id, Instant::now());
        let is_own = found.whose == Use::Own;
        if !is_own {
            self.others_tasks.set(self.others_tasks.get() + 1);
        }
        is_own
    }
}

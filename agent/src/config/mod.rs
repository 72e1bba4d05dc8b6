//! The configuration: `toolgate.yaml` and the resources, each read whole or not at all.
//!
//! - [`agent`](AgentConfig): the agent's own settings, read at start
//! - [`resources`](Resources): Workloads, Servers and Policies, read again on change
//! - [`explain`]: both in plain English, for `toolgate check`
//! - [`watch`]: tells when the resources changed
//!
//! Everything that is wrong is reported with file, line, column and the next step: see [`Diagnostic`].

mod agent;
mod callers;
mod certificates;
mod content;
mod diagnostic;
mod endpoint;
mod explain;
mod identity;
mod limits;
mod place;
mod policies;
mod resources;
mod schema;
mod selectors;
mod source;
mod tls;
pub mod watch;
mod words;

#[cfg(test)]
mod tests;

pub use self::agent::{
    AgentConfig, AgentLoss, Audit, Capture, Cgroup, Destinations, Existing, Listen, OnFailure, load_agent,
};
pub use self::diagnostic::{Diagnostic, Severity};
pub use self::explain::explain;
pub use self::identity::{IdentityConfig, IdentitySource, RootKey, credentials};
pub use self::resources::{LocalWorkload, Resources, load_resources};
pub use self::words::Destination;

/// The defaults as a file to start from.
pub const DEFAULT: &str = include_str!("../../../policies/default.yaml");

/// What runs without any configuration: only what `toolgate exec` starts is captured, and its MCP is denied.
/// [`DEFAULT`] says the same; a test holds the two together.
#[must_use]
pub fn embedded() -> (AgentConfig, Resources) {
    (AgentConfig::default(), Resources::default())
}

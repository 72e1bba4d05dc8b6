//! The harness of the privileged tests: a real kernel, a real agent, real connections.
//!
//! - `host`: one agent a host, so one test at a time
//! - `process`: a started process, its output line by line; ended when dropped
//! - `agent`: an agent on a configuration of the test's own
//! - `caller`: a captured process that connects where it is told and hands over the connection
//! - `cgroup`: a cgroup of a test's own
//! - `netns`: a network namespace of a test's own
//! - `held`: what an agent's process holds on to
//! - `http`: the client's end of such a connection, byte for byte
//! - `server`: an MCP server that tells the test what really reached it, and plays what the test says
//! - `peer`: a server whose every byte is the test's own
//! - `pinned`: the maps that the programs and the agent share, as the kernel holds them
//! - `pid_max`: how many process ids the host has
//! - `port_range`: the host's ephemeral ports
//! - `refusal`: what a refused call says on this kernel
//! - `dns`: a name server whose answers are the test's own
//! - `front`: TLS in front of a server
//! - `scene`: one server and an agent whose policy lets two callers use some of it
//! - `node`: a host of its own, as far as an agent sees one
//! - `sdk`: the official Python SDK, as server and as client
//! - `setting`: a setting of the kernel's, put back whatever becomes of the test
//! - `sniffer`: what goes over a device
//! - `stopped`: threads that stand still while the other ones of their process go on
//! - `vrf`: a VRF of a test's own
//! - `witness`: a server that tells who reached it, by every family and address
//! - `wait`: the one place that polls

mod agent;
mod caller;
mod cgroup;
mod dns;
mod front;
mod held;
pub mod host;
pub mod http;
pub mod netns;
mod node;
mod peer;
pub mod pid_max;
pub mod pinned;
pub mod port_range;
mod process;
mod refusal;
pub mod scene;
mod sdk;
pub mod server;
mod setting;
mod sniffer;
mod stopped;
mod vrf;
pub mod wait;
mod witness;

pub use agent::{Agent, Ended, Setup, free_address, get, toolgate};
pub use caller::{Caller, Connected, connector};
pub use cgroup::Cgroup;
pub use dns::Dns;
pub use front::{Authority, Front};
pub use held::Held;
pub use host::{Host, cgroup2};
pub use http::Connection;
pub use netns::Netns;
pub use node::Node;
pub use peer::Peer;
pub use pid_max::PidMax;
pub use port_range::PortRange;
pub use process::Process;
pub use refusal::{kernel, refusal};
pub use scene::Scene;
pub use sdk::{SdkClient, SdkServer, fixture, packages};
pub use server::{Request, Server};
pub use sniffer::Sniffer;
pub use stopped::Stopped;
pub use vrf::Vrf;
pub use witness::{Arrival, Witness};

/// How long anything may take that a test waits for. A test that waits this long has failed.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

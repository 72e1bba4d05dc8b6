//! Stage 1, capture: the kernel turns connections of captured processes to the agent, and says of
//! each who made it and where it was meant to go.
//!
//! [`Kernel`] holds the BPF programs for the life of the agent; each thread takes the records of
//! the connections that it accepts with a [`Taker`] of its own. The programs are in `ebpf/`.

mod abi;
mod agents;
mod bpf;
mod btf;
pub mod cgroup;
mod counters;
mod error;
mod host;
mod kernel;
mod log;
mod names;
mod namespaces;
mod pins;
mod plan;
mod preflight;
mod programs;
mod ring;
mod settings;
mod sweep;
mod taker;

pub use counters::Counter;
pub use error::CaptureError;
pub use kernel::Kernel;
pub use log::LogTask;
pub use namespaces::Cookie;
pub use pins::{Removed, detach};
pub use plan::{CapturedCgroup, Destination, Destinations, Plan, Scope};
pub use preflight::preflight;
pub use ring::{Seen, SeenReader};
pub use settings::{Loss, Settings};
pub use taker::{Captured, Executable, NoRecord, Recorded, Taker};

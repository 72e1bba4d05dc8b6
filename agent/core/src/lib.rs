//! Toolgate's pure part, in the order a request meets it.
//!
//! - [`identity`]: App IDs and namespaces; [`spiffe`]: SPIFFE IDs
//! - [`http1`]: the HTTP/1.1 codec: heads, framing, chunked bodies
//! - [`tls`]: whom a TLS client means
//! - [`lanes`]: several byte streams over one connection between two agents
//! - [`mcp`]: one strict JSON-RPC message, the method table, lists, server-sent events
//! - [`address`]: which addresses an external name may lead to
//! - [`workload`]: which workload a process is
//! - [`container`]: which container a cgroup is
//! - [`policy`]: rules and predicates, compiled
//! - [`pin`]: what a server offers, as it was approved
//! - [`decision`]: `decide` and the `Permitted` that only it can make
//! - [`denial`]: reasons and what a refused client is told
//!
//! No I/O, no clock, no async, no panics: what comes from the network is data.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)
)]

pub mod address;
pub mod container;
pub mod decision;
pub mod denial;
pub mod http1;
pub mod identity;
pub mod lanes;
pub mod mcp;
pub mod pin;
pub mod policy;
pub mod secret;
pub mod spiffe;
pub mod tls;
pub mod trace;
pub mod workload;

mod words;

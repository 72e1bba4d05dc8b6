//! Capture alone, without the agent around it: what the kernel turns where, and what it says of whom.
//!
//! - `redirect`: what is turned to the agent; `records`: whose record a connection has
//! - `refused`: what is refused, in a captured cgroup and to the agent's port
//! - `guard`: ports of servers that only the agent may connect to
//! - `namespaces`: other network namespaces
//! - `loss`: an agent that gives no sign of life, and bypasses
//! - `adopted`: what a killed agent leaves, and the next one takes over; `pinned`: what is where on the bpf file system
//!
//! All of them start a `rig`, ask `client`s to connect, and look into the kernel by `bpf`.

mod adopted;
mod bpf;
mod client;
mod guard;
mod loss;
mod namespaces;
mod pinned;
mod records;
mod redirect;
mod refused;
mod rig;

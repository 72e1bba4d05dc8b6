//! Capture alone, without the agent around it: what the kernel turns where, and what it says of whom.

mod client;
mod redirect;
mod rig;

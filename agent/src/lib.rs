//! The Toolgate agent, in the order a request meets it.
//!
//! - [`proxy`]: the request path, whole, in one file
//! - [`capture`]: BPF programs, and who connected where as the kernel recorded it
//! - [`identify`]: recorded process -> workload
//! - [`parse`]: bytes -> one strict request
//! - decide: `toolgate_core::decision`, pure
//! - [`forward`]: what was permitted goes to its server
//! - [`respond`]: the reply goes back, lists filtered
//! - [`record`]: one audit entry for each message, and the metrics
//!
//! Around it: [`app`] builds everything, [`config`] is what the operator writes, [`admin`] answers the operator,
//! [`listeners`] says whose local servers are, [`svid`] has the identities that this node can show and whom it believes, [`ca`]
//! issues them, [`inspect`] has the TLS that ends here, [`cli`] is the command line; [`bindings`], [`buffer`], [`body`],
//! [`deadline`], [`discovered`], [`endpoints`], [`events`], [`file`], [`given`], [`limits`], [`names`], [`netns`], [`pins`],
//! [`replicas`], [`room`], [`shares`] and [`views`] serve the stages; `workload_api` gives processes their own SVIDs, `ahead` is
//! a socket below TLS, `bounded` keeps room in tables of callers, `sockdiag` asks the kernel for
//! TCP sockets.

pub mod admin;
mod ahead;
pub mod app;
pub mod bindings;
pub mod body;
mod bounded;
pub mod buffer;
pub mod ca;
pub mod capture;
pub mod cli;
pub mod config;
pub mod deadline;
pub mod discovered;
pub mod endpoints;
pub mod events;
pub mod existing;
pub mod file;
pub mod forward;
pub mod given;
pub mod identify;
pub mod inspect;
pub mod io;
pub mod limits;
pub mod listeners;
pub mod names;
pub mod netns;
pub mod parse;
pub mod peer;
pub mod pins;
pub mod proxy;
pub mod record;
pub mod replicas;
pub mod respond;
pub mod room;
pub mod shares;
mod sockdiag;
pub mod svid;
pub mod views;
mod workload_api;

//! MCP as it is on the wire: strict JSON, one JSON-RPC message, its method, the headers that repeat it, lists,
//! server-sent events.
//!
//! What is accepted here means one thing to every reader, so the bytes may be forwarded as they are.

pub mod endpoint;
mod input;
pub mod json;
pub mod list;
mod message;
mod method;
mod mirror;
mod owed;
mod params;
mod revision;
mod shadow;
pub mod sse;
pub mod task;

pub use input::Input;
pub use json::{JsonLimits, Malformed, Scratch};
pub use message::{Call, Envelope, Id, Message, Response, parse, reply_envelope};
pub use method::{Class, ListKind, Lists, Method, ServerAsks};
pub use mirror::{HEADER_MISMATCH_CODE, HeaderMismatch, Mirrored, is_stateless, mirrors};
pub use owed::{NotOwed, Owed};
pub use params::{is_param, repeats};
pub use revision::Revision;
pub use shadow::{could_be_json_rpc, names_other_charset, says_json};

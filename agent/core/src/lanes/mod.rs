//! Lanes: several byte streams over one connection between two agents, as frames. Pure state of one end; who moves bytes
//! tells it what came, and writes what it says.
//!
//! A frame is a header of eight bytes (lane: 4, kind: 1, length of what follows: 3, all big endian) and its payload. The
//! connecting end opens lanes, numbered from 1 on without a gap. On each, each end may send a window of bytes more than the
//! other's reader has taken ([`REQUEST_WINDOW_BYTES`], [`REPLY_WINDOW_BYTES`]): a reader that is slow holds up its own lane
//! alone, and what waits for it is bounded. Whatever an end that keeps to this would not send breaks the whole connection.

mod frame;
mod table;

pub use self::frame::{DATA_BYTES_MAX, HEADER_BYTES, Kind};
pub use self::table::{Broken, End, Event, Lane, Step, Table};

/// Bytes that may be on the way from the connecting end on one lane: a small request.
pub const REQUEST_WINDOW_BYTES: usize = 16 * 1024;
/// The same from the accepting end: replies may be large.
pub const REPLY_WINDOW_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;

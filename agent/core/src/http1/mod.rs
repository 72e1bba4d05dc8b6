//! HTTP/1.1 (RFC 9112) without I/O: heads, framing and chunked bodies, borrowed from the read buffer.
//!
//! Stricter than the RFC wherever two readers could take the same bytes for different messages.

mod body;
mod error;
mod guess;
mod head;
mod headers;
mod invoked;
mod kept;
mod name;
mod own;
mod target;
mod write;

pub use body::{ChunkedDecoder, Decoded};
pub use error::HttpError;
pub use guess::{Guess, looks_like_http};
pub use head::{
    Framing, HeadLimits, RequestHead, ResponseHead, invoked_head, proxy_head, request_head, response_head,
};
pub use headers::{HEADERS_MAX, Header, Headers};
pub use invoked::{Addressed, App, Invoked, invoked};
pub use kept::KeptHead;
pub use name::Name;
pub use own::{OwnHeader, OwnHeaderError};
pub use target::{Authority, split as split_target};
pub use write::{
    CHUNK_END, Changes, LAST_CHUNK, Outgoing, write_chunk_head, write_request_head, write_response_head,
};

//! A request for a list, kept so that the same server can be asked for the next page in the caller's place.

use std::sync::Arc;

use toolgate_core::http1::{Addressed, KeptHead};
use toolgate_core::mcp::json::Value;
use toolgate_core::mcp::list::CursorPlace;
use toolgate_core::mcp::{Class, Message};

use super::{Asked, Request};
use crate::buffer::PARKED_BYTES;
use crate::shares::{Charge, Share};

/// A request that outlives the buffer that it was read to.
pub struct Again {
    /// Head and body.
    bytes: Box<[u8]>,
    head: KeptHead,
    head_bytes: usize,
    addressed: Option<Addressed>,
    place: CursorPlace,
    cursor: Option<Box<str>>,
    _charge: Charge,
}

impl Again {
    /// `None`: it asks for no list, or there is no memory to keep it.
    #[must_use]
    pub fn of(asked: &Asked<'_>, share: &Arc<Share>) -> Option<Arc<Self>> {
        let Some(Message::Request(call)) = asked.message() else { return None };
        let Class::List(_) = call.method.class() else { return None };
        let Request { head, body, addressed } = &asked.request;
        let bytes = [head.headers.head(), body].concat();
        let mut charge = Charge::new(Arc::clone(share));
        if bytes.len() > PARKED_BYTES {
            charge.at_least(bytes.len()).ok()?;
        }
        let cursor = call.params.and_then(|params| params.get("cursor")).and_then(Value::as_str);
        Some(Arc::new(Self {
            head_bytes: head.headers.head().len(),
            head: KeptHead::of(head),
            addressed: *addressed,
            place: CursorPlace::of(body, call),
            cursor: cursor.map(|cursor| cursor.into()),
            bytes: bytes.into(),
            _charge: charge,
        }))
    }

    /// The page that it asks for; `None`: the first.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// The body of the same request for the page at `cursor`, the text of a JSON string.
    #[must_use]
    pub fn body(&self, cursor: &str) -> Vec<u8> {
        self.place.put(self.bytes.get(self.head_bytes..).unwrap_or_default(), cursor)
    }

    /// The same request with another body.
    #[must_use]
    pub fn request<'b>(&'b self, body: &'b [u8]) -> Option<Request<'b>> {
        Some(Request { head: self.head.on(&self.bytes)?, body, addressed: self.addressed })
    }
}

//! The pages of a list that one request of a caller's leads to: where one would show it nothing, and says that there is
//! another, that one is asked for in its place.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::Instant;

use toolgate_core::mcp::json::Value;

use super::Fault;
use crate::limits::{Limit, Limits};

/// Those that were asked for so far.
pub struct Pages {
    asked: Cell<usize>,
    bytes: Cell<usize>,
    /// Digests of their cursors: a server chooses neither how much memory one takes nor where it lies.
    cursors: RefCell<HashSet<[u8; 32]>>,
    started: Cell<Option<Instant>>,
}

/// Where a list goes on of which there is nothing to show so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The cursor, as the text of a JSON string.
    pub cursor: Box<str>,
}

impl Pages {
    /// None but the one that the caller asks for: at this cursor, if it is not the first.
    #[must_use]
    pub fn new(own: Option<&str>) -> Self {
        let cursors = own.map(digest).into_iter().collect();
        Self {
            asked: Cell::new(0),
            bytes: Cell::new(0),
            cursors: RefCell::new(cursors),
            started: Cell::default(),
        }
    }

    /// How many were asked for in the caller's place.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked.get()
    }

    /// Whether the next page is to be asked for instead of showing one that holds nothing. `None`: that is shown, with its
    /// cursor, since it has taken long enough.
    pub(super) fn next(
        &self,
        cursor: Value<'_>,
        bytes: usize,
        limits: &Limits,
    ) -> Result<Option<Next>, Fault> {
        let text = cursor.as_str().unwrap_or_default();
        if !self.cursors.borrow_mut().insert(digest(&text)) {
            return Err(Fault::Circle);
        }
        if text.is_empty() {
            return Ok(None); // to some clients that is the end
        }
        let (started, now) = (self.started.get(), Instant::now());
        self.started.set(started.or(Some(now)));
        if started.is_some_and(|started| now.duration_since(started) >= limits.list_pages_time_max) {
            return Ok(None);
        }
        self.bytes.set(self.bytes.get() + bytes);
        if self.bytes.get() > limits.list_bytes_max {
            let bytes_max = limits.list_bytes_max;
            return Err(Fault::TooLarge { what: "list", bytes_max, limit: Limit::ListBytes });
        }
        if self.asked.get() >= limits.list_pages_max {
            return Err(Fault::Endless { pages_max: limits.list_pages_max });
        }
        self.asked.set(self.asked.get() + 1);
        Ok(Some(Next { cursor: cursor.text().into() }))
    }
}

fn digest(cursor: &str) -> [u8; 32] {
    blake3::hash(cursor.as_bytes()).into()
}

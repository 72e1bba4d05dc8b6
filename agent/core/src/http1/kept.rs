//! A head between two looks at it: where its parts are, not its bytes. What was read once need not be read again.

use super::head::{Framing, RequestHead};
use super::headers::{Headers, Part, Places};

/// Of a [`RequestHead`], all but the bytes that it borrows.
#[derive(Debug, Clone)]
pub struct KeptHead {
    method: Part,
    target: Part,
    path: Part,
    query: Option<Part>,
    places: Places,
    framing: Framing,
    keep_alive: bool,
    expect_continue: bool,
    bytes: usize,
}

impl KeptHead {
    /// Remembers a head.
    #[must_use]
    pub fn of(head: &RequestHead<'_>) -> Self {
        let part = |text: &str| head.headers.find(text.as_bytes());
        Self {
            method: part(head.method),
            target: part(head.target),
            path: part(head.path),
            query: head.query.map(part),
            places: head.headers.places(),
            framing: head.framing,
            keep_alive: head.keep_alive,
            expect_continue: head.expect_continue,
            bytes: head.bytes,
        }
    }

    /// The same head, of the same bytes at another place. `None`: they are not the same.
    #[must_use]
    pub fn on<'b>(&self, bytes: &'b [u8]) -> Option<RequestHead<'b>> {
        let headers = Headers::at(bytes.get(..self.bytes)?, &self.places);
        // All of them are in the request line: one look tells that it is text.
        let line = std::str::from_utf8(headers.part((0, self.target.0 + self.target.1))).ok()?;
        let text = |(start, length): Part| line.get(start.into()..usize::from(start) + usize::from(length));
        Some(RequestHead {
            method: text(self.method)?,
            target: text(self.target)?,
            path: text(self.path)?,
            query: self.query.map(text).map_or(Some(None), |text| text.map(Some))?,
            framing: self.framing,
            keep_alive: self.keep_alive,
            expect_continue: self.expect_continue,
            bytes: self.bytes,
            headers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HeadLimits, request_head};
    use super::*;

    #[test]
    fn a_kept_head_is_the_head() {
        for text in [
            "POST /mcp?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-Long:  with space \r\n\r\nabc",
            "GET / HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n",
        ] {
            let head = request_head(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap();
            let kept = KeptHead::of(&head);
            let moved = text.to_owned();
            let again = kept.on(moved.as_bytes()).unwrap();
            assert_eq!(format!("{again:?}"), format!("{head:?}"));
            assert!(kept.on(&text.as_bytes()[..10]).is_none());
        }
    }
}

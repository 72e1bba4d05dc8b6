//! W3C Trace Context: which trace a request is a part of.

use std::fmt;

use crate::http1::{Headers, Name};

/// Bytes of a `traceparent` of version 00; later versions begin with the same.
const BYTES: usize = 55;

/// A trace's id; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl TraceId {
    /// Of a number; 0 becomes 1.
    #[must_use]
    pub fn new(number: u128) -> Self {
        Self(number.max(1))
    }

    /// What a request says; `None`: nothing, or nothing valid, which is to be replaced (W3C Trace Context, 3.2 and 4.3).
    #[must_use]
    pub fn of(headers: &Headers<'_>) -> Option<Self> {
        if headers.count(Name::Traceparent) != 1 {
            return None; // as nearly always
        }
        read(headers.get(Name::Traceparent)?)
    }

    /// As it is sent.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The header of a request that is a part of this trace; `part` names it within. It says nothing of sampling.
    #[must_use]
    pub fn header(self, part: u64) -> String {
        format!("traceparent: 00-{self}-{:016x}-00\r\n", part.max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn read(value: &[u8]) -> Option<TraceId> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.get(..BYTES)?.split('-');
    let [version, trace, parent, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let is_hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let ends = match (version, text.as_bytes().get(BYTES)) {
        ("ff", _) => false,
        (_, None) => true,
        ("00", Some(_)) => false,
        (_, Some(next)) => *next == b'-',
    };
    let whole =
        [(version, 2), (trace, 32), (parent, 16), (flags, 2)].iter().all(|(part, n)| is_hex(part, *n));
    if !ends || !whole || parent.bytes().all(|digit| digit == b'0') {
        return None;
    }
    u128::from_str_radix(trace, 16).ok().filter(|number| *number != 0).map(TraceId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_say() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (value, is_read) in [
            (format!("00-{trace}-b7ad6b7169203331-01"), true),
            (format!("00-{trace}-b7ad6b7169203331-00"), true),
            (format!("cc-{trace}-b7ad6b7169203331-01-more"), true),
            (format!("cc-{trace}-b7ad6b7169203331-01.more"), false),
            (format!("00-{trace}-b7ad6b7169203331-01-more"), false),
            (format!("ff-{trace}-b7ad6b7169203331-01"), false),
            (format!("00-{trace}-0000000000000000-01"), false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned(), false),
            (format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()), false),
            (format!("00-{trace}-b7ad6b7169203331"), false),
            (format!("0-{trace}0-b7ad6b7169203331-01"), false),
            (String::new(), false),
        ] {
            let read = read(value.as_bytes()).map(|id| id.to_string());
            assert_eq!(read.as_deref(), is_read.then_some(trace), "{value}");
        }
    }

    #[test]
    fn what_is_sent_is_read() {
        for (id, part) in [(TraceId::new(0), 0), (TraceId::new(u128::MAX), u64::MAX), (TraceId::new(7), 9)] {
            let header = id.header(part);
            let value = header.trim_end().strip_prefix("traceparent: ").unwrap();
            assert_eq!(read(value.as_bytes()), Some(id));
        }
    }
}

//! Server-sent events (WHATWG HTML, 9.2.6): complete events in a growing buffer, and the data of one.

use std::borrow::Cow;

/// A stream that is no event stream, or an event that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// The event's limit.
    #[error("an event is larger than {event_bytes_max} bytes; raise the limit or have the server send less")]
    TooLarge {
        /// The limit in force.
        event_bytes_max: usize,
    },
    /// A byte order mark before the first event.
    #[error("the event stream begins with a byte order mark; the server must send it without one")]
    ByteOrderMark,
}

/// A complete event at the front of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSpan {
    /// Its bytes, with the blank line that ends it.
    pub bytes: usize,
}

/// Finds complete events at the front of a buffer that grows, and never looks at a byte twice.
///
/// After an event the caller takes its bytes off the front before the next call. A blank line that ends in CR is
/// not kept waiting for the LF that may follow: that LF then begins the next event, where it means nothing.
#[derive(Debug, Clone)]
pub struct Splitter {
    event_bytes_max: usize,
    /// How far the buffer was looked through.
    scanned: usize,
    /// Nothing but line ends since the last one.
    line_is_empty: bool,
    /// The last byte looked at was a CR: an LF now belongs to it.
    after_cr: bool,
    first: bool,
}

impl Splitter {
    /// At the start of a stream.
    #[must_use]
    pub fn new(event_bytes_max: usize) -> Self {
        Self { event_bytes_max, scanned: 0, line_is_empty: true, after_cr: false, first: true }
    }

    /// The event at the front of `buf`, if it is complete.
    ///
    /// # Errors
    /// [`SseError`]; the stream cannot be read on.
    pub fn next(&mut self, buf: &[u8]) -> Result<Option<EventSpan>, SseError> {
        if self.first && buf.starts_with(b"\xef\xbb\xbf") {
            return Err(SseError::ByteOrderMark);
        }
        let end = self.scan(buf);
        let bytes = end.unwrap_or(buf.len());
        if bytes > self.event_bytes_max {
            return Err(SseError::TooLarge { event_bytes_max: self.event_bytes_max });
        }
        self.scanned = if end.is_some() { 0 } else { bytes };
        self.first &= end.is_none();
        Ok(end.map(|bytes| EventSpan { bytes }))
    }

    fn scan(&mut self, buf: &[u8]) -> Option<usize> {
        let mut at = self.scanned;
        while let Some(&byte) = buf.get(at) {
            if byte == b'\n' && self.after_cr {
                self.after_cr = false;
                at += 1;
                continue;
            }
            if byte != b'\n' && byte != b'\r' {
                self.line_is_empty = false;
                self.after_cr = false;
                let rest = buf.get(at..).unwrap_or_default();
                at += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                continue;
            }
            at += 1;
            self.after_cr = byte == b'\r';
            if self.line_is_empty {
                if self.after_cr && buf.get(at) == Some(&b'\n') {
                    at += 1;
                    self.after_cr = false;
                }
                return Some(at);
            }
            self.line_is_empty = true;
        }
        None
    }
}

/// The event's data: its `data` lines joined by LF. None where it has no such line.
#[must_use]
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut lines = lines(event).filter_map(|line| data_of(line.text));
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    let mut joined = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.push(b'\n');
        joined.extend_from_slice(line);
    }
    Some(Cow::Owned(joined))
}

/// The id that the event gives to its reader, which resumes by it: of several the last. None where it gives none, an empty
/// one, or one that no reader takes.
#[must_use]
pub fn id(event: &[u8]) -> Option<&[u8]> {
    let id = lines(event).filter_map(|line| field(line.text, b"id")).filter(|id| !id.contains(&0)).last()?;
    (!id.is_empty()).then_some(id)
}

/// The event's type: of several the last; empty where it has none, which readers take for `message`.
#[must_use]
pub fn kind(event: &[u8]) -> &[u8] {
    lines(event).filter_map(|line| field(line.text, b"event")).last().unwrap_or_default()
}

/// Appends the event with `new_data` in place of its data; all other lines stay. An event without data gets none.
pub fn with_data(event: &[u8], new_data: &[u8], out: &mut Vec<u8>) {
    let mut written = false;
    for line in lines(event) {
        if data_of(line.text).is_none() {
            out.extend_from_slice(line.text);
            out.extend_from_slice(line.end);
            continue;
        }
        if written {
            continue;
        }
        written = true;
        // The last line's end may be missing only in what is no complete event.
        let end = if line.end.is_empty() { b"\n".as_slice() } else { line.end };
        for piece in pieces(new_data) {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(piece);
            out.extend_from_slice(end);
        }
    }
}

struct Line<'b> {
    text: &'b [u8],
    /// CR, LF, both, or nothing at the end of the bytes.
    end: &'b [u8],
}

fn split_line(bytes: &[u8]) -> (Line<'_>, &[u8]) {
    let at = memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
    let (text, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
    let length = if rest.starts_with(b"\r\n") { 2 } else { rest.len().min(1) };
    let (end, rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    (Line { text, end }, rest)
}

fn lines(event: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut rest = event;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = split_line(rest);
        rest = after;
        Some(line)
    })
}

/// The pieces of data between its line ends, the last one also where it is empty.
fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let (line, after) = split_line(rest?);
        rest = (!line.end.is_empty()).then_some(after);
        Some(line.text)
    })
}

/// The value of a `data` line.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    field(line, b"data")
}

/// The value of a line that has this name, without the one space that may precede it.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let value = line.strip_prefix(name)?;
    if value.is_empty() {
        return Some(value);
    }
    let value = value.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

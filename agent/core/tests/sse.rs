//! Server-sent events, fed in pieces of any size.

use toolgate_core::mcp::sse::{Splitter, SseError, data, id, kind, with_data};

/// Data of each event that has some, and the bytes that are no complete event yet.
fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Vec<u8>) {
    let mut splitter = Splitter::new(1000);
    let (mut found, mut buffer, mut all, mut forwarded) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        all.extend_from_slice(piece);
        buffer.extend_from_slice(piece);
        while let Some(span) = splitter.next(&buffer).expect("within limits") {
            assert!(span.bytes > 0 && span.bytes <= buffer.len());
            let event: Vec<u8> = buffer.drain(..span.bytes).collect();
            found.extend(data(&event).map(|data| String::from_utf8_lossy(&data).into_owned()));
            forwarded.extend_from_slice(&event);
        }
    }
    assert_eq!([forwarded, buffer.clone()].concat(), all, "no byte is lost");
    (found, buffer)
}

fn check(stream: &str, expected: &[&str], left: &str) {
    for stream in [stream.to_owned(), stream.replace('\n', "\r\n"), stream.replace('\n', "\r")] {
        let left = left.replace(
            '\n',
            if stream.contains("\r\n") {
                "\r\n"
            } else if stream.contains('\r') {
                "\r"
            } else {
                "\n"
            },
        );
        let bytes = stream.as_bytes();
        let check = |(found, rest): (Vec<String>, Vec<u8>), how: &str| {
            assert_eq!(found, expected, "{stream:?} {how}");
            // A late LF of the event before may lead.
            let rest = String::from_utf8_lossy(&rest).into_owned();
            assert_eq!(rest.strip_prefix('\n').unwrap_or(&rest), left, "{stream:?} {how}");
        };
        check(events([bytes]), "whole");
        for cut in 0..=bytes.len() {
            check(events([&bytes[..cut], &bytes[cut..]]), &format!("split at {cut}"));
        }
        check(events(bytes.chunks(1)), "byte by byte");
    }
}

#[test]
fn streams() {
    check("", &[], "");
    check("data: a\n\n", &["a"], "");
    check("data: a\n\ndata: b\n\n", &["a", "b"], "");
    check("data: a\n", &[], "data: a\n");
    check("data: a", &[], "data: a");
    check("data: a\n\ndata: b", &["a"], "data: b");
    check("event: message\nid: 7\ndata: {\"a\":1}\nretry: 5\n\n", &["{\"a\":1}"], "");
    check(": ping\n\ndata: a\n\n", &["a"], "");
    check("data: a\ndata: b\n\n", &["a\nb"], "");
    check("data:a\ndata\ndata:  b\n\n", &["a\n\n b"], "");
    check("data\n\n", &[""], "");
    check("data:\n\n", &[""], "");
    check("id: 1\ndata:\n\nid: 2\n\n", &[""], "");
    check("\n\n\ndata: a\n\n\n\ndata: b\n\n", &["a", "b"], "");
    check("dataset: x\nDATA: y\n data: z\ndata : w\n\n", &[], "");
}

#[test]
fn mixed_line_ends() {
    for (stream, expected) in [
        ("data: a\r\n\ndata: b\n\r\n", ["a", "b"]),
        ("data: a\n\rdata: b\r\r", ["a", "b"]),
        ("data: a\r\r\ndata: b\r\n\r", ["a", "b"]),
        ("data: a\r\n\r\n\n\r\r\n data\ndata: b\r\n\r\n", ["a", "b"]),
    ] {
        for cut in 0..=stream.len() {
            let (found, left) = events([&stream.as_bytes()[..cut], &stream.as_bytes()[cut..]]);
            assert_eq!(
                (found.as_slice(), left.is_empty() || left == b"\n"),
                (expected.map(str::to_owned).as_slice(), true),
                "{stream:?} at {cut}"
            );
        }
    }
}

#[test]
fn limits() {
    let error = Err(SseError::TooLarge { event_bytes_max: 10 });
    assert_eq!(Splitter::new(10).next(b"data: ab\n\n").map(|span| span.map(|span| span.bytes)), Ok(Some(10)));
    assert_eq!(Splitter::new(10).next(b"data: abc\n\n"), error);
    assert_eq!(Splitter::new(10).next(b"data: abcde"), error);
    assert_eq!(Splitter::new(10).next(b"\xef\xbb\xbfd"), Err(SseError::ByteOrderMark));
    let mut splitter = Splitter::new(100);
    let bom_later = b"data: a\n\n\xef\xbb\xbfdata: b\n\n";
    assert!(splitter.next(bom_later).is_ok_and(|span| span.is_some_and(|span| span.bytes == 9)));
    assert_eq!(data(&bom_later[9..]), None);
    assert!(splitter.next(&bom_later[9..]).is_ok_and(|span| span.is_some()));
}

/// A large event in small pieces: looking at it from its start each time would take minutes.
#[test]
fn a_growing_event_is_scanned_once() {
    let mut splitter = Splitter::new(usize::MAX);
    let mut buffer = vec![b'a'; 4 << 20];
    for end in (1..buffer.len()).step_by(16) {
        assert_eq!(splitter.next(&buffer[..end]), Ok(None));
    }
    buffer.extend_from_slice(b"\n\n");
    assert!(splitter.next(&buffer).is_ok_and(|span| span.is_some_and(|span| span.bytes == buffer.len())));
}

#[test]
fn replaced_data() {
    fn check(event: &str, new: &str, expected: &str) {
        let mut out = b"before".to_vec();
        with_data(event.as_bytes(), new.as_bytes(), &mut out);
        assert_eq!(String::from_utf8_lossy(&out[6..]), expected, "{event:?}");
    }
    check("data: a\n\n", "b", "data: b\n\n");
    check("id: 1\r\ndata:a\r\nevent: message\r\n\r\n", "b", "id: 1\r\ndata: b\r\nevent: message\r\n\r\n");
    check("data: a\n: c\ndata: b\nid: 1\n\n", "x", "data: x\n: c\nid: 1\n\n");
    check("data: a\rid: 1\r\r", "x\ny", "data: x\rdata: y\rid: 1\r\r");
    check("data: a\n\n", "x\r\ny\rz", "data: x\ndata: y\ndata: z\n\n");
    check("data: a\n\n", "", "data: \n\n");
    check("data: a\n\n", "x\n", "data: x\ndata: \n\n");
    check("\ndata: a\n\n", "b", "\ndata: b\n\n");
    check(": ping\n\n", "b", ": ping\n\n");
    check("data: a\n\n", "b\n\ndata: evil", "data: b\ndata: \ndata: data: evil\n\n");
}

#[test]
fn ids_of_events() {
    fn check(event: &str, expected: Option<&str>) {
        assert_eq!(id(event.as_bytes()).map(String::from_utf8_lossy).as_deref(), expected, "{event:?}");
    }
    check("id: 1\ndata: a\n\n", Some("1"));
    check("data: a\r\nid:1\r\n\r\n", Some("1"));
    check("id:  1 \nretry: 10\ndata\n\n", Some(" 1 "));
    check("id: 1\nid: 2\n\n", Some("2"));
    check("id: 1\nid: 2\0\n\n", Some("1"));
    check("id: 1\nid\n\n", None);
    check("id: \n\n", None);
    check("Id: 1\nidx: 2\n: id: 3\ndata: id: 4\n\n", None);
}

#[test]
fn the_type_of_an_event_is_what_its_last_line_says() {
    for (event, expected) in [
        ("data: a\n\n", ""),
        ("event: message\ndata: a\n\n", "message"),
        ("event:endpoint\r\ndata: a\r\n\r\n", "endpoint"),
        ("event: message\nevent: endpoint\n\n", "endpoint"),
        ("event: endpoint\nevent\ndata: a\n\n", ""),
        ("event:  endpoint\n\n", " endpoint"),
        ("Event: endpoint\neventual: endpoint\n: event: endpoint\n\n", ""),
    ] {
        assert_eq!(String::from_utf8_lossy(kind(event.as_bytes())), expected, "{event:?}");
    }
}

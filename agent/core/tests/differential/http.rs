//! What the codec accepts, hyper reads as the same messages; what the codec writes, it reads with the same framing.

use super::hyper_reads::{Seen, replies, requests, sorted};
use toolgate_core::http1::{
    CHUNK_END, Changes, ChunkedDecoder, Framing, HeadLimits, HttpError, LAST_CHUNK, Outgoing, RequestHead,
    request_head, response_head, write_chunk_head, write_request_head, write_response_head,
};

/// Stands behind every message: where hyper finds it, the message has ended for hyper.
const NEXT_REQUEST: &[u8] = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";
const NEXT_REPLY: &[u8] = b"HTTP/1.1 299 Next\r\nContent-Length: 4\r\n\r\nnext";

/// The name of an error's variant.
fn name(error: &HttpError) -> String {
    format!("{error:?}").split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// A body that was read to its end: its data, and how many bytes it took.
type Body = Result<Option<(Vec<u8>, usize)>, HttpError>;

fn body(framing: Framing, bytes: &[u8], step: usize) -> Body {
    match framing {
        Framing::None => Ok(Some((Vec::new(), 0))),
        Framing::UntilClose => Ok(Some((bytes.to_vec(), bytes.len()))),
        Framing::Length(length) => {
            let whole = usize::try_from(length).ok().and_then(|length| bytes.get(..length));
            Ok(whole.map(|whole| (whole.to_vec(), whole.len())))
        }
        Framing::Chunked => chunked(bytes, step),
    }
}

fn chunked(bytes: &[u8], step: usize) -> Body {
    let (mut decoder, mut data, mut at) = (ChunkedDecoder::new(), Vec::new(), 0);
    for piece in bytes.chunks(step.max(1)) {
        let mut left = piece;
        while !left.is_empty() && !decoder.is_done() {
            let decoded = decoder.decode(left)?;
            assert!(decoded.consumed > 0, "no progress");
            data.extend_from_slice(decoded.data);
            at += decoded.consumed;
            left = &left[decoded.consumed..];
        }
    }
    Ok(decoder.is_done().then_some((data, at)))
}

/// One request at the front of `bytes`, which arrive `step` at a time: the class that it falls into.
///
/// # Panics
/// Where hyper reads another request, or the pieces make a difference.
pub(crate) fn request(bytes: &[u8], step: usize) -> String {
    let limits = HeadLimits::default();
    let shown = || bytes.escape_ascii().to_string();
    let found = request_head(bytes, &limits);
    pieces(bytes, step, &found.as_ref().map(|head| head.as_ref().map(|head| head.bytes)));
    let head = match found {
        Ok(Some(head)) => head,
        Ok(None) => return "head not whole".to_owned(),
        Err(error) => return format!("refused: {}", name(&error)),
    };
    let rest = &bytes[head.bytes..];
    let whole = body(head.framing, rest, usize::MAX);
    assert_eq!(body(head.framing, rest, step), whole, "in pieces of {step}: {}", shown());
    written_is_read(&head, &shown());
    let (data, end) = match whole {
        Ok(Some((data, bytes))) => (Some(data), head.bytes + bytes),
        Ok(None) => (None, bytes.len()),
        Err(error) => return format!("refused: {}", name(&error)),
    };
    let is_whole = data.is_some();
    let expected = Seen {
        start: head.method.to_owned(),
        target: head.target.to_owned(),
        headers: sorted(head.headers.iter().map(|header| (header.name, header.value))),
        body: data,
    };
    let mut said = bytes[..end].to_vec();
    if is_whole {
        said.extend_from_slice(NEXT_REQUEST);
    }
    let mut seen = requests(&said, step).into_iter();
    assert_eq!(seen.next(), Some(expected), "hyper reads another request: {}", shown());
    let next = seen.next().map(|next| next.target);
    let expected = (is_whole && head.keep_alive).then(|| "/next".to_owned());
    assert_eq!(next, expected, "hyper finds another end: {}", shown());
    if is_whole { "accepted".to_owned() } else { "accepted, body not whole".to_owned() }
}

/// A part of a head is no head, and is not refused for another reason than the whole.
fn pieces(bytes: &[u8], step: usize, whole: &Result<Option<usize>, &HttpError>) {
    let limits = HeadLimits::default();
    for cut in (0..bytes.len()).step_by(step.max(bytes.len() / 16).max(1)) {
        let part = request_head(&bytes[..cut], &limits).map(|head| head.map(|head| head.bytes));
        let shown = || format!("{} bytes of {}", cut, bytes.escape_ascii());
        match (&part, whole) {
            (Ok(None), Ok(Some(end))) => assert!(cut < *end, "{}", shown()),
            (Ok(None), Ok(None) | Err(_)) => {}
            (Ok(Some(_)), whole) => assert_eq!(part.as_ref().ok(), whole.as_ref().ok(), "{}", shown()),
            (Err(error), whole) => assert_eq!(whole.as_ref().err(), Some(&error), "{}", shown()),
        }
    }
}

/// What is written of a head is read as that head, and writing that again changes nothing.
fn written_is_read(head: &RequestHead<'_>, shown: &str) {
    let limits = HeadLimits::default();
    for (outgoing, framing) in [
        (Outgoing::None, Framing::None),
        (Outgoing::Length(7), Framing::Length(7)),
        (Outgoing::Chunked, Framing::Chunked),
    ] {
        let mut out = Vec::new();
        write_request_head(&mut out, head, outgoing, Changes::default());
        let read = request_head(&out, &limits).ok().flatten();
        let read = read.unwrap_or_else(|| panic!("written, but no head: {}", out.escape_ascii()));
        assert_eq!((read.method, read.target, read.framing), (head.method, head.target, framing), "{shown}");
        assert_eq!(read.bytes, out.len(), "{shown}");
        for written in read.headers.iter() {
            let framing = ["content-length", "transfer-encoding"];
            let is_framing = framing.iter().any(|name| written.name.eq_ignore_ascii_case(name));
            assert!(is_framing || head.headers.iter().any(|header| header == written), "{shown}");
        }
        let mut again = Vec::new();
        write_request_head(&mut again, &read, outgoing, Changes::default());
        assert_eq!(again.escape_ascii().to_string(), out.escape_ascii().to_string(), "{shown}");
    }
}

/// One reply to a request of that method at the front of `bytes`: what is read of it, and what is written of it, is to
/// hyper one message.
///
/// # Panics
/// Where hyper reads another reply.
pub(crate) fn reply(method: &str, bytes: &[u8]) -> String {
    let shown = || format!("to {method}: {}", bytes.escape_ascii());
    let head = match response_head(bytes, method, &HeadLimits::default()) {
        Ok(Some(head)) => head,
        Ok(None) => return "head not whole".to_owned(),
        Err(error) => return format!("refused: {}", name(&error)),
    };
    if head.status < 200 {
        return "interim".to_owned();
    }
    let (data, end) = match body(head.framing, &bytes[head.bytes..], usize::MAX) {
        Ok(Some((data, bytes))) => (data, head.bytes + bytes),
        Ok(None) => return "accepted, body not whole".to_owned(),
        Err(error) => return format!("refused: {}", name(&error)),
    };
    let start = head.status.to_string();
    let until_close = head.framing == Framing::UntilClose;
    let (only, both) = ([&bytes[..end]], [&bytes[..end], NEXT_REPLY]);
    let read = replies(&[method, "GET"], if until_close { &only } else { &both }, until_close);
    let first = read.first().map(|seen| (seen.start.clone(), seen.body.clone()));
    assert_eq!(first, Some((start.clone(), Some(data.clone()))), "hyper reads another reply {}", shown());
    // hyper also keeps connections of HTTP/1.0.
    assert!(ends(&read) || !head.keep_alive, "hyper finds another end {}", shown());

    let outgoing = match head.framing {
        Framing::None => Outgoing::None,
        Framing::Length(length) => Outgoing::Length(length),
        Framing::Chunked | Framing::UntilClose => Outgoing::Chunked,
    };
    for close in [false, true] {
        let mut out = Vec::new();
        write_response_head(&mut out, &head, outgoing, close);
        let written = out.len();
        match (outgoing, data.len()) {
            (Outgoing::Chunked, 0) => out.extend_from_slice(LAST_CHUNK),
            (Outgoing::Chunked, bytes) => {
                write_chunk_head(&mut out, bytes);
                for part in [&data[..], CHUNK_END, LAST_CHUNK] {
                    out.extend_from_slice(part);
                }
            }
            (Outgoing::Length(_) | Outgoing::None, _) => out.extend_from_slice(&data),
        }
        let ours = response_head(&out[..written], method, &HeadLimits::default());
        let ours = ours.ok().flatten().map(|read| (read.status, read.bytes, read.keep_alive));
        assert_eq!(ours, Some((head.status, written, !close)), "{}", shown());
        let read = replies(&[method, "GET"], &[&out, NEXT_REPLY], false);
        let first = read.first().map(|seen| (seen.start.clone(), seen.body.clone()));
        let expected = Some((start.clone(), Some(data.clone())));
        assert_eq!(first, expected, "hyper reads another reply, written {}", shown());
        assert_eq!(ends(&read), !close, "hyper finds another end, written {}", shown());
    }
    "accepted".to_owned()
}

/// Whether the next reply was found behind the first.
fn ends(read: &[Seen]) -> bool {
    read.get(1).is_some_and(|next| next.start == "299" && next.body.as_deref() == Some(b"next"))
}

//! Chunked bodies in pieces of any size, and what leaves the agent.

use toolgate_core::http1::{
    CHUNK_END, Changes, ChunkedDecoder, HeadLimits, HttpError, LAST_CHUNK, Outgoing, OwnHeader, request_head,
    response_head, write_chunk_head, write_request_head, write_response_head,
};

/// The data and what is left behind the body, or the error; None where the body goes on.
type Outcome = Result<Option<(Vec<u8>, Vec<u8>)>, HttpError>;

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = ChunkedDecoder::new();
    let (mut data, mut left) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut piece = piece;
        while !piece.is_empty() && !decoder.is_done() {
            let decoded = decoder.decode(piece)?;
            assert!(decoded.consumed > 0, "no progress");
            assert_eq!(decoded.done, decoder.is_done());
            data.extend_from_slice(decoded.data);
            piece = &piece[decoded.consumed..];
        }
        left.extend_from_slice(piece);
    }
    Ok(decoder.is_done().then_some((data, left)))
}

fn check(body: &[u8], expected: Result<Option<(&str, &str)>, &str>) {
    let shown = body.escape_ascii();
    let whole = decode([body]);
    let found = match &whole {
        Ok(Some((data, left))) => {
            Ok(Some((data.escape_ascii().to_string(), left.escape_ascii().to_string())))
        }
        Ok(None) => Ok(None),
        Err(HttpError::Chunk { problem }) => Err((*problem).to_owned()),
        Err(other) => Err(format!("{other:?}")),
    };
    let expected = expected.map(|found| found.map(|(data, left)| (data.to_owned(), left.to_owned())));
    match (&found, &expected) {
        (Err(found), Err(part)) => assert!(found.contains(part), "{shown}: {found}"),
        (found, expected) => assert_eq!(*found, expected.clone().map_err(str::to_owned), "{shown}"),
    }
    for cut in 0..=body.len() {
        assert_eq!(decode([&body[..cut], &body[cut..]]), whole, "{shown}: split at {cut}");
    }
    assert_eq!(decode(body.chunks(1)), whole, "{shown}: byte by byte");
}

#[test]
fn chunked() {
    check(b"", Ok(None));
    check(b"0\r\n\r\n", Ok(Some(("", ""))));
    check(b"5\r\nhello\r\n0\r\n\r\n", Ok(Some(("hello", ""))));
    check(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\nGET /", Ok(Some(("hello!", "GET /"))));
    check(b"A\r\n0123456789\r\n00\r\n\r\n", Ok(Some(("0123456789", ""))));
    check(b"00000000000000a\r\n0123456789\r\n0\r\n\r\n", Ok(Some(("0123456789", ""))));
    check(b"2\r\n\r\n\r\n0\r\n\r\n", Ok(Some(("\\r\\n", ""))));
    check(b"5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", Ok(Some(("hello", ""))));
    check(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\nrest", Ok(Some(("hello", "rest"))));
    check(b"5\r\nhell", Ok(None));
    check(b"5\r\nhello\r\n", Ok(None));
    check(b"5\r\nhello\r\n0\r\n", Ok(None));
    check(b"\r\n", Err("no hexadecimal"));
    check(b"5\nhello\r\n", Err("no hexadecimal"));
    check(b"-5\r\nhello\r\n", Err("no hexadecimal"));
    check(b"+5\r\nhello\r\n", Err("no hexadecimal"));
    check(b"0x5\r\nhello\r\n", Err("no hexadecimal"));
    check(b" 5\r\nhello\r\n", Err("no hexadecimal"));
    check(b"5 \r\nhello\r\n", Err("no hexadecimal"));
    check(b";a\r\n", Err("no hexadecimal"));
    check(b"5_0\r\n", Err("no hexadecimal"));
    check(b"0000000000000005\r\nhello\r\n", Err("too many digits"));
    check(b"fffffffffffffffff\r\n", Err("too many digits"));
    check(b"5\rhello", Err("CR without LF"));
    check(b"5;a\nhello\r\n", Err("control character"));
    check(b"5;a\0\r\nhello\r\n", Err("control character"));
    check(b"5;a\rb\r\nhello\r\n", Err("CR without LF"));
    check(b"5\r\nhello!\r\n", Err("longer than its size"));
    check(b"5\r\nhello\n0\r\n\r\n", Err("longer than its size"));
    check(b"5\r\nhello\r0\r\n\r\n", Err("longer than its size"));
    check(b"0\r\n\n", Err("no header"));
    check(b"0\r\n\rX", Err("CR without LF"));
    check(b"0\r\nX: y\n\r\n", Err("control character in a trailer"));
    check(b"0\r\n X: y\r\n\r\n", Err("no header"));
    check(b"0\r\nX : y\r\n\r\n", Err("no header"));
    check(b"0\r\nX\r\n\r\n", Err("no header"));
    check(b"0\r\nGET / HTTP/1.1\r\n\r\n", Err("no header"));
}

#[test]
fn overhead_is_bounded_over_the_whole_body() {
    let error = Err(HttpError::ChunkOverhead { bytes_max: 8192 });
    let body = |count: usize| [b"1;".as_slice(), &vec![b'a'; count], b"\r\nx\r\n0\r\n\r\n"].concat();
    assert!(decode([body(8192).as_slice()]).is_ok_and(|outcome| outcome.is_some()));
    assert_eq!(decode([body(8193).as_slice()]), error);
    assert_eq!(decode([b"1;abc\r\nx\r\n".repeat(2731).as_slice()]), error);
    assert_eq!(decode([b"0\r\n".as_slice(), &b"X: y\r\n".repeat(2049)]), error);
}

#[test]
fn what_is_changed_in_a_head_is_said() {
    let text =
        b"GET /mcp HTTP/1.1\r\nhost: a:1\r\nLAST-event-id: 7\r\nTraceParent: x\r\nx-toolgate-a: b\r\n\r\n";
    let head = request_head(text, &HeadLimits::default()).expect("valid").expect("complete");
    for (changes, expected) in [
        (Changes::default(), "TraceParent: x\r\n"),
        (Changes { resumes: true, ..Changes::default() }, "LAST-event-id: 7\r\nTraceParent: x\r\n"),
        (Changes { traceparent: "traceparent: y\r\n", ..Changes::default() }, "traceparent: y\r\n"),
    ] {
        let mut out = Vec::new();
        write_request_head(&mut out, &head, Outgoing::None, changes);
        let expected = format!("GET /mcp HTTP/1.1\r\nhost: a:1\r\n{expected}\r\n");
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}

#[test]
fn a_server_gets_its_own_headers_in_the_place_of_the_callers() {
    let own =
        [OwnHeader::new("X-Api-Key", "own").unwrap(), OwnHeader::new("authorization", "Bearer own").unwrap()];
    for (lines, kept) in [
        ("", ""),
        ("X-Other: 1\r\n", "X-Other: 1\r\n"),
        ("X-API-KEY: 1\r\nX-Api-Keys: 2\r\nx_api_key: 3\r\nx-api_key: 4\r\n", "X-Api-Keys: 2\r\n"),
        ("Authorization: Bearer caller\r\nauthorization: x\r\nA: 1\r\n", "A: 1\r\n"),
        // What a caller says of its connection does not take them away.
        ("Connection: x-api-key\r\nX-Api-Key: 1\r\n", ""),
    ] {
        let text = format!("POST /mcp?a HTTP/1.1\r\nhost: a:1\r\n{lines}\r\n");
        let head = request_head(text.as_bytes(), &HeadLimits::default()).expect("valid").expect("complete");
        let changes = Changes { base: "/v1", own: &own, ..Changes::default() };
        let mut out = Vec::new();
        write_request_head(&mut out, &head, Outgoing::None, changes);
        let expected = format!(
            "POST /v1/mcp?a HTTP/1.1\r\nhost: a:1\r\n{kept}X-Api-Key: own\r\nauthorization: Bearer own\r\n\r\n"
        );
        assert_eq!(String::from_utf8_lossy(&out), expected, "{lines:?}");
    }
}

#[test]
fn requests_as_they_leave() {
    fn check(headers: &str, expected: &str) {
        let text = format!("POST /mcp?q HTTP/1.1\r\nhost: a:1\r\n{headers}\r\n");
        let head = request_head(text.as_bytes(), &HeadLimits::default()).expect("valid").expect("complete");
        let mut out = b"before".to_vec();
        write_request_head(&mut out, &head, Outgoing::Length(7), Changes::default());
        let expected =
            format!("beforePOST /mcp?q HTTP/1.1\r\nhost: a:1\r\n{expected}Content-Length: 7\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&out), expected, "{headers:?}");
        let written = request_head(&out[6..], &HeadLimits::default());
        assert!(written.is_ok_and(|head| head.is_some()), "{headers:?}: written heads are read again");
    }
    let stays =
        "Content-Type: application/json\r\nAccept: a, b\r\nMCP-Session-Id: s\r\nx_y: z\r\nX-Dapr: 1\r\n";
    check(stays, stays);
    check("b: 1\r\nA: 2\r\nb: 3\r\n", "b: 1\r\nA: 2\r\nb: 3\r\n");
    for gone in [
        "Connection: keep-alive\r\n",
        "Connection: x-mine, Upgrade, HTTP2-Settings\r\nX-Mine: 1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
        "Keep-Alive: timeout=5\r\n",
        "TE: trailers\r\n",
        "Trailer: X\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 9\r\n",
        "Proxy-Authorization: Basic x\r\nProxy-Connection: x\r\nproxy_x: y\r\n",
        "Expect: 100-continue\r\n",
        "Accept-Encoding: gzip, br\r\n",
        "Last-Event-ID: 7\r\n",
        "dapr-caller-app-id: admin\r\nDapr-Caller-Namespace: x\r\n",
        "dapr_caller_app_id: admin\r\ndapr-caller_app-id: admin\r\n",
        "X-Toolgate-Caller: admin\r\nx_toolgate_caller: admin\r\n",
        "X-Forwarded-For: 1\r\nx-forwarded-host: 1\r\nX_Forwarded_Proto: 1\r\nX-Forwarded-Client-Cert: 1\r\n",
        "Forwarded: for=1\r\nFORWARDED: for=2\r\n",
    ] {
        check(gone, "");
        check(&format!("A: 1\r\n{gone}B: 2\r\n"), "A: 1\r\nB: 2\r\n");
    }
}

#[test]
fn a_request_has_one_framing() {
    let text = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
    let head = request_head(text, &HeadLimits::default()).unwrap().unwrap();
    for (framing, expected) in [
        (Outgoing::None, ""),
        (Outgoing::Length(0), "Content-Length: 0\r\n"),
        (Outgoing::Chunked, "Transfer-Encoding: chunked\r\n"),
    ] {
        let mut out = Vec::new();
        write_request_head(&mut out, &head, framing, Changes::default());
        assert_eq!(String::from_utf8_lossy(&out), format!("POST / HTTP/1.1\r\nHost: a\r\n{expected}\r\n"));
    }
}

#[test]
fn replies_as_they_leave() {
    fn check(head: &str, framing: Outgoing, close: bool, expected: &str) {
        let parsed =
            response_head(head.as_bytes(), "POST", &HeadLimits::default()).expect("valid").expect("complete");
        let mut out = Vec::new();
        write_response_head(&mut out, &parsed, framing, close);
        assert_eq!(String::from_utf8_lossy(&out), expected, "{head:?}");
    }
    check(
        "HTTP/1.1 200 OK\r\nContent-Type: a\r\nConnection: close, X\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        Outgoing::Length(3),
        false,
        "HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: 3\r\n\r\n",
    );
    check(
        "HTTP/1.0 404 \r\nContent-Length: 3\r\nForwarded: x\r\nKeep-Alive: timeout=5\r\n\r\n",
        Outgoing::Chunked,
        true,
        "HTTP/1.1 404 \r\nForwarded: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    check("HTTP/1.1 204 No Content\r\n\r\n", Outgoing::None, false, "HTTP/1.1 204 No Content\r\n\r\n");
}

#[test]
fn chunks_are_read_as_they_are_written() {
    let mut out = Vec::new();
    for data in ["a".repeat(10), "b".repeat(300)] {
        write_chunk_head(&mut out, data.len());
        out.extend_from_slice(data.as_bytes());
        out.extend_from_slice(CHUNK_END);
    }
    out.extend_from_slice(LAST_CHUNK);
    let data = ["a".repeat(10), "b".repeat(300)].concat().into_bytes();
    assert_eq!(decode([out.as_slice()]), Ok(Some((data, Vec::new()))));
}

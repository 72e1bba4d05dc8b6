//! Heads of requests and replies: what is refused and by which name, and the twins that pass.

use toolgate_core::http1::{
    Framing, Guess, HeadLimits, HttpError, Name, looks_like_http, proxy_head, request_head, response_head,
};

/// The variant's name alone.
fn name(error: &HttpError) -> String {
    format!("{error:?}").split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

fn check(head: &[u8], expected: &str) {
    let shown = head.escape_ascii();
    let found = match request_head(head, &HeadLimits::default()) {
        Ok(Some(head)) => format!("{:?}", head.framing),
        Ok(None) => "more".to_owned(),
        Err(error) => {
            assert!((400..600).contains(&error.status()), "{shown}");
            let text = error.to_string();
            assert!(!text.ends_with('.') && !text.starts_with(char::is_uppercase), "{text}");
            name(&error)
        }
    };
    assert_eq!(found, expected, "{shown}");
    // What is refused whole is never accepted in part, and what is accepted whole waits for its last byte.
    for cut in 0..head.len() {
        match request_head(&head[..cut], &HeadLimits::default()) {
            Ok(None) => {}
            Ok(Some(_)) => panic!("{shown}: accepted at byte {cut}"),
            Err(error) => assert_eq!(name(&error), expected, "{shown}: at byte {cut}"),
        }
    }
}

/// A request with these header lines besides Host.
fn with(headers: &str, expected: &str) {
    check(format!("POST /mcp HTTP/1.1\r\nHost: a:1\r\n{headers}\r\n").as_bytes(), expected);
}

fn target(target: &str, expected: &str) {
    check(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), expected);
}

#[test]
fn lines() {
    check(b"", "more");
    check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "None");
    check(b"GET / HTTP/1.1\r\nHost: a\r\n", "more");
    check(b"GET / HTTP/1.1\nHost: a\n\n", "BareLf");
    check(b"GET / HTTP/1.1\r\nHost: a\n\r\n", "BareLf");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\n\r\n", "BareLf");
    check(b"GET / HTTP/1.1\r\nHost: a\r\n\n", "BareLf");
    check(b"\n", "BareLf");
    check(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "EmptyLine");
    check(b"\r\n\r\n", "EmptyLine");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n", "BareCr");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", "BareCr");
    check(b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", "BareCr");
    check(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "ObsoleteFolding");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", "ObsoleteFolding");
    check(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "ObsoleteFolding");
    check(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "SpaceBeforeColon");
    check(b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", "SpaceBeforeColon");
    check(b"GET / HTTP/1.1\r\nHost a\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX\x01: b\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x7f\r\n\r\n", "Syntax");
    // Wherever they stand: long values are looked at many bytes at a time.
    for (byte, at) in
        [0x00, 0x01, 0x08, 0x0b, 0x1f, 0x7f].iter().flat_map(|byte| (0..80).map(move |at| (byte, at)))
    {
        let mut value = [b'v'; 80];
        value[at] = *byte;
        check(&[b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &value[..], b"\r\n\r\n"].concat(), "Syntax");
    }
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9\tc\r\n\r\n", "None");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", "None");
}

#[test]
fn request_lines() {
    check(b"GET /\r\nHost: a\r\n\r\n", "Syntax");
    check(b"GET\r\nHost: a\r\n\r\n", "Syntax");
    check(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", "Version");
    check(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "Version");
    check(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", "Version");
    check(b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", "Version");
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "Version");
    check(b"GET / http/1.1\r\nHost: a\r\n\r\n", "Version");
    check(b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "Syntax");
    check(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "Syntax");
    check(b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", "Version");
    check(b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "Syntax");
    check(b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "Syntax");
    check(b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "Syntax");
    check(b"get / HTTP/1.1\r\nHost: a\r\n\r\n", "None");
    check(b"{\"jsonrpc\":\"2.0\"}\r\n\r\n", "Syntax");
    check(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "Syntax");
}

#[test]
fn targets() {
    target("/mcp?a=/../b//c%2f", "None");
    target("/mcp/", "None");
    target("/a%20b/.well-known/...", "None");
    target("http://a/mcp", "AbsoluteForm");
    target("HTTPS://a/mcp", "AbsoluteForm");
    target("a:80", "Target");
    target("mcp", "Target");
    target("?a", "Target");
    target("*", "AsteriskForm");
    target("/mcp#a", "Target");
    target("/mcp?a=\"b\"", "Target");
    target("/<mcp>", "Target");
    target("/`mcp`", "Target");
    target("/mcp?{a}|^", "None");
    target("/mcp?a#b", "Target");
    target("/m\u{e9}cp", "Target");
    target("/mcp?\u{e9}", "Target");
    target("//mcp", "AmbiguousPath");
    target("/a//mcp", "AmbiguousPath");
    target("/mcp//", "AmbiguousPath");
    target("/a/../mcp", "AmbiguousPath");
    target("/./mcp", "AmbiguousPath");
    target("/mcp/..", "AmbiguousPath");
    target("/mcp/.", "AmbiguousPath");
    target("/a/..;x/mcp", "AmbiguousPath");
    target("/a/%2e%2E/mcp", "AmbiguousPath");
    target("/a%2Fmcp", "AmbiguousPath");
    target("/a%5cmcp", "AmbiguousPath");
    target("/a\\mcp", "AmbiguousPath");
    target("/mcp%00", "AmbiguousPath");
    target("/mcp%0d%0aX", "AmbiguousPath");
    target("/mcp%", "AmbiguousPath");
    target("/mcp%2", "AmbiguousPath");
    target("/mcp%zz", "AmbiguousPath");
    target("/mcp%+1", "AmbiguousPath");
    check(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "AuthorityForm");
    check(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "AsteriskForm");
}

#[test]
fn hosts() {
    check(b"GET / HTTP/1.1\r\n\r\n", "HostMissing");
    check(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "HostInvalid");
    check(b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", "Duplicate");
    check(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "HostInvalid");
    check(b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "HostInvalid");
    check(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "HostInvalid");
    check(b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", "HostInvalid");
    check(b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", "HeaderValue");
    check(b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", "None");
    check(b"GET / HTTP/1.1\r\nhOST:\t127.0.0.1:8000 \t\r\n\r\n", "None");
}

#[test]
fn framing() {
    with("Content-Length: 5\r\n", "Length(5)");
    with("Content-Length: 9223372036854775807\r\n", "Length(9223372036854775807)");
    with("Content-Length: 9223372036854775808\r\n", "ContentLength");
    with("Content-Length: 18446744073709551621\r\n", "ContentLength");
    with("Content-Length: 0\r\n", "Length(0)");
    with("Content-Length: 5\r\nContent-Length: 5\r\n", "Duplicate");
    with("Content-Length: 5\r\ncontent-length: 6\r\n", "Duplicate");
    with("Content-Length: 5, 5\r\n", "ContentLength");
    with("Content-Length: +5\r\n", "ContentLength");
    with("Content-Length: -5\r\n", "ContentLength");
    with("Content-Length: 0x5\r\n", "ContentLength");
    with("Content-Length: 5 5\r\n", "ContentLength");
    with("Content-Length:\r\n", "ContentLength");
    with("Content-Length: \u{665}\r\n", "HeaderValue");
    with("Transfer-Encoding: chunked\r\n", "Chunked");
    with("transfer-encoding: Chunked\r\n", "Chunked");
    with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "LengthAndEncoding");
    with("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", "LengthAndEncoding");
    with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Duplicate");
    with("Transfer-Encoding: chunked, chunked\r\n", "TransferEncoding");
    with("Transfer-Encoding: gzip, chunked\r\n", "TransferEncoding");
    with("Transfer-Encoding: identity\r\n", "TransferEncoding");
    with("Transfer-Encoding: xchunked\r\n", "TransferEncoding");
    with("Transfer-Encoding: \"chunked\"\r\n", "TransferEncoding");
    with("Transfer-Encoding: \x0bchunked\r\n", "Syntax");
    with("Transfer-Encoding:\r\n", "TransferEncoding");
    with("Content_Length: 5\r\n", "Underscore");
    with("transfer_encoding: chunked\r\n", "Underscore");
    with("TRANSFER_ENCODING: chunked\r\nContent-Length: 5\r\n", "Underscore");
    with("Content-Encoding: gzip\r\nContent-Length: 5\r\n", "ContentEncoding");
    with("Content-Encoding: identity\r\n", "ContentEncoding");
    with("content_encoding: gzip\r\n", "Underscore");
    for twin in [
        "Content_Type",
        "last_event_id",
        "Last-Event_ID",
        "mcp_session_id",
        "Mcp-Session_Id",
        "MCP-Protocol_Version",
        "mcp_method",
        "Mcp_Name",
        "mcp_anything",
        "Mcp-Param_a",
    ] {
        with(&format!("{twin}: x\r\n"), "Underscore");
        with(&format!("{}: x\r\n", twin.replace('_', "-")), "None");
    }
    with("Mcp-Param-tenant_id: x\r\n", "None");
    with("X_Mcp_Name: x\r\n", "None");
    with("X_Y: z\r\n", "None");
    with("Expect: 100-continue\r\nContent-Length: 5\r\n", "Length(5)");
    with("Expect: something\r\n", "Expectation");
    with("Expect: 100-continue\r\nExpect: 100-continue\r\n", "Duplicate");
    with("Connection: keep-alive, Mcp-Session-Id\r\n", "ConnectionNames");
    with("Connection: close, content_type\r\n", "ConnectionNames");
    with("Connection: x-mine, close\r\n", "None");
}

#[test]
fn limits() {
    let many = |count: usize| "X: y\r\n".repeat(count - 1);
    with(&many(100), "None");
    with(&many(101), "TooManyHeaders");
    let limits = HeadLimits { head_bytes_max: 64, target_bytes_max: 16 };
    let refused = |head: &str| request_head(head.as_bytes(), &limits).map(|head| head.is_some());
    let exact = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(32));
    assert_eq!((exact.len(), refused(&exact)), (64, Ok(true)));
    let longer = exact.replace("X: y", "X: yy");
    assert_eq!(refused(&longer), Err(HttpError::HeadTooLarge { head_bytes_max: 64 }));
    assert_eq!(refused(&longer[..64]), Err(HttpError::HeadTooLarge { head_bytes_max: 64 }));
    assert_eq!(refused(&longer[..63]), Ok(false));
    let too_long = Err(HttpError::TargetTooLong { target_bytes_max: 16 });
    assert_eq!(refused("GET /aaaaaaaaaaaaaaa HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(true));
    assert_eq!(refused("GET /aaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: a\r\n\r\n"), too_long);
    assert_eq!(refused("GET /aaaaaaaaaaaaaaaa"), too_long);
}

#[test]
fn fields_of_a_request() {
    let text = b"POST /mcp?a=b HTTP/1.1\r\nHost: a:8000\r\nContent-Type: a\r\nAccept: */*\r\n\
        content-type: b\r\nConnection: x, Close\r\nMcp-Name: \xff\r\nMcp-Session-Id:  s 1 \r\nExpect: 100-Continue\r\n\r\n{body";
    let head = request_head(text, &HeadLimits::default()).unwrap().unwrap();
    assert_eq!((head.method, head.target, head.path, head.query), ("POST", "/mcp?a=b", "/mcp", Some("a=b")));
    assert_eq!((head.keep_alive, head.expect_continue, head.bytes), (false, true, text.len() - 5));
    assert_eq!((head.headers.iter().count(), head.headers.count(Name::ContentType)), (8, 2));
    assert_eq!(head.headers.get(Name::McpSessionId), Some(b"s 1".as_slice()));
    assert_eq!(head.headers.only(Name::McpSessionId), Ok(Some("s 1")));
    assert_eq!(head.headers.only(Name::TransferEncoding), Ok(None));
    let twice = HttpError::Duplicate { name: "content-type".to_owned() };
    assert_eq!(head.headers.only(Name::ContentType), Err(twice));
    let invisible = HttpError::HeaderValue { name: "mcp-name".to_owned() };
    assert_eq!(head.headers.only(Name::McpName), Err(invisible));
}

#[test]
fn many_headers_are_read_as_few_are() {
    for count in [1, 23, 24, 25, 26, 98] {
        let lines: String = (1..count).map(|n| format!("X-{n}: \t{n} a:b \r\n")).collect();
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\nX-Body: 1\r\n");
        let head = request_head(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap();
        let found: Vec<_> = head.headers.iter().skip(1).map(|header| (header.name, header.value)).collect();
        let names: Vec<_> = (1..count).map(|n| (format!("X-{n}"), format!("{n} a:b"))).collect();
        let expected: Vec<_> = names.iter().map(|(name, value)| (&**name, value.as_bytes())).collect();
        assert_eq!(found, expected, "{count}");
        assert_eq!(head.headers.count(Name::Host), 1, "{count}");
        with(&format!("{lines}Host: b\r\n"), "Duplicate");
        with(&format!("{lines}Content-Length: 5\r\n"), "Length(5)");
        with(&format!("{lines}Content_Length: 5\r\n"), "Underscore");
        with(&format!("{lines}Connection: Host\r\n"), "ConnectionNames");
    }
}

#[test]
fn replies() {
    fn check(method: &str, head: &str, expected: Result<(u16, Framing, bool), &str>) {
        let found = response_head(head.as_bytes(), method, &HeadLimits::default());
        let found = match &found {
            Ok(Some(head)) => Ok((head.status, head.framing, head.keep_alive)),
            Ok(None) => Err("more".to_owned()),
            Err(error) => Err(name(error)),
        };
        assert_eq!(found, expected.map_err(str::to_owned), "{head:?}");
        for cut in 0..head.len() {
            let part = response_head(&head.as_bytes()[..cut], method, &HeadLimits::default());
            assert!(!matches!(part, Ok(Some(_))), "{head:?}: accepted at byte {cut}");
        }
    }
    let ok = "HTTP/1.1 200 OK\r\n";
    check("POST", &format!("{ok}Content-Length: 5\r\n\r\n"), Ok((200, Framing::Length(5), true)));
    check("POST", &format!("{ok}Transfer-Encoding: chunked\r\n\r\n"), Ok((200, Framing::Chunked, true)));
    check("POST", &format!("{ok}\r\n"), Ok((200, Framing::UntilClose, false)));
    check(
        "POST",
        &format!("{ok}Content-Length: 5\r\nConnection: close\r\n\r\n"),
        Ok((200, Framing::Length(5), false)),
    );
    check("HEAD", &format!("{ok}Content-Length: 5\r\n\r\n"), Ok((200, Framing::None, true)));
    check("POST", "HTTP/1.1 202 \r\nContent-Length: 0\r\n\r\n", Ok((202, Framing::Length(0), true)));
    check("POST", "HTTP/1.1 100 Continue\r\n\r\n", Ok((100, Framing::None, true)));
    check("POST", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", Ok((101, Framing::None, true)));
    check("DELETE", "HTTP/1.1 204 No Content\r\n\r\n", Ok((204, Framing::None, true)));
    check("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Ok((304, Framing::None, true)));
    check("GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Ok((200, Framing::Length(5), false)));
    check("GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Err("TransferEncoding"));
    check(
        "POST",
        &format!("{ok}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Err("LengthAndEncoding"),
    );
    check("HEAD", &format!("{ok}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), Err("Duplicate"));
    check("POST", &format!("{ok}Transfer-Encoding: gzip\r\n\r\n"), Err("TransferEncoding"));
    check("POST", "HTTP/2.0 200 OK\r\n\r\n", Err("Version"));
    check("POST", "HTTP/1.1 99 OK\r\n\r\n", Err("Syntax"));
    check("POST", "HTTP/1.1 600 OK\r\n\r\n", Err("Syntax"));
    check("POST", "HTTP/1.1 20 OK\r\n\r\n", Err("Syntax"));
    check("POST", "HTTP/1.1 2000 OK\r\n\r\n", Err("Syntax"));
    check("POST", "HTTP/1.1 200 OK\nContent-Length: 5\n\n", Err("BareLf"));
    check("POST", &format!("{ok}X: a\r\n b\r\n\r\n"), Err("ObsoleteFolding"));
    check("POST", &format!("{ok}Content-Length : 5\r\n\r\n"), Err("SpaceBeforeColon"));
    check("POST", &format!("{ok}Content-Length: 5"), Err("more"));
}

#[test]
fn guesses() {
    fn check(prefix: &[u8], expected: Guess) {
        assert_eq!(looks_like_http(prefix), expected, "{}", prefix.escape_ascii());
    }
    for yes in [
        "POST ",
        "GET /",
        "POST\tx",
        "\r\n\r\nGET ",
        "QUERY /x",
        "x http://",
        "M *",
        "CONNECT a:1",
        "PRI * HTTP/1.1",
        "\r\nPRI * HTTP/2.0",
    ] {
        check(yes.as_bytes(), Guess::Yes);
    }
    for maybe in ["", "P", "POST", "\r\n", "PROPFIND", "PROPFIND ", "x HTT", "PRI * HTTP/2.0\r\n\r\nSM"] {
        check(maybe.as_bytes(), Guess::Maybe);
    }
    for no in [
        "\x16\x03\x01",
        "\0",
        "*1\r\n",
        "PING\r\n",
        "SSH-2.0-x\r\n",
        "get key\r\n",
        "CONNECT {",
        "{\"a\"",
        "x httq",
    ] {
        check(no.as_bytes(), Guess::No);
    }
    check(&[b'A'; 33], Guess::No);
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0", Guess::Http2);
}

#[test]
fn what_a_proxy_is_asked_for() {
    fn check(line: &str, expected: Result<(&str, &str, Option<&str>), &str>) {
        let head = format!("{line} HTTP/1.1\r\nHost: elsewhere\r\n\r\n");
        let got = match proxy_head(head.as_bytes(), &HeadLimits::default()) {
            Ok(Some((head, whom))) => {
                Ok((whom.to_string(), head.path.to_owned(), head.query.map(str::to_owned)))
            }
            Ok(None) => panic!("{line}: more"),
            Err(error) => Err(format!("{error:?}")),
        };
        match (got, expected) {
            (Ok((whom, path, query)), Ok(expected)) => {
                assert_eq!((&*whom, &*path, query.as_deref()), expected, "{line}");
            }
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{line}: {error}"),
            (got, _) => panic!("{line}: {got:?}"),
        }
    }
    check("CONNECT a.example:443", Ok(("a.example:443", "", None)));
    check("CONNECT [::1]:8000", Ok(("[::1]:8000", "", None)));
    check("GET http://a/", Ok(("a:80", "/", None)));
    check("POST HTTP://a.example:8000/mcp?b=//c", Ok(("a.example:8000", "/mcp", Some("b=//c"))));
    check("GET http://a", Ok(("a:80", "", None)));
    check("GET http://a?b", Ok(("a:80", "", Some("b"))));
    for (line, problem) in [
        ("CONNECT a.example", "with a port"),
        ("CONNECT a:443/x", "with a port"),
        ("CONNECT a:0x50", "with a port"),
        ("CONNECT a:65536", "with a port"),
        ("CONNECT u@a:443", "with a port"),
        ("CONNECT [::1:8000", "with a port"),
        ("CONNECT :443", "with a port"),
        ("connect a:443", "as it is written"),
        ("GET http://u@a/", "with a port"),
        ("GET http://a:/", "with a port"),
        ("GET http:///", "with a port"),
        ("GET http://a\\b/", "with a port"),
        ("GET http://a%2eb/", "with a port"),
        ("GET http://a/#b", "no path"),
        ("GET https://a/", "scheme"),
        ("GET ftp://a/", "scheme"),
        ("GET /", "no host"),
    ] {
        check(line, Err(problem));
    }
    for (head, expected) in [
        ("CONNECT a:1 HTTP/1.0\r\n\r\n", true),
        ("CONNECT a:1 HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", false),
        ("GET http://a/ HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("GET http://a/ HTTP/1.1\r\n\r\n", false),
    ] {
        let got = proxy_head(head.as_bytes(), &HeadLimits::default());
        assert_eq!(got.is_ok(), expected, "{head}: {got:?}");
    }
    let with_body = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n";
    assert!(proxy_head(with_body, &HeadLimits::default()).is_err());
}

//! Where clients send their messages to: what is written on the stream, and what it means to all of them.

use toolgate_core::mcp::endpoint;

/// `expected`: authority and target; none: it is refused. The stream was opened at `/api/sse`.
fn check(written: &str, expected: Option<(&str, &str)>) {
    let read = endpoint::endpoint(written.as_bytes(), "/api/sse").ok();
    let read = read.map(|read| (read.authority.unwrap_or_default().into_owned(), read.target.into_owned()));
    let expected = expected.map(|(authority, target)| (authority.to_owned(), target.to_owned()));
    assert_eq!(read, expected, "{written:?}");
}

#[test]
fn an_endpoint_is_read_as_every_client_resolves_it() {
    let table = [
        ("/messages/?session_id=0f8fad5b", ("", "/messages/?session_id=0f8fad5b")),
        ("/message?sessionId=a-b_c.d~e&x=%2F", ("", "/message?sessionId=a-b_c.d~e&x=%2F")),
        ("/s/0f8f/m;v=1", ("", "/s/0f8f/m;v=1")),
        ("messages?s=1", ("", "/api/messages?s=1")),
        ("?s=1", ("", "/api/sse?s=1")),
        ("http://127.0.0.1:8000/m?s=1", ("127.0.0.1:8000", "/m?s=1")),
        ("HTTP://localhost/m", ("localhost:80", "/m")),
        ("http://[::1]:8000/m", ("[::1]:8000", "/m")),
        ("http://[::1]/m", ("[::1]:80", "/m")),
        ("http://docs.internal?s=1", ("docs.internal:80", "/?s=1")),
        ("http://docs.internal", ("docs.internal:80", "/")),
        ("//docs.internal:8000/m", ("docs.internal:8000", "/m")),
        ("/m?next=http://elsewhere/", ("", "/m?next=http://elsewhere/")),
        ("m?next=http://elsewhere/", ("", "/api/m?next=http://elsewhere/")),
    ];
    for (written, expected) in table {
        check(written, Some(expected));
    }
}

#[test]
fn what_clients_could_send_to_two_places_is_refused() {
    let table = [
        "",
        " /m",
        "/m ",
        "/m\n/n",
        "/m\t",
        "\\m",
        "/\\evil.example/m",
        "/a/../m",
        "../m",
        "./m",
        "/a/%2e%2e/m",
        "/a//m",
        "///evil.example/m",
        "/m#s",
        "/m?s='1'",
        "/m?s=\"1\"",
        "/m?s=<1>",
        "/m?s=1|2",
        "/m?s={1}",
        "/m?s=%",
        "/m?s=%1",
        "/m?s=\u{e9}",
        "/m%0a",
        "/m[1]",
        "https://127.0.0.1:8000/m",
        "ws://127.0.0.1:8000/m",
        "http:/m",
        "http:m",
        "http:",
        "mailto:m",
        "a:b",
        "http://",
        "http:///m",
        "http://user@127.0.0.1:8000/m",
        "http://127.0.0.1:/m",
        "http://127.0.0.1:8000a/m",
        "http://127.0.0.1:8000:1/m",
        "http://127.0.0.1%3a8000/m",
        "http://[::1]x/m",
    ];
    for written in table {
        check(written, None);
    }
    check(&format!("/{}", "m".repeat(2_048)), None);
}

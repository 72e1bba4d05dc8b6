//! Where clients send their messages to: what is written on the stream, and what it means to all of them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use toolgate_core::mcp::endpoint;

const BASE: &str = "http://127.0.0.1:8000/api/sse";

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
        "/m?",
        "?",
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
        "http://[/m",
        "http://[m]/m",
        "http://]/m",
    ];
    for written in table {
        check(written, None);
    }
    check(&format!("/{}", "m".repeat(2_048)), None);
}

/// Resolves each line of its input as the SDKs' clients do: host and port, then path and query.
const PYTHON: &str = "
import json, sys
from urllib.parse import urljoin, urlsplit
for line in sys.stdin:
    try:
        url = urlsplit(urljoin(sys.argv[1], json.loads(line)))
        query = '?' + url.query if url.query else ''
        print(json.dumps([url.scheme, url.netloc.lower(), (url.path or '/') + query]))
    except ValueError:
        print('null')
";
const JAVASCRIPT: &str = "
for (const line of require('fs').readFileSync(0, 'utf8').split('\\n').slice(0, -1)) {
  try {
    const url = new URL(JSON.parse(line), process.argv[1]);
    console.log(JSON.stringify([url.protocol.slice(0, -1), url.host, url.pathname + url.search]));
  } catch { console.log('null'); }
}
";

fn resolved(program: &str, script: [&str; 2], written: &[String]) -> Vec<Option<[String; 3]>> {
    let mut command = Command::new(program);
    command.args(script).arg(BASE).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("`{program}` is needed here: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let lines: String = written.iter().map(|one| format!("{}\n", serde_json::json!(one))).collect();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("its end");
    writing.join().expect("no panic").expect("it reads on");
    assert!(output.status.success(), "{program}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What endpoints are made of, and what readers differ in.
#[rustfmt::skip]
const PIECES: [&str; 44] = [
    "/", "/", "//", "?", "&", "=", "%2f", "%41", "%", "..", ".", "m", "a:b", ":", "http://",
    "HTTP://", "https://", "localhost", "127.0.0.1:8000", "[::1]:80", "docs.internal", "@", ";v",
    "#", " ", "\\", "'", "|", "~", "\t", "\u{e9}", "*", "!", "+", "$", ",", "(", ")", "[", "{", "^",
    "`", "\"", "<",
];

#[test]
fn what_is_taken_is_resolved_to_the_same_by_python_and_javascript() {
    let mut state: u64 = 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("64 bits") % below
    };
    let written: Vec<String> =
        (0..20_000).map(|_| (0..=random(6)).map(|_| PIECES[random(PIECES.len())]).collect()).collect();
    let readers = [("python3", ["-c", PYTHON]), ("node", ["-e", JAVASCRIPT])];
    let readers = readers.map(|(program, script)| (program, resolved(program, script, &written)));
    let mut taken = 0;
    for (place, one) in written.iter().enumerate() {
        let Ok(read) = endpoint::endpoint(one.as_bytes(), "/api/sse") else { continue };
        let authority = read.authority.as_deref().unwrap_or("127.0.0.1:8000");
        // What names of servers may look like is decided elsewhere.
        if !["127.0.0.1:8000", "localhost:80", "[::1]:80", "docs.internal:80"].contains(&authority) {
            continue;
        }
        taken += 1;
        for (program, all) in &readers {
            let [scheme, host, target] = all[place].as_ref().unwrap_or_else(|| panic!("{program}: {one:?}"));
            let host = if host.ends_with(":80") || !host.ends_with(char::is_numeric) || host.ends_with(']') {
                format!("{}:80", host.trim_end_matches(":80"))
            } else {
                host.clone()
            };
            assert_eq!(
                (&**scheme, &*host, &**target),
                ("http", authority, &*read.target),
                "{program}: {one:?}"
            );
        }
    }
    assert!(taken > 1_000, "{taken} of {} are taken", written.len());
}

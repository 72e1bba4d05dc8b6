//! Requests by App ID: who is meant, what is for it, and what of the head goes on.

use toolgate_core::http1::{App, Changes, HeadLimits, Outgoing, invoked, invoked_head, write_request_head};

/// App and target, or a part of the error; `None`: nobody is named.
#[track_caller]
fn check(target: &str, headers: &str, expected: Option<Result<(&str, &str), &str>>) {
    let text = format!("POST {target} HTTP/1.1\r\nHost: 127.0.0.1:3500\r\n{headers}\r\n");
    let said = format!("{target} {headers}");
    let read = invoked_head(text.as_bytes(), &HeadLimits::default())
        .map(|head| head.expect("it is whole"))
        .and_then(|head| invoked(&head).map(|found| found.map(|it| (it.app.into_owned(), it.head))));
    match (read, expected) {
        (Ok(None), None) => {}
        (Ok(Some((app, head))), Some(Ok((for_app, for_target)))) => {
            assert_eq!((app.as_str(), head.target), (for_app, for_target), "{said}");
            let (path, query) = for_target.split_once('?').map_or((for_target, None), |(p, q)| (p, Some(q)));
            assert_eq!((head.path, head.query), (path, query), "{said}");
        }
        (Err(error), Some(Err(part))) => assert!(error.to_string().contains(part), "{said}: {error}"),
        (read, expected) => panic!("{said}: {read:?}, not {expected:?}"),
    }
}

/// `dapr-app-id:docs`, `dapr-app-id:docs.research`, `Dapr-App-ID:docs` and `somebody:docs` as Basic credentials.
const BASIC: [&str; 4] = [
    "ZGFwci1hcHAtaWQ6ZG9jcw==",
    "ZGFwci1hcHAtaWQ6ZG9jcy5yZXNlYXJjaA==",
    "RGFwci1BcHAtSUQ6ZG9jcw==",
    "c29tZWJvZHk6ZG9jcw==",
];

#[test]
fn the_header_counts_before_credentials_and_these_before_the_path() {
    let basic = |at: usize| format!("Authorization: Basic {}\r\n", BASIC[at]);
    let by_path = "/v1.0/invoke/other/method/mcp";
    check("/mcp", "dapr-app-id: docs\r\n", Some(Ok(("docs", "/mcp"))));
    check("/mcp?a=b", "Dapr-App-ID: docs.research\r\n", Some(Ok(("docs.research", "/mcp?a=b"))));
    check("/mcp", &basic(0), Some(Ok(("docs", "/mcp"))));
    check("/mcp", &basic(1), Some(Ok(("docs.research", "/mcp"))));
    check("/mcp", &basic(2), Some(Ok(("docs", "/mcp"))));
    check("/mcp", &basic(3), None);
    check("/mcp", "Authorization: Bearer ZGFwci1hcHAtaWQ6ZG9jcw==\r\n", None);
    check(by_path, "", Some(Ok(("other", "/mcp"))));
    check(by_path, &basic(0), Some(Ok(("docs", by_path))));
    check(by_path, &basic(3), Some(Ok(("other", "/mcp"))));
    check(by_path, "dapr-app-id: a\r\n", Some(Ok(("a", by_path))));
    check("/mcp", &format!("dapr-app-id: a\r\n{}", basic(0)), Some(Ok(("a", "/mcp"))));
    check(by_path, "dapr-app-id:\r\n", Some(Ok(("other", "/mcp"))));
}

#[test]
fn what_is_for_the_app_is_the_end_of_the_path() {
    for (target, expected) in [
        ("/v1.0/invoke/docs/method/mcp?a=/method/b", ("docs", "/mcp?a=/method/b")),
        ("/v1.0/invoke/docs.research/method/", ("docs.research", "/")),
        ("/v1.0/invoke/docs/method/a/method/b", ("docs", "/a/method/b")),
        ("/v1.0/invoke/docs/method/a/", ("docs", "/a/")),
        ("/v1.0/invoke/do%63s/method/mcp", ("docs", "/mcp")),
        ("/v1.0/invoke/do%2563s/method/mcp", ("do%63s", "/mcp")),
        ("/v1.0/invoke/a%2Fb/method/mcp", ("a/b", "/mcp")),
        ("/v1.0/invoke/http://host/method/mcp", ("http://host", "/mcp")),
        ("/v1.0/invoke/https%3A%2F%2Fhost%3A8443/method/mcp?x", ("https://host:8443", "/mcp?x")),
    ] {
        check(target, "", Some(Ok(expected)));
    }
    for target in [
        "/",
        "/v1.0/invoke",
        "/v1.0/invoke/docs",
        "/v1.0/invoke/docs/method",
        "/v1.0/invoke/docs?/method/x",
        "/V1.0/invoke/docs/method/x",
        "/v1.0/state/a",
    ] {
        check(target, "", None);
    }
}

/// CVE-2026-41491 was a path that was decided on in one form and sent in another.
#[test]
fn a_path_with_two_readings_is_refused_however_it_is_addressed() {
    for (path, part) in [
        ("/mcp/../admin", "a dot segment"),
        ("/mcp/%2e%2e/admin", "an encoded dot or slash"),
        ("/mcp%2fadmin", "an encoded dot or slash"),
        ("/mcp%5cadmin", "an encoded backslash"),
        ("/mcp\\admin", "a backslash"),
        ("//mcp", "an empty segment"),
        ("/mcp%00", "an encoded control character"),
        ("/mcp%0d%0aX:%20y", "an encoded control character"),
        ("/mcp#x", "a fragment"),
        ("/mcp%zz", "a `%` that begins no escape"),
    ] {
        check(path, "dapr-app-id: docs\r\n", Some(Err(part)));
        for app in ["docs", "do%63s", "http://docs"] {
            check(&format!("/v1.0/invoke/{app}/method{path}"), "", Some(Err(part)));
        }
    }
    for (app, part) in [
        ("a%", "begins no escape"),
        ("a%0", "begins no escape"),
        ("a%00", "an escape in it hides"),
        ("a%0a", "an escape in it hides"),
        ("a%20b", "an escape in it hides"),
        ("a:b#c", "a character that no URI has"),
        ("http:\\\\a", "a character that no URI has"),
        ("..", "a dot segment"),
    ] {
        check(&format!("/v1.0/invoke/{app}/method/mcp"), "", Some(Err(part)));
    }
    // What is a URL in the path alone is one nowhere else.
    check("/v1.0/invoke/http://a/method/mcp", "dapr-app-id: docs\r\n", Some(Err("an empty segment")));
    check("/mcp", "dapr-app-id: a\r\ndapr-app-id: b\r\n", Some(Err("stands twice")));
    check("/mcp", "dapr_app_id: a\r\n", Some(Err("has an underscore")));
    check("/mcp", "dapr-app-id: \u{e4}\r\n", Some(Err("not visible ASCII")));
}

#[test]
fn names_mean_an_app_or_a_server_by_its_url() {
    let id = |app_id, namespace| Some(format!("{:?}", App::Id { app_id, namespace }));
    for (text, expected) in [
        ("docs", id("docs", None)),
        ("docs.research", id("docs", Some("research"))),
        ("a.b.c", id("a", Some("b.c"))),
        ("ftp://host", None),
        ("http://user@host", None),
        ("http://host/path", None),
        ("http://", None),
        ("http://host:0x50", None),
    ] {
        assert_eq!(App::of(text).map(|app| format!("{app:?}")), expected, "{text}");
    }
    for (text, is_https, shown) in [
        ("http://host", false, "host:80"),
        ("HTTPS://host", true, "host:443"),
        ("https://[::1]:1", true, "[::1]:1"),
    ] {
        let Some(App::Url { is_https: found, authority }) = App::of(text) else { panic!("{text}") };
        assert_eq!((found, authority.to_string().as_str()), (is_https, shown), "{text}");
    }
}

/// What is written for the server, of a head with all that only addresses or speaks for a sidecar.
#[test]
fn what_only_addresses_does_not_go_on() {
    let lines = "Accept: */*\r\ndapr-app-id: docs\r\nDapr-Api-Token: secret\r\ndapr-caller-app-id: admin\r\ndapr-callee-app-id: x\r\nX-Own: 1\r\n";
    for (authorization, kept) in [
        (format!("Authorization: Basic {}\r\n", BASIC[0]), false),
        (format!("Authorization: Basic {}\r\n", BASIC[3]), true),
        ("Authorization: Bearer abc\r\n".to_owned(), true),
    ] {
        let text = format!(
            "GET /v1.0/invoke/a/method/mcp HTTP/1.1\r\nHost: 127.0.0.1:3500\r\n{lines}{authorization}\r\n"
        );
        let head = invoked_head(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap();
        let found = invoked(&head).unwrap().unwrap();
        let changes =
            Changes { invoked: Some(found.addressed), host: "127.0.0.1:8000", ..Changes::default() };
        let mut out = Vec::new();
        write_request_head(&mut out, &found.head, Outgoing::None, changes);
        assert!(found.addressed.by_app_id());
        let authorization = if kept { &*authorization } else { "" };
        let expected = format!(
            "GET /v1.0/invoke/a/method/mcp HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\nX-Own: 1\r\n{authorization}\r\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

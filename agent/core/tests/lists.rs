//! Lists without what their reader may not see, and every other byte as it was.

use toolgate_core::mcp::json::{JsonLimits, Scratch, validate};
use toolgate_core::mcp::list::CursorPlace;
use toolgate_core::mcp::{ListKind, Message, list, parse};

/// Filters with `keep` = begins with `k`.
fn check(kind: ListKind, reply: &str, expected: Result<(&str, usize, usize), &str>) {
    let value = validate(reply.as_bytes(), &mut Scratch::new(), &JsonLimits::default()).expect("valid");
    let mut out = b"before".to_vec();
    let found = match list::filter(value, kind, |_place, name| name.starts_with('k'), &mut out) {
        Ok(filtered) => Ok((filtered.kept, filtered.removed)),
        Err(error) => {
            assert_eq!(out, b"before");
            Err(format!("{error:?}"))
        }
    };
    match (found, expected) {
        (Ok((kept, removed)), Ok((text, expected_kept, expected_removed))) => {
            assert_eq!(String::from_utf8_lossy(&out[6..]), text, "{reply}");
            assert_eq!((kept, removed), (expected_kept, expected_removed), "{reply}");
            assert!(validate(&out[6..], &mut Scratch::new(), &JsonLimits::default()).is_ok(), "{text}");
        }
        (Err(error), Err(name)) => assert!(error.starts_with(name), "{reply}: {error}"),
        (found, expected) => panic!("{reply}: {found:?} instead of {expected:?}"),
    }
}

/// A reply with that array, filtered to that one.
fn tools(array: &str, expected: &str, kept: usize, removed: usize) {
    let reply = |array: &str| {
        format!(r#"{{ "jsonrpc":"2.0","id":1, "result":{{"tools" : {array} ,"nextCursor":"c]"}} }}"#)
    };
    check(ListKind::Tools, &reply(array), Ok((&reply(expected), kept, removed)));
}

#[test]
fn elements() {
    tools("[]", "[]", 0, 0);
    tools("[ ]", "[ ]", 0, 0);
    tools(r#"[{"name":"k1"}]"#, r#"[{"name":"k1"}]"#, 1, 0);
    tools(r#"[ {"name":"k1"} , {"name":"k2"} ]"#, r#"[ {"name":"k1"} , {"name":"k2"} ]"#, 2, 0);
    tools(r#"[{"name":"a"}]"#, "[]", 0, 1);
    tools(r#"[ {"name":"a"} , {"name":"b"} ]"#, "[]", 0, 2);
    tools(r#"[{"name":"a"},{"name":"k"}]"#, r#"[{"name":"k"}]"#, 1, 1);
    tools(r#"[{"name":"k"},{"name":"a"}]"#, r#"[{"name":"k"}]"#, 1, 1);
    tools(r#"[{"name":"k1"}, {"name":"a"}, {"name":"k2"}]"#, r#"[{"name":"k1"},{"name":"k2"}]"#, 2, 1);
    let nested =
        r#"{"description":"],[{\"name\":\"a\"},\\","inputSchema":{"x":[[1,2],{"name":"a"}]},"name":"k"}"#;
    tools(&format!(r#"[{{"name":"a"}},{nested}]"#), &format!("[{nested}]"), 1, 1);
    tools(r#"[{"n\u0061me":"\u006b"},{"name":"a"}]"#, r#"[{"n\u0061me":"\u006b"}]"#, 1, 1);
}

#[test]
fn elements_without_a_clear_name() {
    let nameless = r#"[{},{"name":1},{"name":null},"k",null,[{"name":"k"}],{"title":"k"},{"name":["k"]}]"#;
    tools(nameless, "[]", 0, 8);
    tools(r#"[{"name":"k","Name":"a"},{"NAME":"k"},{"name":"k"}]"#, r#"[{"name":"k"}]"#, 1, 2);
}

#[test]
fn kinds() {
    let check_kind = |kind, list: &str, key: &str, other: &str| {
        let reply =
            |elements: &str| format!(r#"{{"result":{{"{list}":[{elements}]}},"jsonrpc":"2.0","id":1}}"#);
        let kept = format!(r#"{{"{key}":"k","{other}":"a"}}"#);
        let removed = format!(r#"{{"{other}":"k","{key}":"a"}}"#);
        check(kind, &reply(&format!("{removed},{kept}")), Ok((&reply(&kept), 1, 1)));
    };
    check_kind(ListKind::Tools, "tools", "name", "title");
    check_kind(ListKind::Resources, "resources", "uri", "name");
    check_kind(ListKind::ResourceTemplates, "resourceTemplates", "uriTemplate", "name");
    check_kind(ListKind::Prompts, "prompts", "name", "title");
}

#[test]
fn other_replies() {
    for reply in [
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m","data":{"tools":[{"name":"a"}]}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":null}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{"prompts":[{"name":"a"}],"x":{"tools":[{"name":"a"}]}}}"#,
        r#"{"tools":[{"name":"a"}]}"#,
    ] {
        check(ListKind::Tools, reply, Ok((reply, 0, 0)));
    }
    check(ListKind::Tools, r#"{"result":{"tools":{"name":"a"}}}"#, Err("Member"));
    check(ListKind::Tools, r#"{"result":{"tools":null}}"#, Err("Member"));
    check(ListKind::Tools, r#"{"result":{"tools":[],"Tools":[{"name":"a"}]}}"#, Err("CollidingKey"));
    check(ListKind::Tools, r#"{"result":{"TOOLS":[{"name":"a"}]}}"#, Err("CollidingKey"));
    check(ListKind::Tools, r#"{"Result":{"tools":[{"name":"a"}]}}"#, Err("CollidingKey"));
}

/// What one caller is shown no other may get from a cache (MCP 2026-07-28, `cacheScope`).
#[test]
fn a_filtered_list_is_its_readers_alone() {
    let reply = |before: &str, list: &str, after: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{{before}"tools":[{list}]{after}}},"x":"public"}}"#)
    };
    let (all, own) = (r#"{"name":"k"}, {"name":"a"}"#, r#"{"name":"k"}"#);
    for (scope, expected) in [
        (r#""cacheScope":"public""#, r#""cacheScope":"private""#),
        (r#""cacheScope" : "publi\u0063""#, r#""cacheScope" : "private""#),
        (r#""cacheScope":null"#, r#""cacheScope":"private""#),
        (r#""cacheScope":{"a":["public"]}"#, r#""cacheScope":"private""#),
        (r#""cacheScope":"private""#, r#""cacheScope":"private""#),
        (r#""ttlMs":5"#, r#""ttlMs":5"#),
    ] {
        let (first, last) = (format!("{scope},"), format!(",{scope}"));
        let (first_shown, last_shown) = (format!("{expected},"), format!(",{expected}"));
        check(ListKind::Tools, &reply(&first, all, ""), Ok((&reply(&first_shown, own, ""), 1, 1)));
        check(ListKind::Tools, &reply("", all, &last), Ok((&reply("", own, &last_shown), 1, 1)));
        // Also where this caller sees all: another may not.
        check(ListKind::Tools, &reply(&first, own, ""), Ok((&reply(&first_shown, own, ""), 1, 0)));
        check(ListKind::Tools, &reply("", own, &last), Ok((&reply("", own, &last_shown), 1, 0)));
    }
    check(ListKind::Tools, &reply(r#""CacheScope":"public","#, all, ""), Err("CollidingKey"));
    let no_list = r#"{"jsonrpc":"2.0","id":1,"result":{"cacheScope":"public"}}"#;
    check(ListKind::Tools, no_list, Ok((no_list, 0, 0)));
}

#[test]
fn cursors() {
    let check = |members: &str, expected: Result<Option<&str>, &str>| {
        let reply = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[]{members}}}}}"#);
        let value = validate(reply.as_bytes(), &mut Scratch::new(), &JsonLimits::default()).expect("valid");
        match (list::next_cursor(value), expected) {
            (Ok(cursor), Ok(expected)) => assert_eq!(cursor.map(|cursor| cursor.text()), expected, "{reply}"),
            (Err(error), Err(name)) => assert!(format!("{error:?}").starts_with(name), "{reply}: {error:?}"),
            (found, expected) => panic!("{reply}: {found:?} instead of {expected:?}"),
        }
    };
    check("", Ok(None));
    check(r#","nextCursor":null"#, Ok(None));
    check(r#","nextCursor" : "a\u0062" "#, Ok(Some(r#""a\u0062""#)));
    check(r#","nextCursor":"""#, Ok(Some(r#""""#)));
    check(r#","nextCursor":1"#, Err("Member"));
    check(r#","nextCursor":{"a":1}"#, Err("Member"));
    check(r#","nextcursor":"a""#, Err("CollidingKey"));
    check(r#","nextCursor":"a","NextCursor":"b""#, Err("CollidingKey"));
}

#[test]
fn a_request_for_the_next_page_is_the_same_but_for_its_cursor() {
    let check = |members: &str, expected: &str| {
        let whole = |members: &str| format!(r#" {{"jsonrpc":"2.0", "id":"i",{members}}} "#);
        let (text, expected) = (whole(members), whole(expected));
        let mut scratch = Scratch::new();
        let Ok(Message::Request(call)) = parse(text.as_bytes(), &mut scratch, &JsonLimits::default()) else {
            panic!("{text}")
        };
        let next = CursorPlace::of(text.as_bytes(), &call).put(text.as_bytes(), r#""n\"""#);
        // What was not there before is the first of its object.
        let expected = expected.replacen(r#" {"jsonrpc":"2.0", "id":"i",+"#, r#" {"#, 1);
        assert_eq!(String::from_utf8_lossy(&next), expected);
        let mut scratch = Scratch::new();
        let Ok(Message::Request(call)) = parse(&next, &mut scratch, &JsonLimits::default()) else {
            panic!("{expected}")
        };
        let cursor = call.params.and_then(|params| params.get("cursor")).and_then(|cursor| cursor.as_str());
        assert_eq!(cursor.as_deref(), Some("n\""));
    };
    let list = r#""method":"tools/list""#;
    check(list, &format!(r#"+"params":{{"cursor":"n\""}},"jsonrpc":"2.0", "id":"i",{list}"#));
    check(&format!(r#""params":{{}},{list}"#), &format!(r#""params":{{"cursor":"n\""}},{list}"#));
    check(&format!(r#""params": {{ }},{list}"#), &format!(r#""params": {{"cursor":"n\"" }},{list}"#));
    check(
        &format!(r#"{list},"params":{{"_meta":{{"progressToken":1}}}}"#),
        &format!(r#"{list},"params":{{"cursor":"n\"","_meta":{{"progressToken":1}}}}"#),
    );
    check(
        &format!(r#"{list},"params":{{"x":{{"cursor":"y"}},"cur\u0073or" : "a" }}"#),
        &format!(r#"{list},"params":{{"x":{{"cursor":"y"}},"cur\u0073or" : "n\"" }}"#),
    );
    check(
        &format!(r#"{list},"params":{{"cursor":null}}"#),
        &format!(r#"{list},"params":{{"cursor":"n\""}}"#),
    );
}

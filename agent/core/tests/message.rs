//! Messages: what is refused about the envelope, and what is read from what is accepted.

use toolgate_core::mcp::json::{JsonLimits, Malformed, Scratch, Value};
use toolgate_core::mcp::{Envelope, Id, Message, parse, reply_envelope};

fn refused(error: &Malformed) -> String {
    let name = format!("{error:?}");
    let name = name.split([' ', '{']).next().unwrap_or_default();
    if let Malformed::Member { member, .. } | Malformed::Missing { member, .. } = error {
        return format!("{name} {member}");
    }
    if let Malformed::CollidingKey { key, .. } | Malformed::DuplicateKey { key, .. } = error {
        return format!("{name} {key}");
    }
    name.to_owned()
}

/// What a client sent, in one line.
fn check(body: &str, expected: &str) {
    let found = match parse(body.as_bytes(), &mut Scratch::new(), &JsonLimits::default()) {
        Ok(Message::Request(call)) => {
            let id = call.id.as_ref().map(Id::raw).unwrap_or_default().to_owned();
            format!("{id} {:?} {:?} {:?}", call.method, call.name.as_deref(), call.uri.as_deref())
        }
        Ok(Message::Notification(call)) => {
            assert_eq!(call.id, None);
            format!("- {:?}", call.method)
        }
        Ok(Message::Response(response)) => {
            format!("{} {}", response.id.raw(), if response.is_error { "error" } else { "result" })
        }
        Err(error) => refused(&error),
    };
    assert_eq!(found, expected, "{body}");
}

/// A request with these members besides `jsonrpc`.
fn with(members: &str, expected: &str) {
    check(&format!(r#"{{"jsonrpc":"2.0",{members}}}"#), expected);
}

/// A request of that method with these params.
fn call(method: &str, params: &str, expected: &str) {
    with(&format!(r#""id":1,"method":"{method}","params":{params}"#), expected);
}

#[test]
fn envelopes() {
    with(r#""id":1,"method":"ping""#, "1 Ping None None");
    with(r#""id":"a\u0062","method":"p\u0069ng","x":{"deep":[1]}"#, r#""a\u0062" Ping None None"#);
    with(r#""method":"notifications/initialized""#, "- Initialized");
    with(r#""method":"something/else","id":"","result_":1"#, r#""" Other None None"#);
    with(r#""id":1,"result":{}"#, "1 result");
    with(r#""id":1,"result":null"#, "1 result");
    with(r#""id":"a","error":{"code":1,"message":"m"}"#, r#""a" error"#);
    with(r#""id":1"#, "Ambiguous");
    with(r#""id":1,"params":{}"#, "Ambiguous");
    with(r#""id":1,"method":"ping","result":{}"#, "Ambiguous");
    with(r#""id":1,"method":"ping","error":{}"#, "Ambiguous");
    with(r#""id":1,"result":{},"error":{}"#, "Ambiguous");
    with(r#""id":1,"result":{},"error":null"#, "Ambiguous");
    with(r#""id":1,"method":null,"result":{}"#, "Ambiguous");
    with(r#""id":1,"error":null"#, "Member error");
    with(r#""id":1,"error":"no""#, "Member error");
    with(r#""result":{}"#, "Missing id");
    with(r#""error":{}"#, "Missing id");
    with(r#""id":null,"error":{}"#, "Member id");
    with(r#""id":1,"method":1"#, "Member method");
    with(r#""id":1,"method":["ping"]"#, "Member method");
    check(r#"{"id":1,"method":"ping"}"#, "Missing jsonrpc");
    check(r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "Member jsonrpc");
    check(r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#, "Member jsonrpc");
    check(r#"{"jsonrpc":null,"id":1,"method":"ping"}"#, "Member jsonrpc");
    check(r#"{"id":1,"method":"ping","jsonrpc":"\u0032.0"}"#, "1 Ping None None");
    check("", "Syntax");
    check("{}", "Missing jsonrpc");
    check("null", "NotAnObject");
    check("\"ping\"", "NotAnObject");
    check("hello", "Syntax");
    check("[]", "Batch");
    check(r#" [{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "Batch");
    check(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}{"jsonrpc":"2.0"}"#, "Syntax");
    check("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n", "1 Ping None None");
    check("\u{feff}{\"jsonrpc\":\"2.0\"}", "ByteOrderMark");
}

#[test]
fn ids() {
    for (id, valid) in [
        ("0", true),
        ("-1", true),
        ("9007199254740992", true),
        ("-9007199254740992", true),
        ("\"\"", true),
        ("\"9007199254740993\"", true),
        ("9007199254740993", false),
        ("-9007199254740993", false),
        ("9223372036854775808", false),
        ("18446744073709551617", false),
        ("1.0", false),
        ("1e2", false),
        ("-0", false),
        ("null", false),
        ("true", false),
        ("[1]", false),
        ("{\"a\":1}", false),
    ] {
        let expected = if valid { format!("{id} Ping None None") } else { "Member id".to_owned() };
        with(&format!(r#""id":{id},"method":"ping""#), &expected);
        let expected = if valid { format!("{id} result") } else { "Member id".to_owned() };
        with(&format!(r#""id":{id},"result":{{}}"#), &expected);
    }
    let mut scratch = Scratch::new();
    let mut id = |text: &'static str| match parse(text.as_bytes(), &mut scratch, &JsonLimits::default()) {
        Ok(Message::Response(response)) => response.id,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        id(r#"{"jsonrpc":"2.0","id":"a","result":1}"#),
        id(r#"{"jsonrpc":"2.0","id":"\u0061","result":1}"#)
    );
    assert_ne!(id(r#"{"jsonrpc":"2.0","id":"1","result":1}"#), id(r#"{"jsonrpc":"2.0","id":1,"result":1}"#));
}

#[test]
fn keys() {
    with(r#""id":1,"id":1,"method":"ping""#, "DuplicateKey id");
    with(r#""id":1,"method":"ping","m\u0065thod":"tools/call""#, "DuplicateKey method");
    with(r#""id":1,"method":"ping","Method":"tools/call""#, "CollidingKey Method");
    with(r#""id":1,"Method":"tools/call""#, "CollidingKey Method");
    with(r#""id":1,"method":"ping","ID":2"#, "CollidingKey ID");
    with(r#""id":1,"method":"ping","\u0050arams":{}"#, "CollidingKey Params");
    with(r#""id":1,"method":"ping","JSONRPC":"2.0""#, "CollidingKey JSONRPC");
    with(r#""id":1,"result":{},"Error":{}"#, "CollidingKey Error");
    with("\"id\":1,\"method\":\"ping\",\"param\u{17f}\":{}", "CollidingKey param\u{17f}");
    with(r#""id":1,"method":"ping","x":1,"X":1"#, "CollidingKey X");
    with("\"id\":1,\"method\":\"ping\",\"\u{e9}\":1,\"\u{c9}\":1", "CollidingKey \u{c9}");
    with("\"id\":1,\"method\":\"ping\",\"k\":1,\"\u{212a}\":1", "CollidingKey \u{212a}");
    with(r#""id":1,"method":"ping","X":1,"Y":{"x":1,"X":1}"#, "1 Ping None None");
    call("tools/call", r#"{"name":"a","name":"b"}"#, "DuplicateKey name");
    call("tools/call", r#"{"name":"a","Name":"b"}"#, "CollidingKey Name");
    call("tools/call", r#"{"NAME":"b"}"#, "CollidingKey NAME");
    call("tools/call", r#"{"name":"a","Arguments":{}}"#, "CollidingKey Arguments");
    call("tools/call", r#"{"name":"a","x":1,"y":2,"X":3}"#, "CollidingKey X");
    call("tools/call", r#"{"name":"a","_META":{}}"#, "CollidingKey _META");
    call("tools/call", r#"{"name":"a","taskid":"t"}"#, "CollidingKey taskid");
    call("tools/call", r#"{"name":"a","_meta":{"x":1,"X":1}}"#, "CollidingKey X");
    call("tools/call", r#"{"name":"a","_meta":{"x":1,"x":1}}"#, "DuplicateKey x");
    call("tools/call", r#"{"name":"a","_meta":{"progresstoken":1}}"#, "CollidingKey progresstoken");
    call(
        "tools/call",
        r#"{"name":"a","_meta":{"IO.modelcontextprotocol/protocolVersion":1}}"#,
        "CollidingKey IO.modelcontextprotocol/protocolVersion",
    );
    call(
        "tools/call",
        r#"{"name":"a","_meta":{"progressToken":1,"a":{"b":1,"B":1}}}"#,
        r#"1 ToolsCall Some("a") None"#,
    );
    call("tools/call", r#"{"name":"a","arguments":{"path":1,"PATH":2}}"#, r#"1 ToolsCall Some("a") None"#);
    call("tools/call", r#"{"name":"a","arguments":{"path":1,"path":2}}"#, "DuplicateKey path");
    call("tools/call", r#"{"name":"a","arguments":{"x":[{"y":1,"\u0079":2}]}}"#, "DuplicateKey y");
    let many: String = (0..20).map(|n| format!("\"x{n}\":0,")).collect();
    call("tools/call", &format!(r#"{{{many}"name":"a","X3":0}}"#), "CollidingKey X3");
    call("tools/call", &format!(r#"{{{many}"name":"a","x3":0}}"#), "DuplicateKey x3");
}

#[test]
fn calls() {
    call("tools/call", r#"{"name":"add","arguments":{"a":1}}"#, r#"1 ToolsCall Some("add") None"#);
    call("tools/call", r#"{"n\u0061me":"\u0061dd"}"#, r#"1 ToolsCall Some("add") None"#);
    call(
        "tools/call",
        r#"{"name":"add","arguments":{"id":123456789012345678901234567890}}"#,
        r#"1 ToolsCall Some("add") None"#,
    );
    call("tools/call", r#"{"name":"add","arguments":{"a":1e400}}"#, "Number");
    call("tools/call", r#"{"name":"add","arguments":{"a":"\ud800"}}"#, "LoneSurrogate");
    call("tools/call", "{}", "Missing params.name");
    with(r#""id":1,"method":"tools/call""#, "Missing params.name");
    with(r#""method":"tools/call","params":{"name":"a"}"#, "Missing id");
    with(r#""id":null,"method":"tools/call","params":{"name":"a"}"#, "Member id");
    call("tools/call", r#"{"name":1}"#, "Member params.name");
    call("tools/call", r#"{"name":null}"#, "Member params.name");
    call("tools/call", r#"{"name":["a"]}"#, "Member params.name");
    call("tools/call", r#"["a"]"#, "Member params");
    call("tools/call", "null", "Member params");
    call("ping", "\"a\"", "Member params");
    call("tools/call", r#"{"name":"a","arguments":[]}"#, "Member params.arguments");
    call("tools/call", r#"{"name":"a","arguments":null}"#, "Member params.arguments");
    call("tools/call", r#"{"name":"a","arguments":"{}"}"#, "Member params.arguments");
    call("tools/call", r#"{"name":"a","_meta":[]}"#, "Member params._meta");
    call("tools/call", r#"{"name":"a","_meta":nul}"#, "Syntax");
    call("prompts/get", r#"{"name":"p"}"#, r#"1 PromptsGet Some("p") None"#);
    call("prompts/get", r#"{"uri":"p"}"#, "Missing params.name");
    call("resources/read", r#"{"uri":"file:///a"}"#, r#"1 ResourcesRead None Some("file:///a")"#);
    call("resources/read", r#"{"uri":{}}"#, "Member params.uri");
    call("resources/subscribe", r#"{"name":"a"}"#, "Missing params.uri");
    call("resources/unsubscribe", "{}", "Missing params.uri");
    call(
        "completion/complete",
        r#"{"ref":{"type":"ref/prompt","name":"p"}}"#,
        r#"1 Complete Some("p") None"#,
    );
    call(
        "completion/complete",
        r#"{"ref":{"type":"ref/resource","uri":"u","name":"p"}}"#,
        r#"1 Complete None Some("u")"#,
    );
    call("completion/complete", r#"{"name":"a"}"#, "Missing params.ref");
    call("completion/complete", r#"{"ref":{"type":"ref/tool","name":"p"}}"#, "Member params.ref");
    call("completion/complete", r#"{"ref":"p"}"#, "Member params.ref");
    call(
        "completion/complete",
        r#"{"ref":{"type":"ref/prompt","Name":"p","name":"q"}}"#,
        "Member params.ref",
    );
    call("completion/complete", r#"{"ref":{"type":"ref/prompt"}}"#, "Missing params.ref.name");
    call("completion/complete", r#"{"ref":{"type":"ref/resource","uri":1}}"#, "Member params.ref.uri");
    call("Tools/Call", r#"{"name":"a"}"#, r#"1 Other Some("a") None"#);
    call("logging/setLevel", r#"{"name":1}"#, "1 SetLevel None None");
}

#[test]
fn spans() {
    let body = br#"{"params":{"task":{},"arguments": {"a" : [1]} ,"name":"t"},"method":"tools/call","id":7,"jsonrpc":"2.0"}"#;
    let Ok(Message::Request(call)) = parse(body, &mut Scratch::new(), &JsonLimits::default()) else {
        panic!("refused")
    };
    assert_eq!(call.arguments.map(Value::text), Some(r#"{"a" : [1]}"#));
    assert_eq!(call.params.and_then(|params| params.pointer("/arguments/a/0")).map(Value::text), Some("1"));
    assert_eq!((call.method_name.as_ref(), call.task), ("tools/call", true));
}

#[test]
fn replies() {
    fn check(members: &str, expected: &str) {
        let text = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
        let found = match reply_envelope(text.as_bytes(), &mut Scratch::new(), &JsonLimits::default()) {
            Ok((Envelope::Response { id, is_error }, value, _)) => {
                assert_eq!(value.text(), text);
                format!("{} {}", id.as_ref().map_or("-", Id::raw), if is_error { "error" } else { "result" })
            }
            Ok((Envelope::Request(method, id), ..)) => format!("{} {method}", id.raw()),
            Ok((Envelope::Notification(method), ..)) => format!("- {method}"),
            Err(error) => refused(&error),
        };
        assert_eq!(found, expected, "{text}");
    }
    check(r#""id":1,"result":{"tools":[]}"#, "1 result");
    check(r#""id":"a","error":{"code":-32601,"message":"m"}"#, "\"a\" error");
    check(r#""id":null,"error":{}"#, "- error");
    check(r#""error":{}"#, "- error");
    check(r#""id":null,"result":{}"#, "Member id");
    check(r#""result":{}"#, "Missing id");
    check(r#""id":5,"method":"sampling/createMessage","params":{}"#, "5 sampling/createMessage");
    check(r#""id":null,"method":"roots/list""#, "Member id");
    check(
        r#""method":"notifications/message","params":{"level":"info","data":{"a":1,"A":2}}"#,
        "- notifications/message",
    );
    check(r#""id":1,"result":{},"Result":{}"#, "CollidingKey Result");
    check(r#""id":1,"result":{"a":1,"a":2}"#, "DuplicateKey a");
    check(r#""id":1,"method":"x","result":{}"#, "Ambiguous");
    assert!(reply_envelope(b"[]", &mut Scratch::new(), &JsonLimits::default()).is_err());
}

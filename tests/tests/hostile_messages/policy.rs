//! Sound messages that ask for something else than they seem to, or for what nobody gave.

use crate::{Refusal, Row, Told, post};

/// Names that are not the permitted tool `echo`, as JSON texts.
const NAMES: &[&str] = &[
    "delete_everything",
    "Echo",
    "ECHO",
    " echo",
    "echo ",
    "echo\\n",
    "echo\\u0000",
    "echo\\u200b",
    "echo\\u00ad",
    "\\u0435cho",
    "\\uff45cho",
    "ech\\u014d",
    "e\\u0301cho",
    "\\u202eohce",
    "echo\\ud83d\\ude00",
    "",
    "*",
    "ech*",
    "echo,add",
    "echo/",
    "tools/echo",
    "docs.echo",
    "../echo",
    "echo%20",
];

/// Arguments of `add` that its rule does not permit, beside `{"a":1,"b":2}`.
const SUMS: &[&str] = &[
    r#"{"a":101,"b":2}"#,
    r#"{"a":1,"b":1e3}"#,
    r#"{"a":1,"b":100.0000001}"#,
    r#"{"a":1,"b":9007199254740993}"#,
    r#"{"a":1,"b":-9007199254740993}"#,
    r#"{"a":1,"b":"2"}"#,
    r#"{"a":1,"b":null}"#,
    r#"{"a":1,"b":true}"#,
    r#"{"a":1,"b":[2]}"#,
    r#"{"a":1,"b":{"b":2}}"#,
    r#"{"a":1}"#,
    r#"{"a":1,"b":2,"c":3}"#,
    r#"{"a":1,"b":2,"B":3000}"#,
    r#"{"a":1,"B":2}"#,
    r#"{}"#,
];

/// Paths that are none of `read_file`'s, as JSON texts, beside `/srv/docs/a`, with the reason: a rule allows
/// `/srv/docs`, another one denies `/srv/docs/secret`.
const PATHS: &[(&str, &str)] = &[
    ("/etc/passwd", "arguments_refused"),
    ("/srv/docs/../../etc/passwd", "arguments_refused"),
    ("/srv/docs/\\u002e\\u002e/\\u002e\\u002e/etc/passwd", "arguments_refused"),
    ("/srv/docs/..\\/..\\/etc/passwd", "arguments_refused"),
    ("/srv/docsx/a", "arguments_refused"),
    ("/SRV/docs/a", "arguments_refused"),
    ("/srv", "arguments_refused"),
    ("/srv/docs/secret", "denied_by_rule"),
    ("/srv/docs/secret/a", "denied_by_rule"),
    ("/srv/docs/./secret/a", "denied_by_rule"),
    ("/srv/docs//secret/a", "denied_by_rule"),
    ("/srv/docs/b/../secret/a", "denied_by_rule"),
    ("/srv/docs/%73ecret/a", "denied_by_rule"),
    ("/srv/docs/%2e%2e/a", "arguments_refused"),
    ("/srv/docs/%2fsecret", "denied_by_rule"),
    ("srv/docs/a", "denied_by_rule"),
    ("", "denied_by_rule"),
    ("file:///srv/docs/a", "denied_by_rule"),
    ("\\\\srv\\\\docs\\\\a", "denied_by_rule"),
];

/// Methods that are none, beside `ping`, as JSON texts.
const METHODS: &[&str] = &[
    "Tools/Call",
    "TOOLS/CALL",
    "tools/call ",
    " tools/call",
    "tools/call\\u0000",
    "tools//call",
    "tools/call/",
    "tools.call",
    "t\\u043eols/call",
    "Ping",
    "ping ",
    "rpc.discover",
    "",
    "*",
    "system.multicall",
];

/// Methods of MCP that are not a client's to send, or that no rule permits here, with the reason.
const OTHERS: &[(&str, &str, &str)] = &[
    ("sampling/createMessage", "{}", "method_unknown"),
    ("elicitation/create", "{}", "method_unknown"),
    ("roots/list", "{}", "method_unknown"),
    ("resources/read", r#"{"uri":"file:///etc/passwd"}"#, "no_rule"),
    ("resources/subscribe", r#"{"uri":"file:///etc/passwd"}"#, "no_rule"),
    ("prompts/get", r#"{"name":"echo"}"#, "no_rule"),
    ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"echo"}}"#, "no_rule"),
    ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"echo"}}"#, "no_rule"),
];

/// Members of messages that nobody answers, beside a notification of the client's own, with the reason.
const UNANSWERED: &[(&str, &str)] = &[
    (r#""method":"notifications/message","params":{"level":"error","data":"x"}"#, "method_unknown"),
    (r#""method":"notifications/tools/list_changed""#, "method_unknown"),
    (r#""method":"notifications/resources/updated","params":{"uri":"a"}"#, "method_unknown"),
    (r#""method":"Notifications/Initialized""#, "method_unknown"),
    (r#""method":"notifications/other""#, "method_unknown"),
    (r#""id":1,"result":{"action":"accept"}"#, "unexpected_response"),
    (r#""id":"a","result":{}"#, "unexpected_response"),
    (r#""id":1,"error":{"code":1,"message":"no"}"#, "unexpected_response"),
];

/// Sessions that this caller did not get.
const SESSIONS: &[&str] = &["session-0", "1", "a b", "*", "../session-0"];

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for name in NAMES {
        let hostile = call(&format!(r#""{name}""#), r#"{"text":"a"}"#);
        rows.push(row(
            &format!("the tool `{name}`"),
            &hostile,
            &call(r#""echo""#, r#"{"text":"a"}"#),
            Told::ToolError,
            "no_rule",
        ));
    }
    let sum = |arguments: &str| call(r#""add""#, arguments);
    for arguments in SUMS {
        rows.push(row(
            &format!("add {arguments}"),
            &sum(arguments),
            &sum(r#"{"a":1,"b":2}"#),
            Told::ToolError,
            "arguments_refused",
        ));
    }
    let read = |arguments: &str| call(r#""read_file""#, arguments);
    let harmless = read(r#"{"path":"/srv/docs/a"}"#);
    for (path, reason) in PATHS {
        let hostile = read(&format!(r#"{{"path":"{path}"}}"#));
        rows.push(row(&format!("the path {path}"), &hostile, &harmless, Told::ToolError, reason));
    }
    for arguments in [
        r#"{"path":"/srv/docs/a","PATH":"/etc/passwd"}"#,
        r#"{"path":["/srv/docs/a"]}"#,
        r#"{"path":null}"#,
        r#"{"Path":"/srv/docs/a"}"#,
    ] {
        rows.push(row(
            &format!("read_file {arguments}"),
            &read(arguments),
            &harmless,
            Told::ToolError,
            "denied_by_rule",
        ));
    }
    let ping = message(r#""id":1,"method":"ping""#);
    for method in METHODS {
        let hostile = message(&format!(r#""id":1,"method":"{method}","params":{{"name":"echo"}}"#));
        rows.push(row(&format!("the method `{method}`"), &hostile, &ping, Told::Error, "method_unknown"));
    }
    for (method, params, reason) in OTHERS {
        let hostile = message(&format!(r#""id":1,"method":"{method}","params":{params}"#));
        rows.push(row(&format!("{method} {params}"), &hostile, &ping, Told::Error, reason));
    }
    let notification = message(r#""method":"notifications/initialized""#);
    for (members, reason) in UNANSWERED {
        rows.push(row(members, &message(members), &notification, Told::Status(202), reason));
    }
    rows.extend(requests(&ping));
    rows
}

/// What is refused for its head alone.
fn requests(ping: &str) -> Vec<Row> {
    let plain = String::from_utf8_lossy(&post(ping.as_bytes())).into_owned();
    let mut rows = Vec::new();
    for session in SESSIONS {
        let hostile = plain.replace("\r\n\r\n", &format!("\r\nMcp-Session-Id: {session}\r\n\r\n"));
        rows.push(request(&format!("the session `{session}`"), &hostile, ping, 404, "unknown_session"));
    }
    for (path, status) in
        [("/", 403), ("/mcp/", 403), ("/MCP", 403), ("/mcp;a", 403), ("/mc%70", 403), ("/.well-known/a", 404)]
    {
        let hostile = plain.replace("/mcp", path);
        rows.push(request(&format!("the path {path}"), &hostile, ping, status, "path_not_served"));
    }
    rows
}

fn request(name: &str, hostile: &str, ping: &str, status: u16, reason: &'static str) -> Row {
    let refusal = Refusal { told: Told::Status(status), reason, detail: "" };
    Row {
        name: name.to_owned(),
        hostile: hostile.as_bytes().to_vec(),
        twin: post(ping.as_bytes()),
        arrives: ping.into(),
        refusal,
    }
}

fn message(members: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0",{members}}}"#)
}

fn call(name: &str, arguments: &str) -> String {
    message(&format!(r#""id":1,"method":"tools/call","params":{{"name":{name},"arguments":{arguments}}}"#))
}

fn row(name: &str, hostile: &str, twin: &str, told: Told, reason: &'static str) -> Row {
    let refusal = Refusal { told, reason, detail: "" };
    Row {
        name: name.to_owned(),
        hostile: post(hostile.as_bytes()),
        twin: post(twin.as_bytes()),
        arrives: twin.into(),
        refusal,
    }
}

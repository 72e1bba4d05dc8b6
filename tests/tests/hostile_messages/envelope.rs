//! JSON that is no JSON-RPC message, or not the same message for every reader.

use crate::{Refusal, Row, Told, post};

/// Name, hostile, twin, code, what the audit says of it.
type Text = (&'static str, &'static str, &'static str, i64, &'static str);

/// Whole bodies.
const BODIES: &[Text] = &[
    ("nothing", "", PING, -32700, "no valid JSON"),
    ("white space", " \n", PING, -32700, "no valid JSON"),
    ("an empty object", "{}", PING, -32600, "`jsonrpc` is missing"),
    ("null", "null", PING, -32600, "no JSON object"),
    ("a text", "\"ping\"", PING, -32600, "no JSON object"),
    ("a number", "1", PING, -32600, "no JSON object"),
    ("a form", "jsonrpc=2.0&id=1&method=ping", PING, -32700, "no valid JSON"),
    ("XML", "<methodCall><methodName>ping</methodName></methodCall>", PING, -32700, "no valid JSON"),
    ("two messages", TWO, PING, -32700, "no valid JSON"),
    ("two messages, a line each", TWO_LINES, PING, -32700, "no valid JSON"),
    (
        "a message and a comma",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"},",
        PING,
        -32700,
        "no valid JSON",
    ),
    ("a message cut off", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"", PING, -32700, "no valid JSON"),
    (
        "a guard of other readers",
        ")]}'\n{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}",
        PING,
        -32700,
        "no valid JSON",
    ),
    (
        "an event of a stream",
        "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n\n",
        PING,
        -32700,
        "no valid JSON",
    ),
    ("no version", r#"{"id":1,"method":"ping"}"#, PING, -32600, "`jsonrpc` is missing"),
    ("another version", r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, PING, -32600, "`jsonrpc` must be"),
    (
        "the version as a number",
        r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
        PING,
        -32600,
        "`jsonrpc` must be",
    ),
    ("no batch, as it is empty", "[]", PING, -32600, BATCHED),
    ("a batch of one", r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, PING, -32600, BATCHED),
    (
        "a batch that begins with a space",
        r#" [{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
        PING,
        -32600,
        BATCHED,
    ),
    ("a batch with a forbidden call behind a harmless one", BATCH, PING, -32600, BATCHED),
];

/// What the audit says of a batch, which has a reason of its own.
const BATCHED: &str = "a batch";
const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const TWO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
const TWO_LINES: &str =
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}";
const BATCH: &str = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete_everything"}}]"#;

/// What stands behind `jsonrpc`.
const MEMBERS: &[Text] = &[
    (
        "the method twice",
        r#""id":1,"method":"ping","method":"tools/call""#,
        P,
        -32700,
        "`method` stands twice",
    ),
    (
        "the method twice, once escaped",
        r#""id":1,"method":"ping","m\u0065thod":"tools/call""#,
        P,
        -32700,
        "`method` stands twice",
    ),
    (
        "the method in two cases",
        r#""id":1,"method":"ping","Method":"tools/call""#,
        P,
        -32600,
        "`Method` differs",
    ),
    ("the method in another case alone", r#""id":1,"METHOD":"ping""#, P, -32600, "`METHOD` differs"),
    ("the id twice", r#""id":1,"id":2,"method":"ping""#, P, -32700, "`id` stands twice"),
    ("the id in two cases", r#""id":1,"Id":2,"method":"ping""#, P, -32600, "`Id` differs"),
    (
        "the params twice",
        r#""id":1,"method":"ping","params":{},"params":{"a":1}"#,
        PP,
        -32700,
        "`params` stands twice",
    ),
    (
        "the params in two cases",
        r#""id":1,"method":"ping","params":{},"Params":{}"#,
        PP,
        -32600,
        "`Params` differs",
    ),
    ("the params with a long s", "\"id\":1,\"method\":\"ping\",\"param\u{17f}\":{}", PP, -32600, "differs"),
    (
        "the version in another case",
        r#""id":1,"method":"ping","JSONRPC":"2.0""#,
        P,
        -32600,
        "`JSONRPC` differs",
    ),
    (
        "foreign members in two cases",
        r#""id":1,"method":"ping","x":1,"X":2"#,
        r#""id":1,"method":"ping","x":1,"y":2"#,
        -32600,
        "`X` differs",
    ),
    ("an id of null", r#""id":null,"method":"ping""#, P, -32600, "`id` must be"),
    ("an id that is true", r#""id":true,"method":"ping""#, P, -32600, "`id` must be"),
    ("an id in an array", r#""id":[1],"method":"ping""#, P, -32600, "`id` must be"),
    ("an id with a fraction", r#""id":1.5,"method":"ping""#, P, -32600, "`id` must be"),
    ("an id that is 1.0", r#""id":1.0,"method":"ping""#, P, -32600, "`id` must be"),
    (
        "an id with an exponent",
        r#""id":1e2,"method":"ping""#,
        r#""id":100,"method":"ping""#,
        -32600,
        "`id` must be",
    ),
    (
        "an id of minus zero",
        r#""id":-0,"method":"ping""#,
        r#""id":0,"method":"ping""#,
        -32600,
        "`id` must be",
    ),
    (
        "an id beyond 2^53",
        r#""id":9007199254740993,"method":"ping""#,
        r#""id":9007199254740992,"method":"ping""#,
        -32600,
        "`id` must be",
    ),
    (
        "an id below -2^53",
        r#""id":-9007199254740993,"method":"ping""#,
        r#""id":-9007199254740992,"method":"ping""#,
        -32600,
        "`id` must be",
    ),
    (
        "an id beyond 64 bits",
        r#""id":18446744073709551617,"method":"ping""#,
        r#""id":"18446744073709551617","method":"ping""#,
        -32600,
        "`id` must be",
    ),
    ("a method that is a number", r#""id":1,"method":1"#, P, -32600, "`method` must be"),
    ("a method in an array", r#""id":1,"method":["ping"]"#, P, -32600, "`method` must be"),
    ("a method of null", r#""id":1,"method":null"#, P, -32600, "`method` must be"),
    ("no method", r#""id":1"#, P, -32600, "the message has"),
    ("params without method", r#""id":1,"params":{}"#, PP, -32600, "the message has"),
    ("a request that is a result", r#""id":1,"method":"ping","result":{}"#, P, -32600, "the message has"),
    (
        "a request that is an error",
        r#""id":1,"method":"ping","error":{"code":1,"message":""}"#,
        P,
        -32600,
        "the message has",
    ),
    (
        "a result that is an error",
        r#""id":1,"result":{},"error":{"code":1,"message":""}"#,
        P,
        -32600,
        "the message has",
    ),
    ("a result for nobody", r#""result":{}"#, P, -32600, "`id` is missing"),
    ("an error that is a text", r#""id":1,"error":"no""#, P, -32600, "`error` must be"),
    ("params that are a text", r#""id":1,"method":"ping","params":"a""#, PP, -32600, "`params` must be"),
    ("params of null", r#""id":1,"method":"ping","params":null"#, PP, -32600, "`params` must be"),
    (
        "params in an array",
        r#""id":1,"method":"tools/call","params":["echo"]"#,
        C,
        -32600,
        "`params` must be",
    ),
    ("a call without params", r#""id":1,"method":"tools/call""#, C, -32600, "`params.name` is missing"),
    ("a call without id", r#""method":"tools/call","params":{"name":"echo"}"#, C, -32600, "`id` is missing"),
    (
        "a call with an id of null",
        r#""id":null,"method":"tools/call","params":{"name":"echo"}"#,
        C,
        -32600,
        "`id` must be",
    ),
];

const P: &str = r#""id":1,"method":"ping""#;
const PP: &str = r#""id":1,"method":"ping","params":{}"#;
const C: &str = r#""id":1,"method":"tools/call","params":{"name":"echo"}"#;

/// The params of a tool call.
const PARAMS: &[Text] = &[
    ("no tool", "{}", E, -32600, "`params.name` is missing"),
    ("a tool that is a number", r#"{"name":1}"#, E, -32600, "`params.name` must be"),
    ("a tool of null", r#"{"name":null}"#, E, -32600, "`params.name` must be"),
    ("tools in an array", r#"{"name":["echo","delete_everything"]}"#, E, -32600, "`params.name` must be"),
    ("the tool in an object", r#"{"name":{"name":"echo"}}"#, E, -32600, "`params.name` must be"),
    ("the tool twice", r#"{"name":"echo","name":"delete_everything"}"#, E, -32700, "`name` stands twice"),
    (
        "the tool twice, once escaped",
        r#"{"name":"echo","n\u0061me":"delete_everything"}"#,
        E,
        -32700,
        "`name` stands twice",
    ),
    (
        "the tool twice, far apart",
        r#"{"name":"echo","arguments":{},"_meta":{},"name":"delete_everything"}"#,
        E,
        -32700,
        "`name` stands twice",
    ),
    ("the tool in two cases", r#"{"name":"echo","Name":"delete_everything"}"#, E, -32600, "`Name` differs"),
    ("the tool in another case alone", r#"{"NAME":"echo"}"#, E, -32600, "`NAME` differs"),
    (
        "the arguments twice",
        r#"{"name":"echo","arguments":{"a":1},"arguments":{"a":2}}"#,
        A,
        -32700,
        "`arguments` stands twice",
    ),
    (
        "the arguments in two cases",
        r#"{"name":"echo","arguments":{"a":1},"Arguments":{"a":2}}"#,
        A,
        -32600,
        "`Arguments` differs",
    ),
    (
        "the arguments in another case alone",
        r#"{"name":"echo","ARGUMENTS":{"a":1}}"#,
        A,
        -32600,
        "`ARGUMENTS` differs",
    ),
    ("arguments in an array", r#"{"name":"echo","arguments":[1]}"#, A, -32600, "`params.arguments` must be"),
    (
        "arguments as a text of JSON",
        r#"{"name":"echo","arguments":"{}"}"#,
        A,
        -32600,
        "`params.arguments` must be",
    ),
    ("arguments of null", r#"{"name":"echo","arguments":null}"#, A, -32600, "`params.arguments` must be"),
    ("_meta in two cases", r#"{"name":"echo","_meta":{},"_META":{}}"#, M, -32600, "`_META` differs"),
    ("_meta in an array", r#"{"name":"echo","_meta":[]}"#, M, -32600, "`params._meta` must be"),
    ("a key of _meta twice", r#"{"name":"echo","_meta":{"x":1,"x":2}}"#, M, -32700, "`x` stands twice"),
    ("a key of _meta in two cases", r#"{"name":"echo","_meta":{"x":1,"X":2}}"#, M, -32600, "`X` differs"),
    (
        "a progress token in another case",
        r#"{"name":"echo","_meta":{"progresstoken":1}}"#,
        M,
        -32600,
        "`progresstoken` differs",
    ),
    (
        "the version in another case",
        r#"{"name":"echo","_meta":{"IO.modelcontextprotocol/protocolVersion":"1"}}"#,
        M,
        -32600,
        "differs",
    ),
    ("a task in another case", r#"{"name":"echo","Task":{}}"#, E, -32600, "`Task` differs"),
    ("foreign params in two cases", r#"{"name":"echo","x":1,"X":2}"#, E, -32600, "`X` differs"),
];

const E: &str = r#"{"name":"echo"}"#;
const A: &str = r#"{"name":"echo","arguments":{"a":1}}"#;
const M: &str = r#"{"name":"echo","_meta":{"x":1,"y":{"x":1,"X":2}}}"#;

pub(crate) fn rows() -> Vec<Row> {
    let bodies = BODIES.iter().map(|text| row(text, str::to_owned));
    let members =
        MEMBERS.iter().map(|text| row(text, |members| format!("{{\"jsonrpc\":\"2.0\",{members}}}")));
    let params = PARAMS.iter().map(|text| row(text, call));
    bodies.chain(members).chain(params).collect()
}

fn call(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
}

fn row(&(name, hostile, twin, code, detail): &Text, whole: impl Fn(&str) -> String) -> Row {
    let reason = if detail == BATCHED { "batch" } else { "malformed_message" };
    Row {
        name: name.to_owned(),
        hostile: post(whole(hostile).as_bytes()),
        twin: post(whole(twin).as_bytes()),
        arrives: whole(twin).into(),
        refusal: Refusal { told: Told::Broken(400, code), reason, detail },
    }
}

//! Texts that are no JSON, or not the same JSON for every reader. All stand where a tool's arguments do.

use crate::{Refusal, Row, Told, post};

/// Name, hostile, twin, what the audit says of it.
type Text = (&'static str, &'static [u8], &'static [u8], &'static str);

const TEXTS: &[Text] = &[
    ("a key twice", br#"{"a":1,"a":2}"#, br#"{"a":1,"b":2}"#, "`a` stands twice"),
    ("a key twice, the same value", br#"{"a":1,"a":1}"#, br#"{"a":1}"#, "`a` stands twice"),
    ("a key twice, once escaped", br#"{"a":1,"\u0061":2}"#, br#"{"a":1,"\u0062":2}"#, "`a` stands twice"),
    ("a key twice, both escaped", br#"{"\u0061":1,"\u0061":2}"#, br#"{"\u0061":1}"#, "`a` stands twice"),
    ("a key twice, an escaped solidus", br#"{"a/":1,"a\/":2}"#, br#"{"a\/":2}"#, "`a/` stands twice"),
    (
        "a key twice, a surrogate pair",
        b"{\"\xf0\x9f\x98\x80\":1,\"\\ud83d\\ude00\":2}",
        b"{\"\\ud83d\\ude00\":2}",
        "stands twice",
    ),
    ("the empty key twice", br#"{"":1,"":2}"#, br#"{"":1}"#, "stands twice"),
    (
        "a key twice, far apart",
        br#"{"a":1,"b":{"c":[1,2]},"d":4,"a":2}"#,
        br#"{"a":1,"b":{"c":[1,2]},"d":4}"#,
        "`a` stands twice",
    ),
    ("a key twice, deep", br#"{"x":[{"y":{"a":1,"a":2}}]}"#, br#"{"x":[{"y":{"a":1}}]}"#, "`a` stands twice"),
    ("a key twice, as objects", br#"{"a":{},"a":{"b":1}}"#, br#"{"a":{"b":1}}"#, "`a` stands twice"),
    ("NaN", br#"{"a":NaN}"#, br#"{"a":"NaN"}"#, "no valid JSON"),
    ("Infinity", br#"{"a":Infinity}"#, br#"{"a":"Infinity"}"#, "no valid JSON"),
    ("-Infinity", br#"{"a":-Infinity}"#, br#"{"a":"-Infinity"}"#, "no valid JSON"),
    ("a number beyond a double", br#"{"a":1e309}"#, br#"{"a":1e308}"#, "overflows a double"),
    ("a negative number beyond a double", br#"{"a":-1e400}"#, br#"{"a":-1e300}"#, "overflows a double"),
    (
        "an exponent beyond an integer",
        br#"{"a":1e99999999999999999999}"#,
        br#"{"a":0e99999999999999999999}"#,
        "overflows a double",
    ),
    ("a leading zero", br#"{"a":01}"#, br#"{"a":1}"#, "no valid JSON"),
    ("a leading plus", br#"{"a":+1}"#, br#"{"a":1}"#, "no valid JSON"),
    ("no digit before the point", br#"{"a":.5}"#, br#"{"a":0.5}"#, "no valid JSON"),
    ("no digit behind the point", br#"{"a":5.}"#, br#"{"a":5.0}"#, "no valid JSON"),
    ("an empty exponent", br#"{"a":1e}"#, br#"{"a":1e0}"#, "no valid JSON"),
    ("hexadecimal", br#"{"a":0x10}"#, br#"{"a":16}"#, "no valid JSON"),
    ("octal", br#"{"a":0o17}"#, br#"{"a":15}"#, "no valid JSON"),
    ("digits in groups", br#"{"a":1_000}"#, br#"{"a":1000}"#, "no valid JSON"),
    ("a big integer of JavaScript", br#"{"a":1n}"#, br#"{"a":1}"#, "no valid JSON"),
    ("undefined", br#"{"a":undefined}"#, br#"{"a":null}"#, "no valid JSON"),
    ("True", br#"{"a":True}"#, br#"{"a":true}"#, "no valid JSON"),
    ("None", br#"{"a":None}"#, br#"{"a":null}"#, "no valid JSON"),
    ("a comma too many in an object", br#"{"a":1,}"#, br#"{"a":1}"#, "no valid JSON"),
    ("a comma too many in an array", br#"{"a":[1,]}"#, br#"{"a":[1]}"#, "no valid JSON"),
    ("a comma too few", br#"{"a":1 "b":2}"#, br#"{"a":1, "b":2}"#, "no valid JSON"),
    ("an element left out", br#"{"a":[1,,2]}"#, br#"{"a":[1,null,2]}"#, "no valid JSON"),
    ("a key without quotes", br#"{a:1}"#, br#"{"a":1}"#, "no valid JSON"),
    ("a number as a key", br#"{1:1}"#, br#"{"1":1}"#, "no valid JSON"),
    ("single quotes", br#"{'a':1}"#, br#"{"a":1}"#, "no valid JSON"),
    ("a single-quoted value", br#"{"a":'b'}"#, br#"{"a":"b"}"#, "no valid JSON"),
    ("a comment", br#"{"a":1/*,"b":2*/}"#, br#"{"a":1,"b":2}"#, "no valid JSON"),
    ("a comment to the line's end", b"{\"a\":1//,\n}", b"{\"a\":1\n}", "no valid JSON"),
    ("a comment with a hash", b"{\"a\":1#,\n}", b"{\"a\":1\n}", "no valid JSON"),
    ("a template text", br#"{"a":`b`}"#, br#"{"a":"b"}"#, "no valid JSON"),
    ("a closing bracket of the other kind", br#"{"a":[1}"#, br#"{"a":[1]}"#, "no valid JSON"),
    ("a value too many", br#"{"a":1 2}"#, br#"{"a":[1,2]}"#, "no valid JSON"),
    ("an equals sign", br#"{"a"=1}"#, br#"{"a":1}"#, "no valid JSON"),
    ("a no-break space", b"{\"a\":\xc2\xa01}", b"{\"a\": 1}", "no valid JSON"),
    ("a vertical tab", b"{\"a\":\x0b1}", b"{\"a\":\t1}", "no valid JSON"),
    ("a form feed", b"{\"a\":\x0c1}", b"{\"a\":\r1}", "no valid JSON"),
    ("a NUL between values", b"{\"a\":1,\0\"b\":2}", b"{\"a\":1, \"b\":2}", "no valid JSON"),
    ("a raw line feed in a text", b"{\"a\":\"b\nc\"}", br#"{"a":"b\nc"}"#, "raw control character"),
    ("a raw tab in a text", b"{\"a\":\"b\tc\"}", br#"{"a":"b\tc"}"#, "raw control character"),
    ("a raw NUL in a text", b"{\"a\":\"b\0c\"}", br#"{"a":"b\u0000c"}"#, "raw control character"),
    ("a raw control character in a key", b"{\"a\x1f\":1}", br#"{"a\u001f":1}"#, "raw control character"),
    ("an escaped quote of another language", br#"{"a":"\'"}"#, br#"{"a":"'"}"#, "no valid JSON"),
    ("a hexadecimal escape", br#"{"a":"\x41"}"#, br#"{"a":"\u0041"}"#, "no valid JSON"),
    ("a long escape", br#"{"a":"\U00000041"}"#, br#"{"a":"\u0041"}"#, "no valid JSON"),
    ("an escape in braces", br#"{"a":"\u{41}"}"#, br#"{"a":"\u0041"}"#, "no valid JSON"),
    ("three hexadecimal digits", br#"{"a":"\u041"}"#, br#"{"a":"\u0041"}"#, "no valid JSON"),
    ("an escaped line end", b"{\"a\":\"b\\\nc\"}", br#"{"a":"b\\nc"}"#, "no valid JSON"),
    ("half a pair, the first", br#"{"a":"\ud83d"}"#, br#"{"a":"\ud83d\ude00"}"#, "half a surrogate pair"),
    ("half a pair, the second", br#"{"a":"\ude00"}"#, br#"{"a":"\ud83d\ude00"}"#, "half a surrogate pair"),
    (
        "a pair in the wrong order",
        br#"{"a":"\ude00\ud83d"}"#,
        br#"{"a":"\ud83d\ude00"}"#,
        "half a surrogate pair",
    ),
    ("half a pair in a key", br#"{"a\ud800":1}"#, br#"{"a\u0800":1}"#, "half a surrogate pair"),
    ("a byte that is no UTF-8", b"{\"a\":\"\xff\"}", b"{\"a\":\"\xc3\xbf\"}", "not UTF-8"),
    ("an overlong solidus", b"{\"a\":\"\xc0\xaf\"}", b"{\"a\":\"/\"}", "not UTF-8"),
    ("an overlong NUL", b"{\"a\":\"\xc0\x80\"}", br#"{"a":"\u0000"}"#, "not UTF-8"),
    (
        "a surrogate in UTF-8",
        b"{\"a\":\"\xed\xa0\xbd\xed\xb8\x80\"}",
        b"{\"a\":\"\xf0\x9f\x98\x80\"}",
        "not UTF-8",
    ),
    (
        "beyond the last code point",
        b"{\"a\":\"\xf4\x90\x80\x80\"}",
        b"{\"a\":\"\xf4\x8f\xbf\xbf\"}",
        "not UTF-8",
    ),
    ("a character cut off", b"{\"a\":\"\xe2\x82\"}", b"{\"a\":\"\xe2\x82\xac\"}", "not UTF-8"),
    ("Latin-1", b"{\"a\":\"caf\xe9\"}", b"{\"a\":\"caf\xc3\xa9\"}", "not UTF-8"),
];

pub(crate) fn rows() -> Vec<Row> {
    let texts =
        TEXTS.iter().map(|&(name, hostile, twin, detail)| row(name, call(hostile), call(twin), detail));
    texts.chain(built()).collect()
}

/// Texts that are too long to be written down.
fn built() -> [Row; 5] {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let wide = |keys: usize| {
        let members: Vec<_> = (0..keys).map(|key| format!("\"{key}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    let twice = |last: &str| wide(60).replace("\"59\"", last);
    let utf16 = |text: Vec<u8>| text.iter().flat_map(|&byte| [byte, 0]).collect::<Vec<_>>();
    [
        row("nested too deep", call(nested(100).as_bytes()), call(nested(20).as_bytes()), "nested deeper"),
        row("too many members", call(wide(20_000).as_bytes()), call(wide(200).as_bytes()), "more than"),
        row(
            "a key twice among many",
            call(twice("\"0\"").as_bytes()),
            call(twice("\"60\"").as_bytes()),
            "`0` stands twice",
        ),
        row(
            "a byte order mark",
            [b"\xef\xbb\xbf".to_vec(), call(b"{}")].concat(),
            call(b"{}"),
            "byte order mark",
        ),
        row("UTF-16", utf16(call(b"{}")), call(b"{}"), "no valid JSON"),
    ]
}

/// A call of a permitted tool with these arguments.
fn call(arguments: &[u8]) -> Vec<u8> {
    let front = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":"#;
    [&front[..], arguments, b"}}"].concat()
}

fn row(name: &str, hostile: impl AsRef<[u8]>, twin: Vec<u8>, detail: &'static str) -> Row {
    Row {
        name: name.to_owned(),
        hostile: post(hostile.as_ref()),
        twin: post(&twin),
        arrives: twin,
        refusal: Refusal { told: Told::Broken(400, -32700), reason: "malformed_message", detail },
    }
}

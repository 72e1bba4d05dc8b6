//! Requests that two servers could frame, route or take in two ways. `HOST` is the server's address, `BODY` a harmless
//! message, `LENGTH` its length and `SIZE` the same as a chunk says it.

use crate::{Refusal, Row, Told};

const BODY: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}"#;

/// What all twins are that are nothing else.
const PLAIN: &str = "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\nBODY";
/// The same in one chunk.
const CHUNKED: &str = "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
                       SIZE\r\nBODY\r\n0\r\n\r\n";

/// Name, hostile request line, status, what the audit says of it.
const LINES: &[(&str, &str, u16, &str)] = &[
    ("HTTP/1.0", "POST /mcp HTTP/1.0", 505, "HTTP version"),
    ("HTTP/1.2", "POST /mcp HTTP/1.2", 505, "HTTP version"),
    ("HTTP/2.0", "POST /mcp HTTP/2.0", 505, "HTTP version"),
    ("the protocol in small letters", "POST /mcp http/1.1", 505, "HTTP version"),
    ("no version", "POST /mcp", 400, "no valid HTTP/1.1"),
    ("two spaces before the target", "POST  /mcp HTTP/1.1", 400, "no valid HTTP/1.1"),
    ("a space behind the version", "POST /mcp HTTP/1.1 ", 400, "no valid HTTP/1.1"),
    ("a tab in the line", "POST\t/mcp HTTP/1.1", 400, "no valid HTTP/1.1"),
    ("a method with a bracket", "P(ST /mcp HTTP/1.1", 400, "no valid HTTP/1.1"),
    ("a method in small letters", "post /mcp HTTP/1.1", 405, "method `post`"),
    ("another method", "PUT /mcp HTTP/1.1", 405, "method `PUT`"),
    ("TRACE", "TRACE /mcp HTTP/1.1", 405, "method `TRACE`"),
    ("GET with a body", "GET /mcp HTTP/1.1", 400, "GET with a body"),
    ("DELETE with a body", "DELETE /mcp HTTP/1.1", 400, "DELETE with a body"),
    ("CONNECT", "CONNECT HOST HTTP/1.1", 501, "authority form"),
    ("the absolute form", "POST http://HOST/mcp HTTP/1.1", 400, "absolute form"),
    ("the absolute form of another host", "POST http://evil.example/mcp HTTP/1.1", 400, "absolute form"),
    ("no path", "POST * HTTP/1.1", 400, "names no path"),
    ("a relative path", "POST mcp HTTP/1.1", 400, "is refused"),
    ("a fragment", "POST /mcp#a HTTP/1.1", 400, "is refused"),
    ("a quote in the target", "POST /mcp?\" HTTP/1.1", 400, "is refused"),
    ("a character beyond ASCII", "POST /mcp?\u{e9} HTTP/1.1", 400, "is refused"),
    ("two slashes", "POST //mcp HTTP/1.1", 400, "another path"),
    ("two slashes at the end", "POST /mcp// HTTP/1.1", 400, "another path"),
    ("a dot", "POST /./mcp HTTP/1.1", 400, "another path"),
    ("two dots", "POST /a/../mcp HTTP/1.1", 400, "another path"),
    ("encoded dots", "POST /a/%2e%2e/mcp HTTP/1.1", 400, "another path"),
    ("dots with a parameter", "POST /a/..;b/mcp HTTP/1.1", 400, "another path"),
    ("an encoded slash", "POST /a%2f..%2fmcp HTTP/1.1", 400, "another path"),
    ("an encoded backslash", "POST /a%5cmcp HTTP/1.1", 400, "another path"),
    ("a backslash", "POST /a\\mcp HTTP/1.1", 400, "another path"),
    ("an encoded NUL", "POST /mcp%00 HTTP/1.1", 400, "another path"),
    ("an encoded line end", "POST /mcp%0d%0aX:1 HTTP/1.1", 400, "another path"),
    ("half an escape", "POST /mcp%2 HTTP/1.1", 400, "another path"),
];

/// Name, hostile header, twin header (or none), status, what the audit says of it.
const HEADERS: &[(&str, &str, &str, u16, &str)] = &[
    ("a second Host", "Host: HOST", "", 400, "`host` stands twice"),
    ("a second length", "content-length: LENGTH", "", 400, "`content-length` stands twice"),
    ("another length with an underscore", "Content_Length: 3", "", 400, "underscore"),
    ("a framing beside the length", "Transfer-Encoding: chunked", "", 400, "both Content-Length and"),
    ("a framing with an underscore", "Transfer_Encoding: chunked", "", 400, "underscore"),
    ("a framing of identity", "Transfer-Encoding: identity", "", 400, "both Content-Length and"),
    ("a compressed body", "Content-Encoding: gzip", "", 415, "Content-Encoding"),
    ("a body that says it is not compressed", "Content-Encoding: identity", "", 415, "Content-Encoding"),
    ("another expectation", "Expect: something", "", 417, "Expect"),
    ("a folded header", "X: a\r\n b", "X: a b", 400, "continued on the next line"),
    ("a header folded by a tab", "X: a\r\n\tb", "X: a\tb", 400, "continued on the next line"),
    ("a space before a colon", "X : a", "X: a", 400, "before the colon"),
    ("a tab before a colon", "X\t: a", "X: a", 400, "before the colon"),
    ("a header without name", ": a", "X: a", 400, "no valid HTTP/1.1"),
    ("a header without colon", "X", "X:", 400, "no valid HTTP/1.1"),
    ("a space in a name", "X Y: a", "X-Y: a", 400, "no valid HTTP/1.1"),
    ("a NUL in a value", "X: a\0b", "X: a b", 400, "no valid HTTP/1.1"),
    ("a delete in a value", "X: a\x7fb", "X: a b", 400, "no valid HTTP/1.1"),
    ("a lone LF", "X: a\nY: b", "X: a\r\nY: b", 400, "LF without CR"),
    ("a lone CR", "X: a\rY: b", "X: a\r\nY: b", 400, "CR without LF"),
    ("a second content type", "Content-Type: text/plain", "", 400, "`content-type` stands twice"),
    (
        "a content type with an underscore",
        "Content_Type: text/plain",
        "X_Content_Type: text/plain",
        400,
        "underscore",
    ),
    (
        "the content type taken away",
        "Connection: content-type",
        "Connection: x-mine",
        400,
        "Connection header names",
    ),
    (
        "the length taken away",
        "Connection: keep-alive, Content-Length",
        "Connection: keep-alive",
        400,
        "Connection header names",
    ),
    (
        "the session taken away",
        "Connection: Mcp-Session-Id",
        "Connection: x-mine",
        400,
        "Connection header names",
    ),
    ("a session twice", "Mcp-Session-Id: a\r\nMcp-Session-Id: b", "", 400, "`mcp-session-id` stands twice"),
    ("a session with an underscore", "Mcp_Session_Id: a", "", 400, "underscore"),
    ("a session beyond ASCII", "Mcp-Session-Id: \u{e9}", "X: \u{e9}", 400, "not visible ASCII"),
    (
        "a revision twice",
        "MCP-Protocol-Version: 2025-06-18\r\nMCP-Protocol-Version: 2025-11-25",
        "MCP-Protocol-Version: 2025-11-25",
        400,
        "stands twice",
    ),
    (
        "a revision with an underscore",
        "MCP_Protocol_Version: 2025-06-18",
        "MCP-Protocol-Version: 2025-06-18",
        400,
        "underscore",
    ),
    (
        "a method header twice",
        "Mcp-Method: tools/call\r\nMcp-Method: ping",
        "Mcp-Method: tools/call",
        400,
        "`mcp-method` stands twice",
    ),
    (
        "a name header twice",
        "Mcp-Name: echo\r\nmcp-name: add",
        "Mcp-Name: echo",
        400,
        "`mcp-name` stands twice",
    ),
    ("a name header with an underscore", "Mcp_Name: add", "Mcp-Name: echo", 400, "underscore"),
    ("an event id with an underscore", "Last_Event_ID: 1", "", 400, "underscore"),
];

/// Name, hostile header, twin header: the header says something else than the message.
const MIRRORS: &[(&str, &str, &str)] = &[
    ("another method", "Mcp-Method: tools/list", "Mcp-Method: tools/call"),
    ("the method in another case", "Mcp-Method: Tools/Call", "Mcp-Method: tools/call"),
    ("an empty method", "Mcp-Method:", "Mcp-Method: tools/call"),
    ("another tool", "Mcp-Name: add", "Mcp-Name: echo"),
    ("the tool in another case", "Mcp-Name: Echo", "Mcp-Name: echo"),
    ("an empty tool", "Mcp-Name:", "Mcp-Name: echo"),
    ("another tool, encoded", "Mcp-Name: =?base64?YWRk?=", "Mcp-Name: =?base64?ZWNobw==?="),
    ("an encoding without padding", "Mcp-Name: =?base64?ZWNobw?=", "Mcp-Name: =?base64?ZWNobw==?="),
    ("an encoding with other last bits", "Mcp-Name: =?base64?ZWNobx==?=", "Mcp-Name: =?base64?ZWNobw==?="),
    ("an encoding that does not end", "Mcp-Name: =?base64?ZWNobw==", "Mcp-Name: =?base64?ZWNobw==?="),
    ("an encoding in other letters", "Mcp-Name: =?BASE64?ZWNobw==?=", "Mcp-Name: =?base64?ZWNobw==?="),
    ("another encoding", "Mcp-Name: =?utf-8?B?ZWNobw==?=", "Mcp-Name: =?base64?ZWNobw==?="),
];

/// Name, hostile request, twin, status, what the audit says of it.
const WHOLE: &[(&str, &str, &str, u16, &str)] = &[
    (
        "LF alone",
        "POST /mcp HTTP/1.1\nHost: HOST\nContent-Length: LENGTH\n\nBODY",
        PLAIN,
        400,
        "LF without CR",
    ),
    (
        "an empty line before",
        "\r\nPOST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "empty line",
    ),
    (
        "a space before the first header",
        "POST /mcp HTTP/1.1\r\n Host: HOST\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "continued on the next line",
    ),
    ("h2c by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PLAIN, 505, "HTTP version"),
    (
        "no Host",
        "POST /mcp HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "Host header is missing",
    ),
    (
        "an empty Host",
        "POST /mcp HTTP/1.1\r\nHost:\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "Host header is no host",
    ),
    (
        "a Host with a user",
        "POST /mcp HTTP/1.1\r\nHost: a@HOST\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "Host header is no host",
    ),
    (
        "two Hosts in one",
        "POST /mcp HTTP/1.1\r\nHost: HOST,evil.example\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "Host header is no host",
    ),
    (
        "no content type",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        415,
        "content type ``",
    ),
    (
        "text",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: text/plain\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        415,
        "content type `text/plain`",
    ),
    (
        "another charset",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json; charset=utf-16\r\nContent-Length: LENGTH\r\n\r\nBODY",
        UTF8,
        415,
        "charset=utf-16",
    ),
    (
        "two content types in one",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json, text/plain\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        415,
        "content type",
    ),
    (
        "another kind of JSON",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json-seq\r\nContent-Length: LENGTH\r\n\r\nBODY",
        PLAIN,
        415,
        "content type",
    ),
    (
        "a length with a plus",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: +LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "no decimal number",
    ),
    (
        "two lengths in one",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: LENGTH, LENGTH\r\n\r\nBODY",
        PLAIN,
        400,
        "no decimal number",
    ),
    (
        "a hexadecimal length",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: 0xSIZE\r\n\r\nBODY",
        PLAIN,
        400,
        "no decimal number",
    ),
    (
        "a length beyond 64 bits",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: 18446744073709551688\r\n\r\nBODY",
        PLAIN,
        400,
        "no decimal number",
    ),
    (
        "no length",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length:\r\n\r\nBODY",
        PLAIN,
        400,
        "no decimal number",
    ),
    (
        "two framings",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nPOST",
        CHUNKED,
        400,
        "both Content-Length and",
    ),
    (
        "chunks twice",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked, chunked\r\n\r\nSIZE\r\nBODY\r\n0\r\n\r\n",
        CHUNKED,
        501,
        "not `chunked` alone",
    ),
    (
        "chunks within gzip",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: gzip, chunked\r\n\r\nSIZE\r\nBODY\r\n0\r\n\r\n",
        CHUNKED,
        501,
        "not `chunked` alone",
    ),
    (
        "two headers of chunks",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\nSIZE\r\nBODY\r\n0\r\n\r\n",
        CHUNKED,
        400,
        "stands twice",
    ),
    (
        "chunks spelled otherwise",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: xchunked\r\n\r\nSIZE\r\nBODY\r\n0\r\n\r\n",
        CHUNKED,
        501,
        "not `chunked` alone",
    ),
    (
        "chunks behind a vertical tab",
        "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nTransfer-Encoding: \x0bchunked\r\n\r\nSIZE\r\nBODY\r\n0\r\n\r\n",
        CHUNKED,
        400,
        "no valid HTTP/1.1",
    ),
];

const UTF8: &str = "POST /mcp HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: LENGTH\r\n\r\nBODY";

/// Name, hostile chunks, what the audit says of them.
const CHUNKS: &[(&str, &str, &str)] = &[
    ("a size with a sign", "+SIZE\r\nBODY\r\n0\r\n\r\n", "no hexadecimal"),
    ("a size with 0x", "0xSIZE\r\nBODY\r\n0\r\n\r\n", "no hexadecimal"),
    ("a size behind a space", " SIZE\r\nBODY\r\n0\r\n\r\n", "no hexadecimal"),
    ("a size before a space", "SIZE \r\nBODY\r\n0\r\n\r\n", "no hexadecimal"),
    ("a size with an underscore", "0_SIZE\r\nBODY\r\n0\r\n\r\n", "no hexadecimal"),
    ("a size of seventeen digits", "000000000000000SIZE\r\nBODY\r\n0\r\n\r\n", "too many digits"),
    ("a size before a lone LF", "SIZE\nBODY\r\n0\r\n\r\n", "no hexadecimal"),
    ("an extension before a lone LF", "SIZE;a\nBODY\r\n0\r\n\r\n", "control character"),
    ("a lone CR behind a size", "SIZE\rBODY\r\n0\r\n\r\n", "CR without LF"),
    ("a chunk longer than it says", "SIZE\r\nBODY \r\n0\r\n\r\n", "longer than its size"),
    ("a chunk before a lone LF", "SIZE\r\nBODY\n0\r\n\r\n", "longer than its size"),
    ("a trailer without colon", "SIZE\r\nBODY\r\n0\r\nX\r\n\r\n", "no header"),
    ("a request as a trailer", "SIZE\r\nBODY\r\n0\r\nPOST /mcp HTTP/1.1\r\n\r\n", "no header"),
    ("a folded trailer", "SIZE\r\nBODY\r\n0\r\n X: a\r\n\r\n", "no header"),
    ("a trailer before a lone LF", "SIZE\r\nBODY\r\n0\r\nX: a\n\r\n", "control character"),
];

pub(crate) fn rows() -> Vec<Row> {
    let with = |header: &str| match header {
        "" => PLAIN.to_owned(),
        header => PLAIN.replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n")),
    };
    let malformed = |status, detail| refusal(status, -32600, "malformed_http", detail);
    let lines = LINES.iter().map(|&(name, line, status, detail)| {
        row(name, &PLAIN.replace("POST /mcp HTTP/1.1", line), PLAIN, malformed(status, detail))
    });
    let headers = HEADERS.iter().map(|&(name, hostile, twin, status, detail)| {
        row(name, &with(hostile), &with(twin), malformed(status, detail))
    });
    let mirrors = MIRRORS.iter().map(|&(name, hostile, twin)| {
        let header = hostile.split(':').next().unwrap_or_default();
        row(
            &format!("{header}: {name}"),
            &with(hostile),
            &with(twin),
            refusal(400, -32020, "header_mismatch", header),
        )
    });
    let whole = WHOLE
        .iter()
        .map(|&(name, hostile, twin, status, detail)| row(name, hostile, twin, malformed(status, detail)));
    let chunks = CHUNKS.iter().map(|&(name, hostile, detail)| {
        row(name, &CHUNKED.replace("SIZE\r\nBODY\r\n0\r\n\r\n", hostile), CHUNKED, malformed(400, detail))
    });
    let mut rows: Vec<Row> = lines.chain(headers).chain(mirrors).chain(whole).chain(chunks).collect();
    for host in
        ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", "localhost:1", "[::2]:80"]
    {
        let hostile = PLAIN.replace("HOST", host);
        rows.push(row(
            &format!("the Host {host}"),
            &hostile,
            PLAIN,
            refusal(403, -32600, "host_mismatch", host),
        ));
    }
    rows.push(row(
        "a body beyond its limit",
        &PLAIN.replace("LENGTH", "99999999"),
        PLAIN,
        refusal(413, -32600, "too_large", ""),
    ));
    rows
}

fn refusal(status: u16, code: i64, reason: &'static str, detail: &'static str) -> Refusal {
    Refusal { told: Told::Broken(status, code), reason, detail }
}

fn row(name: &str, hostile: &str, twin: &str, refusal: Refusal) -> Row {
    let whole = |text: &str| {
        let text = text.replace("LENGTH", &BODY.len().to_string());
        text.replace("SIZE", &format!("{:x}", BODY.len())).replace("BODY", BODY).into_bytes()
    };
    Row { name: name.to_owned(), hostile: whole(hostile), twin: whole(twin), arrives: BODY.into(), refusal }
}

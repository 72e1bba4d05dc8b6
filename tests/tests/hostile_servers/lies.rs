//! Replies that are sound HTTP and not what was asked for, each beside a twin that is.

use serde_json::{Value, json};

use crate::{Asks, Gets, OWN, POISON, Row, endless};

const EVENTS: &str = "Content-Type: text/event-stream\r\n";
const JSON: &str = "Content-Type: application/json\r\n";
const CHUNKS: &str = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
const BAD: Gets = Gets::Status(502);

/// A whole reply with these header lines.
fn reply(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = body.as_ref().len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body.as_ref()].concat()
}

fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    reply("200 OK", JSON, body)
}

fn result(id: &Value, text: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [{ "type": "text", "text": text }] } })
}

fn error(id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32000, "message": POISON } })
}

fn list(id: u64) -> Value {
    let tools = json!([{ "name": POISON, "inputSchema": { "type": "object" } }]);
    json!({ "jsonrpc": "2.0", "id": id, "result": { "tools": tools } })
}

fn event(data: &Value) -> String {
    format!("event: message\ndata: {data}\n\n")
}

fn row(name: &'static str, asks: Asks, said: Vec<u8>, gets: Gets, detail: &'static str) -> Row {
    Row { name, asks, said, then: Vec::new(), gets, reason: "server_fault", limit: "", detail }
}

/// What passes as it is.
fn twin(name: &'static str, asks: Asks, said: Vec<u8>, status: u16) -> Row {
    Row { reason: "permitted", ..row(name, asks, said, Gets::Passes(status), "") }
}

pub(super) fn rows() -> Vec<Row> {
    [bodies(), failures(), others(), streams()].into_iter().flatten().collect()
}

/// In the place of the answer, in JSON.
fn bodies() -> Vec<Row> {
    let call = |name, said, detail| row(name, Asks::Call, said, BAD, detail);
    let own = result(&json!(1), OWN).to_string();
    let other = "answers another request";
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    let endless_chunks = [endless(CHUNKS, ""), chunk.repeat(8)].concat();
    let gigabyte =
        [endless(&format!("{JSON}Content-Length: 1073741824\r\n"), "{"), vec![b' '; 8 << 20]].concat();
    let too_large = |row| Row { limit: "reply_bytes_max", ..row };
    let request =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": { "x": POISON } });
    let notification =
        json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "data": POISON } });
    vec![
        twin("its own answer", Asks::Call, ok(&own), 200),
        twin("its own answer by another type", Asks::Call, reply("200 OK", "", &own), 200),
        twin("an error that has no id", Asks::Call, ok(error(&json!(null)).to_string()), 200),
        call("an answer to another request", ok(result(&json!(2), POISON).to_string()), other),
        call("its id as a string", ok(result(&json!("1"), POISON).to_string()), other),
        call("an error of another request's", ok(error(&json!(2)).to_string()), other),
        call("a list that answers another request", ok(list(2).to_string()), other),
        call("a result that has no id", ok(result(&json!(null), POISON).to_string()), "`id` must be"),
        call("two answers in one body", ok(format!("{own}{own}")), "the end of the text"),
        call("a batch", ok(format!("[{own},{}]", list(2))), "a batch"),
        call("a request of its own", ok(request.to_string()), "a request of the server's"),
        call(
            "an answer that asks as well",
            ok(own.replacen(
                "\"result\"",
                "\"method\":\"roots/list\",\"params\":{\"x\":\"poison\"},\"result\"",
                1,
            )),
            "`method` and a reply",
        ),
        call("a notification", ok(notification.to_string()), "a notification of the server's"),
        call("text", reply("200 OK", "Content-Type: text/plain\r\n", POISON), "no valid JSON"),
        call("no UTF-8", ok([own.as_bytes(), b"\xff"].concat()), "not UTF-8"),
        call(
            "UTF-16",
            reply("200 OK", "Content-Type: application/json; charset=utf-16\r\n", &own),
            "not in UTF-8",
        ),
        call("nothing", ok(""), "no answer"),
        call("202, as to a notification", reply("202 Accepted", "", ""), "no answer"),
        call("204", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), "no answer"),
        call(
            "compressed",
            reply("200 OK", &format!("{JSON}Content-Encoding: gzip\r\n"), POISON),
            "compressed",
        ),
        call(
            "two types",
            reply("200 OK", "Content-Type: application/json, text/event-stream\r\n", &own),
            "type is not clear",
        ),
        too_large(call("1 GB, as it says", gigabyte, "")),
        too_large(call("chunks without end", endless_chunks, "")),
        row("a list by another id", Asks::List, ok(list(2).to_string()), BAD, other),
        row(
            "a list with status 404",
            Asks::List,
            reply("404 Not Found", JSON, list(2).to_string()),
            BAD,
            other,
        ),
    ]
}

/// With a status that says that it failed, or that it is elsewhere.
fn failures() -> Vec<Row> {
    let failed = |status, id: Value| reply(status, JSON, error(&id).to_string());
    let call = |name, said, detail| row(name, Asks::Call, said, BAD, detail);
    let elsewhere = format!("{JSON}Location: http://127.0.0.1:9/{POISON}\r\n");
    vec![
        twin("404 with an error without id", Asks::Call, failed("404 Not Found", json!(null)), 404),
        twin("400 with its own id", Asks::Call, failed("400 Bad Request", json!(1)), 400),
        twin(
            "400 as the Python SDK says it",
            Asks::Call,
            failed("400 Bad Request", json!("server-error")),
            400,
        ),
        twin("500 with other JSON", Asks::Call, reply("500 Oops", JSON, r#"{"detail":"poison"}"#), 500),
        twin("405 to a GET", Asks::Stream, failed("405 No", json!(null)), 405),
        call("404 with another's error", failed("404 Not Found", json!(2)), "another request"),
        call(
            "500 with another's result",
            reply("500 Oops", JSON, result(&json!(2), POISON).to_string()),
            "another request",
        ),
        call("404 with a batch", reply("404 Not Found", JSON, format!("[{}]", error(&json!(2)))), "a batch"),
        call("a redirect", reply("307 Temporary Redirect", &elsewhere, ""), "a redirect (307)"),
        call(
            "a redirect with an answer",
            reply("302 Found", &elsewhere, result(&json!(1), POISON).to_string()),
            "a redirect (302)",
        ),
        row(
            "a redirect of a stream",
            Asks::Stream,
            reply("301 Moved", &elsewhere, ""),
            BAD,
            "a redirect (301)",
        ),
    ]
}

/// Where nothing is to be answered.
fn others() -> Vec<Row> {
    let answers = "answers a request though none was sent";
    let note = |name, said, detail| row(name, Asks::Notification, said, BAD, detail);
    let answer = result(&json!(1), POISON);
    let events = [endless(EVENTS, ""), event(&answer).into_bytes()].concat();
    vec![
        twin("202 with text", Asks::Notification, reply("202 Accepted", "", "Accepted"), 202),
        twin("200 with null", Asks::Notification, ok("null"), 200),
        note("202 with an answer", reply("202 Accepted", JSON, answer.to_string()), answers),
        note(
            "202 with a list, as text",
            reply("202 Accepted", "Content-Type: text/plain\r\n", list(2).to_string()),
            answers,
        ),
        note(
            "202 with what some read as an answer",
            reply("202 Accepted", JSON, format!("{answer}{answer}")),
            "end of the text",
        ),
        note("an answer as an event", events.clone(), answers),
        row("a list on a stream", Asks::Stream, events, BAD, answers),
        row(
            "a list, where a stream was asked for",
            Asks::Stream,
            ok(list(1).to_string()),
            BAD,
            "no event stream",
        ),
        row(
            "events as text",
            Asks::Stream,
            reply("200 OK", "Content-Type: text/plain\r\n", event(&list(1))),
            BAD,
            "no event stream",
        ),
    ]
}

/// On streams, at first and when the client has seen a part.
fn streams() -> Vec<Row> {
    let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": 1, "progress": 1 } });
    let (own, other) = (event(&result(&json!(1), OWN)), event(&result(&json!(2), POISON)));
    let poison = event(&result(&json!(1), POISON));
    let said = |events: &str| endless(EVENTS, events);
    let later = |name, asks, first: &str, then: &str, gets, detail| Row {
        then: then.as_bytes().to_vec(),
        ..row(name, asks, said(first), gets, detail)
    };
    let first = event(&progress);
    let line = format!("data: {}", POISON.repeat(1 << 18));
    let beyond = "more after the answer";
    vec![
        row("an event for another request", Asks::Call, said(&other), BAD, "another request"),
        row("a list for another request", Asks::Call, said(&event(&list(2))), BAD, "another request"),
        row(
            "an event that is no UTF-8",
            Asks::Call,
            [said("data: "), b"\xff\n\n".to_vec()].concat(),
            BAD,
            "not UTF-8",
        ),
        row(
            "a request that answers as well, as an event",
            Asks::Call,
            said(&own.replacen(
                "\"result\"",
                "\"method\":\"roots/list\",\"params\":{\"x\":\"poison\"},\"result\"",
                1,
            )),
            BAD,
            "`method` and a reply",
        ),
        row("a batch as an event", Asks::Call, said(&format!("data: [{}]\n\n", list(1))), BAD, "a batch"),
        row("two answers at once", Asks::Call, said(&format!("{own}{poison}")), Gets::Ended, beyond),
        row("an answer and more", Asks::Call, said(&format!("{own}{first}")), Gets::Ended, beyond),
        later("two answers", Asks::Call, &own, &poison, Gets::Ended, beyond),
        later("a list behind the answer", Asks::Call, &own, &event(&list(2)), Gets::Ended, beyond),
        later("another's answer, later", Asks::Call, &first, &other, Gets::Told, "another request"),
        later("no message, later", Asks::Call, &first, "data: poison\n\n", Gets::Told, "cannot be read"),
        later(
            "a list on an open stream",
            Asks::Stream,
            &first,
            &event(&list(2)),
            Gets::Ended,
            "none was sent",
        ),
        Row {
            limit: "event_bytes_max",
            ..later("a line without end", Asks::Call, &first, &line, Gets::Told, "")
        },
    ]
}

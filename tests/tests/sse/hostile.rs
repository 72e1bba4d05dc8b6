//! Servers and clients that keep to no rule: what they said reaches nobody, the stream ends with an error for who waits, and
//! the next one is as it should be.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::text;
use toolgate_tests::{Caller, wait};

use crate::rig::{ENDPOINT, Rig, Session, answer, begin, call, request, say};

const POISON: &str = "poison";

/// Where a server lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// On the stream, before it has named an endpoint.
    First,
    /// On the stream, where a call with the id 1 waits.
    Waiting,
    /// The same once that is answered.
    Answered,
    /// As the reply to the call.
    Posted,
}

/// What of it reaches its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// An error of its call, if it waits, and the end of the stream.
    End,
    /// An error of its call; the stream goes on.
    Error,
    /// Nothing, and the stream goes on.
    Nothing,
}

struct Row {
    name: &'static str,
    lies: Where,
    said: String,
    gets: Gets,
    /// A part of what the audit says.
    detail: &'static str,
}

fn row(name: &'static str, lies: Where, said: &str, gets: Gets, detail: &'static str) -> Row {
    Row { name, lies, said: said.to_owned(), gets, detail }
}

fn endpoint(name: &'static str, reference: &str, detail: &'static str) -> Row {
    row(name, Where::First, &format!("event: endpoint\ndata: {reference}\n\n"), Gets::End, detail)
}

fn message(name: &'static str, lies: Where, message: &str, detail: &'static str) -> Row {
    row(name, lies, &format!("event: message\ndata: {message}\n\n"), Gets::End, detail)
}

fn endpoints(address: &str) -> Vec<Row> {
    let (character, clear) = ("clients do not send as it is written", "its host is not clear");
    let (other, first) = ("it is none of this server's", "begins with something else");
    let marked = "\u{feff}event: endpoint\ndata: /m\n\n";
    vec![
        endpoint("another host", "http://evil.example/poison", other),
        endpoint("another port", "http://127.0.0.1:1/poison", other),
        endpoint("the scheme's own port", "http://localhost/poison", other),
        endpoint("another host without a scheme", "//evil.example/poison", other),
        endpoint("another scheme", &format!("https://{address}/poison"), "its scheme is not `http`"),
        endpoint("a user", &format!("http://{address}@evil.example/poison"), clear),
        endpoint("backslashes", "/\\evil.example/poison", character),
        endpoint("a fragment", "/poison#m", character),
        endpoint("white space", " /poison", character),
        endpoint("nothing", "", "it is empty"),
        endpoint("dot segments", "/a/../poison", "a dot segment"),
        endpoint("hidden dot segments", "/a/%2e%2e/poison", "an encoded dot or slash"),
        endpoint("empty segments", "/a//poison", "an empty segment"),
        endpoint("a scheme in the place of a path", "javascript:poison", "a path or a scheme"),
        endpoint("too long", &format!("/poison{}", "x".repeat(2_048)), "more than 2048 bytes"),
        row("no data", Where::First, "event: endpoint\n\n", Gets::End, "it is empty"),
        row("two lines", Where::First, "event: endpoint\ndata: /a\ndata: /poison\n\n", Gets::End, character),
        message("a message first", Where::First, r#"{"poison":1}"#, first),
        row("another event first", Where::First, "event: e\ndata: poison\n\n", Gets::End, first),
        row("a byte order mark", Where::First, marked, Gets::End, "byte order mark"),
        row(
            "a second endpoint",
            Where::Waiting,
            "event: endpoint\ndata: /poison\n\n",
            Gets::End,
            "the second one",
        ),
        row(
            "a second endpoint in disguise",
            Where::Waiting,
            "event: message\nevent: endpoint\ndata: /poison\n\n",
            Gets::End,
            "the second one",
        ),
    ]
}

fn messages() -> Vec<Row> {
    use Where::{Answered, Waiting};
    let (pending, read) = ("was not sent, or has its answer", "cannot be read");
    let rpc = |members: &str| format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
    let result = |id: &str| rpc(&format!(r#""id":{id},"result":{{"content":["poison"]}}"#));
    let error = |id: &str| rpc(&format!(r#""id":{id},"error":{{"code":1,"message":"poison"}}"#));
    let twice = rpc(r#""id":1,"id":2,"result":{"poison":1}"#);
    let both = rpc(r#""id":1,"method":"poison","result":{}"#);
    let asks = rpc(r#""id":9,"method":"roots/list","params":{"poison":1}"#);
    let untyped = format!("data: {}\n\n", result("2"));
    let endless = format!("data: {}", "poison".repeat(200_000));
    let pinged = format!("event: ping\ndata: {}\n\n", result("1"));
    let asked = format!("data: {asks}\n\n");
    vec![
        message("an answer to another request", Waiting, &result("2"), pending),
        message("an answer with an id of another kind", Waiting, &result("\"1\""), pending),
        message("a second answer", Answered, &result("1"), pending),
        message("an error in the place of a second answer", Answered, &error("1"), pending),
        message("an error about nobody's request", Waiting, &error("null"), pending),
        message("a batch", Waiting, &format!("[{}]", result("1")), read),
        message("no JSON", Waiting, "poison", read),
        message("two readings", Waiting, &twice, read),
        message("an answer and a request at once", Waiting, &both, read),
        row("an event without a type", Waiting, &untyped, Gets::End, pending),
        row("too large an event", Waiting, &endless, Gets::End, "exceeds"),
        row("an event of another type", Waiting, &pinged, Gets::Nothing, ""),
        row("a request that no rule permits", Waiting, &asked, Gets::Nothing, ""),
    ]
}

fn replies() -> Vec<Row> {
    let reply = |head: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    };
    let result = r#"{"jsonrpc":"2.0","id":1,"result":{"content":["poison"]}}"#;
    let json = "Content-Type: application/json";
    let misplaced = "belongs on the stream";
    let posted = |name, said: String, detail| row(name, Where::Posted, &said, Gets::Error, detail);
    vec![
        posted("the answer", reply(&format!("200 OK\r\n{json}"), result), misplaced),
        posted("the answer, by another type", reply("200 OK\r\nContent-Type: text/plain", result), misplaced),
        posted("the answer, with 202", reply(&format!("202 Accepted\r\n{json}"), result), misplaced),
        posted(
            "the answer as an event",
            reply("200 OK\r\nContent-Type: text/event-stream", &format!("data: {result}\n\n")),
            misplaced,
        ),
        posted("a redirect", reply("307 T\r\nLocation: http://evil.example/poison", ""), "is a redirect"),
        posted("a redirect to itself", reply("308 P\r\nLocation: /poison", ""), "is a redirect"),
        posted("no HTTP", "poison\r\n\r\n".to_owned(), "the server's reply is broken"),
    ]
}

/// What a client whose call waits, or does not, gets of a lie; and that others get what they should.
fn lied(rig: &Rig, row: &Row) -> Result<()> {
    if row.lies == Where::First {
        let mut caller = rig.agent.caller("reader")?;
        let (mut stream, mut server) = rig.get(&mut caller)?;
        begin(&mut server)?;
        say(&mut server, &row.said)?;
        // Either nothing was seen of it, or the end.
        let head = stream.head()?;
        let rest = if head.status == 200 { stream.event()?.unwrap_or_default() } else { String::new() };
        ensure!(head.status == 502 || rest.is_empty(), "{}{rest}", head.text);
        return faulty(rig, row);
    }
    let mut reader = rig.session("reader", ENDPOINT)?;
    if row.lies == Where::Posted {
        let mut server = rig.arrives(&mut reader, &call(&json!(1), "echo"))?;
        server.send(row.said.as_bytes())?;
        let reply = reader.posts.reply()?;
        ensure!((reply.status, &*reply.text()) == (202, ""), "{}{}", reply.head, reply.text());
    } else {
        rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
        if row.lies == Where::Answered {
            reader.hears(&answer(&json!(1)))?;
        }
        say(&mut reader.server, &row.said)?;
    }
    if row.gets == Gets::Nothing {
        return reader.hears(&answer(&json!(1)));
    }
    if row.lies != Where::Answered {
        let told = reader.message()?;
        ensure!(told["error"]["code"] == json!(-31403) && told["id"] == json!(1), "{told}");
    }
    if row.gets == Gets::Error {
        // What it comes to say of the same request is said to nobody.
        reader.say(&answer(&json!(1)))?;
    }
    ensure!(reader.stream.event()?.is_none(), "the stream goes on");
    faulty(rig, row)
}

fn faulty(rig: &Rig, row: &Row) -> Result<()> {
    let is_it =
        |line: &Value| text(line, "reason") == "server_fault" && text(line, "detail").contains(row.detail);
    rig.agent.audit_until(row.detail, |lines| lines.iter().rev().take(3).any(is_it))?;
    Ok(())
}

fn check(rig: &Rig, rows: &[Row]) -> Result<()> {
    let mut wrong = Vec::new();
    for row in rows {
        let checked = lied(rig, row).and_then(|()| {
            let mut next = rig.session("reader", "/next").context("no next stream")?;
            rig.accepted(&mut next, &call(&json!(1), "echo"))?;
            next.hears(&answer(&json!(1))).context("the next one")
        });
        println!("{}: {:?}, {:?}", row.name, row.lies, row.gets);
        if let Err(error) = checked {
            println!("    {error:#}");
            wrong.push(row.name);
        }
        ensure!(rig.peer.accept_now()?.is_none(), "{}: one connection too many", row.name);
    }
    ensure!(wrong.is_empty(), "{} of {} rows: {wrong:#?}", wrong.len(), rows.len());
    Ok(())
}

#[test]
fn what_a_server_may_not_say_reaches_nobody() -> Result<()> {
    let rig = Rig::set("", "{ event_bytes_max: 1MiB }")?;
    let address = rig.peer.address.to_string();
    let rows: Vec<Row> = [endpoints(&address), messages(), replies()].into_iter().flatten().collect();
    check(&rig, &rows)?;
    let audit = std::fs::read_to_string(rig.agent.config().join("audit.jsonl"))?;
    ensure!(!audit.contains(POISON), "what a server said is in the audit");
    Ok(())
}

/// A failed request waits no more: its answer would be one to nobody.
#[test]
fn what_the_server_did_not_accept_is_not_answered() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let mut server = rig.arrives(&mut reader, &call(&json!(1), "echo"))?;
    server.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")?;
    let reply = reader.posts.reply()?;
    ensure!((reply.status, &*reply.text()) == (500, "no"), "{}{}", reply.head, reply.text());
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    reader.hears(&answer(&json!(1)))?;
    let mut gone = rig.arrives(&mut reader, &call(&json!(2), "echo"))?;
    gone.finish()?;
    assert_eq!(reader.posts.reply()?.status, 202);
    let told = reader.message()?;
    ensure!(told["id"] == json!(2) && told["error"].is_object(), "{told}");
    Ok(())
}

#[test]
fn what_a_client_may_not_send_reaches_no_server() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    rig.accepted(&mut reader, &call(&json!(1), "echo"))?;
    for (name, message, status) in [
        ("an id that waits", call(&json!(1), "echo"), 400),
        ("another request with that id", json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }), 400),
        ("a batch", json!([call(&json!(2), "echo")]), 400),
        ("no message", json!({ "id": 2 }), 400),
        ("an answer that nobody asked for", answer(&json!(3)), 202),
    ] {
        let reply = rig.refused(&mut reader, &message)?;
        ensure!(reply.status == status, "{name}: {}", reply.head);
        if reply.header("connection") == Some("close") {
            reader.posts = reader.caller.http(rig.peer.address)?;
        }
    }
    for (start, headers, status) in [
        ("GET /sse", "Content-Length: 2\r\n\r\n{}", 400),
        ("POST /messages/../messages/?session_id=0f8fad5b", "Content-Length: 0\r\n\r\n", 400),
        ("POST //messages/?session_id=0f8fad5b", "Content-Length: 0\r\n\r\n", 400),
        ("PUT /sse", "Content-Length: 0\r\n\r\n", 405),
    ] {
        let mut client = reader.caller.http(rig.peer.address)?;
        client.send(format!("{start} HTTP/1.1\r\nHost: {}\r\n{headers}", rig.peer.address).as_bytes())?;
        let reply = client.reply()?;
        ensure!(reply.status == status, "{start}: {}", reply.head);
    }
    let mut client = reader.caller.http(rig.peer.address)?;
    let other = String::from_utf8(request(&format!("POST {ENDPOINT}"), &rig, b"{}"))?;
    client.send(other.replace(&rig.peer.address.to_string(), "evil.example").as_bytes())?;
    assert_eq!(client.reply()?.status, 403, "another Host");
    ensure!(rig.peer.accept_now()?.is_none(), "something reached the server");
    reader.hears(&answer(&json!(1)))
}

/// An id of its own reaches the server with `Last-Event-ID` from nowhere: this transport has no streams to resume.
#[test]
fn a_stream_is_not_resumed() -> Result<()> {
    let rig = Rig::set("", "")?;
    let mut caller: Caller = rig.agent.caller("reader")?;
    let mut client = caller.http(rig.peer.address)?;
    let head = format!("GET /sse HTTP/1.1\r\nHost: {}\r\nLast-Event-ID: 7\r\n\r\n", rig.peer.address);
    client.send(head.as_bytes())?;
    let mut server = rig.peer.accept()?;
    let head = server.through("\r\n\r\n")?;
    ensure!(!head.to_ascii_lowercase().contains("last-event-id"), "{head}");
    Ok(())
}

fn too_many(rig: &Rig, session: &mut Session, message: &Value) -> Result<()> {
    let reply = rig.refused(session, message)?;
    ensure!(reply.status == 503 && reply.header("retry-after").is_some(), "{}", reply.head);
    let label = ["\"pending_per_stream_max\""];
    let count = || Ok((rig.agent.metric("toolgate_limit_refusals_total", &label)? > 0.0).then_some(()));
    wait::until("the limit's name", count)
}

#[test]
fn so_many_requests_wait_on_a_stream() -> Result<()> {
    let rig = Rig::set("", "{ pending_per_stream_max: 2 }")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    for id in 1..=2 {
        rig.accepted(&mut reader, &call(&json!(id), "echo"))?;
    }
    too_many(&rig, &mut reader, &call(&json!(3), "echo"))?;
    too_many(&rig, &mut reader, &call(&json!(4), "delete_everything"))?;
    // Others have their own.
    let mut other = rig.session("reader", "/other")?;
    rig.accepted(&mut other, &call(&json!(1), "echo"))?;
    reader.hears(&answer(&json!(1)))?;
    rig.accepted(&mut reader, &call(&json!(3), "echo"))
}

/// A client that does not read its stream is told nothing more than fits: what else is denied gets 503.
#[test]
fn a_stream_that_nobody_reads_holds_no_more_than_its_share() -> Result<()> {
    let rig = Rig::set("", "{ pending_per_stream_max: 8 }")?;
    let mut reader = rig.session("reader", ENDPOINT)?;
    let news = json!({ "data": "x".repeat(1 << 20) });
    let news = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": news });
    let event = format!("data: {news}\n\n");
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    reader.server.send_meanwhile(chunk.repeat(32).into_bytes())?;
    wait::until("a full stream", || {
        let reply = rig.refused(&mut reader, &call(&json!(1), "delete_everything"))?;
        Ok((reply.status == 503).then_some(()))
    })?;
    let mut others = rig.session("writer", "/writer")?;
    rig.accepted(&mut others, &call(&json!(1), "echo"))?;
    others.hears(&answer(&json!(1)))
}

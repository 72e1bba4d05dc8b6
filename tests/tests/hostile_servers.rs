//! Hostile servers: no caller ever sees a byte that was not said to its own request, the next call gets its own answer, and
//! the audit says whose fault it was.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::http::Reply;
use toolgate_tests::scene::{call, is_result, message, resources, text};
use toolgate_tests::{Agent, Caller, Connection, Peer, Setup};

/// What no answer to anybody may hold.
const POISON: &str = "poison";
const LIMITS: &str = "{ first_byte_max: 1s, reply_idle_max: 1s, list_time_max: 2s, reply_bytes_max: 1MiB, \
                      event_bytes_max: 1MiB, body_bytes_max: 16MiB }";

fn answer(text: &str) -> Vec<u8> {
    let result = json!({ "content": [{ "type": "text", "text": text }], "isError": false });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "result": result }).to_string();
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A reply that ends by nothing but the connection's end, once.
fn endless(head: &str, more: &str) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{head}\r\n"), more.to_owned()].concat().into_bytes()
}

/// What the server says to a call, and what its caller gets: a status, or a reply that breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// Its answer: what is wrong comes behind it.
    Answer,
    /// This status, in the server's place.
    Status(u16),
    /// The beginning, and no end.
    Cut,
}

struct Row {
    name: &'static str,
    method: &'static str,
    said: Vec<u8>,
    gets: Gets,
    reason: &'static str,
    /// The limit that stops it, if one does.
    limit: &'static str,
}

fn rows(own: &str) -> Vec<Row> {
    let row = |name, method, said, gets, reason, limit| Row { name, method, said, gets, reason, limit };
    let fault = "server_fault";
    let events = "Content-Type: text/event-stream\r\n";
    let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    let (call, list) = ("tools/call", "tools/list");
    let bad = Gets::Status(502);
    vec![
        row("two responses", call, [answer(own), answer(POISON)].concat(), Gets::Answer, fault, ""),
        row(
            "a byte beyond Content-Length",
            call,
            [answer(own), b"p".to_vec()].concat(),
            Gets::Answer,
            fault,
            "",
        ),
        row(
            "endless headers",
            call,
            endless(&"X-Poison: poison\r\n".repeat(1 << 14), ""),
            bad,
            fault,
            "head_bytes_max",
        ),
        row("many headers", call, endless(&"X: poison\r\n".repeat(200), ""), bad, fault, "headers_max"),
        row(
            "endless interim replies",
            call,
            b"HTTP/1.1 100 Continue\r\nX: poison\r\n\r\n".repeat(1 << 14),
            Gets::Status(504),
            "server_timeout",
            "first_byte_max",
        ),
        row("no reply", call, Vec::new(), Gets::Status(504), "server_timeout", "first_byte_max"),
        row("no HTTP", call, b"poison\r\n\r\n".to_vec(), bad, fault, ""),
        row(
            "two lengths",
            call,
            endless("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            bad,
            fault,
            "",
        ),
        row("broken chunks", call, endless(chunked, "poison\r\n"), bad, fault, ""),
        row(
            "a body that stops",
            call,
            endless("Content-Type: application/json\r\nContent-Length: 100\r\n", "{"),
            Gets::Cut,
            "server_timeout",
            "reply_idle_max",
        ),
        row(
            "a list that never ends",
            list,
            endless(chunked, &format!("100000\r\n{}\r\n", " ".repeat(1 << 20)).repeat(2)),
            bad,
            fault,
            "reply_bytes_max",
        ),
        row(
            "a list that stops",
            list,
            endless("Content-Type: application/json\r\nContent-Length: 100\r\n", "{"),
            Gets::Status(504),
            "server_timeout",
            "reply_idle_max",
        ),
        row(
            "a compressed list",
            list,
            endless(
                "Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n",
                POISON,
            ),
            bad,
            fault,
            "",
        ),
        row(
            "compressed events",
            call,
            endless(&format!("{events}Content-Encoding: gzip\r\n"), POISON),
            bad,
            fault,
            "",
        ),
        row(
            "an endless event line",
            call,
            endless(events, &format!("data: {}", "poison".repeat(1 << 18))),
            Gets::Cut,
            fault,
            "event_bytes_max",
        ),
        row("an event that is no message", call, endless(events, "data: poison\n\n"), bad, fault, ""),
    ]
}

/// A caller that asks for what only it asks for.
struct Asker {
    app_id: &'static str,
    _caller: Caller,
    client: Connection,
}

impl Asker {
    fn new(agent: &Agent, app_id: &'static str, peer: &Peer) -> Result<Self> {
        let mut caller = agent.caller(app_id)?;
        let client = caller.http(peer.address)?;
        Ok(Self { app_id, _caller: caller, client })
    }

    fn ask(&mut self, method: &str, nonce: &str) -> Result<()> {
        let body = match method {
            "tools/list" => message(1, method, &json!({})),
            _call => call(1, "echo", &json!({ "text": nonce })),
        };
        self.client.request("POST", "", &body)
    }

    /// A call that the server answers as it should, on whatever connection the agent takes.
    fn is_answered(&mut self, peer: &Peer, pooled: Option<Connection>, nonce: &str) -> Result<Connection> {
        self.ask("tools/call", nonce)?;
        let mut server = match pooled {
            Some(server) => server,
            None => peer.accept().context("no fresh connection")?,
        };
        let asked = server.through("\r\n\r\n")?;
        let length: usize = toolgate_tests::http::header(&asked, "content-length").unwrap_or("0").parse()?;
        let body = String::from_utf8_lossy(&server.exactly(length)?).into_owned();
        ensure!(body.contains(nonce), "{}: the server was asked {body}", self.app_id);
        server.send(&answer(nonce))?;
        let reply = self.client.reply()?;
        ensure!(is_result(&reply)? && reply.text().contains(nonce), "{}: {}", self.app_id, reply.text());
        ensure!(!is_poisoned(&reply), "{}: {}{}", self.app_id, reply.head, reply.text());
        Ok(server)
    }
}

fn is_poisoned(reply: &Reply) -> bool {
    reply.head.contains(POISON) || reply.text().contains(POISON)
}

fn hostile(agent: &Agent, peer: &Peer, row: &Row, own: &str) -> Result<()> {
    let mut victim = Asker::new(agent, "reader", peer)?;
    victim.ask(row.method, own)?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    server.send_meanwhile(row.said.clone())?;
    match row.gets {
        Gets::Answer => {
            let reply = victim.client.reply()?;
            ensure!(is_result(&reply)? && reply.text().contains(own), "{}{}", reply.head, reply.text());
            ensure!(!is_poisoned(&reply), "{}{}", reply.head, reply.text());
        }
        Gets::Status(status) => {
            let reply = victim.client.reply()?;
            ensure!(reply.status == status, "{}{}", reply.head, reply.text());
            ensure!(reply.message()?.pointer("/error/code") == Some(&json!(-31403)), "{}", reply.text());
            ensure!(!is_poisoned(&reply), "{}{}", reply.head, reply.text());
        }
        Gets::Cut => {
            let said = String::from_utf8_lossy(&victim.client.rest()?).into_owned();
            let body = said.strip_prefix("HTTP/1.1 200 ").context("it did not begin")?;
            ensure!(!body.ends_with("\r\n0\r\n\r\n") && !said.contains(POISON), "{said}");
        }
    }
    let named = format!("`{}`", row.limit);
    let told = |line: &Value| {
        let is_it = text(line, "reason") == row.reason && text(line, "caller/app_id") == "reader";
        is_it && (row.limit.is_empty() || text(line, "detail").contains(&named))
    };
    agent.audit_until(&format!("{}, {named}", row.reason), |lines| lines.iter().rev().take(1).any(told))?;
    // The connection is of no use to anybody.
    let _closed_or_reset = server.rest();
    Ok(())
}

#[test]
fn whatever_a_server_says_the_next_call_gets_its_own_answer() -> Result<()> {
    let peer = Peer::start()?;
    let setup = Setup { resources: &resources(peer.address), limits: LIMITS, ..Setup::default() };
    let agent = Agent::start(setup)?;
    for (number, row) in rows("own").iter().enumerate() {
        let before = agent.metric("toolgate_limit_refusals_total", &[&format!("\"{}\"", row.limit)])?;
        hostile(&agent, &peer, row, "own").context(row.name)?;
        if !row.limit.is_empty() {
            let after = agent.metric("toolgate_limit_refusals_total", &[&format!("\"{}\"", row.limit)])?;
            ensure!(after > before, "{}: `{}` did not count it", row.name, row.limit);
        }
        for app_id in ["reader", "writer"] {
            let nonce = format!("{app_id}-{number}");
            let mut next = Asker::new(&agent, app_id, &peer)?;
            let server = next.is_answered(&peer, None, &nonce).context(row.name)?;
            drop((next, server));
        }
        println!("{}: {:?}, {}", row.name, row.gets, row.reason);
    }
    Ok(())
}

/// On a connection that waits in the pool: said before it is asked, or after it has answered.
#[test]
fn what_is_said_unasked_is_nobodys_answer() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut reader = Asker::new(&agent, "reader", &peer)?;
    let server = reader.is_answered(&peer, None, "first")?;
    // Its twin: a connection that is quiet serves again.
    let mut server = reader.is_answered(&peer, Some(server), "second")?;
    for (name, said) in [("a delayed second response", answer(POISON)), ("one byte", b"p".to_vec())] {
        server.send(&said)?;
        server = reader.is_answered(&peer, None, name).context(name)?;
    }
    let mut writer = Asker::new(&agent, "writer", &peer)?;
    writer.is_answered(&peer, None, "of another")?;
    let faults = |lines: &[Value]| lines.iter().filter(|line| text(line, "event") == "server_fault").count();
    let lines = agent.audit_until("two faults", |lines| faults(lines) == 2)?;
    let fault = lines.iter().find(|line| text(line, "event") == "server_fault").context("none")?;
    assert_eq!((text(fault, "caller"), text(fault, "address")), ("reader", &*peer.address.to_string()));
    Ok(())
}

/// The same where no Server is declared: the connection behind the client's own.
#[test]
fn what_an_undeclared_server_says_unasked_is_no_answer() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { capture: "{ unrecognised: pass }", ..Setup::default() })?;
    let mut client = agent.caller("reader")?.http(peer.address)?;
    let get = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", peer.address);
    let mut server: Option<Connection> = None;
    for (said, then) in [("first", &b""[..]), ("second", &answer(POISON)), ("third", b"")] {
        client.send(get.as_bytes())?;
        // One that was quiet serves again.
        let mut asked = server.take().map_or_else(|| peer.accept(), Ok).context(said)?;
        asked.through("\r\n\r\n").context(said)?;
        asked.send(&answer(said))?;
        let reply = client.reply().context(said)?;
        ensure!(reply.text().contains(said) && !is_poisoned(&reply), "{}{}", reply.head, reply.text());
        asked.send(then)?;
        server = then.is_empty().then_some(asked);
    }
    Ok(())
}

/// A response before the request, on a fresh connection, answers the one caller that the connection serves, and what comes
/// to the request itself is one too many.
#[test]
fn an_answer_before_the_question_stays_with_who_asked() -> Result<()> {
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut reader = Asker::new(&agent, "reader", &peer)?;
    reader.ask("tools/call", "own")?;
    let mut server = peer.accept()?;
    server.send(&[answer(POISON), answer(POISON)].concat())?;
    server.through("\r\n\r\n")?;
    reader.client.reply()?;
    let _closed_or_reset = server.rest();
    let told = |line: &Value| text(line, "reason") == "server_fault";
    agent.audit_until("a fault", |lines| lines.iter().any(told))?;
    for (app_id, nonce) in [("reader", "second"), ("writer", "of another")] {
        Asker::new(&agent, app_id, &peer)?.is_answered(&peer, None, nonce)?;
    }
    Ok(())
}

/// A server that does not read: its caller leaves, and is not waited for.
#[test]
fn a_client_that_leaves_while_its_request_is_sent_is_noticed() -> Result<()> {
    let peer = Peer::start()?;
    let setup = Setup { resources: &resources(peer.address), limits: LIMITS, ..Setup::default() };
    let agent = Agent::start(setup)?;
    let mut victim = Asker::new(&agent, "reader", &peer)?;
    let large = call(1, "echo", &json!({ "text": "x".repeat(12 << 20) }));
    victim.client.request("POST", "", &large)?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    drop(victim);
    let told = |line: &Value| {
        text(line, "reason") == "client_left" && text(line, "detail").contains("while its request was sent")
    };
    agent.audit_until("a client that left", |lines| lines.iter().any(told))?;
    let _closed_or_reset = server.rest();
    Ok(())
}

//! Hostile servers: no caller ever sees a byte that was not said to its own request, the next call gets its own answer, and
//! the audit says whose fault it was.

mod broken;
mod lies;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::http::Reply;
use toolgate_tests::scene::{call, is_result, message, resources, text};
use toolgate_tests::{Agent, Caller, Connection, Peer, Setup};

/// What no answer to anybody may hold.
const POISON: &str = "poison";
/// What the answer to the one who asked holds.
const OWN: &str = "own";
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

/// The agent at rest, its read blocks and what the limits above let it hold.
const MEMORY_MIB_MAX: usize = 96;

/// What is asked of the server.
#[derive(Clone, Copy, Debug)]
enum Asks {
    Call,
    List,
    Notification,
    /// GET.
    Stream,
}

/// What the one who asked gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// What the server said: nothing is wrong.
    Passes(u16),
    /// Its answer: what is wrong comes behind it.
    Answer,
    /// This status, in the server's place.
    Status(u16),
    /// The beginning, and no end.
    Cut,
    /// One event of the server's, an error of its own request, and the end.
    Told,
    /// One event of the server's, and the end.
    Ended,
}

struct Row {
    name: &'static str,
    asks: Asks,
    said: Vec<u8>,
    /// Said when the client has the first event.
    then: Vec<u8>,
    gets: Gets,
    reason: &'static str,
    /// The limit that stops it, if one does.
    limit: &'static str,
    /// A part of what the audit says.
    detail: &'static str,
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

    fn ask(&mut self, asks: Asks, nonce: &str) -> Result<()> {
        let body = match asks {
            Asks::List => message(1, "tools/list", &json!({})),
            Asks::Call => call(1, "echo", &json!({ "text": nonce })),
            Asks::Notification => {
                json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string().into_bytes()
            }
            Asks::Stream => return self.client.request("GET", "", b""),
        };
        self.client.request("POST", "", &body)
    }

    /// The events of a stream that ends as it should.
    fn events(&mut self, first: String) -> Result<Vec<String>> {
        let mut events = vec![first];
        while let Some(event) = self.client.event()? {
            events.push(event);
        }
        Ok(events)
    }

    /// A call that the server answers as it should, on whatever connection the agent takes.
    fn is_answered(&mut self, peer: &Peer, pooled: Option<Connection>, nonce: &str) -> Result<Connection> {
        self.ask(Asks::Call, nonce)?;
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

/// What is said in the server's place, to the request or to nobody.
fn is_refusal(message: &Value, asks: Asks) -> bool {
    let id = match asks {
        Asks::Call | Asks::List => json!(1),
        Asks::Notification | Asks::Stream => Value::Null,
    };
    message.pointer("/error/code") == Some(&json!(-31403)) && message.get("id") == Some(&id)
}

fn seen(victim: &mut Asker, server: &mut Connection, row: &Row) -> Result<()> {
    match row.gets {
        Gets::Passes(status) => {
            let reply = victim.client.reply()?;
            let said = String::from_utf8_lossy(&row.said).into_owned();
            let (_, body) = said.split_once("\r\n\r\n").context("no head")?;
            ensure!((reply.status, &*reply.text()) == (status, body), "{}{}", reply.head, reply.text());
        }
        Gets::Answer => {
            let reply = victim.client.reply()?;
            ensure!(is_result(&reply)? && reply.text().contains(OWN), "{}{}", reply.head, reply.text());
            ensure!(!is_poisoned(&reply), "{}{}", reply.head, reply.text());
        }
        Gets::Status(status) => {
            let reply = victim.client.reply()?;
            ensure!(reply.status == status, "{}{}", reply.head, reply.text());
            ensure!(is_refusal(&reply.message()?, row.asks), "{}", reply.text());
            ensure!(!is_poisoned(&reply), "{}{}", reply.head, reply.text());
        }
        Gets::Cut => {
            let said = String::from_utf8_lossy(&victim.client.rest()?).into_owned();
            ensure!(row.said.get(..12) == said.as_bytes().get(..12), "it did not begin: {said}");
            ensure!(!said.ends_with("\r\n0\r\n\r\n") && !said.contains(POISON), "{said}");
        }
        Gets::Told | Gets::Ended => {
            let head = victim.client.head()?;
            let first = victim.client.event()?.context("it ended")?;
            server.send_meanwhile(row.then.clone())?;
            let events = victim.events(first)?;
            let said = format!("{}{}", head.text, events.concat());
            ensure!(head.status == 200 && !said.contains(POISON), "{said}");
            let told =
                events.get(1).and_then(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
            let told = told.map(serde_json::from_str).transpose()?;
            ensure!(told.is_some() == (row.gets == Gets::Told) && events.len() <= 2, "{said}");
            ensure!(told.is_none_or(|told| is_refusal(&told, row.asks)), "{said}");
        }
    }
    Ok(())
}

fn hostile(agent: &Agent, peer: &Peer, row: &Row) -> Result<()> {
    let mut victim = Asker::new(agent, "reader", peer)?;
    victim.ask(row.asks, OWN)?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    server.send_meanwhile(row.said.clone())?;
    seen(&mut victim, &mut server, row)?;
    let named = if row.limit.is_empty() { row.detail.to_owned() } else { format!("`{}`", row.limit) };
    let told = |line: &Value| {
        let is_it = text(line, "reason") == row.reason && text(line, "caller/app_id") == "reader";
        is_it && text(line, "detail").contains(&named)
    };
    let expected = format!("{}, {named}", row.reason);
    agent.audit_until(&expected, |lines| lines.iter().rev().take(1).any(told))?;
    if !matches!(row.gets, Gets::Passes(_)) {
        // The connection is of no use to anybody.
        let _closed_or_reset = server.rest();
    }
    if matches!(row.gets, Gets::Told | Gets::Ended) {
        victim.is_answered(peer, None, "the next on its connection")?;
    }
    Ok(())
}

fn one(agent: &Agent, peer: &Peer, row: &Row, number: usize) -> Result<()> {
    let label = format!("\"{}\"", row.limit);
    let before = agent.metric("toolgate_limit_refusals_total", &[&label])?;
    hostile(agent, peer, row)?;
    if !row.limit.is_empty() {
        let after = agent.metric("toolgate_limit_refusals_total", &[&label])?;
        ensure!(after > before, "`{}` did not count it", row.limit);
    }
    for app_id in ["reader", "writer"] {
        let mut next = Asker::new(agent, app_id, peer)?;
        next.is_answered(peer, None, &format!("{app_id}-{number}"))?;
    }
    Ok(())
}

/// One row after another; behind each, what others ask is answered as it should be.
fn check(rows: &[Row]) -> Result<()> {
    let peer = Peer::start()?;
    let setup = Setup { resources: &resources(peer.address), limits: LIMITS, ..Setup::default() };
    let agent = Agent::start(setup)?;
    let mut wrong = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let passed = one(&agent, &peer, row, number);
        println!("{}: {:?}, {}", row.name, row.gets, row.reason);
        if let Err(error) = passed {
            println!("    {error:#}");
            wrong.push(row.name);
        }
    }
    ensure!(wrong.is_empty(), "{} of {} rows: {wrong:#?}", wrong.len(), rows.len());
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process().id()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().context("no number")?;
    println!("peak of the agent's memory: {} MiB", peak / 1024);
    ensure!(peak / 1024 < MEMORY_MIB_MAX, "{} MiB", peak / 1024);
    Ok(())
}

#[test]
fn whatever_a_server_says_the_next_call_gets_its_own_answer() -> Result<()> {
    check(&broken::rows())
}

#[test]
fn what_was_not_asked_for_reaches_nobody() -> Result<()> {
    check(&lies::rows())
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
    reader.ask(Asks::Call, OWN)?;
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

//! What waits is charged to its caller, wherever it waits: what is more than its share is refused by name.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::SockRef;
use toolgate_tests::scene::{call, message, resources, text};
use toolgate_tests::{Agent, Connection, Peer, Server, Setup, wait};

const LIMITS: &str = "{ memory_bytes_max: 2MiB, memory_per_cgroup_bytes_max: 1MiB, body_bytes_max: 512KiB, \
                      reply_bytes_max: 256KiB, event_bytes_max: 512KiB }";
/// Each within its own limits, and all together more than the share.
const AT_ONCE: usize = 12;
/// More than all sockets between a server and a client that does not read may hold.
const UNREAD_BYTES: usize = 8 << 20;
/// Of such a client.
const RECEIVE_BYTES: usize = 16 << 10;
/// So many take all ways of a call.
const CALLS: usize = 100;

struct Row {
    name: &'static str,
    /// What comes of a request.
    asked: Vec<u8>,
    /// What comes of its reply; nothing: the request does not get there.
    said: Vec<u8>,
}

fn rows(host: &str) -> Vec<Row> {
    let post = |framing: &str, body: &[u8]| {
        let head = "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n";
        [format!("POST /mcp HTTP/1.1\r\nHost: {host}\r\n{head}{framing}\r\n\r\n").as_bytes(), body].concat()
    };
    let whole = |body: Vec<u8>| post(&format!("Content-Length: {}", body.len()), &body);
    let said = |status: &str, head: &str, body: Vec<u8>| {
        [format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n").as_bytes(), &body].concat()
    };
    let reply = |head: &str, body| said("200 OK", head, body);
    let blank = |bytes: usize| vec![b' '; bytes];
    let chunk = |bytes: usize| [format!("{bytes:x}\r\n").into_bytes(), blank(bytes)].concat();
    let (asks, lists) = (whole(call(1, "echo", &json!({}))), whole(message(1, "tools/list", &json!({}))));
    let json = "Content-Type: application/json\r\nContent-Length: 250000";
    let chunks = "Content-Type: application/json\r\nTransfer-Encoding: chunked";
    let page = "Content-Type: text/html\r\nContent-Length: 99999999";
    let row = |name, asked, said| Row { name, asked, said };
    vec![
        row("a body", post("Content-Length: 500000", &blank(400_000)), Vec::new()),
        row("a body in chunks", post("Transfer-Encoding: chunked", &chunk(400_000)), Vec::new()),
        row("a list", lists, reply(json, blank(200_000))),
        row("an answer", asks.clone(), reply(json, blank(200_000))),
        row("an answer in chunks", asks.clone(), reply(chunks, chunk(200_000))),
        row(
            "an event",
            asks.clone(),
            reply("Content-Type: text/event-stream", [b"data: ".to_vec(), blank(400_000)].concat()),
        ),
        row("a page that is not read", asks, said("500 Oops", page, blank(UNREAD_BYTES))),
    ]
}

fn check(agent: &Agent, peer: &Peer, row: &Row) -> Result<()> {
    let label = ["limit=\"memory_per_cgroup_bytes_max\""];
    let refused = || agent.metric("toolgate_limit_refusals_total", &label);
    let before = refused()?;
    // Each is its own cgroup, and takes what it holds with it.
    let mut caller = agent.caller("reader")?;
    let mut ends = Vec::new();
    for _ in 0..AT_ONCE {
        let stream = caller.connect(peer.address)?.stream;
        SockRef::from(&stream).set_recv_buffer_size(RECEIVE_BYTES)?;
        let client = Connection::new(stream, peer.address)?;
        client.send_meanwhile(row.asked.clone())?;
        if !row.said.is_empty() {
            let mut server = peer.accept()?;
            server.through("\r\n\r\n")?;
            server.send_meanwhile(row.said.clone())?;
            ends.push(server);
        }
        ends.push(client);
    }
    wait::until("one to be refused", || Ok((refused()? > before).then_some(())))?;
    let told = |line: &Value| {
        text(line, "reason") == "overload" && text(line, "detail").contains("`memory_per_cgroup_bytes_max`")
    };
    agent.audit_until("a refusal", |lines| lines.iter().any(told)).map(drop)
}

fn resident_kib(agent: &Agent) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process().id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("no number")
}

#[test]
fn who_is_not_asked_any_more_gives_memory_back() -> Result<()> {
    let server = Server::start()?;
    let resources = resources(server.address);
    let agent = Agent::start(Setup { resources: &resources, ..Setup::default() })?;
    let ready = resident_kib(&agent)?;
    let mut caller = agent.caller("reader")?;
    let mut client = caller.http(server.address)?;
    for _ in 0..CALLS {
        client.request("POST", "", &call(1, "search", &json!({ "query": "x" })))?;
        client.reply()?;
    }
    let busy = resident_kib(&agent)?;
    ensure!(busy > ready, "calls took no memory: {ready} KiB, then {busy}");
    let most = ready + (busy - ready) / 2;
    let given_back = || Ok((resident_kib(&agent)? <= most).then_some(()));
    wait::until("half of what calls took to be given back", given_back)?;
    // The connection that was idle meanwhile goes on.
    client.request("POST", "", &call(1, "search", &json!({ "query": "x" })))?;
    ensure!(client.reply()?.status == 200);
    Ok(())
}

#[test]
fn what_waits_is_charged_wherever_it_waits() -> Result<()> {
    let peer = Peer::start()?;
    let setup = Setup { resources: &resources(peer.address), limits: LIMITS, ..Setup::default() };
    let agent = Agent::start(setup)?;
    for row in rows(&peer.address.to_string()) {
        check(&agent, &peer, &row).context(row.name)?;
    }
    // All of it is given back.
    let mut client = agent.caller("writer")?.http(peer.address)?;
    client.request("POST", "", &call(1, "echo", &json!({ "text": "x".repeat(400_000) })))?;
    let mut server = peer.accept()?;
    let head = server.through("\r\n\r\n")?;
    ensure!(head.starts_with("POST /mcp "), "{head}");
    Ok(())
}

//! Hostile clients, one for every limit: each is refused as the tables of the design say, the agent's memory stays within
//! its budget, and a client that behaves loses no call beside all of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use socket2::SockRef;
use toolgate_tests::http::Reply;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Agent, Caller, Connection, Scene, Setup, wait};

/// Small enough to be reached at once; what is shared is more than the hostile cgroup's share.
const LIMITS: &str = "{ silence_time_max: 500ms, head_time_max: 500ms, body_time_max: 8s, client_write_max: 1s, \
                      connections_per_cgroup_max: 2100, streams_max: 8, streams_per_cgroup_max: 4, \
                      audit_entries_per_cgroup_max: 2000, memory_bytes_max: 64MiB, \
                      memory_per_cgroup_bytes_max: 16MiB, reply_bytes_max: 4MiB }";
/// The well-behaved calls faster than a busy disk syncs, and its lines wait as entries.
const AUDIT: &str = "{ file: FOLDER/audit.jsonl, sync: 1h }";
/// The budget, what all read blocks and the audit take, and what the allocator keeps.
const GROWTH_MIB_MAX: usize = 64 + 64;

/// One who plays by the rules, as long as others do not: call after call on one connection.
struct WellBehaved {
    ended: std::sync::Arc<AtomicBool>,
    calls: JoinHandle<Result<Vec<Duration>>>,
}

impl WellBehaved {
    fn start(agent: &Agent, server: SocketAddr) -> Result<Self> {
        let mut caller = agent.caller("reader")?;
        let mut connection = caller.http(server)?;
        let ended = std::sync::Arc::new(AtomicBool::new(false));
        let its = std::sync::Arc::clone(&ended);
        let calls = std::thread::spawn(move || {
            let _alive_as_long_as_it_calls = caller;
            let mut took = Vec::new();
            while !its.load(Ordering::SeqCst) {
                let id = took.len() as u64;
                let begun = Instant::now();
                let reply = connection.post(&call(id, "echo", &json!({})));
                let reply = reply.with_context(|| format!("call {id} was lost"))?;
                ensure!(is_result(&reply)?, "call {id}: {}{}", reply.head, reply.text());
                ensure!(reply.message()?.get("id") == Some(&json!(id)), "call {id}: {}", reply.text());
                took.push(begun.elapsed());
            }
            Ok(took)
        });
        Ok(Self { ended, calls })
    }

    fn end(self, agent: &Agent) -> Result<()> {
        self.ended.store(true, Ordering::SeqCst);
        let took = self.calls.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        let mut took = took.with_context(|| agent.process().said())?;
        took.sort_unstable();
        let of = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
        println!("well-behaved: {} calls, p50 {:?}, p99 {:?}", took.len(), of(50), of(99));
        ensure!(!took.is_empty(), "it made no call");
        Ok(())
    }
}

fn resident_mib(agent: &Agent) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process().id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().context("no number")?;
    Ok(kilobytes / 1024)
}

/// A head of a POST to the server, up to its last line.
fn head(server: SocketAddr, more: &str) -> String {
    format!("POST /mcp HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\n{more}")
}

/// What a hostile client does, and what it gets to read.
type Attack = fn(&mut Caller, SocketAddr) -> Result<Reply>;

/// Its name, what it does, the status, the limit, and the audit's reason; empty: no entry was left for it.
type Row = (&'static str, Attack, u16, &'static str, &'static str);

const ATTACKS: &[Row] = &[
    ("a slow head", slow_head, 408, "head_time_max", "malformed_http"),
    ("an endless head", endless_head, 431, "head_bytes_max", "malformed_http"),
    ("too many headers", many_headers, 431, "headers_max", "malformed_http"),
    ("a long target", long_target, 414, "target_bytes_max", "malformed_http"),
    ("a slow body", slow_body, 408, "body_time_max", "malformed_http"),
    ("a body of 1 GB", huge_body, 413, "body_bytes_max", "too_large"),
    ("a body of 1 GB in chunks", huge_chunks, 413, "body_bytes_max", "too_large"),
    ("endless chunk extensions", chunk_extensions, 413, "chunk_overhead_bytes_max", "malformed_http"),
    ("100,000 arrays within each other", deep, 400, "json_depth_max", "malformed_message"),
    ("100,000 members", wide, 400, "json_members_max", "malformed_message"),
    ("many streams", many_streams, 503, "streams_per_cgroup_max", "overload"),
    ("many requests that run", many_requests, 503, "audit_entries_per_cgroup_max", ""),
    ("many large bodies that do not end", many_bodies, 503, "memory_per_cgroup_bytes_max", "overload"),
    ("many connections", many_connections, 503, "connections_per_cgroup_max", ""),
];

fn slow_head(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(b"POST /mcp HTTP/1.1\r\nHo")?;
    client.reply()
}

fn endless_head(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(head(server, "").as_bytes())?;
    client.send_meanwhile("X-More: and more\r\n".repeat(1 << 20).into_bytes())?;
    client.reply()
}

fn many_headers(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(head(server, &format!("{}\r\n", "X-More: 1\r\n".repeat(200))).as_bytes())?;
    client.reply()
}

fn long_target(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(format!("GET /{} HTTP/1.1\r\nHost: {server}\r\n\r\n", "x".repeat(9_000)).as_bytes())?;
    client.reply()
}

fn slow_body(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(head(server, "Content-Length: 100\r\n\r\n{").as_bytes())?;
    client.reply()
}

fn huge_body(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(head(server, "Content-Length: 1073741824\r\n\r\n").as_bytes())?;
    client.send_meanwhile(vec![b' '; 64 << 20])?;
    client.reply()
}

fn huge_chunks(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(head(server, "Transfer-Encoding: chunked\r\n\r\n").as_bytes())?;
    let chunk = [b"10000\r\n", " ".repeat(1 << 16).as_bytes(), b"\r\n"].concat();
    client.send_meanwhile(chunk.repeat(1 << 10))?;
    client.reply()
}

fn chunk_extensions(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut client = caller.http(server)?;
    client.send(head(server, "Transfer-Encoding: chunked\r\n\r\n1").as_bytes())?;
    client.send_meanwhile(";more=more".repeat(1 << 20).into_bytes())?;
    client.reply()
}

fn deep(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let arrays = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{{\"a\":{arrays}}}}}");
    caller.http(server)?.post(body.as_bytes())
}

fn wide(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let members: Vec<String> = (0..100_000).map(|number| format!("\"{number}\":1")).collect();
    let params = members.join(",");
    let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{{{params}}}}}");
    caller.http(server)?.post(body.as_bytes())
}

fn many_streams(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = caller.http(server)?;
        stream.request("GET", "", b"")?;
        ensure!(stream.head()?.status == 200, "a stream within the limit");
        open.push(stream);
    }
    let mut one_more = caller.http(server)?;
    one_more.request("GET", "", b"")?;
    one_more.reply()
}

/// Each holds an entry as long as its body is awaited. Entries of the well-behaved wait for the writer, too, so that the
/// limit cannot be much lower.
fn many_requests(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut running = Vec::new();
    for _ in 0..2000 {
        let mut client = caller.http(server)?;
        client.send(head(server, "Expect: 100-continue\r\nContent-Length: 100\r\n\r\n").as_bytes())?;
        ensure!(client.head()?.status == 100, "a request within the limit");
        running.push(client);
    }
    caller.http(server)?.post(&call(25, "echo", &json!({})))
}

/// Each within its own limit; all but the last byte of them is sent.
fn many_bodies(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let body = vec![b' '; (4 << 20) - 1];
    let mut open = Vec::new();
    for _ in 0..8 {
        let client = caller.http(server)?;
        let request = [head(server, "Content-Length: 4194304\r\n\r\n").as_bytes(), &body].concat();
        client.send_meanwhile(request)?;
        open.push(client);
    }
    // Those that found room are too slow.
    let mut replies = open.iter_mut().map(Connection::reply).collect::<Result<Vec<_>>>()?;
    let is_refused = |reply: &Reply| reply.status == 503;
    ensure!(replies.iter().all(|reply| matches!(reply.status, 503 | 408)), "another status");
    let at = replies.iter().position(is_refused).context("none was refused")?;
    Ok(replies.swap_remove(at))
}

fn many_connections(caller: &mut Caller, server: SocketAddr) -> Result<Reply> {
    let mut open = Vec::new();
    for id in 0..2100 {
        let mut client = caller.http(server)?;
        ensure!(is_result(&client.post(&call(id, "echo", &json!({})))?)?, "a connection within the limit");
        open.push(client);
    }
    caller.http(server)?.post(&call(2101, "echo", &json!({})))
}

#[test]
fn each_limit_refuses_who_ignores_it_and_nobody_else() -> Result<()> {
    let scene = Scene::with_setup(Setup { limits: LIMITS, audit: AUDIT, ..Setup::default() })?;
    let (agent, server) = (&scene.agent, scene.server.address);
    let before = resident_mib(agent)?;
    let calm = WellBehaved::start(agent, server)?;
    for &(name, attack, status, limit, reason) in ATTACKS {
        let label = format!("limit=\"{limit}\"");
        let refused = || agent.metric("toolgate_limit_refusals_total", &[&label]);
        let count = refused()?;
        // Each is its own process, and takes what it holds with it.
        let reply = attack(&mut agent.caller("writer")?, server).context(name)?;
        ensure!(reply.status == status, "{name}: {}{}", reply.head, reply.text());
        ensure!(reply.message()?.get("error").is_some(), "{name}: no JSON-RPC error: {}", reply.text());
        ensure!((status == 503) == (reply.header("retry-after").is_some()), "{name}: {}", reply.head);
        ensure!(refused()? > count, "{name}: `{limit}` did not count it");
        let named = format!("`{limit}`");
        if reason.is_empty() {
            agent.process().line(&named).context(name)?;
        } else {
            let told = |line: &serde_json::Value| {
                text(line, "reason") == reason && text(line, "detail").contains(&named)
            };
            agent.audit_until(&format!("{name}: {reason}, {named}"), |lines| lines.iter().any(told))?;
        }
        let grown = resident_mib(agent)?.saturating_sub(before);
        println!("{name}: {status}, {limit}; {grown} MiB more than before");
        ensure!(grown <= GROWTH_MIB_MAX, "{name}: {grown} MiB more than before");
    }
    calm.end(agent)
}

/// What is refused by no limit: the connection ends, or goes on, as it must.
#[test]
fn odd_ends_harm_nobody() -> Result<()> {
    let scene = Scene::with_setup(Setup { limits: LIMITS, audit: AUDIT, ..Setup::default() })?;
    let (agent, server) = (&scene.agent, scene.server.address);
    let calm = WellBehaved::start(agent, server)?;
    let mut caller = agent.caller("writer")?;
    let left = |count: usize| {
        let told = |line: &&serde_json::Value| {
            text(line, "reason") == "client_left" && text(line, "caller/app_id") == "writer"
        };
        agent.audit_until("a client that left", |lines| lines.iter().filter(told).count() >= count)
    };

    // A reset in mid-body.
    let mut connected = caller.connect(server)?.stream;
    std::io::Write::write_all(&mut connected, head(server, "Content-Length: 100\r\n\r\n{").as_bytes())?;
    SockRef::from(&connected).set_linger(Some(Duration::ZERO))?;
    drop(connected);
    left(1)?;

    // A second request before the first is answered: one after the other.
    let mut client = caller.http(server)?;
    client.request("POST", "", &call(1, "echo", &json!({})))?;
    client.request("POST", "", &call(2, "echo", &json!({})))?;
    for id in [1, 2] {
        assert_eq!(client.reply()?.message()?.get("id"), Some(&json!(id)));
    }

    // Bytes behind the message.
    client.request("POST", "", &call(3, "echo", &json!({})))?;
    client.send(b"and more\r\n\r\n")?;
    assert!(is_result(&client.reply()?)?);
    assert_eq!(client.reply()?.status, 400, "they are no request");
    assert_eq!(client.rest()?, b"", "closed after it");

    // Half closed while its request runs: it has left.
    let mut client = caller.http(server)?;
    client.request("POST", "", &call(4, "stream", &json!({})))?;
    assert_eq!(client.head()?.status, 200);
    client.finish()?;
    assert_eq!(client.rest()?, b"", "closed in order");
    left(2)?;

    // A word too few, for too long.
    let mut silent = caller.http(server)?;
    assert_eq!(silent.rest()?, b"", "closed in order");
    calm.end(agent)
}

/// A large reply that nobody reads: the server waits, and is let go in time.
#[test]
fn who_does_not_read_holds_one_block() -> Result<()> {
    let scene = Scene::with_setup(Setup { limits: LIMITS, audit: AUDIT, ..Setup::default() })?;
    let (agent, server) = (&scene.agent, scene.server.address);
    let before = resident_mib(agent)?;
    let calm = WellBehaved::start(agent, server)?;
    let mut client = agent.caller("writer")?.http(server)?;
    client.request("POST", "", &call(1, "stream", &json!({})))?;
    assert_eq!(client.head()?.status, 200);
    let event = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": "x".repeat(1 << 16) });
    let mut sent = 0_usize;
    while scene.server.send_event(&event).is_ok() {
        sent += 1;
        ensure!(sent < 1 << 14, "1 GiB went somewhere");
    }
    let grown = resident_mib(agent)?.saturating_sub(before);
    println!("{sent} events of 64 KiB fitted between; {grown} MiB more than before");
    ensure!(grown <= GROWTH_MIB_MAX, "{grown} MiB more than before");
    agent.counts("toolgate_limit_refusals_total", &["limit=\"client_write_max\""], 1.0)?;
    let told = |line: &serde_json::Value| {
        text(line, "reason") == "client_left" && text(line, "detail").contains("`client_write_max`")
    };
    agent.audit_until("who did not read", |lines| lines.iter().any(told))?;
    calm.end(agent)
}

#[test]
fn ten_thousand_idle_connections_leave_room_for_others() -> Result<()> {
    const IDLE: usize = 10_000;
    const SERVED: usize = 8_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let limits =
        format!("{{ silence_time_max: 10m, connections_max: 9000, connections_per_cgroup_max: {SERVED} }}");
    let scene = Scene::with_setup(Setup { limits: &limits, audit: AUDIT, ..Setup::default() })?;
    let (agent, server) = (&scene.agent, scene.server.address);
    let before = resident_mib(agent)?;
    let calm = WellBehaved::start(agent, server)?;
    let mut caller = agent.caller("writer")?;
    let mut idle = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        idle.push(caller.connect(server)?.stream);
    }
    let label = ["limit=\"connections_per_cgroup_max\""];
    let refused = u32::try_from(IDLE - SERVED)?;
    agent.counts("toolgate_limit_refusals_total", &label, refused.into())?;
    let grown = resident_mib(agent)?.saturating_sub(before);
    println!("{SERVED} idle connections: {grown} MiB more than before");
    ensure!(grown <= GROWTH_MIB_MAX, "{grown} MiB more than before");
    // Others still come in, and those who leave make room.
    let mut other = agent.caller("reader")?.http(server)?;
    assert!(is_result(&other.post(&call(1, "echo", &json!({})))?)?);
    drop(idle);
    wait::until("room", || {
        let reply = caller.http(server)?.post(&call(1, "echo", &json!({})))?;
        Ok((reply.status == 200).then_some(()))
    })?;
    calm.end(agent)
}

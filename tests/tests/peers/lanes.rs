//! Small calls of one caller to one server share connections between the two agents, and nothing else does.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Caller, Connection, wait};

use crate::hosts::Hosts;

/// Calls that are open at once; of each thread of an agent several.
const AT_ONCE: usize = 24;
/// More than all buffers between a server and a client that does not read have room for.
const EVENTS: usize = 64;
const EVENT_BYTES: usize = 1 << 20;
/// Calls of others meanwhile.
const CALLS: usize = 200;
/// A reply of one piece.
const LARGE_BYTES: usize = 10 << 20;
/// More than may go on a connection that others share.
const LARGE_BODY_BYTES: usize = 9_000;

/// Connections between the two agents.
fn between(hosts: &Hosts) -> Result<usize> {
    let port = hosts.peer.port();
    let table = hosts.callers.netns.within(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        let to_peer = words.next().is_some_and(|to| to.ends_with(&format!(":{port:04X}")));
        to_peer && words.next() == Some("01")
    };
    Ok(table.lines().filter(is_one).count())
}

/// Calls at the same time, each on a connection of its own of this caller.
fn called(hosts: &Hosts, caller: &mut Caller, count: usize) -> Result<Vec<Connection>> {
    let call = |id| {
        let mut connection = Connection::new(caller.connect(hosts.address)?.stream, hosts.address)?;
        connection.request("POST", "", &call(id, "stream", &json!({})))?;
        Ok(connection)
    };
    (0..count as u64).map(call).collect()
}

/// The same, whose replies are begun.
fn opened(hosts: &Hosts, caller: &mut Caller, count: usize) -> Result<Vec<Connection>> {
    let mut all = called(hosts, caller, count)?;
    all.iter_mut().try_for_each(|connection| {
        ensure!(connection.head()?.status == 200);
        Ok(())
    })?;
    Ok(all)
}

/// Calls of this caller that do not end meanwhile: no thread has the next one alone, which therefore shares.
fn crowd(hosts: &Hosts, caller: &mut Caller) -> Result<Vec<Connection>> {
    opened(hosts, caller, 4 * available_parallelism()?.get())
}

#[test]
fn calls_of_one_caller_share_a_connection_and_two_callers_never_do() -> Result<()> {
    let hosts = Hosts::set()?;
    // For each thread one that is shared, and one for a call that is alone.
    let connections_max = 2 * available_parallelism()?.get();
    let mut reader = hosts.callers.caller("reader")?;
    let calls = opened(&hosts, &mut reader, AT_ONCE)?;
    let shared = between(&hosts)?;
    ensure!((2..=connections_max).contains(&shared), "{shared} connections for {AT_ONCE} calls");
    let mut writer = hosts.callers.caller("writer")?;
    let others = opened(&hosts, &mut writer, AT_ONCE)?;
    let of_writer = between(&hosts)? - shared;
    ensure!(
        (2..=connections_max).contains(&of_writer),
        "{of_writer} connections for {AT_ONCE} calls of another"
    );
    // What does not end by itself, and what is large, have connections of their own.
    let before = between(&hosts)?;
    let mut stream = Connection::new(reader.connect(hosts.address)?.stream, hosts.address)?;
    stream.request("GET", "", b"")?;
    ensure!(stream.head()?.status == 200);
    ensure!(between(&hosts)? == before + 1, "a stream");
    let mut large = Connection::new(reader.connect(hosts.address)?.stream, hosts.address)?;
    ensure!(is_result(&large.post(&call(1, "echo", &json!({ "x": "x".repeat(LARGE_BODY_BYTES) })))?)?);
    ensure!(between(&hosts)? == before + 2, "a large message");
    drop((calls, others));
    Ok(())
}

#[test]
fn a_call_that_is_alone_shares_nothing() -> Result<()> {
    let hosts = Hosts::set()?;
    let (_caller, mut connection) = hosts.caller("reader")?;
    for id in 0..3 {
        ensure!(is_result(&connection.post(&call(id, "echo", &json!({})))?)?, "{id}");
        ensure!(between(&hosts)? == 1, "{id}");
    }
    Ok(())
}

#[test]
fn who_reads_slowly_holds_up_no_other_call_and_gets_all() -> Result<()> {
    let hosts = Hosts::set()?;
    let mut caller = hosts.callers.caller("reader")?;
    let _crowd = crowd(&hosts, &mut caller)?;
    let mut slow = opened(&hosts, &mut caller, 1)?.pop().context("none")?;
    let connect = |_| Connection::new(caller.connect(hosts.address)?.stream, hosts.address);
    let mut others = (0..8).map(connect).collect::<Result<Vec<_>>>()?;
    let event = json!({ "jsonrpc": "2.0", "method": "notifications/message",
                        "params": { "level": "info", "data": "x".repeat(EVENT_BYTES) } });
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let sent = &sent;
        let client = scope.spawn(move || -> Result<()> {
            for id in 0..CALLS {
                let at = id % others.len();
                let reply = others[at].post(&call(id as u64, "echo", &json!({})))?;
                ensure!(is_result(&reply)?, "{}", reply.text());
            }
            ensure!(sent.load(Ordering::SeqCst) < EVENTS, "it waits for its reader");
            for _ in 0..EVENTS {
                let heard = slow.event()?.context("the reply has ended")?;
                ensure!(heard.len() > EVENT_BYTES, "{} bytes", heard.len());
            }
            Ok(())
        });
        for _ in 0..EVENTS {
            hosts.server.send_event(&event)?;
            sent.fetch_add(1, Ordering::SeqCst);
        }
        client.join().map_err(|_panic| anyhow::anyhow!("the client panicked"))?
    })
}

#[test]
fn a_large_reply_arrives_whole() -> Result<()> {
    let hosts = Hosts::set()?;
    let text: String = (0..LARGE_BYTES / 8).map(|at| format!("{at:08}")).collect();
    hosts.server.answers("tools/call", "large", &json!({ "content": [{ "type": "text", "text": text }] }));
    let (mut caller, mut connection) = hosts.caller("reader")?;
    let _crowd = crowd(&hosts, &mut caller)?;
    for id in 0..3 {
        connection.request("POST", "X-Variant: large\r\n", &call(id, "echo", &json!({})))?;
        let reply = connection.reply()?;
        let said = reply.message()?;
        ensure!(said.pointer("/result/content/0/text").and_then(|said| said.as_str()) == Some(&text), "{id}");
    }
    Ok(())
}

#[test]
fn who_leaves_in_mid_call_ends_that_call_alone() -> Result<()> {
    let hosts = Hosts::set()?;
    let mut caller = hosts.callers.caller("reader")?;
    let _crowd = crowd(&hosts, &mut caller)?;
    let mut calls = opened(&hosts, &mut caller, 5)?;
    let mut kept = opened(&hosts, &mut caller, 1)?.pop().context("none")?;
    let before = between(&hosts)?;
    let last = hosts.server.connections() - 1;
    for _ in 0..5 {
        drop(calls.pop());
        ensure!(hosts.server.left()? != last, "the one that goes on was left");
    }
    let result = json!({ "jsonrpc": "2.0", "id": 0, "result": { "content": [] } });
    hosts.server.send_event(&result)?;
    ensure!(kept.event()? == Some(format!("event: message\ndata: {result}\n\n")));
    ensure!(between(&hosts)? == before);
    Ok(())
}

/// How many connections of other agents each thread of the servers' agent serves.
fn of_agents(hosts: &Hosts) -> Result<Vec<usize>> {
    let metrics = hosts.servers.metrics()?;
    let series = metrics.lines().filter(|line| line.starts_with("toolgate_agent_connections_total{"));
    let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse().ok());
    series.map(|line| count(line).with_context(|| format!("no count: {line}"))).collect()
}

#[test]
fn connections_of_another_agent_are_spread_over_the_threads() -> Result<()> {
    let hosts = Hosts::set()?;
    let (mut caller, _) = hosts.caller("reader")?;
    let threads = of_agents(&hosts)?.len();
    let mut streams = Vec::new();
    for turn in 1..=AT_ONCE {
        // A stream has a connection of its own between the agents.
        let mut stream = Connection::new(caller.connect(hosts.address)?.stream, hosts.address)?;
        stream.request("GET", "Accept: text/event-stream\r\n", b"")?;
        ensure!(stream.head()?.status == 200);
        streams.push(stream);
        // Each thread once in each round: a choice by a hash comes to the same in the end, but not all along.
        if turn % threads == 0 {
            let counts = of_agents(&hosts)?;
            ensure!(counts == vec![turn / threads; threads], "after {turn}: {counts:?}");
        }
    }
    Ok(())
}

#[test]
fn who_is_revoked_is_cut_off_in_mid_call() -> Result<()> {
    let hosts = Hosts::set()?;
    let mut caller = hosts.callers.caller("reader")?;
    let calls = opened(&hosts, &mut caller, 4)?;
    hosts.ca(&["revoke", "callers"])?;
    for mut call in calls {
        // What breaks off says so: there is no answer.
        ensure!(!matches!(call.event(), Ok(Some(event)) if !event.contains("error")), "the call goes on");
    }
    wait::until("the end of the connections", || Ok((between(&hosts)? == 0).then_some(())))
}

#[test]
fn while_nobody_answers_each_call_is_told_so_and_later_ones_try_again() -> Result<()> {
    let mut hosts = Hosts::set()?;
    let mut caller = hosts.callers.caller("reader")?;
    let calls = opened(&hosts, &mut caller, AT_ONCE)?;
    hosts.servers.kill()?;
    for mut call in calls {
        ensure!(!matches!(call.event(), Ok(Some(event)) if !event.contains("error")), "the call goes on");
    }
    for mut call in called(&hosts, &mut caller, AT_ONCE)? {
        let refused = call.reply()?;
        ensure!(refused.status == 502, "{}", refused.text());
    }
    let refused = |line: &&Value| text(line, "detail").contains("cannot connect to");
    let agent = &hosts.callers.agent;
    agent.audit_until("why", |lines| lines.iter().filter(refused).count() == AT_ONCE)?;
    hosts.servers.start_again()?;
    let mut connection = Connection::new(caller.connect(hosts.address)?.stream, hosts.address)?;
    ensure!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    Ok(())
}

#[test]
fn a_call_too_many_is_told_so_and_others_go_on() -> Result<()> {
    const COUNTED: usize = 6;
    let hosts = Hosts::of_lives(&format!("limits: {{ connections_per_cgroup_max: {COUNTED} }}\n"))?;
    let mut caller = hosts.callers.caller("reader")?;
    let (mut served, mut refused) = (Vec::new(), 0);
    for mut call in called(&hosts, &mut caller, AT_ONCE)? {
        match call.head()?.status {
            200 => served.push(call),
            503 => refused += 1,
            other => anyhow::bail!("{other}"),
        }
    }
    // Connections count, and calls that share one.
    let count = served.len();
    ensure!((1..COUNTED).contains(&count) && refused == AT_ONCE - count, "{count} served, {refused} not");
    // What one caller has none left of, another has.
    let mut other = hosts.callers.caller("writer")?;
    ensure!(opened(&hosts, &mut other, 1).is_ok());
    // None of those that are served was ended for it: the server sees each leave now, and their places are free.
    for call in served {
        drop(call);
        hosts.server.left()?;
    }
    wait::until("a place", || Ok(opened(&hosts, &mut caller, 1).ok())).map(drop)
}

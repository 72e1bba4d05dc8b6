//! What becomes of calls between hosts while agents, their authority, or the network between them are away.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Caller, Connection, netns, wait};

use crate::hosts::{Apart, Hosts, decided};

/// Of an SVID; long enough that the other half of it is left however busy the machine is.
const LIFE: Duration = Duration::from_secs(40);
const LIVES: &str =
    "identity: { svid_ttl: 40s, issuing_ttl: 200s, overlap: 60s, root_ttl: 900s, clock_skew: 2s }\n";
const SHORT_LIVES: &str =
    "identity: { svid_ttl: 6s, issuing_ttl: 200s, overlap: 60s, root_ttl: 900s, clock_skew: 2s }\n";
/// Between two calls.
const PACE: Duration = Duration::from_millis(50);
/// How long the network is cut.
const CUT: Duration = Duration::from_secs(10);

/// One call on a connection of its own: whether it is answered with a result.
fn calls(caller: &mut Caller, apart: &Apart) -> Result<bool> {
    let mut connection = Connection::new(caller.connect(apart.address)?.stream, apart.address)?;
    is_result(&connection.post(&call(1, "echo", &json!({})))?)
}

/// The number of the SVID that the caller showed last.
fn serial(apart: &Apart) -> Result<String> {
    let lines = decided(&apart.servers.agent, 1)?;
    Ok(lines.last().map(|line| text(line, "caller/svid").to_owned()).unwrap_or_default())
}

/// Lets time go by.
fn pass(time: Duration) {
    let (_nobody_speaks, clock) = mpsc::channel::<()>();
    let _it_is_over = clock.recv_timeout(time);
}

#[test]
fn an_authority_that_is_away_for_half_a_life_is_missed_by_no_call() -> Result<()> {
    let mut apart = Apart::of_lives(LIVES)?;
    let mut caller = apart.callers.caller("reader")?;
    ensure!(calls(&mut caller, &apart)?);
    let before = serial(&apart)?;
    apart.authority.kill()?;
    let begun = Instant::now();
    while begun.elapsed() < LIFE / 2 {
        ensure!(
            calls(&mut caller, &apart)?,
            "after {:?}: {:#?}",
            begun.elapsed(),
            apart.callers.agent.audit(1)?
        );
        pass(PACE);
    }
    // What was to be renewed meanwhile was not, and the log says why.
    let said = apart.callers.agent.process().line("is not renewed")?;
    ensure!(said.contains("does not answer") && said.contains("what there is goes on"), "{said}");
    apart.authority.start_again()?;
    wait::until("another SVID", || {
        ensure!(calls(&mut caller, &apart)?, "a call failed after the authority was back");
        Ok((serial(&apart)? != before).then_some(()))
    })
}

#[test]
fn who_has_no_svid_any_more_is_told_why_and_served_again_by_itself() -> Result<()> {
    let mut apart = Apart::of_lives(SHORT_LIVES)?;
    let mut caller = apart.callers.caller("reader")?;
    ensure!(calls(&mut caller, &apart)?);
    apart.authority.kill()?;
    // The SVID of the other end may be over a moment before the caller's.
    let failed = |line: &Value| text(line, "detail").contains("does not answer");
    let line = wait::until("a call that fails for want of it", || {
        calls(&mut caller, &apart)?;
        Ok(apart.callers.agent.audit(1)?.into_iter().find(failed))
    })?;
    ensure!(text(&line, "reason") == "peer_unproven", "{line:#}");
    apart.authority.start_again()?;
    wait::until("a call that is answered", || Ok(calls(&mut caller, &apart)?.then_some(())))
}

#[test]
fn agents_may_be_started_again_in_any_order() -> Result<()> {
    let mut apart = Apart::of_lives("")?;
    let mut caller = apart.callers.caller("reader")?;
    ensure!(calls(&mut caller, &apart)?);
    // All are dead, then come back in this order: callers' agent, server's, authority.
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for agent in 0..3 {
            the(agent, &mut apart).kill()?;
        }
        for agent in order {
            the(agent, &mut apart).start_again().with_context(|| format!("{order:?}: {agent}"))?;
        }
        wait::until("a call that is answered", || {
            // Until its agent has learned of the process anew it may be refused.
            Ok(calls(&mut caller, &apart).unwrap_or(false).then_some(()))
        })
        .with_context(|| format!("{order:?}: {:#?}", apart.callers.agent.audit(1)))?;
    }
    // One alone, while the others go on.
    for agent in 0..3 {
        the(agent, &mut apart).kill()?;
        the(agent, &mut apart).start_again()?;
        let answered = || Ok(calls(&mut caller, &apart).unwrap_or(false).then_some(()));
        wait::until("a call that is answered", answered).with_context(|| format!("{agent} alone"))?;
    }
    Ok(())
}

fn the(agent: usize, apart: &mut Apart) -> &mut toolgate_tests::Agent {
    match agent {
        0 => &mut apart.callers.agent,
        1 => &mut apart.servers.agent,
        _ => &mut apart.authority,
    }
}

#[test]
fn a_network_that_is_cut_in_mid_stream_loses_nothing_and_what_fails_says_why() -> Result<()> {
    let hosts = Hosts::set()?;
    let (_reader, mut stream) = hosts.caller("reader")?;
    stream.request("GET", "Accept: text/event-stream\r\n", b"")?;
    ensure!(stream.head()?.status == 200);
    let event = |number: u32| {
        json!({ "jsonrpc": "2.0", "method": "notifications/message",
                                      "params": { "level": "info", "data": number } })
    };
    let mut hears = |number: u32| -> Result<()> {
        let heard = stream.event()?.context("the stream has ended")?;
        ensure!(heard.contains(&format!("\"data\":{number}")), "{number}: {heard}");
        Ok(())
    };
    hosts.server.send_event(&event(1))?;
    hears(1)?;
    let (_too, mut waiting) = hosts.caller("reader")?;
    ensure!(is_result(&waiting.post(&call(1, "echo", &json!({})))?)?);

    let device = hosts.callers.netns.device();
    netns::run(&["ip", "link", "set", device, "down"])?;
    let begun = Instant::now();
    hosts.server.send_event(&event(2))?;
    waiting.request("POST", "", &call(2, "echo", &json!({})))?;
    // One that needs a new connection between the agents.
    let (_writer, mut other) = hosts.caller("writer")?;
    let refused = other.post(&call(3, "echo", &json!({})))?;
    ensure!((502..=504).contains(&refused.status), "{}", refused.text());
    let failed = |line: &Value| text(line, "caller/app_id") == "writer";
    let lines = hosts.callers.agent.audit_until("the call that failed", |lines| lines.iter().any(failed))?;
    let line = lines.iter().find(|line| failed(line)).context("no such line")?;
    ensure!(["server_unreachable", "server_timeout"].contains(&text(line, "reason")), "{line:#}");
    ensure!(text(line, "detail").contains(&hosts.peer.to_string()), "{line:#}");
    pass(CUT.saturating_sub(begun.elapsed()));
    netns::run(&["ip", "link", "set", device, "up"])?;

    hosts.server.send_event(&event(3))?;
    hears(2)?;
    hears(3)?;
    ensure!(is_result(&waiting.reply()?)?, "the call that was under way");
    wait::until("a call that is answered", || {
        let (_writer, mut other) = hosts.caller("writer")?;
        Ok(is_result(&other.post(&call(4, "echo", &json!({})))?)?.then_some(()))
    })
}

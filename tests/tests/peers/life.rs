//! What becomes of calls between hosts while certificates, agents and trust come and go.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::wait;

use crate::hosts::{Hosts, decided};

/// Calls at the pace of 200 a second for this long unless `TOOLGATE_ROTATION_SECONDS` says otherwise.
const SECONDS: u64 = 40;
const PACE: Duration = Duration::from_millis(5);
/// Lives so short that everything is renewed and rotated many times meanwhile.
const SHORT: &str =
    "identity: { svid_ttl: 6s, issuing_ttl: 12s, overlap: 14s, root_ttl: 600s, clock_skew: 2s }\n";

fn roots(hosts: &Hosts) -> Result<BTreeSet<String>> {
    let status = hosts.ca(&["status"])?;
    let roots = status["roots"].as_array().context("no roots")?;
    Ok(roots.iter().map(|root| text(root, "sha256").to_owned()).collect())
}

#[test]
fn no_call_fails_while_everything_rotates() -> Result<()> {
    let hosts = Hosts::of_lives(SHORT)?;
    let given = std::env::var("TOOLGATE_ROTATION_SECONDS").ok().and_then(|text| text.parse().ok());
    let lasts = Duration::from_secs(given.unwrap_or(SECONDS));
    let (mut caller, mut connection) = hosts.caller("reader")?;
    let (mut all_roots, mut rotated, mut calls) = (roots(&hosts)?, 0, 0);
    let (_nobody_speaks, pace) = mpsc::channel::<()>();
    let begun = Instant::now();
    let mut due = begun;
    while begun.elapsed() < lasts {
        // Some on connections of their own.
        if calls % 97 == 96 {
            let stream = caller.connect(hosts.address)?.stream;
            connection = toolgate_tests::Connection::new(stream, hosts.address)?;
        }
        let reply = connection.post(&call(calls, "echo", &json!({ "message": "x" })))?;
        if !is_result(&reply)? {
            let failed = |line: &Value| text(line, "reason") != "permitted";
            let after = begun.elapsed();
            let lines =
                hosts.callers.agent.audit_until("the call that failed", |lines| lines.iter().any(failed))?;
            bail!("call {calls} after {after:?}: {:#?}", lines.into_iter().find(failed));
        }
        calls += 1;
        if begun.elapsed() >= lasts / 40 * (1 + 16 * rotated) && rotated < 2 {
            hosts.ca(&["rotate"])?;
            rotated += 1;
        }
        all_roots.extend(if calls % 200 == 0 { roots(&hosts)? } else { BTreeSet::new() });
        due += PACE;
        let _it_is_time = pace.recv_timeout(due.saturating_duration_since(Instant::now()));
    }
    let lines = decided(&hosts.servers, usize::try_from(calls)?)?;
    let serials: BTreeSet<&str> = lines.iter().map(|line| text(line, "caller/svid")).collect();
    println!("{calls} calls, {} SVIDs of the caller, {} roots", serials.len(), all_roots.len());
    ensure!(all_roots.len() >= 3, "roots: {all_roots:?}");
    ensure!(serials.len() as u64 >= lasts.as_secs() / 6, "SVIDs: {serials:?}");
    let wrong: Vec<&Value> = lines.iter().filter(|line| text(line, "decision") != "permit").collect();
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn who_is_revoked_is_cut_off_and_gets_nowhere_any_more() -> Result<()> {
    let hosts = Hosts::set()?;
    let (_caller, mut connection) = hosts.caller("reader")?;
    ensure!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    // A stream that is open, and stays so by itself.
    let (_other, mut stream) = hosts.caller("reader")?;
    stream.request("GET", "Accept: text/event-stream\r\n", b"")?;
    ensure!(stream.head()?.status == 200);
    hosts.ca(&["revoke", "callers"])?;
    // Within twenty seconds both are over, and nothing new begins.
    ensure!(!matches!(stream.event(), Ok(Some(event)) if !event.contains("error")), "the stream goes on");
    let refused = wait::until("a refusal", || {
        let (_caller, mut connection) = hosts.caller("reader")?;
        let reply = connection.post(&call(2, "echo", &json!({})))?;
        Ok((!is_result(&reply)?).then_some(reply))
    })?;
    ensure!(refused.status >= 500, "{}", refused.text());
    Ok(())
}

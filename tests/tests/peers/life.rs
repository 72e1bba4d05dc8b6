//! What becomes of calls between hosts while certificates, agents and trust come and go.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Agent, Connection, Process, fixture, packages, wait};

use crate::hosts::{Apart, Hosts, ca, decided};

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
            connection = Connection::new(stream, hosts.address)?;
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

/// A process of a node, which has asked for the SVID of its Workload.
struct Asks {
    process: Process,
    read: usize,
}

impl Asks {
    fn start(mut prefix: Command, program: &[&str], node: &Agent) -> Result<Self> {
        let socket = node.config().join("workload.sock");
        Ok(Self { process: Process::start(prefix.args(program).arg(socket))?, read: 0 })
    }

    /// Says it, and waits for those words.
    fn hears(&mut self, line: &str, words: &str) -> Result<()> {
        self.process.say(line)?;
        let (at, _) = self.process.line_from(self.read, words)?;
        self.read = at + 1;
        Ok(())
    }
}

#[test]
fn a_node_that_is_revoked_is_believed_by_no_other_and_gives_nothing_out() -> Result<()> {
    let apart = Apart::of_lives("")?;
    let callers = &apart.callers;
    let (frames, client) = (fixture("workload_api_streams.py"), fixture("spiffe_client.py"));
    let (frames, client) = (frames.display().to_string(), client.display().to_string());
    let python = packages("spiffe/bin/python")?.display().to_string();
    let mut stream = Asks::start(callers.exec("reader"), &["python3", &frames], &callers.agent)?;
    stream.hears("connect", "told open")?;
    stream.hears("ask 1", "told answered")?;
    let mut asks = Asks::start(callers.exec("reader"), &[&python, &client], &callers.agent)?;
    asks.hears("svid", "spiffe://example.org/ns/default/reader")?;
    let mut caller = callers.caller("reader")?;
    let mut open = Connection::new(caller.connect(apart.address)?.stream, apart.address)?;
    open.request("GET", "Accept: text/event-stream\r\n", b"")?;
    ensure!(open.head()?.status == 200);

    ca(&apart.authority, &["revoke", "callers"])?;
    // Its own processes get nothing more, though their SVIDs are hours from their half life.
    stream.hears("end 1", "told ended")?;
    asks.hears("svid", "no identity issued")?;
    asks.hears("jwt docs", "no identity issued")?;
    // The other node has heard of it too.
    ensure!(!matches!(open.event(), Ok(Some(event)) if !event.contains("error")), "the stream goes on");
    wait::until("a refusal", || {
        let mut connection = Connection::new(caller.connect(apart.address)?.stream, apart.address)?;
        Ok((connection.post(&call(1, "echo", &json!({})))?.status >= 500).then_some(()))
    })?;
    let is_failed = |line: &Value| {
        text(line, "reason") == "certificate_refused"
            && text(line, "detail").contains("was this node revoked")
    };
    callers.agent.audit_until("the call that failed", |lines| lines.iter().any(is_failed)).map(drop)
}

//! Answers of name servers that are none, or too much: each says what is wrong and what to do.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Agent, Setup, netns, wait};

use crate::stage::{IMPATIENT, NAME, Outside, PUBLIC, reader};

const HTTP: &str = "{ url: \"http://docs.example.com/mcp\" }";

/// What the audit says of a call that does not get there.
fn detail(agent: &Agent, reason: &str) -> Result<String> {
    let (_caller, mut connection) = reader(agent, PUBLIC[0], 80)?;
    let reply = connection.post(&call(1, "echo", &json!({})))?;
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!((reply.status, text(&line, "reason")), (502, reason), "{line}");
    Ok(text(&line, "detail").to_owned())
}

#[test]
fn a_name_that_does_not_resolve_is_said_so() -> Result<()> {
    let mut outside = Outside::new()?;
    let agent = outside.agent(HTTP, Setup::default())?;
    let detail = detail(&agent, "name_unresolved")?;
    for words in [
        "`docs.example.com` has no address: Non-Existent Domain",
        "correct the `url` or the endpoint, or add the name to",
    ] {
        assert!(detail.contains(words), "{detail}");
    }
    Ok(())
}

#[test]
fn a_name_server_that_says_nothing_holds_nobody_up_for_long() -> Result<()> {
    let mut outside = Outside::new()?;
    outside.dns.is_silent_about(NAME);
    let begun = Instant::now();
    let agent = outside.agent(HTTP, Setup { limits: IMPATIENT, ..Setup::default() })?;
    let detail = detail(&agent, "name_unresolved")?;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(
        detail.contains("`docs.example.com`")
            && detail.contains("is the name server of `/etc/resolv.conf` up?"),
        "{detail}"
    );
    // It is asked again by itself.
    let server = outside.server(PUBLIC[0], 80)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    wait::until("an answer of the server", || {
        Ok(is_result(&connection.post(&call(2, "echo", &json!({})))?)?.then_some(()))
    })?;
    server.request()?;
    Ok(())
}

#[test]
fn of_a_thousand_addresses_a_few_are_used() -> Result<()> {
    let mut outside = Outside::new()?;
    // All of them are there.
    outside.netns.run(&["ip", "route", "add", "local", "20.0.0.0/16", "dev", "lo"])?;
    netns::run(&["ip", "route", "replace", "20.0.0.0/16", "via", &outside.inside().to_string()])?;
    let server = outside.server(Ipv4Addr::UNSPECIFIED, 80)?;
    let many = (0..=254).flat_map(|b| (1..=4).map(move |a| IpAddr::V4(Ipv4Addr::new(20, 0, a, b))));
    let addresses: Vec<IpAddr> = std::iter::once(PUBLIC[0].into()).chain(many).take(1000).collect();
    outside.dns.has(NAME, &addresses, 60);
    let agent = outside.agent(HTTP, Setup::default())?;
    let said = agent.process().line("`docs.example.com` has 936 addresses more than are used")?;
    assert!(said.contains("`addresses_per_name_max`") && said.contains("`endpoints`"), "{said}");
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    server.request()?;
    Ok(())
}

#[test]
fn a_name_that_is_forgotten_leads_where_it_led_for_a_while() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.server(PUBLIC[0], 80)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 0);
    let limits =
        IMPATIENT.replace("name_ttl_min", "upstream_idle_max: 1ms, name_stale_max: 3s, name_ttl_min");
    let agent = outside.agent(HTTP, Setup { limits: &limits, ..Setup::default() })?;
    outside.dns.forgets(NAME);
    agent.process().line("a Server's name")?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    server.request()?;
    wait::until("the end of its address", || {
        let reply = connection.post(&call(2, "echo", &json!({})))?;
        Ok((reply.status == 502).then_some(()))
    })
}

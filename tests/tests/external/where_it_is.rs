//! Where a name leads, and what is captured of it.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::json;
use toolgate_tests::netns::in_cgroup;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Caller, Cgroup, Server, Setup, wait};

use crate::stage::{IMPATIENT, NAME, Outside, PUBLIC, reader};

const HTTP: &str = "{ url: \"http://docs.example.com/mcp\" }";

#[test]
fn it_is_captured_at_the_addresses_that_are_known_of_its_name() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = [outside.server(PUBLIC[0], 80)?, outside.server(PUBLIC[1], 80)?];
    outside.dns.has(NAME, &[PUBLIC[0].into()], 0);
    let cgroup = Cgroup::new("clients")?;
    let capture = format!("{{ cgroups: [{}], destinations: declared }}", cgroup.name()?);
    let agent = outside.agent(HTTP, Setup { capture: &capture, limits: IMPATIENT, ..Setup::default() })?;
    let mut caller = Caller::start(in_cgroup(&cgroup))?;
    let mut reason = |ip| -> Result<String> {
        let mut connection = caller.http(SocketAddr::new(ip, 80))?.naming(NAME);
        connection.post(&call(1, "echo", &json!({}))).map(|reply| reply.text())
    };
    // Nobody names this process: captured is denied.
    assert!(reason(PUBLIC[0].into())?.contains("toolgate:"), "it was not captured at its address");
    assert!(!reason(PUBLIC[1].into())?.contains("toolgate:"), "another's address is nobody's");
    servers[1].request()?;
    outside.dns.has(NAME, &[PUBLIC[1].into()], 0);
    wait::until("the capture of its new address", || {
        Ok(reason(PUBLIC[1].into())?.contains("toolgate:").then_some(()))
    })?;
    assert!(reason(PUBLIC[0].into())?.contains("toolgate:"), "who has asked before still goes there");
    assert_eq!(servers[0].connections(), 0);
    drop(agent);
    Ok(())
}

#[test]
fn the_agent_goes_where_its_own_name_server_says_wherever_the_client_connected() -> Result<()> {
    let mut outside = Outside::new()?;
    let (evil, good) = (outside.server(PUBLIC[0], 80)?, outside.server(PUBLIC[1], 80)?);
    outside.dns.has(NAME, &[PUBLIC[1].into()], 60);
    let agent = outside.agent(HTTP, Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    good.request()?;
    assert_eq!(evil.requests_now().len(), 0);
    Ok(())
}

#[test]
fn a_name_with_an_ipv6_address_alone_leads_there() -> Result<()> {
    let mut outside = Outside::new()?;
    let [_, inside] = outside.netns.link6()?;
    let server = outside.netns.within(|| Server::at(SocketAddr::new(inside, 80)))?;
    outside.dns.has(NAME, &[inside], 60);
    let agent = outside.agent(HTTP, Setup::default())?;
    let mut caller = agent.caller("reader")?;
    let mut connection = caller.http(SocketAddr::new(inside, 80))?.naming(NAME);
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?, "{:#?}", agent.audit(1)?);
    server.request()?;
    Ok(())
}

#[test]
fn the_hosts_file_comes_first_and_its_changes_count() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = [outside.server(PUBLIC[0], 80)?, outside.server(PUBLIC[1], 80)?];
    outside.dns.has(NAME, &[PUBLIC[2].into()], 60);
    outside.write_hosts(&format!("{} {NAME}\n", PUBLIC[0]))?;
    let limits = IMPATIENT.replace("name_ttl_min", "upstream_idle_max: 1ms, name_ttl_min");
    let agent = outside.agent(HTTP, Setup { limits: &limits, ..Setup::default() })?;
    for (server, ip) in servers.iter().zip(PUBLIC) {
        outside.write_hosts(&format!("{ip} {NAME}\n"))?;
        wait::until("a call at the address of the file", || {
            let (_caller, mut connection) = reader(&agent, ip, 80)?;
            is_result(&connection.post(&call(1, "echo", &json!({})))?)?;
            Ok((server.requests_now().len() == 1).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn an_address_that_answers_nobody_is_passed_over() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.server(PUBLIC[1], 80)?;
    outside.dns.has(NAME, &[PUBLIC[0].into(), PUBLIC[1].into()], 60);
    let agent = outside.agent(HTTP, Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    server.request()?;
    Ok(())
}

#[test]
fn two_servers_of_one_host_are_told_apart_by_their_paths() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.server(PUBLIC[0], 80)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let agent = outside.agent("{ url: \"http://docs.example.com/other\" }", Setup::default())?;
    let second = "---\napiVersion: toolgate/v1\nkind: Server\nmetadata: { name: second }\n\
                  spec: { external: { url: \"http://docs.example.com/mcp\" } }\n";
    agent.write_resources(&(outside.resources("{ url: \"http://docs.example.com/other\" }") + second))?;
    agent.process().line("configuration reloaded")?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let reply = connection.post(&call(1, "echo", &json!({})))?;
    assert!(!is_result(&reply)?, "no rule names the second: {}", reply.text());
    assert_eq!(text(&agent.audit(1)?[0], "target"), "second");
    assert_eq!(server.requests_now().len(), 0);
    Ok(())
}

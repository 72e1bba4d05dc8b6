//! Names that lead where they must not, and servers that send their callers elsewhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use toolgate_tests::netns::in_cgroup;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Cgroup, Peer, Server, Setup, free_address, netns, wait};

use crate::stage::{IMPATIENT, NAME, Outside, PUBLIC, reader};

/// Where clouds tell their machines what these are, secrets included.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A name with that address alone: the call is refused for what the address is, and nobody at `server` hears of it.
fn is_refused(outside: &mut Outside, address: IpAddr, server: &Server, what: &str) -> Result<()> {
    outside.dns.has(NAME, &[address], 60);
    let url = format!("{{ url: \"http://{NAME}:{}/mcp\" }}", server.address.port());
    let agent = outside.agent(&url, Setup::default())?;
    let (_caller, connection) = reader(&agent, PUBLIC[0], server.address.port())?;
    let host = format!("{NAME}:{}", server.address.port());
    let reply = connection.naming(&host).post(&call(1, "echo", &json!({})))?;
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!(server.requests_now().len(), 0, "{address} was reached: {line}");
    assert_eq!((reply.status, text(&line, "reason")), (502, "address_refused"), "{line}");
    assert!(text(&line, "detail").contains(what), "{line}");
    assert!(text(&line, "detail").contains("allow_private: true"), "{line}");
    Ok(())
}

#[test]
fn a_name_that_leads_to_loopback_reaches_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    is_refused(&mut outside, Ipv4Addr::LOCALHOST.into(), &Server::start()?, "loopback")
}

#[test]
fn a_name_that_leads_to_loopback_in_the_form_of_ipv6_reaches_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    is_refused(&mut outside, mapped.into(), &Server::start()?, "loopback")
}

#[test]
fn a_name_that_leads_to_the_unspecified_address_reaches_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    is_refused(&mut outside, Ipv4Addr::UNSPECIFIED.into(), &Server::start()?, "unspecified")
}

#[test]
fn a_name_that_leads_to_a_clouds_metadata_reaches_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    let inside = outside.inside();
    outside.netns.run(&["ip", "address", "add", "169.254.169.254/32", "dev", "lo"])?;
    netns::run(&["ip", "route", "replace", "169.254.169.254/32", "via", &inside.to_string()])?;
    let server = outside.server(METADATA, 80)?;
    is_refused(&mut outside, METADATA.into(), &server, "link-local")
}

#[test]
fn a_name_that_leads_into_a_private_network_reaches_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    let IpAddr::V4(inside) = outside.inside() else { return Ok(()) };
    let server = outside.server(inside, 80)?;
    is_refused(&mut outside, inside.into(), &server, "private")
}

/// An address of this host, on its loopback device.
struct OwnAddress(&'static str);

impl OwnAddress {
    fn new(address: &'static str) -> Result<Self> {
        netns::run(&["ip", "address", "add", address, "dev", "lo"])?;
        Ok(Self(address))
    }
}

impl Drop for OwnAddress {
    fn drop(&mut self) {
        let _shown_by_the_next = netns::run(&["ip", "address", "del", self.0, "dev", "lo"]);
    }
}

#[test]
fn a_name_that_leads_to_a_public_address_of_this_host_reaches_nothing() -> Result<()> {
    let mut outside = Outside::new()?;
    let _own = OwnAddress::new("203.0.113.5/32")?;
    let server = Server::at("203.0.113.5:0".parse()?)?;
    is_refused(&mut outside, server.address.ip(), &server, "of this host")
}

#[test]
fn a_name_that_leads_elsewhere_from_one_call_to_the_next_reaches_nothing_there() -> Result<()> {
    let mut outside = Outside::new()?;
    let here = Server::start()?;
    let port = here.address.port();
    let there = outside.server(PUBLIC[0], port)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 0);
    let url = format!("{{ url: \"http://{NAME}:{port}/mcp\" }}");
    let limits = IMPATIENT.replace("name_ttl_min", "upstream_idle_max: 1ms, name_ttl_min");
    let agent = outside.agent(&url, Setup { limits: &limits, ..Setup::default() })?;
    let (_caller, connection) = reader(&agent, PUBLIC[0], port)?;
    let mut connection = connection.naming(&format!("{NAME}:{port}"));
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    there.request()?;
    outside.dns.has(NAME, &[Ipv4Addr::LOCALHOST.into()], 0);
    wait::until("a refusal of its new address", || {
        let reply = connection.post(&call(2, "echo", &json!({})))?;
        ensure!(here.requests_now().is_empty(), "loopback was reached");
        Ok((reply.status == 502).then_some(()))
    })
}

#[test]
fn a_name_with_a_good_address_beside_a_bad_one_leads_to_the_good_one() -> Result<()> {
    let mut outside = Outside::new()?;
    let here = Server::start()?;
    let port = here.address.port();
    let there = outside.server(PUBLIC[0], port)?;
    outside.dns.has(NAME, &[Ipv4Addr::LOCALHOST.into(), PUBLIC[0].into()], 60);
    let agent = outside.agent(&format!("{{ url: \"http://{NAME}:{port}/mcp\" }}"), Setup::default())?;
    let (_caller, connection) = reader(&agent, PUBLIC[0], port)?;
    let reply = connection.naming(&format!("{NAME}:{port}")).post(&call(1, "echo", &json!({})))?;
    assert!(is_result(&reply)?, "{}", reply.text());
    there.request()?;
    assert_eq!(here.connections(), 0);
    Ok(())
}

#[test]
fn private_addresses_are_good_where_the_server_says_so() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = Server::start()?;
    let port = server.address.port();
    outside.dns.has(NAME, &[Ipv4Addr::LOCALHOST.into()], 60);
    let url = format!("{{ url: \"http://{NAME}:{port}/mcp\", allow_private: true }}");
    let agent = outside.agent(&url, Setup::default())?;
    let (_caller, connection) = reader(&agent, Ipv4Addr::LOCALHOST, port)?;
    let reply = connection.naming(&format!("{NAME}:{port}")).post(&call(1, "echo", &json!({})))?;
    assert!(is_result(&reply)?, "{}", reply.text());
    Ok(())
}

#[test]
fn no_name_leads_around_the_policy_of_a_declared_server() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = Server::start()?;
    let port = server.address.port();
    outside.dns.has(NAME, &[Ipv4Addr::LOCALHOST.into()], 60);
    let url = format!("{{ url: \"http://{NAME}:{port}/mcp\", allow_private: true }}");
    let agent = outside.agent(&url, Setup::default())?;
    let local = format!(
        "---\napiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: local }}\n\
         spec: {{ local: {{ address: \"{}\" }} }}\n",
        server.address
    );
    agent.write_resources(&(outside.resources(&url) + &local))?;
    agent.process().line("configuration reloaded")?;
    let (_caller, connection) = reader(&agent, PUBLIC[0], port)?;
    let reply = connection.naming(&format!("{NAME}:{port}")).post(&call(1, "echo", &json!({})))?;
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!(server.requests_now().len(), 0, "{line}");
    assert_eq!((reply.status, text(&line, "reason")), (502, "address_refused"), "{line}");
    Ok(())
}

/// A client that goes wherever it is sent, credentials and all: outside of what is captured nobody would see it.
#[test]
fn a_redirect_leads_no_credentials_away() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.netns.within(|| Peer::at(SocketAddr::new(PUBLIC[0].into(), 80)))?;
    let elsewhere = outside.server(PUBLIC[1], free_address()?.port())?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let cgroup = Cgroup::new("clients")?;
    let capture = format!("{{ cgroups: [{}], destinations: declared }}", cgroup.name()?);
    let agent = outside
        .agent("{ url: \"http://docs.example.com/mcp\" }", Setup { capture: &capture, ..Setup::default() })?;
    let workload = format!(
        "---\napiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: reader }}\n\
         spec: {{ selectors: {{ cgroup: {} }} }}\n",
        cgroup.name()?
    );
    agent.write_resources(&(outside.resources("{ url: \"http://docs.example.com/mcp\" }") + &workload))?;
    agent.process().line("configuration reloaded")?;
    let mut curl: Command = in_cgroup(&cgroup);
    curl.args(["curl", "--silent", "--show-error", "--location-trusted", "--max-time", "20"]);
    curl.args(["--resolve", &format!("{NAME}:80:{}", PUBLIC[0])]);
    curl.args(["--header", "Authorization: Bearer secret", "--header", "Content-Type: application/json"]);
    curl.args(["--header", "Accept: application/json, text/event-stream"]);
    curl.arg("--data-binary").arg(String::from_utf8(call(1, "echo", &json!({})))?);
    curl.arg(format!("http://{NAME}/mcp")).stdout(Stdio::piped());
    let client = curl.spawn().context("cannot start curl")?;
    let mut asked = server.accept()?;
    let head = asked.through("\r\n\r\n")?;
    assert!(head.contains("Authorization: Bearer secret"), "{head}");
    let to = format!("http://{}/mcp", elsewhere.address);
    asked.send(
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
    )?;
    let said = client.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(elsewhere.requests_now().len(), 0, "it went where it was sent: {said}");
    assert!(said.contains("the server's answer is invalid"), "{said}");
    let line = agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!(text(&line, "reason"), "server_fault", "{line}");
    Ok(())
}

//! Who is measured beside `direct`: as one hop on this host, or as two, one on each of two hosts.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Wanted;
use super::certificates::Certificates;
use super::contestant::{Agent, Contestant, Hop};
use super::hosts::Hosts;
use super::peers::{self, End, Peer, Way};
use super::resources;
use super::stage::{Stage, capture};
use crate::leftovers::Leftovers;
use crate::ports::free_addresses;
use crate::workspace::{run_quietly, say};

/// Where the agents of two hosts meet: the port of calls, and that of the authority.
const AGENTS: [u16; 2] = [15008, 15012];
/// Where the hops of the others do: nginx, haproxy, Envoy.
const OTHERS: [u16; 3] = [8443, 8444, 8445];

/// Starts them all.
pub(super) fn lineup(
    stage: &Stage<'_>,
    wanted: &Wanted,
    leftovers: &mut Leftovers,
) -> Result<Vec<Contestant>> {
    let has = |name: &str| wanted.only.is_empty() || wanted.only.iter().any(|one| one == name);
    let mut all = vec![Contestant::direct(stage.plain)];
    let certificates = stage.hosts.as_ref().map(|_| Certificates::make(&stage.folder)).transpose()?;
    let [nginx, haproxy, envoy] = ways(stage, certificates.as_ref())?;
    if has("nginx") {
        all.push(started(&nginx, peers::nginx)?);
    }
    if has("haproxy") {
        all.push(started(&haproxy, peers::haproxy)?);
    }
    if has("envoy")
        && let Some(binary) = &stage.prepared.envoy
    {
        match started(&envoy, |way| peers::envoy(binary, way)) {
            Ok(running) => all.push(running),
            Err(error) => say(format_args!("Envoy is left out: {error:#}")),
        }
    }
    if has("toolgate") {
        match &stage.hosts {
            Some(hosts) => all.push(two_agents(stage, hosts, leftovers)?),
            None => {
                let agent = stage.toolgate(None, "", leftovers)?;
                let explicit = agent.explicit(stage.invoke, resources::SERVER);
                all.extend([agent, explicit]);
            }
        }
    }
    Ok(all)
}

/// Each of the others' hops, the caller's end first.
fn ways<'w>(stage: &'w Stage<'_>, certificates: Option<&'w Certificates>) -> Result<[Vec<Way<'w>>; 3]> {
    let to = stage.plain;
    let (Some(hosts), Some(certificates)) = (&stage.hosts, certificates) else {
        let alone = |at| vec![Way { folder: stage.folder.clone(), at, to, end: End::Both }];
        return free_addresses().map(|all| all.map(alone));
    };
    let folder = |name: &str| stage.folder.join(name);
    let two = |port| {
        let between = hosts.servers.port(port);
        let end = End::Caller(&hosts.callers, certificates);
        let at = (Ipv4Addr::LOCALHOST, port).into();
        let first = Way { folder: folder("callers"), at, to: between, end };
        let end = End::Server(&hosts.servers, certificates);
        vec![first, Way { folder: folder("servers"), at: between, to, end }]
    };
    Ok(OTHERS.map(two))
}

fn started<'w>(ways: &[Way<'w>], start: impl Fn(&Way<'w>) -> Result<Peer<'w>>) -> Result<Contestant> {
    Contestant::peer(ways.iter().map(start).collect::<Result<_>>()?)
}

/// The agent in front of the server, which has the authority, and the one that captures the callers, which joins it.
fn two_agents(stage: &Stage<'_>, hosts: &Hosts, leftovers: &mut Leftovers) -> Result<Contestant> {
    let binary = stage.prepared.agent.as_path();
    let [peer, authority] = AGENTS.map(|port| hosts.servers.port(port));
    let servers = Agent {
        binary,
        folder: stage.folder.join("servers/toolgate"),
        host: Some(&hosts.servers),
        listen: format!("peer: \"{peer}\", authority: \"{authority}\""),
        more: String::new(),
        resources: resources::of_server(stage.guarded),
    };
    let at_server = Hop::agent(&servers, leftovers)?;
    let mut command = Command::new(binary);
    command.args(["ca", "token", "--node", "callers", "--app-ids", &resources::callers(), "--config"]);
    let token = run_quietly(command.arg(&servers.folder))?.stdout;
    let token_file = stage.folder.join("join.token");
    let mut file = OpenOptions::new();
    let file = file.write(true).create_new(true).mode(0o600).open(&token_file);
    file.and_then(|mut file| file.write_all(&token)).context("cannot keep the token")?;
    let joins = format!("identity: {{ source: join, token_file: {} }}\n", token_file.display());
    let callers = Agent {
        binary,
        folder: stage.folder.join("callers/toolgate"),
        host: Some(&hosts.callers),
        listen: String::new(),
        more: capture() + &joins,
        resources: resources::of_callers(stage.guarded, peer),
    };
    Contestant::toolgate(stage.guarded, vec![at_server, Hop::agent(&callers, leftovers)?])
}

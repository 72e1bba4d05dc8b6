//! Ten thousand connections of four workloads in two network namespaces, under ports that come again and again: whose is
//! which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolgate_tests::scene::text;
use toolgate_tests::{
    Agent, Caller, Held, Host, Netns, PortRange, Process, Setup, Witness, pinned, port_range, wait,
};

const WORKLOADS: [&str; 4] = ["one", "two", "three", "four"];
const CONNECTIONS: usize = 10_000;
const THREADS: usize = 64;
/// 200 ports, in each namespace.
const PORTS: &str = "42000 42199";

/// Two servers, one for each family, and each workload may call the tools of its own name alone.
fn resources(servers: [SocketAddr; 2]) -> String {
    let mut text = String::new();
    for (name, address) in ["docs", "docs6"].iter().zip(servers) {
        text += &format!(
            "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: {name} }}
spec:
  local: {{ address: \"{address}\" }}
  path: /mcp
---
"
        );
    }
    for workload in WORKLOADS {
        text += &format!(
            "apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: {workload} }}
spec:
  rules:
  - name: {workload}
    effect: allow
    callers: [{workload}]
    servers: [docs, docs6]
    tools: [\"{workload}-*\"]
---
"
        );
    }
    text
}

/// A command of `toolgate exec`, of the third and fourth workload in the other namespace.
fn placed(workload: &str, agent: &Agent, netns: &Netns) -> Command {
    let exec = agent.exec(workload);
    if ["one", "two"].contains(&workload) { exec } else { netns.entered_by(&exec) }
}

/// What is left of connections in the kernel: records under way, and connections of the agent's to the server.
fn left() -> Result<(usize, usize)> {
    let pending = pinned::map::<8, 8>("PENDING")?;
    let pending =
        pending.iter().try_fold(0, |sum, entry| entry.map(|(_, count)| sum + u64::from_ne_bytes(count)));
    ensure!(pending.context("cannot read PENDING")? == 0, "connections are counted that are over");
    Ok((pinned::entries::<32, 96>("CONNECTIONS")?, pinned::entries::<48, 8>("ADMITTED")?))
}

#[test]
fn ten_thousand_connections_are_whose_they_are() -> Result<()> {
    let host = Host::turn()?;
    let server = Witness::start()?;
    let netns = Netns::new()?;
    let ([near, _], [near6, _]) = (netns.link()?, netns.link6()?);
    let at = |address: IpAddr| SocketAddr::new(address, server.port);
    let servers = [at(near), at(near6)];
    let agent = Agent::start_in(host, Setup { resources: &resources(servers), ..Setup::default() })?;
    // Whoever holds the place in each namespace, so that the agent stays there; and the first to connect from it.
    let mut holders = WORKLOADS.map(|workload| Caller::start(placed(workload, &agent, &netns)));
    for holder in &mut holders {
        let holder = holder.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        for server in servers {
            wait::until("the namespace to be served", || Ok(holder.connect(server).ok()))?;
        }
    }
    let quiet = || Ok((left()? == (0, 0)).then_some(()));
    wait::until("the end of the first connections", quiet)?;
    let before = Held::by(&agent)?;

    let range = PortRange::set(PORTS)?;
    netns.within(|| fs::write(port_range::PATH, PORTS).context("cannot narrow the port range"))?;
    let share = CONNECTIONS / WORKLOADS.len();
    let mut crowds = Vec::new();
    for workload in WORKLOADS {
        let mut command = placed(workload, &agent, &netns);
        command.arg(env!("CARGO_BIN_EXE_attacker")).arg("crowd");
        command.arg(format!("threads={}", THREADS / WORKLOADS.len())).arg(format!("count={share}"));
        command.arg(format!("first={}", servers[0])).arg(format!("second={}", servers[1]));
        command.arg(format!("tool={workload}")).arg(format!("nonce={}", server.nonce));
        crowds.push((workload, Process::start(&mut command)?));
    }
    let mut pids = BTreeMap::new();
    for (workload, crowd) in &mut crowds {
        // Bounded by its own count, not by the time that one event may take.
        crowd.line(" pid=").or_else(|_still_at_it| crowd.line(" pid=")).or_else(|_| crowd.line(" pid="))?;
        crowd.end()?;
        let said = crowd.said();
        ensure!(said.starts_with(&format!("crowd of {share} ")), "{workload}: {said}");
        let pid = said.rsplit_once(" pid=").and_then(|(_, pid)| pid.trim().parse::<u64>().ok());
        pids.insert(*workload, pid.context("a crowd without a process")?);
    }
    drop(range);

    let expected: BTreeSet<String> = WORKLOADS
        .iter()
        .flat_map(|workload| (0..share).map(move |number| format!("{workload}-{number}")))
        .collect();
    let arrived: Vec<String> = server.arrivals().into_iter().map(|arrival| arrival.tool).collect();
    ensure!(arrived.len() == CONNECTIONS, "{} calls reached the server", arrived.len());
    ensure!(arrived.into_iter().collect::<BTreeSet<_>>() == expected, "the server was told other numbers");

    let lines = agent.audit(CONNECTIONS)?;
    ensure!(lines.len() == CONNECTIONS, "{} audit lines", lines.len());
    let told: BTreeSet<String> = lines.iter().map(|line| text(line, "tool").to_owned()).collect();
    ensure!(told == expected, "the audit tells other numbers");
    for line in &lines {
        let workload = text(line, "tool").split('-').next().unwrap_or_default();
        let pid = line.pointer("/caller/pid").and_then(Value::as_u64);
        let right = text(line, "caller/app_id") == workload && pid == pids.get(workload).copied();
        ensure!(right && text(line, "decision") == "permit", "misattributed: {line}");
    }

    server.hang_up();
    wait::until("the end of all connections", quiet)?;
    let is_as_before = || Ok(Held::by(&agent)?.is_within(before).then_some(()));
    wait::until("the agent to let go", is_as_before)
        .with_context(|| format!("it held {before:?}, and holds {:?}", Held::by(&agent)))
}

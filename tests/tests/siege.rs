//! The agent is killed, stopped and starved a hundred times, under load, while others try to take its port: what captured
//! callers are told meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use toolgate_tests::{Agent, Cgroup, Held, Host, PortRange, Process, Setup, Witness, pinned, wait};

const ROUNDS: usize = 100;
/// A stopped or starved agent is noticed when its heartbeat is old, which takes a moment each time.
const STOPPED_EVERY: usize = 20;
const STARVED_EVERY: usize = 10;
/// Periods of 100 ms that it starves.
const STARVED_PERIODS: u64 = 5;

/// What the programs and the agent hold on to.
#[derive(Debug)]
struct Left {
    pins: Vec<PathBuf>,
    maps: usize,
    programs: usize,
    links: usize,
    agent: Held,
}

fn left(agent: &Agent) -> Result<Left> {
    let (programs, links) = pinned::loaded_programs()?;
    let (pins, maps) = (pinned::pins()?, pinned::loaded_maps()?);
    Ok(Left { pins, maps, programs, links, agent: Held::by(agent)? })
}

/// A cgroup that has next to no CPU time, of either version of the controller.
struct Starvation(PathBuf);

impl Starvation {
    fn new() -> Result<Self> {
        let name = format!("toolgate-test-{}-starved", std::process::id());
        let v2 = toolgate_tests::cgroup2()?;
        let controllers = fs::read_to_string(v2.join("cgroup.subtree_control")).unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "cpu") {
            let path = v2.join(name);
            fs::create_dir(&path).context("cannot make a cgroup")?;
            fs::write(path.join("cpu.max"), "1000 100000").context("cannot limit the CPU time")?;
            return Ok(Self(path));
        }
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
        let v1 = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
            [_, folder, "cgroup", options, ..] if options.split(',').any(|option| option == "cpu") => {
                Some(Path::new(folder).join(&name))
            }
            _other => None,
        });
        let Some(path) = v1 else { bail!("no cgroup has the cpu controller") };
        fs::create_dir(&path).context("cannot make a cgroup")?;
        fs::write(path.join("cpu.cfs_period_us"), "100000").context("cannot limit the CPU time")?;
        fs::write(path.join("cpu.cfs_quota_us"), "1000").context("cannot limit the CPU time")?;
        Ok(Self(path))
    }

    fn add(&self, process: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).context("cannot enter a cgroup")
    }

    /// Periods in which it had no more CPU time.
    fn count(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).context("cannot read `cpu.stat`")?;
        let count = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        count.and_then(|count| count.parse().ok()).context("`cpu.stat` has no `nr_throttled`")
    }
}

impl Drop for Starvation {
    fn drop(&mut self) {
        let _reported_by_the_next_test =
            wait::until("an empty cgroup", || Ok(fs::remove_dir(&self.0).is_ok().then_some(())));
    }
}

fn resources(server: &Witness, inside: &Cgroup) -> Result<String> {
    Ok(format!(
        "apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: caller }}
spec: {{ selectors: {{ cgroup: \"/{}\" }} }}
---
apiVersion: toolgate/v1
kind: Server
metadata: {{ name: docs }}
spec:
  local: {{ address: \"127.0.0.1:{}\" }}
  path: /mcp
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: docs }}
spec:
  rules:
  - {{ name: load, effect: allow, callers: [caller], servers: [docs], tools: [\"load-*\"] }}
",
        inside.name()?,
        server.port
    ))
}

/// What is tried against the agent, and all that is to be seen of it.
struct Siege {
    agent: Agent,
    load: Process,
    starvation: Starvation,
}

impl Siege {
    /// Waits until a call that begins after this one does is `answered`, or `refused`.
    fn hears(&mut self, word: &str) -> Result<()> {
        let from = self.load.lines();
        self.load.say(word)?;
        self.load.line_from(from, word).map(|_line| ())
    }

    fn round(&mut self, round: usize) -> Result<()> {
        if round % STOPPED_EVERY == 1 {
            self.agent.process().signal(Signal::SIGSTOP)?;
            self.hears("refused")?;
            self.agent.process().signal(Signal::SIGCONT)?;
            self.hears("answered")?;
        } else if round % STARVED_EVERY == 2 {
            let before = self.starvation.count()?;
            self.starvation.add(self.agent.process().id())?;
            // It goes hungry, and is killed as it does: the next one is started with all it needs.
            let is_hungry = || Ok((self.starvation.count()? >= before + STARVED_PERIODS).then_some(()));
            wait::until("the agent to starve", is_hungry)?;
        }
        self.agent.kill()?;
        self.hears("refused")?;
        self.agent.start_again()?;
        self.hears("answered")
    }
}

#[test]
fn nobody_answers_in_the_agents_place() -> Result<()> {
    let host = Host::turn()?;
    let server = Witness::start()?;
    let inside = Cgroup::new("siege")?;
    let capture = format!("{{ cgroups: [\"{}\"] }}", inside.name()?);
    let resources = resources(&server, &inside)?;
    let setup = Setup { resources: &resources, capture: &capture, ..Setup::default() };
    let agent = Agent::start_in(host, setup)?;
    // Among the ephemeral ports a listen without a bind would get it while the agent is dead, and keep it from starting.
    let _range = PortRange::without(agent.outbound.port())?;
    let attacker = env!("CARGO_BIN_EXE_attacker");
    let port = format!("port={}", agent.outbound.port());
    let mut impostors = Vec::new();
    for container in
        [&["env"][..], &["unshare", "--user", "--map-root-user", "--mount"], &["unshare", "--net"]]
    {
        let mut command = Command::new(container.first().context("no command")?);
        command.args(container.get(1..).unwrap_or_default()).args([attacker, "impostor", &port]);
        impostors.push((container, Process::start(&mut command)?));
    }
    let mut load = Command::new(attacker);
    load.args(["load", "start=inside", "threads=2", "tool=load"]);
    load.arg(format!("inside={}", inside.path().display())).arg(format!("nonce={}", server.nonce));
    load.arg(format!("to=127.0.0.1:{}", server.port));
    let load = Process::start(&mut load)?;

    let mut siege = Siege { agent, load, starvation: Starvation::new()? };
    siege.hears("answered")?;
    siege.round(0)?;
    let before = left(&siege.agent)?;
    for round in 1..ROUNDS {
        siege.round(round).with_context(|| format!("round {round}"))?;
    }
    siege.load.close()?;
    let said = siege.load.said();
    let told = said.lines().last().unwrap_or_default().to_owned();
    println!("{told}");
    ensure!(told.contains(" strange=0 "), "{told}");
    ensure!(
        !server.arrivals().iter().any(|arrival| arrival.tool.starts_with("forbidden")),
        "a call went around"
    );
    for (container, impostor) in &mut impostors {
        impostor.close()?;
        println!("{container:?}: {}", impostor.said());
        ensure!(impostor.said().starts_with("victims 0 "), "{container:?}: {}", impostor.said());
    }
    // What the agent holds for connections that were broken off goes with them; programs go when no CPU runs them.
    let is_no_more = || {
        let now = left(&siege.agent)?;
        let kernel = now.maps <= before.maps && now.programs <= before.programs && now.links <= before.links;
        Ok((kernel && now.agent.is_within(before.agent) && now.pins == before.pins).then_some(()))
    };
    wait::until("no more than before", is_no_more)
        .with_context(|| format!("before: {before:#?}\nnow: {:#?}", left(&siege.agent)))
}

//! Connections that are older than their capture.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, resources};
use toolgate_tests::{Agent, Cgroup, Connection, Host, Peer, Process, Scene, Setup, wait};

/// A process that is not captured yet, and holds a connection; what comes on it is what it says.
struct Holder {
    process: Process,
    server: Connection,
}

impl Holder {
    /// Connects in `before`, or where the test is, and goes on in `cgroup`.
    fn start(before: Option<&Cgroup>, cgroup: &Cgroup, peer: &Peer) -> Result<Self> {
        let connects = format!("read && exec 3<>/dev/tcp/127.0.0.1/{} && cat <&3", peer.address.port());
        let mut process = Process::start(Command::new("bash").arg("-c").arg(connects))?;
        if let Some(before) = before {
            before.add(process.id())?;
        }
        process.say("")?;
        let server = peer.accept()?;
        cgroup.add(process.id())?;
        Ok(Self { process, server })
    }

    fn hears(&mut self, word: &str) -> Result<()> {
        self.server.send(format!("{word}\n").as_bytes())?;
        self.process.line(word).map(drop)
    }
}

/// A shell has children.
fn all_go(from: &Cgroup, to: &Cgroup) -> Result<()> {
    let processes = std::fs::read_to_string(from.path().join("cgroup.procs"))?;
    processes.lines().try_for_each(|process| to.add(process.parse()?))
}

/// Starts an agent after the connections were made, and waits until it has counted `count` as `result`.
fn agent(host: Host, cgroup: &Cgroup, declared: &Peer, existing: &str, result: &str) -> Result<Agent> {
    let capture = format!("{{ cgroups: [\"{}\"]{existing} }}", cgroup.name()?);
    let resources = resources(declared.address);
    let agent =
        Agent::start_in(host, Setup { resources: &resources, capture: &capture, ..Setup::default() })?;
    agent.counts("toolgate_connections_older", &[&format!("result=\"{result}\"")], 1.0)?;
    Ok(agent)
}

#[test]
fn an_older_connection_to_a_declared_server_is_reported_and_goes_on() -> Result<()> {
    let host = Host::turn()?;
    let (cgroup, declared, elsewhere) = (Cgroup::new("reported.slice")?, Peer::start()?, Peer::start()?);
    let mut holder = Holder::start(Some(&cgroup), &cgroup, &declared)?;
    let mut other = Holder::start(Some(&cgroup), &cgroup, &elsewhere)?;
    let agent = agent(host, &cgroup, &declared, "", "reported")?;
    let line = agent.process().line("older than its capture")?;
    assert!(line.contains(&declared.address.to_string()), "{line}");
    assert!(line.contains(&cgroup.name()?), "{line}");
    holder.hears("still there")?;
    other.hears("there too")?;
    assert_eq!(
        agent.metric("toolgate_connections_older", &[])?,
        1.0,
        "the other goes to nothing of the plan"
    );
    let status = agent.toolgate("status").output()?;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("older than their capture: 1"), "{status}");
    Ok(())
}

#[test]
fn an_older_connection_is_ended_where_that_is_set() -> Result<()> {
    let host = Host::turn()?;
    let (cgroup, declared, elsewhere) = (Cgroup::new("ended.slice")?, Peer::start()?, Peer::start()?);
    let holder = Holder::start(Some(&cgroup), &cgroup, &declared)?;
    let mut other = Holder::start(Some(&cgroup), &cgroup, &elsewhere)?;
    let agent = agent(host, &cgroup, &declared, ", existing: end", "ended")?;
    holder.process.line("connection abort")?;
    other.hears("still there")?;
    assert_eq!(agent.metric("toolgate_connections_older", &[])?, 1.0);
    Ok(())
}

#[test]
fn a_process_that_was_moved_is_found_by_what_it_holds() -> Result<()> {
    let host = Host::turn()?;
    let (cgroup, outside, declared) =
        (Cgroup::new("moved.slice")?, Cgroup::new("out.slice")?, Peer::start()?);
    let holder = Holder::start(Some(&outside), &cgroup, &declared)?;
    let _not_captured = Holder::start(Some(&outside), &outside, &declared)?;
    let agent = agent(host, &cgroup, &declared, ", existing: end", "ended")?;
    let line = agent.process().line("older than its capture")?;
    assert!(line.contains(&format!("to={}", declared.address)), "{line}");
    holder.process.line("connection abort")?;
    assert_eq!(agent.metric("toolgate_connections_older", &[])?, 1.0, "the one outside is not looked at");
    Ok(())
}

#[test]
fn what_a_bypass_permits_is_left_alone_by_the_next_agent_and_in_a_restarted_unit() -> Result<()> {
    let host = Host::turn()?;
    let (cgroup, declared) = (Cgroup::new("let-through.slice")?, Peer::start()?);
    let name = cgroup.name()?;
    let capture = format!("{{ cgroups: [\"{name}\"], existing: end }}");
    let resources = resources(declared.address);
    let setup = Setup { resources: &resources, capture: &capture, stay_attached: true, ..Setup::default() };
    let mut agent = Agent::start_in(host, setup)?;
    let bypass = |agent: &Agent, more: &[&str]| -> Result<()> {
        let output = agent.toolgate("bypass").args(more).args(["--cgroup", &name]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    bypass(&agent, &["--for", "10m", "--reason", "test"])?;
    let mut holder = Holder::start(Some(&cgroup), &cgroup, &declared)?;
    agent.stop()?;
    // As a unit is restarted: its cgroup is removed, and made again under the same name.
    let elsewhere = Cgroup::new("meanwhile.slice")?;
    all_go(&cgroup, &elsewhere)?;
    drop(cgroup);
    let again = Cgroup::new("let-through.slice")?;
    all_go(&elsewhere, &again)?;
    agent.start_again()?;
    holder.hears("still there")?;
    assert_eq!(agent.metric("toolgate_connections_older", &[])?, 0.0);

    bypass(&agent, &["--end"])?;
    agent.stop()?;
    agent.start_again()?;
    agent.counts("toolgate_connections_older", &["result=\"ended\""], 1.0)?;
    holder.process.line("connection abort").map(drop)
}

#[test]
fn what_the_agent_before_had_captured_is_not_older() -> Result<()> {
    let mut scene = Scene::with("{ existing: end }", false)?;
    let (_caller, mut connection) = scene.reader()?;
    let echo = call(1, "echo", &json!({}));
    assert!(is_result(&connection.post(&echo)?)?);
    scene.agent.upgrade(&[])?;
    wait::until("the next agent to be ready", || {
        let said = scene.agent.process().said();
        Ok((said.matches("toolgate: ready").count() == 2).then_some(()))
    })?;
    assert!(is_result(&connection.post(&echo)?)?, "it goes on until its next answer");
    assert_eq!(scene.agent.metric("toolgate_connections_older", &[])?, 0.0);
    Ok(())
}

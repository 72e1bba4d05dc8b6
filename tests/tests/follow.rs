//! Cgroups that are captured by name come and go: `systemctl restart` removes a unit's and makes another.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use toolgate_tests::scene::{call, is_result, resources};
use toolgate_tests::{Agent, Caller, Cgroup, Host, Server, Setup, wait};

/// An agent that captures one cgroup by its name, and a server that it declares.
struct Stage {
    agent: Agent,
    server: Server,
}

impl Stage {
    fn set(host: Host, pattern: &str) -> Result<Self> {
        let server = Server::start()?;
        let capture = format!("{{ cgroups: [\"{pattern}\"] }}");
        let setup = Setup { resources: &resources(server.address), capture: &capture, ..Setup::default() };
        Ok(Self { agent: Agent::start_in(host, setup)?, server })
    }

    /// Whether what runs in `cgroup` is captured: nobody there is known to a Workload, so its calls are denied then.
    fn captures(&self, cgroup: &Cgroup) -> Result<bool> {
        let mut caller = Caller::outside()?;
        // Before its first socket.
        cgroup.add(caller.id())?;
        // Its port accepts the agent alone: who is not captured is refused there.
        let Ok(mut connection) = caller.http(self.server.address) else { return Ok(false) };
        let reply = connection.post(&call(1, "echo", &json!({})))?;
        ensure!(!is_result(&reply)?, "captured, and permitted to nobody: {}", reply.text());
        Ok(true)
    }

    fn will_capture(&self, cgroup: &Cgroup) -> Result<()> {
        let what = format!("`{}` to be captured", cgroup.name()?);
        wait::until(&what, || Ok(self.captures(cgroup)?.then_some(())))
    }
}

#[test]
fn a_cgroup_that_is_made_again_is_captured_again() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("restart.slice")?;
    let mut unit = slice.below("a.service")?;
    let stage = Stage::set(host, &unit.name()?)?;
    assert!(stage.captures(&unit)?);
    for restart in 0..3 {
        let (name, before) = (unit.name()?, stage.agent.process().lines());
        drop(unit);
        let gone = format!("is gone until it is made again name={name}");
        stage.agent.process().line_from(before, &gone).with_context(|| format!("restart {restart}"))?;
        unit = slice.below("a.service")?;
        stage.will_capture(&unit)?;
    }
    let beside = slice.below("b.service")?;
    assert!(!stage.captures(&beside)?, "only what is named");
    // The directories go in the order of their depth.
    drop((unit, beside));
    Ok(())
}

#[test]
fn a_cgroup_that_is_made_again_is_captured_from_its_first_connect() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("first.slice")?;
    let unit = slice.below("a.service")?;
    let stage = Stage::set(host, &unit.name()?)?;
    assert!(stage.captures(&unit)?);
    let (name, before) = (unit.name()?, stage.agent.process().lines());
    drop(unit);
    let gone = format!("is gone until it is made again name={name}");
    stage.agent.process().line_from(before, &gone)?;
    // The agent hears of nothing that follows: the kernel is alone.
    stage.agent.process().signal(Signal::SIGSTOP)?;
    let unit = slice.below("a.service")?;
    let mut caller = Caller::outside()?;
    unit.add(caller.id())?;
    let connection = caller.http(stage.server.address);
    stage.agent.process().signal(Signal::SIGCONT)?;
    let reply = connection?.post(&call(1, "echo", &json!({})))?;
    assert!(!is_result(&reply)?, "not captured: {}", reply.text());
    assert_eq!(stage.agent.audit(2)?.len(), 2);
    drop(caller);
    drop(unit);
    Ok(())
}

#[test]
fn a_cgroup_is_followed_through_a_parent_that_is_made_again() -> Result<()> {
    for pattern in ["/middle.slice/a.service", "/middle.slice/*", "/*"] {
        let host = Host::turn()?;
        let outer = Cgroup::new("parents.slice")?;
        let middle = outer.below("middle.slice")?;
        let unit = middle.below("a.service")?;
        let stage = Stage::set(host, &format!("{}{pattern}", outer.name()?))?;
        assert!(stage.captures(&unit)?, "{pattern}");
        drop(unit);
        drop(middle);
        drop(outer);
        let outer = Cgroup::new("parents.slice")?;
        let middle = outer.below("middle.slice")?;
        let unit = middle.below("a.service")?;
        stage.will_capture(&unit).context(pattern)?;
        drop(unit);
        drop(middle);
        drop(stage);
    }
    Ok(())
}

#[test]
fn a_reload_while_a_captured_cgroup_is_away_is_taken_over() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("away.slice")?;
    let unit = slice.below("a.service")?;
    let stage = Stage::set(host, &unit.name()?)?;
    drop(unit);
    let before = stage.agent.process().lines();
    stage.agent.write_resources(&resources(stage.server.address).replace("plain-tools", "some-tools"))?;
    let (_, line) = stage.agent.process().line_from(before, "configuration")?;
    ensure!(line.contains("configuration reloaded"), "{}", stage.agent.process().said());
    let unit = slice.below("a.service")?;
    stage.will_capture(&unit)?;
    drop(unit);
    Ok(())
}

//! Canaries: a captured cgroup that is not captured is noticed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Cgroup, Host, Server, Setup, get, wait};

/// Of the programs, as they are pinned.
fn captured() -> Result<HashMap<MapData, u64, u32>> {
    let folders = fs::read_dir("/sys/fs/bpf/toolgate")?.map(|entry| Ok(entry?.path()));
    let folders = folders.collect::<Result<Vec<PathBuf>>>()?;
    ensure!(folders.len() == 1, "one version is pinned: {folders:?}");
    let folder = folders.first().context("none")?;
    let map = MapData::from_pin(folder.join("maps/CAPTURED"))?;
    Ok(HashMap::try_from(Map::HashMap(map))?)
}

fn readiness(agent: &Agent) -> Result<String> {
    get(agent.ready, "/")
}

#[test]
fn a_cgroup_that_is_not_captured_any_more_makes_the_agent_unready_by_name() -> Result<()> {
    let host = Host::turn()?;
    let (slice, server) = (Cgroup::new("canary.slice")?, Server::start()?);
    let [broken, whole, gone] = ["a.service", "b.service", "c.service"].map(|name| slice.below(name));
    let (broken, whole, gone) = (broken?, whole?, gone?);
    let (name, other, away) = (broken.name()?, whole.name()?, gone.name()?);
    let capture = format!("{{ cgroups: [\"{name}\", \"{other}\", \"{away}\"], canary: 200ms }}");
    let resources = resources(server.address);
    let setup = Setup { resources: &resources, capture: &capture, ..Setup::default() };
    let agent = Agent::start_in(host, setup)?;
    drop(gone);
    assert!(readiness(&agent)?.starts_with("HTTP/1.1 200"), "{}", agent.process().said());

    let mut map = captured()?;
    let id = broken.id()?;
    let flags = map.get(&id, 0)?;
    map.remove(&id)?;
    wait::until("the agent to be not ready", || {
        let answer = readiness(&agent)?;
        Ok((answer.starts_with("HTTP/1.1 503") && answer.contains(&name)).then_some(()))
    })?;
    let answer = readiness(&agent)?;
    assert!(!answer.contains(&other) && !answer.contains(&away), "only that one: {answer}");
    agent.process().line("canary lost")?;
    let label = format!("cgroup=\"{name}\"");
    assert_eq!(agent.metric("toolgate_canary_lost", &[&label])?, 1.0);
    assert!(agent.metric("toolgate_canary_failures_total", &[&label])? >= 1.0);
    let status = agent.toolgate("status").output()?;
    assert_eq!(status.status.code(), Some(4), "the code of an agent that is not ready");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("NOT READY") && status.contains(&name), "{status}");

    map.insert(id, flags, 0)?;
    wait::until("the agent to be ready", || {
        Ok(readiness(&agent)?.starts_with("HTTP/1.1 200").then_some(()))
    })?;
    let said = agent.process().said();
    assert_eq!(said.matches("canary lost").count(), 1, "said once, when it changed: {said}");
    // One may be on its way just now.
    let nest = broken.path().join("toolgate.canary");
    wait::until("the canary's cgroup to be removed", || Ok((!nest.exists()).then_some(())))
}

//! The agent's life: start, reload, death, and everything that may be wrong before it begins.

use std::fs;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use toolgate_tests::scene::{call, is_result, resources};
use toolgate_tests::{
    Agent, Caller, Connection, Host, Scene, Server, cgroup2, free_address, get, toolgate, wait,
};

/// Is that call of a tool without arguments permitted?
fn may(connection: &mut Connection, tool: &str) -> Result<bool> {
    is_result(&connection.post(&call(1, tool, &json!({})))?)
}

#[test]
fn a_changed_resource_takes_effect_without_a_restart() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);

    let resources =
        resources(scene.server.address).replace("[echo, stream, slow_count]", "[delete_everything]");
    scene.agent.write_resources(&resources)?;
    wait::until("the new policy", || Ok(may(&mut connection, "delete_everything")?.then_some(())))?;
    assert!(!may(&mut connection, "echo")?);
    Ok(())
}

#[test]
fn a_bad_file_keeps_the_last_good_resources_and_says_where_it_is_bad() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let good = resources(scene.server.address);
    for (bad, place) in [
        (good.replace("effect: deny", "effect: perhaps"), "all.yaml:"),
        (good.replace("kind: Policy", "kind: Polisy"), "all.yaml:9:"),
        (format!("{good}---\n{{"), "all.yaml:"),
    ] {
        let before = scene.agent.process().lines();
        // Half of it is good, and would permit what is denied now.
        scene.agent.write_resources(&bad.replace("[echo, stream, slow_count]", "[delete_everything]"))?;
        scene.agent.process().line_from(before, place)?;
        assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?, "{place}");
    }
    scene.agent.write_resources(&good.replace("[echo, stream, slow_count]", "[delete_everything]"))?;
    wait::until("the good file", || Ok(may(&mut connection, "delete_everything")?.then_some(())))
}

#[test]
fn a_killed_agent_leaves_captured_connections_refused_and_others_alone() -> Result<()> {
    let mut scene = Scene::set()?;
    let address = scene.server.address;
    let (mut captured, mut connection) = scene.reader()?;
    let (mut outside, elsewhere) = (Caller::outside()?, Server::start()?);
    assert!(may(&mut connection, "echo")?);
    assert!(may(&mut outside.http(elsewhere.address)?, "delete_everything")?);
    assert!(outside.connect(address).is_err(), "a declared server's port accepts the agent alone");

    scene.agent.kill()?;
    let refused =
        captured.connect(address).err().context("a captured connection went past the dead agent")?;
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    assert!(connection.post(&call(1, "echo", &json!({}))).is_err(), "a live connection ends with the agent");
    assert!(may(&mut outside.http(elsewhere.address)?, "delete_everything")?, "others notice nothing");
    assert!(outside.connect(address).is_err(), "and the port stays guarded");

    scene.agent.start_again()?;
    let mut connection = captured.http(address)?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    Ok(())
}

#[test]
fn an_agent_that_ends_in_order_lets_go_of_what_it_captured() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut scene = Scene::set()?;
        let (_caller, mut connection) = scene.reader()?;
        assert!(may(&mut connection, "echo")?);
        scene.agent.process().signal(signal)?;
        let status = scene.agent.stop_after_signal()?;
        assert!(status.success(), "{signal}: {status}");
        assert!(!fs::exists("/sys/fs/bpf/toolgate")?, "{signal}: pins are left");
        let nothing = toolgate().arg("detach").output()?;
        assert!(nothing.status.success(), "{signal}: detaching twice is no error");
    }
    Ok(())
}

#[test]
fn the_ready_port_answers_once_everything_is_attached() -> Result<()> {
    let scene = Scene::set()?;
    assert!(get(scene.agent.ready, "/")?.starts_with("HTTP/1.1 200"));
    assert!(get(scene.agent.metrics, "/metrics")?.contains("\ntoolgate_"));
    Ok(())
}

#[test]
fn a_captured_process_is_refused_at_the_agents_own_ports() -> Result<()> {
    let scene = Scene::set()?;
    let mut captured = scene.caller("reader")?;
    let mut outside = Caller::outside()?;
    let reached = |caller: &mut Caller, address| -> Result<bool> {
        let Ok(mut connection) = caller.http(address) else { return Ok(false) };
        connection.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        Ok(connection.rest().is_ok_and(|said| said.starts_with(b"HTTP/1.1 200")))
    };
    assert!(reached(&mut outside, scene.agent.metrics)?);
    assert!(!reached(&mut captured, scene.agent.metrics)?);
    assert!(outside.connect(scene.agent.outbound).is_err(), "without a record there is nobody at the port");
    assert!(
        captured.connect(scene.agent.outbound).is_err(),
        "nor for a captured process that asks for it by name"
    );
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let folder = tempfile::tempdir()?;
    let settings = Agent::other_settings(folder.path())?;
    let ended = Agent::refused(&settings, "")?;
    assert!(ended.said.contains("already"), "{}", ended.said);
    assert_eq!(ended.status.code(), Some(1));
    assert!(may(&mut connection, "echo")?);
    Ok(())
}

/// The same settings with the metrics elsewhere.
fn with_metrics_at(settings: &str, address: SocketAddr) -> Result<String> {
    let (before, rest) = settings.split_once("metrics: \"").context("no metrics")?;
    let (_old, after) = rest.split_once('"').context("no end")?;
    Ok(format!("{before}metrics: \"{address}\"{after}"))
}

const PORT_IN_USE: &str = "a port in use";

#[test]
fn what_is_wrong_is_said_before_anything_is_attached() -> Result<()> {
    let _turn = Host::turn()?;
    let folder = tempfile::tempdir()?;
    let good = Agent::other_settings(folder.path())?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?;
    let free = free_address()?;
    let cases: [(&str, String, &str, String); 6] = [
        (PORT_IN_USE, with_metrics_at(&good, taken)?, "", taken.port().to_string()),
        (
            "a missing cgroup",
            format!("{good}capture: {{ cgroups: [no.slice/such.service] }}\n"),
            "",
            "no.slice/such.service".to_owned(),
        ),
        ("an unknown key", format!("{good}captures: {{}}\n"), "", "toolgate.yaml:".to_owned()),
        ("an unknown kind", good.clone(), "apiVersion: toolgate/v1\nkind: Cake\n", "all.yaml:2:".to_owned()),
        (
            "a rule without callers",
            good.clone(),
            &resources(free).replace("[reader, writer]", "[]"),
            "all.yaml:".to_owned(),
        ),
        (
            "a rule for a server that nobody declares",
            good,
            &resources(free).replace("servers: [docs]", "servers: [dogs]"),
            "dogs".to_owned(),
        ),
    ];
    for (name, settings, resources, words) in cases {
        let ended = Agent::refused(&settings, resources).context(name)?;
        assert!(ended.said.contains(&words), "{name}: {}", ended.said);
        // What is in the way is no error of the configuration.
        let code = if name == PORT_IN_USE { 1 } else { 2 };
        assert_eq!(ended.status.code(), Some(code), "{name}: {}", ended.said);
        assert!(!fs::exists("/sys/fs/bpf/toolgate")?, "{name}: it left pins");
        assert!(!cgroup2()?.join("toolgate.exec").exists(), "{name}: it left a cgroup");
    }
    Ok(())
}

#[test]
fn without_any_configuration_what_exec_starts_is_denied() -> Result<()> {
    let server = Server::start()?;
    let agent = Agent::start(toolgate_tests::Setup::default())?;
    let reply = agent.caller("anybody")?.http(server.address)?.post(&call(1, "echo", &json!({})))?;
    assert!(!is_result(&reply)?);
    assert_eq!(server.requests_now().len(), 0);
    Ok(())
}

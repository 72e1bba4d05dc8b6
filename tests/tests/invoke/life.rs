//! The door beside the rest of an agent's life: other namespaces, exclusions, hand-over, death, a port that is taken.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result};
use toolgate_tests::{Agent, Caller, Connection, Host, Netns, Setup, free_address, wait};

use crate::rig::{Stage, ask, is_dapr_error};

const APP: &str = "dapr-app-id: docs\r\n";

fn may(connection: &mut Connection, door: SocketAddr) -> Result<bool> {
    is_result(&ask(connection, door, ("POST", "/mcp"), APP, &call(1, "echo", &json!({})))?)
}

fn is_told(door: SocketAddr) -> Result<()> {
    let mut outside = Connection::new(TcpStream::connect(door)?, door)?;
    is_dapr_error(&ask(&mut outside, door, ("GET", "/"), APP, b"")?, 403, "not captured")
}

#[test]
fn each_namespace_has_it_on_its_own_loopback() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let netns = Netns::new()?;
    let mut caller = Caller::start(netns.entered_by(&stage.scene.agent.exec("reader")))?;
    for ip in [stage.door.ip(), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let door = SocketAddr::new(ip, stage.door.port());
        // The first connect of a new namespace may be refused.
        let connected = wait::until("the namespace to be served", || Ok(caller.connect(door).ok()))?;
        assert_eq!(connected.peer, door, "it sees whom it asked for");
        ensure!(may(&mut Connection::new(connected.stream, door)?, door)?, "{door}");
    }
    let nobody = netns.within(|| Ok(TcpStream::connect(stage.door)));
    ensure!(nobody?.is_err(), "who is not captured finds nobody there");
    Ok(())
}

#[test]
fn where_it_is_excluded_nobody_is_captured() -> Result<()> {
    let door = free_address()?;
    let capture = format!("{{ exclude: [\"{door}\"] }}");
    let agent = Agent::start(Setup { capture: &capture, invoke: Some(door), ..Setup::default() })?;
    let mut connection = agent.caller("reader")?.http(door)?;
    is_dapr_error(&ask(&mut connection, door, ("POST", "/mcp"), APP, b"{}")?, 403, "not captured")
}

#[test]
fn it_is_handed_over() -> Result<()> {
    let mut stage = Stage::set(Setup::default())?;
    let door = stage.door;
    let (mut caller, mut before) = stage.caller("reader")?;
    ensure!(may(&mut before, door)?);
    stage.scene.agent.upgrade(&[])?;
    ensure!(may(&mut caller.http(door)?, door)?);
    is_told(door)?;
    stage.scene.agent.stop_successor()
}

#[test]
fn a_dead_agent_refuses_and_one_started_again_serves() -> Result<()> {
    let mut stage = Stage::set(Setup::default())?;
    let door = stage.door;
    let (mut caller, mut before) = stage.caller("reader")?;
    ensure!(may(&mut before, door)?);
    stage.scene.agent.kill()?;
    ensure!(caller.connect(door).is_err(), "a captured process is refused");
    ensure!(TcpStream::connect(door).is_err(), "and any other finds nobody");
    stage.scene.agent.start_again()?;
    ensure!(may(&mut caller.http(door)?, door)?);
    is_told(door)
}

#[test]
fn a_port_that_is_taken_is_said_before_anything_is_captured() -> Result<()> {
    let _host = Host::turn()?;
    let taken = TcpListener::bind(("127.0.0.1", 0))?;
    let (door, folder) = (taken.local_addr()?, tempfile::tempdir()?);
    let settings = Agent::other_settings(folder.path())?;
    let settings = settings.replace("listen: {", &format!("listen: {{ invoke: \"{door}\","));
    let ended = Agent::refused(&settings, "")?;
    let expected = format!("cannot listen at {door} (listen.invoke)");
    ensure!(ended.said.contains(&expected) && ended.said.contains("choose another port"), "{}", ended.said);
    Ok(())
}

#[test]
fn check_and_status_tell_of_it() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    for verb in ["check", "status"] {
        let output = stage.scene.agent.toolgate(verb).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("by App ID") && said.contains(&stage.door.to_string()), "{verb}: {said}");
    }
    let taken = format!(
        "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: own }}\nspec: {{ local: {{ address: \"{}\" }} }}\n",
        stage.door
    );
    stage.scene.agent.write_resources(&taken)?;
    let output = stage.scene.agent.toolgate("check").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("is where calls by App ID come (listen.invoke)"), "{said}");
    Ok(())
}

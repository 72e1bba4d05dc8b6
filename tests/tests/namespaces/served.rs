//! Which namespaces are served, from when on, and under whose name.

use std::io::Read as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::json;
use toolgate_tests::netns::in_cgroup;
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{Agent, Caller, Cgroup, Connection, Host, Netns, Peer, Process, Server, Setup};

use super::stage::{LOCALHOST, Stage, caller_in, comes_to_nothing, connect, http, may, workload};

#[test]
fn a_caller_in_another_namespace_reaches_declared_servers_by_policy() -> Result<()> {
    let stage = Stage::set("{}")?;
    let mut caller = stage.caller("reader")?;
    let connected = connect(&mut caller, stage.server.address)?;
    assert_eq!(connected.peer, stage.server.address, "the client sees the server that it asked for");
    let mut connection = Connection::new(connected.stream, stage.server.address)?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    let lines = stage.agent.audit(2)?;
    assert!(lines.iter().all(|line| text(line, "caller/app_id") == "reader"), "{lines:#?}");
    Ok(())
}

#[test]
fn equal_sources_in_two_namespaces_are_told_apart() -> Result<()> {
    let stage = Stage::set("{}")?;
    let other = Netns::new()?;
    let mut callers = Vec::new();
    for (netns, app_id) in [(&stage.netns, "reader"), (&other, "writer")] {
        // One port for each connection that is open.
        netns.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40003"])?;
        callers.push((caller_in(&stage.agent, netns, app_id)?, app_id));
    }
    let sum = call(1, "add", &json!({ "a": 1, "b": 2 }));
    for round in 0..20 {
        let mut open = Vec::new();
        for (caller, app_id) in &mut callers {
            open.push((http(caller, stage.server.address)?, *app_id));
        }
        for (connection, app_id) in &mut open {
            let permitted = is_result(&connection.post(&sum)?)?;
            assert_eq!(permitted, *app_id == "reader", "round {round}: {app_id}");
        }
    }
    Ok(())
}

#[test]
fn the_first_connection_passes_where_the_agent_finds_the_namespace_before() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("first.slice")?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let mut caller = Caller::start(netns.in_cgroup(&slice))?;
    // It is inside when it answers.
    let nobody = Peer::start()?.address;
    caller.connect(nobody).err().context("nobody listens there")?;
    let capture = format!("{{ cgroups: [\"{}\"] }}", slice.name()?);
    let all = format!("{}{}", resources(server.address), workload(&slice.name()?));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    let mut connection = caller.http(server.address).context("the first connect")?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    drop((caller, agent));
    Ok(())
}

#[test]
fn a_container_of_unshare_is_served_though_its_loopback_is_down() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("unshare.slice")?;
    let server = Server::start()?;
    let elsewhere = Server::at("127.0.0.77:0".parse()?)?;
    // A declared address that is not loopback, of a device that leads nowhere.
    let dummy = Netns::new()?;
    let [outside, _] = dummy.link()?;
    let declared = Server::at(SocketAddr::new(outside, 0))?;
    let capture = format!("{{ cgroups: [\"{}\"], destinations: all }}", slice.name()?);
    let all = format!("{}{}", resources(declared.address), workload(&slice.name()?));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    let mut unshare = in_cgroup(&slice);
    unshare.args(["unshare", "--net", "--pid", "--fork", "--mount", "--kill-child"]);
    let mut caller = Caller::start(unshare)?;
    let mut connection = http(&mut caller, declared.address)?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    for own in [server.address, elsewhere.address] {
        comes_to_nothing(&mut caller, own)?;
    }
    assert_eq!((server.connections(), elsewhere.connections()), (0, 0));
    drop((caller, agent));
    Ok(())
}

#[test]
fn a_namespace_of_a_thread_alone_is_served() -> Result<()> {
    let stage = Stage::set("{}")?;
    let script = format!(
        "
import ctypes, os, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def inside():
    assert libc.setns(os.open('/run/netns/{name}', os.O_RDONLY), 0x40000000) == 0
    while True:
        try:
            socket.create_connection(('{ip}', {port})).close()
            print('connected', flush=True)
            return
        except OSError as error:
            time.sleep(0.05)
thread = threading.Thread(target=inside)
thread.start()
thread.join()
",
        name = stage.netns.name,
        ip = stage.server.address.ip(),
        port = stage.server.address.port(),
    );
    let mut exec = stage.agent.exec("reader");
    exec.args(["python3", "-c", &script]);
    Process::start(&mut exec)?.line("connected").map(drop)
}

#[test]
fn the_canary_answers_and_is_no_message() -> Result<()> {
    let stage = Stage::set("{}")?;
    let canary = toolgate::netns::CANARY;
    let mut at_home = stage.agent.caller("reader")?;
    let mut inside = stage.caller("reader")?;
    for caller in [&mut at_home, &mut inside] {
        let mut said = String::new();
        connect(caller, canary)?.stream.read_to_string(&mut said)?;
        assert_eq!(said, "toolgate\n");
    }
    assert!(Caller::outside()?.connect(canary).is_err(), "who is not captured finds nobody there");
    assert!(may(&mut at_home.http(stage.server.address)?, "echo")?);
    assert_eq!(stage.agent.audit(1)?.len(), 1);
    Ok(())
}

#[test]
fn a_process_that_holds_the_agents_port_gets_nothing() -> Result<()> {
    let stage = Stage::set("{}")?;
    let squatter =
        stage.netns.within(|| Peer::at(SocketAddr::new(LOCALHOST, stage.agent.outbound.port())))?;
    let mut caller = stage.caller("reader")?;
    assert!(may(&mut http(&mut caller, stage.server.address)?, "echo")?);
    assert!(squatter.accept_now()?.is_none());
    Ok(())
}

//! What is dialled from where: no way that the caller did not have.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, resources, text};
use toolgate_tests::{Agent, Host, Netns, Peer, Process, Server, Setup, wait};

use super::stage::{Stage, caller_in, comes_to_nothing, connect, http, may};

#[test]
fn without_a_route_declared_servers_are_reached_and_nothing_else() -> Result<()> {
    let stage = Stage::set("{ unrecognised: pass }")?;
    let undeclared = Peer::at(SocketAddr::new(stage.server.address.ip(), 0))?;
    let far = Netns::new()?;
    let mut caller = caller_in(&stage.agent, &far, "reader")?;
    assert!(may(&mut http(&mut caller, stage.server.address)?, "echo")?);
    comes_to_nothing(&mut caller, undeclared.address)?;
    assert!(undeclared.accept_now()?.is_none(), "the agent opened a way that the caller did not have");
    // The same where there is a route.
    let mut near = stage.caller("reader")?;
    http(&mut near, undeclared.address)?.send(b"hello\n")?;
    let mut accepted = undeclared.accept()?;
    assert_eq!(accepted.exactly(6)?, b"hello\n");
    Ok(())
}

#[test]
fn what_is_not_declared_is_dialled_from_the_callers_namespace() -> Result<()> {
    let stage = Stage::set("{ unrecognised: pass }")?;
    let undeclared = Peer::at(SocketAddr::new(stage.server.address.ip(), 0))?;
    let mut caller = stage.caller("reader")?;
    let mut connection = http(&mut caller, undeclared.address)?;
    connection.send(b"hello\n")?;
    let accepted = undeclared.accept()?;
    assert_eq!(accepted.peer()?.ip(), stage.inside, "dialled from the agent's own namespace");
    Ok(())
}

#[test]
fn loopback_means_the_callers_own() -> Result<()> {
    let host = Host::turn()?;
    let server = Server::start()?;
    let setup = Setup {
        resources: &resources(server.address),
        capture: "{ unrecognised: pass }",
        ..Setup::default()
    };
    let agent = Agent::start_in(host, setup)?;
    let netns = Netns::new()?;
    let mut caller = caller_in(&agent, &netns, "reader")?;
    // Nobody is there yet.
    comes_to_nothing(&mut caller, server.address)?;
    let own = netns.within(|| Peer::at(server.address))?;
    http(&mut caller, server.address)?.send(b"hello\n")?;
    assert_eq!(own.accept()?.exactly(6)?, b"hello\n");
    // Also for MCP that the policy permits at home.
    let reply = http(&mut caller, server.address)?.post(&call(1, "echo", &json!({})))?;
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert!(server.requests_now().is_empty(), "the host's own server was reached by the name of another");
    assert_eq!(server.connections(), 0);
    assert!(may(&mut agent.caller("reader")?.http(server.address)?, "echo")?);
    Ok(())
}

#[test]
fn a_link_local_destination_is_refused_at_once_and_the_audit_says_why() -> Result<()> {
    let stage = Stage::set("{ destinations: all, unrecognised: pass }")?;
    // With a route, so that IPv6 is not refused as a whole.
    stage.netns.link6()?;
    let mut caller = stage.caller("reader")?;
    connect(&mut caller, stage.server.address)?;
    comes_to_nothing(&mut caller, "[fe80::7%2]:80".parse()?)?;
    let lines = stage.agent.audit(1)?;
    let told = lines.iter().any(|line| text(line, "detail").contains("link-local"));
    ensure!(told, "{lines:#?}");
    Ok(())
}

#[test]
fn without_ipv6_routes_a_client_of_both_families_goes_on_with_ipv4_at_once() -> Result<()> {
    let stage = Stage::set("{ unrecognised: pass }")?;
    let undeclared = Peer::at(SocketAddr::new(stage.server.address.ip(), 0))?;
    // As getaddrinfo orders a name of both families, and as clients try them. No time is measured: a connect that is
    // refused has an error, one that hangs has none.
    let script = format!(
        "
import errno, socket, sys
port = {port}
for line in sys.stdin:
    tries = [(socket.AF_INET6, '2001:db8::7'), (socket.AF_INET, '{ip}')]
    said = []
    for family, address in tries:
        one = socket.socket(family, socket.SOCK_STREAM)
        one.settimeout(5)
        try:
            one.connect((address, port))
            said.append('connected')
            break
        except TimeoutError:
            said.append('timeout')
        except OSError as error:
            said.append(errno.errorcode[error.errno])
    print('tried', *said, flush=True)
",
        ip = undeclared.address.ip(),
        port = undeclared.address.port(),
    );
    let mut exec = stage.agent.exec("reader");
    exec.args(["python3", "-c", &script]);
    let mut client = Process::start(&mut stage.netns.entered_by(&exec))?;
    let mut tried = || -> Result<String> {
        let before = client.lines();
        client.say("again")?;
        Ok(client.line_from(before, "tried")?.1)
    };
    let said = wait::until("the namespace to be served", || {
        let said = tried()?;
        Ok(said.ends_with("connected").then_some(said))
    })?;
    assert!(["tried ENETUNREACH connected", "tried EPERM connected"].contains(&said.as_str()), "{said}");
    // With a route the agent takes it, and the routes' change is noticed.
    stage.netns.run(&["ip", "address", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"])?;
    stage.netns.run(&["ip", "route", "add", "default", "via", "2001:db8:1::1", "dev", "eth0"])?;
    wait::until("the new route to be noticed", || Ok((tried()? == "tried connected").then_some(())))
}

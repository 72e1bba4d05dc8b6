//! The agent's port, reserved in each namespace that it serves.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Host, Netns, Server, Setup, toolgate};

use super::stage::{caller_in, connect, http, may};

/// A list of reserved ports, of the namespace that the thread is in.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

fn reserved() -> Result<String> {
    Ok(fs::read_to_string(RESERVED).context("cannot read it")?.trim().to_owned())
}

/// Puts the host's list back.
struct Reserved(String);

impl Reserved {
    fn with(list: &str) -> Result<Self> {
        let before = reserved()?;
        fs::write(RESERVED, list).context("cannot set it")?;
        Ok(Self(before))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _told_by_later_tests = fs::write(RESERVED, format!("{}\n", self.0));
    }
}

#[test]
fn the_agents_port_is_reserved_where_it_serves_beside_what_others_reserved() -> Result<()> {
    let host = Host::turn()?;
    let before = Reserved::with("7,9-11")?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    netns.run(&["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=8080"])?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let mut agent =
        Agent::start_in(host, Setup { resources: &resources(server.address), ..Setup::default() })?;
    let port = agent.outbound.port();
    let mut caller = caller_in(&agent, &netns, "reader")?;
    connect(&mut caller, server.address)?;
    let inside = || netns.within(reserved);
    assert_eq!((reserved()?, inside()?), (format!("7,9-11,{port}"), format!("8080,{port}")));
    // Nobody gets it who does not ask for it by name.
    netns.within(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{port} {}", port + 1))?;
        let one = std::net::TcpListener::bind("127.0.0.1:0")?;
        ensure!(one.local_addr()?.port() == port + 1, "it got the agent's port");
        ensure!(std::net::TcpListener::bind("127.0.0.1:0").is_err(), "there was another port");
        Ok(())
    })?;
    // Another's change is left as it is.
    netns.run(&["sysctl", "-qw", &format!("net.ipv4.ip_local_reserved_ports=8081,{port}")])?;
    agent.upgrade(&[])?;
    assert_eq!((reserved()?, inside()?), (format!("7,9-11,{port}"), format!("8081,{port}")));
    agent.stop_successor()?;
    assert_eq!((reserved()?, inside()?), ("7,9-11".to_owned(), "8081".to_owned()));
    agent.stop_after_signal()?;

    // So after a death; and the port of an operator's own list stays in it.
    agent.start_again()?;
    connect(&mut caller_in(&agent, &netns, "reader")?, server.address)?;
    assert_eq!(inside()?, format!("8081,{port}"));
    agent.kill()?;
    assert_eq!(reserved()?, format!("7,9-11,{port}"), "also while the agent is dead");
    let output = toolgate().arg("detach").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((reserved()?, inside()?), ("7,9-11".to_owned(), "8081".to_owned()));
    fs::write(RESERVED, port.to_string())?;
    agent.start_again()?;
    agent.stop()?;
    assert_eq!(reserved()?, port.to_string());
    drop((caller, before));
    Ok(())
}

#[test]
fn where_the_agents_port_cannot_be_reserved_it_says_so_once_and_goes_on() -> Result<()> {
    let host = Host::turn()?;
    let (one, other) = (Netns::new()?, Netns::new()?);
    let [outside, _] = one.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let read_only = "mount --bind -o ro /proc/sys /proc/sys && exec \"$0\" \"$@\"";
    let behind = ["unshare", "--mount", "sh", "-c", read_only];
    let setup = Setup { resources: &resources(server.address), behind: &behind, ..Setup::default() };
    let agent = Agent::start_in(host, setup)?;
    for netns in [&one, &other] {
        let mut caller = caller_in(&agent, netns, "reader")?;
        assert!(may(&mut http(&mut caller, server.address)?, "echo")?);
    }
    let said = agent.process().said();
    assert_eq!(said.matches("cannot reserve the agent's port").count(), 1, "{said}");
    Ok(())
}

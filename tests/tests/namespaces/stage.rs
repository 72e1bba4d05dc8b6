//! An agent, a namespace, and captured processes inside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, resources};
use toolgate_tests::{Agent, Caller, Connected, Connection, Host, Netns, Server, Setup, wait};

/// A name of `localhost`, which every namespace has.
pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An agent, and a server of the host's at the host's end of a namespace's link.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) server: Server,
    pub(crate) netns: Netns,
    pub(crate) inside: IpAddr,
}

impl Stage {
    pub(crate) fn set(capture: &str) -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [outside, inside] = netns.link()?;
        let server = Server::at(SocketAddr::new(outside, 0))?;
        let setup = Setup { resources: &resources(server.address), capture, ..Setup::default() };
        Ok(Self { agent: Agent::start_in(host, setup)?, server, netns, inside })
    }

    /// A captured process inside.
    pub(crate) fn caller(&self, app_id: &str) -> Result<Caller> {
        caller_in(&self.agent, &self.netns, app_id)
    }
}

pub(crate) fn caller_in(agent: &Agent, netns: &Netns, app_id: &str) -> Result<Caller> {
    Caller::start(netns.entered_by(&agent.exec(app_id)))
}

/// The first connect of a namespace that was new to the agent may be refused; one of the next is not.
pub(crate) fn connect(caller: &mut Caller, to: SocketAddr) -> Result<Connected> {
    wait::until(&format!("a connection to {to} to be captured"), || Ok(caller.connect(to).ok()))
}

pub(crate) fn http(caller: &mut Caller, to: SocketAddr) -> Result<Connection> {
    Connection::new(connect(caller, to)?.stream, to)
}

pub(crate) fn may(connection: &mut Connection, tool: &str) -> Result<bool> {
    is_result(&connection.post(&call(1, tool, &json!({})))?)
}

/// Whether what is sent comes to nothing: the connection ends without a word.
pub(crate) fn comes_to_nothing(caller: &mut Caller, to: SocketAddr) -> Result<()> {
    let mut connection = http(caller, to)?;
    // It may have ended before.
    let _too_late = connection.send(b"hello\n");
    let said = connection.rest().unwrap_or_default();
    ensure!(said.is_empty(), "{to} answered: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// What runs in `cgroup` is `reader`.
pub(crate) fn workload(cgroup: &str) -> String {
    format!(
        "---
apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: reader }}
spec:
  selectors: {{ cgroup: \"{cgroup}\" }}
"
    )
}

//! Two hosts of a test: one with a server and the authority, one with callers.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::Value;
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Caller, Connection, Host, Netns, Node, Server, Setup, free_address, toolgate};

/// A token by which a node of that name joins the agent's authority, for callers of these App IDs.
pub(crate) fn token(agent: &Agent, node: &str, app_ids: &str) -> Result<String> {
    let mut command = toolgate();
    command.args(["ca", "token", "--node", node, "--app-ids", app_ids, "--config"]).arg(agent.config());
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A host with a server and an authority, and another with callers, which has joined it.
pub(crate) struct Hosts<S = Server> {
    pub(crate) callers: Node,
    pub(crate) servers: Agent,
    pub(crate) server: S,
    pub(crate) address: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Hosts {
    pub(crate) fn set(policy_of_callers: &str, more: &str) -> Result<Self> {
        let start = |here| Server::at(SocketAddr::new(here, 0)).map(|server| (server.address, server));
        Self::with(start, policy_of_callers, more)
    }
}

impl<S> Hosts<S> {
    /// With a server of any kind, started at the address of its host.
    pub(crate) fn with(
        start: impl FnOnce(IpAddr) -> Result<(SocketAddr, S)>,
        policy_of_callers: &str,
        more: &str,
    ) -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [here, _] = netns.link()?;
        let (address, server) = start(here)?;
        let [peer, authority] = [free_address()?, free_address()?].map(|at| SocketAddr::new(here, at.port()));
        let of_servers = resources(address);
        let (peers, nodes) = (Some(peer), Some(authority));
        let setup = Setup { resources: &of_servers, peer: peers, authority: nodes, more, ..Setup::default() };
        let servers = Agent::start_in(host, setup)?;
        let of_callers = format!(
            "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: docs }}\n\
             spec: {{ peer: {{ address: \"{address}\", endpoints: [\"{peer}\"] }} }}\n{policy_of_callers}"
        );
        let token = token(&servers, "callers", "reader,writer")?;
        let invoke = Some(SocketAddr::from(([127, 0, 0, 1], 3500)));
        let setup = Setup { resources: &of_callers, token: &token, invoke, ..Setup::default() };
        let callers = Node::start(netns, setup)?;
        Ok(Self { callers, servers, server, address, peer })
    }

    /// A caller on the one host with a connection to the server on the other.
    pub(crate) fn caller(&self, app_id: &str) -> Result<(Caller, Connection)> {
        let mut caller = self.callers.caller(app_id)?;
        let stream = caller.connect(self.address)?.stream;
        Ok((caller, Connection::new(stream, self.address)?))
    }

    /// `toolgate ca WORDS` of the authority.
    pub(crate) fn ca(&self, words: &[&str]) -> Result<Value> {
        let mut command = toolgate();
        command.arg("ca").args(words).args(["--json", "--config"]).arg(self.servers.config());
        let output = command.output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// The first lines of messages, which the operator's own acts stand between.
pub(crate) fn decided(agent: &Agent, count: usize) -> Result<Vec<Value>> {
    let is_message = |line: &&Value| line.get("decision").is_some();
    let what = format!("{count} decided messages");
    let lines = agent.audit_until(&what, |lines| lines.iter().filter(is_message).count() >= count)?;
    Ok(lines.iter().filter(is_message).cloned().collect())
}

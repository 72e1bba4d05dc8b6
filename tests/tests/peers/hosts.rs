//! Two hosts of a test: one with a server and the authority, one with callers.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::Value;
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Caller, Connection, Host, Netns, Node, Server, Setup, free_address, toolgate};

/// Where agents meet on a host of their own.
const PEER: u16 = 15008;

/// A token by which a node of that name joins the agent's authority, for callers of these App IDs.
pub(crate) fn token(agent: &Agent, node: &str, app_ids: &str) -> Result<String> {
    let mut command = toolgate();
    command.args(["ca", "token", "--node", node, "--app-ids", app_ids, "--config"]).arg(agent.config());
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What a test wants of its hosts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wishes<'w> {
    /// More resources of the callers' agent.
    pub(crate) policy_of_callers: &'w str,
    /// More of `toolgate.yaml` of the authority's agent.
    pub(crate) lives: &'w str,
    /// The environment of the callers' agent.
    pub(crate) environment: &'w [(&'w str, &'w str)],
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
    pub(crate) fn set() -> Result<Self> {
        Self::of_lives("")
    }

    /// Whose certificates live as the authority is told.
    pub(crate) fn of_lives(lives: &str) -> Result<Self> {
        Self::wished(Wishes { lives, ..Wishes::default() })
    }

    pub(crate) fn wished(wishes: Wishes<'_>) -> Result<Self> {
        Self::with(|here| Server::at(SocketAddr::new(here, 0)).map(|server| (server.address, server)), wishes)
    }
}

/// What the agent of callers is told of the server at `address`, behind the agent at `peer`.
pub(crate) fn declared(address: SocketAddr, peer: SocketAddr) -> String {
    format!(
        "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: docs }}\n\
         spec: {{ peer: {{ address: \"{address}\", endpoints: [\"{peer}\"] }} }}\n"
    )
}

impl<S> Hosts<S> {
    /// With a server of any kind, started at the address of its host.
    pub(crate) fn with(
        start: impl FnOnce(IpAddr) -> Result<(SocketAddr, S)>,
        wishes: Wishes<'_>,
    ) -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [here, _] = netns.link()?;
        let (address, server) = start(here)?;
        let [peer, authority] = [free_address()?, free_address()?].map(|at| SocketAddr::new(here, at.port()));
        let of_servers = resources(address);
        let (peers, nodes, more) = (Some(peer), Some(authority), wishes.lives);
        let setup = Setup { resources: &of_servers, peer: peers, authority: nodes, more, ..Setup::default() };
        let servers = Agent::start_in(host, setup)?;
        let of_callers = declared(address, peer) + wishes.policy_of_callers;
        let (token, environment) = (token(&servers, "callers", "reader,writer")?, wishes.environment);
        let invoke = Some(SocketAddr::from(([127, 0, 0, 1], 3500)));
        let setup = Setup { resources: &of_callers, token: &token, environment, invoke, ..Setup::default() };
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
        ca(&self.servers, words)
    }
}

/// `toolgate ca WORDS` of an authority.
pub(crate) fn ca(authority: &Agent, words: &[&str]) -> Result<Value> {
    let mut command = toolgate();
    command.arg("ca").args(words).args(["--json", "--config"]).arg(authority.config());
    let output = command.output()?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A host with a server, one with callers, and an authority that both have joined on a third.
pub(crate) struct Apart {
    pub(crate) callers: Node,
    pub(crate) servers: Node,
    _server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) authority: Agent,
}

impl Apart {
    /// Whose certificates live as the authority is told.
    pub(crate) fn of_lives(lives: &str) -> Result<Self> {
        let host = Host::turn()?;
        let [of_callers, of_servers] = [Netns::new()?, Netns::new()?];
        let [here, _] = of_callers.link()?;
        let [gate, _] = of_servers.link()?;
        of_servers.run(&["ip", "route", "add", "default", "via", &gate.to_string()])?;
        let [_, there] = of_callers.link_to(&of_servers)?;
        let nodes = Some(SocketAddr::new(here, free_address()?.port()));
        let setup = Setup { authority: nodes, more: lives, ..Setup::default() };
        let authority = Agent::start_in(host, setup)?;
        let server = of_servers.within(|| Server::at(SocketAddr::new(there, 0)))?;
        let (address, peer) = (server.address, SocketAddr::new(there, PEER));
        let (of_node, token_of_node) = (resources(address), token(&authority, "servers", "docs")?);
        let setup =
            Setup { resources: &of_node, peer: Some(peer), token: &token_of_node, ..Setup::default() };
        let servers = Node::start(of_servers, setup)?;
        let (of_node, token_of_node) =
            (declared(address, peer), token(&authority, "callers", "reader,writer")?);
        let workload_api = true;
        let setup = Setup { resources: &of_node, token: &token_of_node, workload_api, ..Setup::default() };
        let callers = Node::start(of_callers, setup)?;
        Ok(Self { callers, servers, _server: server, address, authority })
    }
}

/// The first lines of messages, which the operator's own acts stand between.
pub(crate) fn decided(agent: &Agent, count: usize) -> Result<Vec<Value>> {
    let is_message = |line: &&Value| line.get("decision").is_some();
    let what = format!("{count} decided messages");
    let lines = agent.audit_until(&what, |lines| lines.iter().filter(is_message).count() >= count)?;
    Ok(lines.iter().filter(is_message).cloned().collect())
}

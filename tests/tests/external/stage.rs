//! A world outside: public addresses in a network namespace, a name server, and servers with TLS in front.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use toolgate_tests::scene::resources;
use toolgate_tests::{
    Agent, Authority, Caller, Connection, Dns, Front, Host, Netns, Server, Setup, netns, wait,
};

/// The name of the server outside.
pub(crate) const NAME: &str = "docs.example.com";
/// Public ones, as far as address rules go (RFC 5737).
pub(crate) const PUBLIC: [Ipv4Addr; 3] =
    [Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 8), Ipv4Addr::new(198, 51, 100, 9)];
/// Where the agent finds its name server.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 231, 0, 53);
/// Answers are old at once.
pub(crate) const IMPATIENT: &str = "{ name_ttl_min: 50ms, name_ttl_max: 50ms, resolve_time_max: 3s }";

/// Becomes what follows, with a `resolv.conf` ($0) and a `hosts` ($1) of its own.
const ENTER: &str =
    "mount --bind \"$0\" /etc/resolv.conf && mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";

/// What is outside. Dropped: it is gone.
pub(crate) struct Outside {
    pub(crate) netns: Netns,
    pub(crate) dns: Dns,
    pub(crate) authority: Authority,
    here: IpAddr,
    inside: IpAddr,
    files: TempDir,
    host: Option<Host>,
}

impl Outside {
    /// Public addresses, and a name server that knows no name yet.
    pub(crate) fn new() -> Result<Self> {
        let host = Some(Host::turn()?);
        let netns = Netns::new()?;
        let [here, inside] = netns.link()?;
        for address in PUBLIC.map(|ip| format!("{ip}/32")) {
            netns.run(&["ip", "address", "add", &address, "dev", "lo"])?;
            // What a test before left goes only when the kernel has taken its namespace down.
            netns::run(&["ip", "route", "replace", &address, "via", &inside.to_string()])?;
        }
        let files = tempfile::tempdir()?;
        fs::write(files.path().join("resolv.conf"), format!("nameserver {NAME_SERVER}\n"))?;
        fs::write(files.path().join("hosts"), "127.0.0.1 localhost\n")?;
        // That of the test before goes after its agent, whose turn it was.
        let dns = wait::until("the name server's address", || Ok(Dns::at(NAME_SERVER.into()).ok()))?;
        let authority = Authority::new()?;
        fs::write(files.path().join("ca.pem"), &authority.pem)?;
        Ok(Self { netns, dns, authority, here, inside, files, host })
    }

    /// The address by which this host is reached from outside.
    pub(crate) fn here(&self) -> IpAddr {
        self.here
    }

    /// The address of what is outside that is no public one.
    pub(crate) fn inside(&self) -> IpAddr {
        self.inside
    }

    /// A server at an address outside, in the clear.
    pub(crate) fn server(&self, ip: Ipv4Addr, port: u16) -> Result<Server> {
        self.netns.within(|| Server::at(SocketAddr::new(ip.into(), port)))
    }

    /// A server that only TLS leads to, at port 443 of a public address.
    pub(crate) fn behind_tls(&self, ip: Ipv4Addr) -> Result<(Server, Front)> {
        let server = self.netns.within(Server::start)?;
        let at = SocketAddr::new(ip.into(), 443);
        let front = self.netns.within(|| Front::at(at, server.address, &self.authority, NAME))?;
        Ok((server, front))
    }

    /// An agent whose Server `docs` is the external one that `external` says, and who asks this name server.
    pub(crate) fn agent(&mut self, external: &str, setup: Setup<'_>) -> Result<Agent> {
        let [resolv, hosts] = self.own_files();
        let behind = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, &resolv, &hosts];
        let resources = self.resources(external);
        let host = self.host.take().context("there is an agent already")?;
        Agent::start_in(host, Setup { resources: &resources, behind: &behind, ..setup })
    }

    /// Those of `scene`, for an external server.
    pub(crate) fn resources(&self, external: &str) -> String {
        let local = "  local: { address: \"127.0.0.1:1\" }\n  path: /mcp\n";
        let external = external.replace("CA", &self.authority_file().display().to_string());
        resources(([127, 0, 0, 1], 1).into()).replace(local, &format!("  external: {external}\n"))
    }

    /// The same as Dapr's HTTPEndpoint, and more Servers that the same callers may call.
    pub(crate) fn endpoint(&self, spec: &str, others: &[(&str, &str)]) -> String {
        let ours = "apiVersion: toolgate/v1\nkind: Server\nmetadata: { name: docs }\nspec:\n  external: {}\n";
        let daprs = "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: { name: docs }\n";
        let mut all = self.resources("{}").replace(ours, &format!("{daprs}spec: {spec}\n"));
        for (name, url) in others {
            all = all.replace("servers: [docs]", &format!("servers: [docs, {name}]"));
            all += &format!("---\napiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: {name} }}\n");
            all += &format!("spec: {{ external: {{ url: \"{url}\" }} }}\n");
        }
        all
    }

    /// The certificate of whom the servers outside are vouched for by.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.files.path().join("ca.pem")
    }

    fn own_files(&self) -> [String; 2] {
        ["resolv.conf", "hosts"].map(|name| self.files.path().join(name).display().to_string())
    }

    /// Writes the agent's `/etc/hosts` anew.
    pub(crate) fn write_hosts(&self, text: &str) -> Result<()> {
        fs::write(self.files.path().join("hosts"), text).context("cannot write hosts")
    }
}

/// `toolgate exec --app-id APP_ID --` with the agent's name server; the test adds the command.
pub(crate) fn exec(agent: &Agent, app_id: &str) -> Command {
    let mut inside = Command::new("nsenter");
    inside.args(["--target", &agent.process().id().to_string(), "--mount", "--"]);
    let exec = agent.exec(app_id);
    inside.arg(exec.get_program()).args(exec.get_args());
    inside
}

/// A connection of `reader` to an address, naming the server outside.
pub(crate) fn reader(agent: &Agent, ip: Ipv4Addr, port: u16) -> Result<(Caller, Connection)> {
    let mut caller = agent.caller("reader")?;
    let connection = caller.http(SocketAddr::new(IpAddr::V4(ip), port))?.naming(NAME);
    Ok((caller, connection))
}

//! The port of a server that is reached directly, past both agents.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result};
use toolgate_tests::{Netns, Witness};

use crate::hosts::{Hosts, Wishes};

/// From where it is tried.
#[derive(Clone, Copy)]
enum Place {
    /// The callers' host, where nothing is captured.
    Callers,
    /// The server's host.
    Servers,
    /// Another network of the server's host, such as a container's.
    Beside,
}

use Place::{Beside, Callers, Servers};

/// Each way, and the attacker's words for it: `{own}` is the server's address, `{other}` and `{six}` are others of its host,
/// `{source}` is the port from which its agent has dialled it.
const WAYS: [(&str, Place, &str); 13] = [
    ("its own address", Callers, "tcp to={own}"),
    ("another address of its host", Callers, "tcp to={other}"),
    ("IPv4-mapped", Callers, "tcp to=[::ffff:{ip}]:{port}"),
    ("IPv6", Callers, "tcp to={six}"),
    ("bound to the device", Callers, "tcp device=eth0 to={own}"),
    ("MPTCP", Callers, "tcp protocol=262 to={own}"),
    ("TCP fast open", Callers, "fast-open to={own}"),
    ("the source port of its agent", Callers, "tcp from=0.0.0.0:{source} to={own}"),
    ("on its host: its own address", Servers, "tcp to={own}"),
    ("on its host: loopback", Servers, "tcp to=127.0.0.1:{port}"),
    ("on its host: bound to a device", Servers, "tcp device=lo to=127.0.0.1:{port}"),
    ("another network of its host", Beside, "tcp to={own}"),
    ("another network of its host: IPv4-mapped", Beside, "tcp to=[::ffff:{ip}]:{port}"),
];

/// On its host the very address and port that its agent dials from may be in use.
const AS_THE_AGENT: (&str, Place, &str) =
    ("on its host: the agent's address and port", Servers, "tcp from={ip}:{source} to={own}");

struct Stage {
    hosts: Hosts<Witness>,
    beside: Netns,
    other: SocketAddr,
    six: SocketAddr,
    source: u16,
}

impl Stage {
    fn set() -> Result<Self> {
        let start = |here| {
            let server = Witness::start()?;
            Ok((SocketAddr::new(here, server.port), server))
        };
        let hosts = Hosts::with(start, Wishes::default())?;
        let beside = Netns::new()?;
        let [gate, _] = beside.link()?;
        for (netns, via) in [(&beside, gate), (&hosts.callers.netns, hosts.address.ip())] {
            netns.run(&["ip", "route", "add", "default", "via", &via.to_string()])?;
        }
        let [six, _] = hosts.callers.netns.link6()?;
        let port = hosts.address.port();
        let (_caller, mut connection) = hosts.caller("reader")?;
        ensure!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
        let source = hosts.server.arrivals().last().context("its agent has not dialled it")?.peer.port();
        let [other, six] = [gate, six].map(|ip| SocketAddr::new(ip, port));
        Ok(Self { hosts, beside, other, six, source })
    }

    /// What the attacker says.
    fn tries(&self, (_, from, how): (&str, Place, &str)) -> Result<String> {
        let own = self.hosts.address;
        let words = how
            .replace("{own}", &own.to_string())
            .replace("{other}", &self.other.to_string())
            .replace("{six}", &self.six.to_string())
            .replace("{ip}", &own.ip().to_string())
            .replace("{port}", &own.port().to_string())
            .replace("{source}", &self.source.to_string());
        let mut command = match from {
            Callers => self.hosts.callers.command(),
            Servers => Command::new("env"),
            Beside => self.beside.command(&[]),
        };
        command.arg(env!("CARGO_BIN_EXE_attacker")).args(words.split(' '));
        let output = command.args(["tool=direct".to_owned(), format!("host={own}")]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn all_are_refused(&self) -> Result<()> {
        for way in WAYS.into_iter().chain([AS_THE_AGENT]) {
            let said = self.tries(way)?;
            ensure!(said.contains("refused E"), "{}: {said}", way.0);
        }
        Ok(())
    }
}

#[test]
fn the_port_of_a_server_is_reached_in_no_way_but_through_both_agents() -> Result<()> {
    let mut stage = Stage::set()?;
    let before = stage.hosts.server.arrivals().len();
    stage.all_are_refused()?;
    stage.hosts.servers.kill()?;
    stage.all_are_refused().context("its agent is dead")?;
    ensure!(stage.hosts.server.arrivals().len() == before, "{:?}", stage.hosts.server.arrivals());
    // Each of them leads there where nothing guards the port.
    stage.hosts.servers.start_again()?;
    stage.hosts.servers.stop()?;
    for way in WAYS {
        let said = stage.tries(way)?;
        ensure!(said.contains(&stage.hosts.server.nonce), "{}: {said}", way.0);
    }
    Ok(())
}

//! An agent that is used from home and from another network namespace.

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::sys::inotify::{InitFlags, Inotify};
use toolgate::netns::CANARY;
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Caller, Host, Netns, Server, Setup, toolgate, wait};

use crate::may;

/// An agent whose one server is reached from home and from another namespace, and a caller in each.
pub(crate) struct Places {
    pub(crate) agent: Agent,
    pub(crate) server: Server,
    pub(crate) home: Caller,
    pub(crate) inside: Caller,
    _netns: Netns,
}

impl Places {
    pub(crate) fn set() -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [outside, _] = netns.link()?;
        let server = Server::at(SocketAddr::new(outside, 0))?;
        let setup = Setup { resources: &resources(server.address), ..Setup::default() };
        let agent = Agent::start_in(host, setup)?;
        let home = agent.caller("reader")?;
        let mut inside = Caller::start(netns.entered_by(&agent.exec("reader")))?;
        // Its first connects may be earlier than the agent.
        wait::until("the namespace to be served", || Ok(inside.connect(CANARY).ok()))?;
        Ok(Self { agent, server, home, inside, _netns: netns })
    }

    /// Whether both are served, by policy.
    pub(crate) fn are_served(&mut self) -> Result<()> {
        for caller in [&mut self.home, &mut self.inside] {
            ensure!(may(caller, self.server.address, "echo")?);
            ensure!(!may(caller, self.server.address, "delete_everything")?);
        }
        Ok(())
    }
}

/// What an agent says at the canary, and nobody else.
pub(crate) fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut said = String::new();
    stream.read_to_string(&mut said).context("no answer")?;
    ensure!(said == "toolgate\n", "`{said}`");
    Ok(())
}

/// All that are left.
pub(crate) fn inotify_instances() -> Vec<Inotify> {
    std::iter::from_fn(|| Inotify::init(InitFlags::IN_CLOEXEC).ok()).collect()
}

/// A program that is the agent, but for what `before` does first.
pub(crate) fn agent_after(places: &Places, before: &str) -> Result<String> {
    let path = places.agent.config().join("next");
    let program = toolgate().get_program().to_owned();
    fs::write(&path, format!("#!/bin/sh\n{before}\nexec {} \"$@\"\n", program.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

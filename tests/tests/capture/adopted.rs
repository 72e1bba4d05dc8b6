//! What a killed agent leaves, and the next one takes over.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use toolgate::capture::{Kernel, Loss, Removed, Settings};
use toolgate_tests::{Cgroup, Host, Process, wait};

use crate::bpf::{Pinned, objects, pinned_ids};
use crate::client::Client;
use crate::rig::{NOWHERE, count, pin_folder, pins, plain_server};

/// An agent in a process of its own, and the host's turn.
struct Scene {
    cgroup: Cgroup,
    port: String,
    _turn: Host,
}

impl Scene {
    fn start(name: &str) -> Result<(Self, Process)> {
        let turn = Host::turn()?;
        let mut scene = Self { cgroup: Cgroup::new(name)?, port: "0".to_owned(), _turn: turn };
        let process = Process::start(Command::new(env!("CARGO_BIN_EXE_capturer")).arg(scene.cgroup.path()))?;
        scene.port = process.line("capturing at ")?.replace("capturing at ", "");
        Ok((scene, process))
    }

    /// At the same port.
    fn again(&self) -> Result<Process> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_capturer"));
        let process = Process::start(command.arg(self.cgroup.path()).arg(&self.port))?;
        process.line("capturing at ")?;
        Ok(process)
    }

    fn attach(&self) -> Result<Kernel> {
        Ok(Kernel::attach(&Settings {
            port: self.port.parse()?,
            agent_loss: Loss::Closed,
            heartbeat_age_max: Duration::from_secs(3600),
        })?)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Err(error) = toolgate::capture::detach() {
            eprintln!("{error}");
        }
    }
}

fn kill(mut process: Process) -> Result<()> {
    process.signal(Signal::SIGKILL)?;
    process.end()?;
    Ok(())
}

/// What is pinned, without the number of the one link that cannot be given another program: that of a raw tracepoint is
/// replaced by a new one.
fn adoptable_ids() -> Result<BTreeMap<String, u32>> {
    let mut ids = pinned_ids()?;
    let replaced = ids.get_mut("links/cgroup_mkdir").context("cgroup_mkdir is not pinned")?;
    *replaced = 0;
    Ok(ids)
}

#[test]
fn a_killed_agent_refuses_and_a_new_one_takes_over() -> Result<()> {
    let (scene, killed) = Scene::start("killed")?;
    let (_server, address) = plain_server()?;
    let mut client = Client::inside(&scene.cgroup)?;
    let mut outside = Client::outside()?;
    assert_eq!(client.must(&format!("tcp {NOWHERE}"))?, "192.0.2.7:8000");
    killed.line("took 192.0.2.7:8000")?;
    let (ids, before) = (adoptable_ids()?, objects());
    kill(killed)?;
    client.must_fail(&format!("tcp {address}"), "ECONNREFUSED")?;
    assert_eq!(outside.must(&format!("tcp {address}"))?, address.replace(' ', ":"));

    // One after the other, with the same maps and links.
    for attempt in 1..=3 {
        let successor = scene.again()?;
        assert_eq!(client.must(&format!("tcp 192.0.2.8 {attempt}"))?, format!("192.0.2.8:{attempt}"));
        successor.line(&format!("took 192.0.2.8:{attempt}"))?;
        assert_eq!(adoptable_ids()?, ids, "attempt {attempt}");
        // What was replaced goes a moment later.
        wait::until("as many programs, maps and links as before", || Ok((objects() == before).then_some(())))
            .with_context(|| format!("{:?} instead of {before:?}", objects()))?;
        kill(successor)?;
        client.must_fail(&format!("tcp {address}"), "ECONNREFUSED")?;
    }

    // By the pins alone: ten programs at the cgroup2 root, one in this namespace, one at a tracepoint.
    assert_eq!(toolgate::capture::detach()?, Removed { links: 12, maps: 20 });
    assert_eq!(client.must(&format!("tcp {address}"))?, address.replace(' ', ":"));
    assert_eq!((pins()?.len(), toolgate::capture::detach()?), (0, Removed::default()));
    drop(client);
    Ok(())
}

/// Neither before the next agent comes nor while it starts.
#[test]
fn the_port_of_a_dead_agent_is_kept_for_the_next() -> Result<()> {
    let (scene, killed) = Scene::start("kept")?;
    let (port, mut outside) = (scene.port.clone(), Client::outside()?);
    kill(killed)?;
    let bind = format!("listen tcp 127.0.0.1 {port}");
    outside.must_be_refused(&bind, "EADDRINUSE")?;
    let kernel = scene.attach()?;
    outside.must_be_refused(&bind, "EADDRINUSE")?;
    let _own = std::net::TcpListener::bind(format!("127.0.0.1:{port}")).context("the agent may")?;
    // The dead one, whose number somebody may have now, is the agent no longer.
    let agents = Pinned::map("AGENTS")?;
    ensure!(agents.get(&std::process::id().to_ne_bytes(), &mut [0; 16]), "this process is the agent");
    assert_eq!(agents.len()?, 1);
    kernel.retire()?;
    ensure!(!agents.get(&std::process::id().to_ne_bytes(), &mut [0; 16]), "it has retired");
    Ok(())
}

#[test]
fn a_start_that_fails_leaves_what_it_found() -> Result<()> {
    let (scene, killed) = Scene::start("failed")?;
    let (_server, address) = plain_server()?;
    let mut client = Client::inside(&scene.cgroup)?;
    kill(killed)?;
    let ids = adoptable_ids()?;
    drop(scene.attach()?);
    assert_eq!(adoptable_ids()?, ids);
    client.must_fail(&format!("tcp {address}"), "ECONNREFUSED")?;
    // Captured goes on before there is a plan, and is refused until there are listeners.
    let kernel = scene.attach()?;
    client.must_fail(&format!("tcp {NOWHERE}"), "ECONNREFUSED")?;
    ensure!(count(&kernel, "connect/redirected")? > 0);
    drop(kernel);
    let successor = scene.again()?;
    client.must(&format!("tcp {NOWHERE}"))?;
    successor.line("took 192.0.2.7:8000")?;
    drop(successor);
    drop(client);
    Ok(())
}

/// A namespace that only the dead one served is seen again.
#[test]
fn namespaces_are_not_inherited() -> Result<()> {
    let (scene, killed) = Scene::start("inherited")?;
    Pinned::map("NAMESPACES")?.set(&u64::MAX.to_ne_bytes(), &[0; 8])?;
    kill(killed)?;
    let successor = scene.again()?;
    assert_eq!(Pinned::map("NAMESPACES")?.len()?, 1, "home");
    drop(successor);
    Ok(())
}

#[test]
fn programs_of_another_layout_go_once_the_new_ones_capture() -> Result<()> {
    let (scene, killed) = Scene::start("layout")?;
    let (_server, address) = plain_server()?;
    let mut client = Client::inside(&scene.cgroup)?;
    kill(killed)?;
    // As this version lays it out, and as the first one did.
    let folder = pin_folder()?;
    for other in ["v0-00000000", "v1/4711-815"] {
        let own = pins()?.into_iter().next().context("no pins")?;
        let old: BTreeMap<_, _> = pinned_ids()?;
        let moved = folder.join(other);
        fs::create_dir_all(moved.parent().context("no parent")?)?;
        fs::rename(&own, &moved)?;
        client.must_fail(&format!("tcp {address}"), "ECONNREFUSED")?;
        let successor = scene.again()?;
        client.must(&format!("tcp {NOWHERE}"))?;
        successor.line("took 192.0.2.7:8000")?;
        assert_eq!(pins()?, [own], "{other} is gone");
        let new = pinned_ids()?;
        ensure!(
            old.iter().all(|(name, id)| new.get(name).is_some_and(|new| new != id)),
            "{other} was reused"
        );
        kill(successor)?;
    }
    drop(client);
    Ok(())
}

//! What is left of a namespace that is gone: nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use toolgate_tests::netns::in_cgroup;
use toolgate_tests::scene::resources;
use toolgate_tests::{
    Agent, Caller, Cgroup, Held, Host, Netns, Process, Server, Setup, cgroup2, pinned, wait,
};

use super::stage::{Stage, caller_in, connect, http, may, workload};

/// What the agent holds, and its links in namespaces.
#[derive(Debug)]
struct Left(Held, usize);

impl Left {
    fn by(agent: &Agent) -> Result<Self> {
        let mut links = 0;
        for version in fs::read_dir("/sys/fs/bpf/toolgate")? {
            for link in fs::read_dir(version?.path().join("links"))? {
                links += usize::from(link?.file_name().to_string_lossy().starts_with("sk_lookup-"));
            }
        }
        Ok(Self(Held::by(agent)?, links))
    }

    fn is_within(&self, before: &Self) -> bool {
        self.0.is_within(before.0) && self.1 == before.1
    }
}

#[test]
fn nothing_is_left_of_namespaces_that_are_gone() -> Result<()> {
    let stage = Stage::set("{}")?;
    let before = Left::by(&stage.agent)?;
    for _ in 0..3 {
        let netns = Netns::new()?;
        netns.link()?;
        let mut caller = caller_in(&stage.agent, &netns, "reader")?;
        let mut connection = http(&mut caller, stage.server.address)?;
        assert!(may(&mut connection, "echo")?);
        let link = netns.unname()?;
        assert!(may(&mut connection, "echo")?, "it lives as long as the caller");
        drop((connection, caller));
        link.is_gone()?;
    }
    // The pool keeps connections to the server for some seconds.
    wait::until("the agent to hold no more than before", || {
        Ok(Left::by(&stage.agent)?.is_within(&before).then_some(()))
    })
    .with_context(|| format!("before {before:?}, now {:?}", Left::by(&stage.agent)))
}

#[test]
fn namespaces_that_vanish_while_they_are_found_leave_nothing() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("vanish.slice")?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let capture = format!("{{ cgroups: [\"{}\"] }}", slice.name()?);
    let all = format!("{}{}", resources(server.address), workload(&slice.name()?));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    let before = Left::by(&agent)?;
    // Each makes a namespace, connects from it, which tells the agent, and is gone.
    let connect = format!("exec 3<>/dev/tcp/{}/{}", server.address.ip(), server.address.port());
    for _ in 0..40 {
        let mut short = in_cgroup(&slice);
        short.args(["unshare", "--net", "bash", "-c", &connect]).stderr(std::process::Stdio::null());
        short.status().context("cannot run unshare")?;
    }
    let mut caller = Caller::start(netns.in_cgroup(&slice))?;
    assert!(may(&mut http(&mut caller, server.address)?, "echo")?, "the agent goes on");
    drop(caller);
    wait::until("the agent to hold no more than before", || {
        Ok(Left::by(&agent)?.is_within(&before).then_some(()))
    })
    .with_context(|| format!("before {before:?}, now {:?}", Left::by(&agent)))?;
    let said = agent.process().said();
    assert!(!said.contains("panicked") && !said.contains("is left in the kernel"), "{said}");
    drop(agent);
    Ok(())
}

#[test]
fn a_namespace_that_is_removed_while_connects_run_in_it_leaves_nothing() -> Result<()> {
    let stage = Stage::set("{}")?;
    let before = Left::by(&stage.agent)?;
    let left = || -> Result<[usize; 3]> {
        Ok([
            pinned::entries::<8, 8>("NAMESPACES")?,
            pinned::entries::<32, 96>("CONNECTIONS")?,
            pinned::entries::<48, 8>("ADMITTED")?,
        ])
    };
    let entries = left()?;
    let to = stage.server.address;
    // Several at once, one after the other, and each is cut wherever it is.
    let connects = format!(
        "echo begun; while :; do for n in 1 2 3 4; do (exec 3<>/dev/tcp/{}/{}) 2>/dev/null & done; wait; done",
        to.ip(),
        to.port()
    );
    let mut at_home = stage.agent.caller("writer")?;
    for _ in 0..6 {
        let netns = Netns::new()?;
        netns.link()?;
        let mut caller = caller_in(&stage.agent, &netns, "reader")?;
        connect(&mut caller, to)?;
        let slice = Cgroup::made_by_another(cgroup_of(caller.id())?);
        let mut many = netns.in_cgroup(&slice);
        let many = Process::start(many.args(["bash", "-c", &connects]))?;
        many.line("begun")?;
        let seen = stage.server.connections();
        connect(&mut caller, to)?;
        wait::until("connects of it", || Ok((stage.server.connections() >= seen).then_some(())))?;
        let link = netns.unname()?;
        // All of them at once, in the middle of what they do.
        fs::write(slice.path().join("cgroup.kill"), "1").context("cannot kill a cgroup")?;
        drop((many, caller));
        link.is_gone()?;
        assert!(may(&mut http(&mut at_home, to)?, "echo")?, "the agent hangs");
    }
    drop(at_home);
    wait::until("the agent to hold no more than before", || {
        Ok((Left::by(&stage.agent)?.is_within(&before) && left()? == entries).then_some(()))
    })
    .with_context(|| {
        format!("before {before:?} {entries:?}, now {:?} {:?}", Left::by(&stage.agent), left())
    })?;
    let said = stage.agent.process().said();
    ensure!(!said.contains("panicked") && !said.contains("is left in the kernel"), "{said}");
    Ok(())
}

/// The directory of the cgroup that a process is in.
fn cgroup_of(process: u32) -> Result<PathBuf> {
    let listed = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let own = listed.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
    Ok(cgroup2()?.join(own))
}

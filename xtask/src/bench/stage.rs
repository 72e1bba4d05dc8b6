//! What all contestants share: the upstream, the load generator, the captured cgroups, and the hosts where there are two.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Prepared;
use super::cgroups::{CGROUPS, Cgroups, cgroup2};
use super::contestant::{Agent, Contestant, Hop};
use super::hosts::Hosts;
use super::load::{Done, Load, Open, Order};
use super::{resources, usage};
use crate::leftovers::Leftovers;
use crate::ports::free_addresses;
use crate::process::Process;

/// Captured cgroups, each of another App ID.
pub(super) const CALLERS: usize = 50;
/// How long is asked before anything is measured.
const WARM_UP_MILLIS: u64 = 100;
/// The upstream's ports on a host of its own.
const UPSTREAM_PORTS: [u16; 2] = [8000, 8001];

/// What is asked, and over how many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// `text`, `structured` or `sse`.
    pub(super) kind: &'static str,
    pub(super) bytes: usize,
    pub(super) connections: usize,
    pub(super) callers: usize,
    /// Each request on a connection of its own.
    pub(super) anew: bool,
}

/// One contestant in one case in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) requests: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) per_second: f64,
    pub(super) cpu_us: f64,
    pub(super) load_mib: f64,
}

/// All that runs beside the contestants. Dropped: it ends.
pub(super) struct Stage<'p> {
    pub(super) prepared: &'p Prepared,
    pub(super) folder: PathBuf,
    /// Where the upstream serves everybody.
    pub(super) plain: SocketAddr,
    /// Where it serves the agent alone.
    pub(super) guarded: SocketAddr,
    /// Where the agent of this build takes calls by App ID.
    pub(super) invoke: SocketAddr,
    load: Load,
    upstream: Process,
    cgroups: Cgroups,
    /// `None`: all is on this host.
    pub(super) hosts: Option<Hosts>,
}

impl<'p> Stage<'p> {
    pub(super) fn set(prepared: &'p Prepared, folder: &Path) -> Result<Self> {
        let hosts = prepared.wanted.two_hops.then(Hosts::make).transpose()?;
        let [plain, guarded] = match &hosts {
            Some(hosts) => UPSTREAM_PORTS.map(|port| hosts.servers.port(port)),
            None => free_addresses()?,
        };
        let cgroups = match &hosts {
            Some(hosts) => Cgroups::make(hosts.callers.cgroup())?,
            None => Cgroups::make(&cgroup2()?)?,
        };
        let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
        command.args(["bench-upstream".to_owned(), plain.to_string(), guarded.to_string()]);
        if let Some(hosts) = &hosts {
            command = hosts.servers.networked(&command);
        }
        let mut upstream = Process::start("the upstream", &mut command)?;
        upstream.wait_for("serving")?;
        let load = Load::start(hosts.as_ref().map(|hosts| &hosts.callers))?;
        let ([invoke], folder) = (free_addresses()?, folder.to_owned());
        Ok(Self { prepared, folder, plain, guarded, invoke, load, upstream, cgroups, hosts })
    }

    /// Starts the agent, or another build of it, with these resources more than the case needs.
    pub(super) fn toolgate(
        &self,
        other: Option<&Path>,
        more: &str,
        leftovers: &mut Leftovers,
    ) -> Result<Contestant> {
        let [metrics, ready, outbound] = free_addresses()?;
        let port = outbound.port();
        // An earlier build may not know of it.
        let invoke = if other.is_some() { String::new() } else { format!(", invoke: \"{}\"", self.invoke) };
        let agent = Agent {
            binary: other.unwrap_or(&self.prepared.agent),
            // What one build has stored is not for another.
            folder: self.folder.join(if other.is_some() { "before" } else { "toolgate" }),
            host: None,
            listen: format!("outbound: {port}, metrics: \"{metrics}\", ready: \"{ready}\"{invoke}"),
            more: capture(),
            resources: resources::of_one(self.guarded) + more,
        };
        Contestant::toolgate(self.guarded, vec![Hop::agent(&agent, leftovers)?])
    }

    /// What opens the connections of a case to a contestant.
    pub(super) fn open<'o>(&'o self, to: &Contestant, case: Case) -> Open<'o> {
        let from = if to.captured { &self.cgroups.procs[..case.callers] } else { &[] };
        Open {
            address: to.address,
            app_id: to.app_id,
            kind: case.kind,
            bytes: case.bytes,
            connections: case.connections,
            from,
            home: &self.cgroups.home,
            warm_up_millis: WARM_UP_MILLIS,
        }
    }

    /// Measures one contestant in one case for so long.
    pub(super) fn sample(&mut self, to: &Contestant, case: Case, millis: u64) -> Result<Sample> {
        let open = Order::Open(self.open(to, case)).text()?;
        self.load.obey_text(&open).with_context(|| format!("{}, {case:?}", to.name))?;
        let before = usage::cpu_ns(&to.processes)?;
        let done: Done = self
            .load
            .obey(&Order::Run { millis, anew: case.anew })
            .with_context(|| format!("{}, {case:?}", to.name))?;
        let cpu_ns = usage::cpu_ns(&to.processes)?.saturating_sub(before);
        let load_mib = usage::resident_mib(&to.processes)?;
        self.load.obey(&Order::Close)?;
        to.tidy_up()?;
        Ok(Sample {
            requests: f64::from(done.requests),
            p50_us: done.p50_ns / 1e3,
            p99_us: done.p99_ns / 1e3,
            per_second: done.per_second,
            cpu_us: cpu_ns as f64 / 1e3 / f64::from(done.requests.max(1)),
            load_mib,
        })
    }

    /// Ends the load generator and the upstream, and takes the cgroups away.
    pub(super) fn strike(self) -> Result<()> {
        let Self { load, upstream, cgroups, hosts, .. } = self;
        drop(load);
        let _ends_by_the_signal = upstream.stop()?;
        cgroups.remove()?;
        drop(hosts);
        Ok(())
    }
}

/// What the callers' agent is configured to capture.
pub(super) fn capture() -> String {
    format!("capture: {{ cgroups: [\"{CGROUPS}/*\"] }}\n")
}

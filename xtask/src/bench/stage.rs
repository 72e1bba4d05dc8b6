//! What all contestants share: the upstream, the load generator, the captured cgroups.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Prepared;
use super::contestant::Contestant;
use super::load::{Done, Load, Open, Order};
use super::usage;
use crate::leftovers::Leftovers;
use crate::ports::free_addresses;
use crate::process::Process;

/// Captured cgroups, each of another App ID.
pub(super) const CALLERS: usize = 50;
/// Below the cgroup2 root; who is named in the agent's configuration.
const CGROUPS: &str = "toolgate-bench";
/// How long is asked before anything is measured.
const WARM_UP_MILLIS: u64 = 100;

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
    load: Load,
    upstream: Process,
    cgroups: Cgroups,
}

impl<'p> Stage<'p> {
    pub(super) fn set(prepared: &'p Prepared, folder: &Path) -> Result<Self> {
        let [plain, guarded] = free_addresses()?;
        let cgroups = Cgroups::make()?;
        let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
        command.args(["bench-upstream".to_owned(), plain.to_string(), guarded.to_string()]);
        let mut upstream = Process::start("the upstream", &mut command)?;
        upstream.wait_for("serving")?;
        let load = Load::start()?;
        Ok(Self { prepared, folder: folder.to_owned(), plain, guarded, load, upstream, cgroups })
    }

    /// Starts the agent, or another build of it, with these resources more than the case needs.
    pub(super) fn toolgate(
        &self,
        other: Option<&Path>,
        more: &str,
        leftovers: &mut Leftovers,
    ) -> Result<Contestant> {
        let resources = resources(self.guarded) + more;
        let pattern = format!("{CGROUPS}/*");
        let agent = other.unwrap_or(&self.prepared.agent);
        // What one build has stored is not for another.
        let folder = self.folder.join(if other.is_some() { "before" } else { "toolgate" });
        Contestant::toolgate(agent, &folder, &pattern, self.guarded, &resources, leftovers)
    }

    /// What opens the connections of a case to a contestant.
    pub(super) fn open<'o>(&'o self, to: &Contestant, case: Case) -> Open<'o> {
        let from = if to.captured { &self.cgroups.procs[..case.callers] } else { &[] };
        Open {
            address: to.address,
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
        let Self { load, upstream, cgroups, .. } = self;
        drop(load);
        let _ends_by_the_signal = upstream.stop()?;
        cgroups.remove()
    }
}

/// The server, who may do what there, and each caller by its cgroup.
fn resources(server: SocketAddr) -> String {
    let mut text = format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: upstream }}
spec:
  local: {{ address: \"{server}\" }}
  path: /mcp
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: bench }}
spec:
  rules:
  - name: echo
    effect: allow
    callers: [\"caller-*\"]
    servers: [upstream]
    tools: [echo]
    arguments: {{ message: {{ type: string, max_length: 1000000 }} }}
  - name: store
    effect: allow
    callers: [\"caller-*\"]
    servers: [upstream]
    tools: [store]
"
    );
    for caller in 0..CALLERS {
        text += &workload(&format!("caller-{caller}"), &format!("{CGROUPS}/c{caller}"));
    }
    text
}

/// A Workload by its cgroup.
pub(super) fn workload(name: &str, cgroup: &str) -> String {
    format!(
        "---
apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: {name} }}
spec: {{ selectors: {{ cgroup: {cgroup} }} }}
"
    )
}

/// The callers' cgroups. Dropped: they are removed, once they are empty.
struct Cgroups {
    folder: PathBuf,
    /// `cgroup.procs` of each.
    procs: Vec<PathBuf>,
    /// The same of the cgroup that the bench is in.
    home: PathBuf,
}

impl Cgroups {
    fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
        let root = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
            [_device, folder, "cgroup2", ..] => Some(PathBuf::from(folder)),
            _other => None,
        });
        let root = root.context("cgroup2 is not mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("cannot read `/proc/self/cgroup`")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("in no cgroup")?;
        let home = root.join(own).join("cgroup.procs");
        let folder = root.join(CGROUPS);
        let mut made = Self { folder: folder.clone(), procs: Vec::new(), home };
        made.remove_all()?; // of a bench that was killed
        for caller in 0..CALLERS {
            let cgroup = folder.join(format!("c{caller}"));
            fs::create_dir_all(&cgroup).with_context(|| format!("cannot make `{}`", cgroup.display()))?;
            made.procs.push(cgroup.join("cgroup.procs"));
        }
        Ok(made)
    }

    fn remove(self) -> Result<()> {
        self.remove_all()
    }

    fn remove_all(&self) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        for caller in 0..CALLERS {
            let cgroup = self.folder.join(format!("c{caller}"));
            if cgroup.exists() {
                fs::remove_dir(&cgroup).with_context(|| format!("cannot remove `{}`", cgroup.display()))?;
            }
        }
        fs::remove_dir(&self.folder).with_context(|| format!("cannot remove `{}`", self.folder.display()))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _reported_by_strike = self.remove_all();
    }
}

//! Who is measured: a way from the load generator to the upstream.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::hosts::Host;
use super::peers::Peer;
use super::usage;
use crate::leftovers::Leftovers;
use crate::process::{Process, not_interrupted};

/// Bytes of one file of resources.
const FILE_BYTES_MAX: usize = 512 * 1024;
/// Room for the crowd of `--growth`, which is of one cgroup.
const CROWD: &str = "streams_max: 10000, streams_per_cgroup_max: 10000, connections_per_cgroup_max: 16384, \
                     audit_entries_max: 65536, audit_entries_per_cgroup_max: 32768";
/// How long a peer may take until it accepts.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a peer must have started nothing more.
const SETTLED_AFTER: Duration = Duration::from_millis(300);

/// One of them, running.
pub(super) struct Contestant {
    pub(super) name: &'static str,
    /// Where the load connects to.
    pub(super) address: SocketAddr,
    /// Its connections come from captured cgroups.
    pub(super) captured: bool,
    /// What its connections ask for by App ID.
    pub(super) app_id: Option<&'static str>,
    /// Its processes; none is `direct`.
    pub(super) processes: Vec<u32>,
    pub(super) idle_mib: f64,
    /// After a minute of which nothing was asked; `None`: nobody waited for it.
    pub(super) rested_mib: Option<f64>,
    hops: Vec<Hop>,
}

/// A proxy that accepts, or an agent that is ready.
pub(super) struct Hop {
    process: Process,
    audit: Option<PathBuf>,
}

/// How an agent is started.
pub(super) struct Agent<'a> {
    pub(super) binary: &'a Path,
    /// For all its files.
    pub(super) folder: PathBuf,
    /// Where it is the host's only agent; `None`: on this host.
    pub(super) host: Option<&'a Host>,
    /// Where it listens, beside the admin socket: entries of a flow mapping.
    pub(super) listen: String,
    /// More of its configuration.
    pub(super) more: String,
    pub(super) resources: String,
}

impl Contestant {
    /// Straight to the upstream.
    pub(super) fn direct(upstream: SocketAddr) -> Self {
        let (processes, idle_mib, hops) = (Vec::new(), 0.0, Vec::new());
        let (captured, app_id) = (false, None);
        let rested_mib = None;
        Self { name: "direct", address: upstream, captured, app_id, processes, idle_mib, rested_mib, hops }
    }

    /// Starts the hops of a peer, the first of which the load connects to; the last comes first.
    pub(super) fn peer(hops: Vec<Peer<'_>>) -> Result<Self> {
        let first = hops.first().context("no hop")?;
        let (name, address) = (first.name, first.address);
        let mut running = Vec::new();
        for hop in hops.into_iter().rev() {
            running.push(Hop::proxy(hop)?);
        }
        Self::of(name, address, false, running)
    }

    /// Agents that are ready, in front of `server`.
    pub(super) fn toolgate(server: SocketAddr, agents: Vec<Hop>) -> Result<Self> {
        Self::of("toolgate", server, true, agents)
    }

    /// The same agent where it takes calls by App ID: what is connected to is the agent, and no server.
    pub(super) fn explicit(&self, invoke: SocketAddr, app_id: &'static str) -> Self {
        Self {
            name: "toolgate explicit",
            address: invoke,
            captured: true,
            app_id: Some(app_id),
            processes: self.processes.clone(),
            idle_mib: self.idle_mib,
            rested_mib: self.rested_mib,
            hops: Vec::new(),
        }
    }

    fn of(name: &'static str, address: SocketAddr, captured: bool, hops: Vec<Hop>) -> Result<Self> {
        let mut processes = Vec::new();
        for hop in &hops {
            processes.extend(settled(hop.process.id())?);
        }
        let idle_mib = usage::resident_mib(&processes)?;
        let (app_id, rested_mib) = (None, None);
        Ok(Self { name, address, captured, app_id, processes, idle_mib, rested_mib, hops })
    }

    /// Looks again what it uses, now that nothing was asked for a while.
    pub(super) fn rested(&mut self) -> Result<()> {
        self.rested_mib = Some(usage::resident_mib(&self.processes)?);
        Ok(())
    }

    /// Empties the audit files, which would grow to gigabytes.
    pub(super) fn tidy_up(&self) -> Result<()> {
        for audit in self.hops.iter().filter_map(|hop| hop.audit.as_ref()) {
            let file = fs::OpenOptions::new().write(true).open(audit).context("cannot open the audit")?;
            file.set_len(0).context("cannot empty the audit")?;
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn stop(self) -> Result<()> {
        self.hops.into_iter().try_for_each(|hop| hop.process.stop().map(|_status| ()))
    }
}

impl Hop {
    /// Starts a peer's, and waits until it accepts.
    fn proxy(peer: Peer<'_>) -> Result<Self> {
        let Peer { name, address, mut command, host } = peer;
        if let Some(host) = host {
            command = host.networked(&command);
        }
        let process = Process::start(name, &mut command)?;
        let until = Instant::now() + PATIENCE;
        let connect = || TcpStream::connect(address).is_ok();
        while !host.map_or_else(|| Ok(connect()), |host| host.within(connect))? {
            not_interrupted()?;
            if Instant::now() > until {
                bail!("{name} accepts nothing:\n{}", process.stop_and_tell()?);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { process, audit: None })
    }

    /// Starts an agent with policy, audit and metrics on, and waits until it is ready.
    pub(super) fn agent(plan: &Agent<'_>, leftovers: &mut Leftovers) -> Result<Self> {
        let Agent { binary, folder, host, listen, more, resources } = plan;
        fs::create_dir_all(folder.join("resources")).context("cannot make a folder")?;
        let audit = folder.join("audit.jsonl");
        let settings = format!(
            "listen: {{ admin: {}, {listen} }}\n\
             store: {{ embedded: {} }}\n\
             audit: {{ file: {} }}\n\
             limits: {{ {CROWD} }}\n\
             {more}",
            folder.join("admin.sock").display(),
            folder.join("store").display(),
            audit.display(),
        );
        fs::write(folder.join("toolgate.yaml"), settings).context("cannot write the configuration")?;
        write_resources(&folder.join("resources"), resources)?;
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(folder);
        if let Some(host) = host {
            command = host.entered(&command);
        }
        let mut process = Process::start("the agent", &mut command)?;
        process.wait_for("toolgate: ready")?;
        leftovers.note_held_by(process.id())?;
        Ok(Self { process, audit: Some(audit) })
    }
}

/// A process and all that it started, when it has started nothing more for a moment: it may listen before its workers are.
fn settled(root: u32) -> Result<Vec<u32>> {
    let mut processes = usage::tree(root)?;
    let mut since = Instant::now();
    while since.elapsed() < SETTLED_AFTER {
        std::thread::sleep(Duration::from_millis(10));
        let now = usage::tree(root)?;
        if now != processes {
            (processes, since) = (now, Instant::now());
        }
    }
    Ok(processes)
}

/// Writes documents into files as large as the agent takes them.
fn write_resources(folder: &Path, resources: &str) -> Result<()> {
    for entry in fs::read_dir(folder).context("cannot list the resources")? {
        fs::remove_file(entry.context("cannot list the resources")?.path()).context("cannot remove them")?;
    }
    let mut files = vec![String::new()];
    for document in resources.split("---\n") {
        if files.last().is_some_and(|file| file.len() + document.len() > FILE_BYTES_MAX) {
            files.push(String::new());
        }
        if let Some(file) = files.last_mut() {
            file.push_str("---\n");
            file.push_str(document);
        }
    }
    for (number, file) in files.iter().enumerate() {
        fs::write(folder.join(format!("{number}.yaml")), file).context("cannot write the resources")?;
    }
    Ok(())
}

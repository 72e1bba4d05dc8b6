//! Who is measured: a way from the load generator to the upstream.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::peers::Peer;
use super::usage;
use crate::leftovers::Leftovers;
use crate::ports::free_addresses;
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
    /// Its processes; none is `direct`.
    pub(super) processes: Vec<u32>,
    pub(super) idle_mib: f64,
    audit: Option<PathBuf>,
    process: Option<Process>,
}

impl Contestant {
    /// Straight to the upstream.
    pub(super) fn direct(upstream: SocketAddr) -> Self {
        Self {
            name: "direct",
            address: upstream,
            captured: false,
            processes: Vec::new(),
            idle_mib: 0.0,
            audit: None,
            process: None,
        }
    }

    /// Starts a peer, and waits until it accepts.
    pub(super) fn peer(mut peer: Peer) -> Result<Self> {
        let process = Process::start(peer.name, &mut peer.command)?;
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(peer.address).is_err() {
            not_interrupted()?;
            if Instant::now() > until {
                bail!("{} accepts nothing:\n{}", peer.name, process.stop_and_tell()?);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let processes = settled(process.id())?;
        let idle_mib = usage::resident_mib(&processes)?;
        Ok(Self {
            name: peer.name,
            address: peer.address,
            captured: false,
            processes,
            idle_mib,
            audit: None,
            process: Some(process),
        })
    }

    /// Starts the agent in front of `server`, with policy, audit and metrics on.
    pub(super) fn toolgate(
        agent: &Path,
        folder: &Path,
        cgroups: &str,
        server: SocketAddr,
        resources: &str,
        leftovers: &mut Leftovers,
    ) -> Result<Self> {
        let [metrics, ready, outbound] = free_addresses()?;
        fs::create_dir_all(folder.join("resources")).context("cannot make a folder")?;
        let audit = folder.join("audit.jsonl");
        let settings = format!(
            "listen: {{ outbound: {}, admin: {}, metrics: \"{metrics}\", ready: \"{ready}\" }}\n\
             store: {{ embedded: {} }}\n\
             audit: {{ file: {} }}\n\
             capture: {{ cgroups: [\"{cgroups}\"] }}\n\
             limits: {{ {CROWD} }}\n",
            outbound.port(),
            folder.join("admin.sock").display(),
            folder.join("store").display(),
            audit.display(),
        );
        fs::write(folder.join("toolgate.yaml"), settings).context("cannot write the configuration")?;
        write_resources(&folder.join("resources"), resources)?;
        let mut command = Command::new(agent);
        command.arg("run").arg("--config").arg(folder);
        let mut process = Process::start("the agent", &mut command)?;
        process.wait_for("toolgate: ready")?;
        leftovers.note_held_by(process.id())?;
        let processes = vec![process.id()];
        let idle_mib = usage::resident_mib(&processes)?;
        Ok(Self {
            name: "toolgate",
            address: server,
            captured: true,
            processes,
            idle_mib,
            audit: Some(audit),
            process: Some(process),
        })
    }

    /// Empties the audit file, which would grow to gigabytes.
    pub(super) fn tidy_up(&self) -> Result<()> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let file = fs::OpenOptions::new().write(true).open(audit).context("cannot open the audit")?;
        file.set_len(0).context("cannot empty the audit")
    }

    /// Ends it.
    pub(super) fn stop(self) -> Result<()> {
        self.process.map_or(Ok(()), |process| process.stop().map(|_status| ()))
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

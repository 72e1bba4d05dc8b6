//! Proof that the task left nothing behind: no pin, no cgroup, nothing in the kernel that the agent had loaded.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{run_quietly, say};

/// Where BPF objects are pinned.
const BPFFS: &str = "/sys/fs/bpf";
/// The cgroup that holds what `toolgate exec` starts, below the cgroup2 root.
const EXEC_CGROUP: &str = "toolgate.exec";
/// The kernel frees programs and maps a moment after their last holder is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was there before anything was started, and what the agent brought.
pub(crate) struct Leftovers {
    before: Vec<PathBuf>,
    /// BPF objects that the agent held open when it was ready: kind and id.
    held: BTreeSet<(Kind, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Program,
    Map,
    Link,
}

impl Leftovers {
    /// Looks at the pins and the cgroups.
    pub(crate) fn before() -> Result<Self> {
        Ok(Self { before: pins_and_cgroups()?, held: BTreeSet::new() })
    }

    /// Notes the BPF objects that a process holds open. Comparing all of the kernel's would blame Toolgate for what
    /// others, such as systemd, load meanwhile.
    pub(crate) fn note_held_by(&mut self, process: u32) -> Result<()> {
        let folder = format!("/proc/{process}/fdinfo");
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read `{folder}`"))? {
            let file = entry.with_context(|| format!("cannot list `{folder}`"))?.path();
            // A descriptor that was closed meanwhile is not held.
            let Ok(text) = fs::read_to_string(&file) else { continue };
            for line in text.lines() {
                let (kind, id) = match line.split_once(":\t") {
                    Some(("prog_id", id)) => (Kind::Program, id),
                    Some(("map_id", id)) => (Kind::Map, id),
                    Some(("link_id", id)) => (Kind::Link, id),
                    _other => continue,
                };
                self.held.insert((kind, id.trim().parse().with_context(|| format!("not an id: `{line}`"))?));
            }
        }
        Ok(())
    }

    /// An error that names what is still there. What can be removed is removed first.
    pub(crate) fn check(&self, agent: &Path) -> Result<()> {
        if !self.new_files()?.is_empty() {
            say("the agent left pins or cgroups: detaching");
            run_quietly(Command::new(agent).arg("detach"))?;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let files = self.new_files()?;
            let loaded = loaded()?;
            let kernel: Vec<_> =
                self.held.intersection(&loaded).map(|(kind, id)| format!("BPF {kind:?} {id}")).collect();
            if files.is_empty() && kernel.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                bail!("left behind: {}", [files, kernel].concat().join(", "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn new_files(&self) -> Result<Vec<PathBuf>> {
        Ok(pins_and_cgroups()?.into_iter().filter(|path| !self.before.contains(path)).collect())
    }
}

/// Programs, maps and links that the kernel holds.
fn loaded() -> Result<BTreeSet<(Kind, u32)>> {
    let mut objects = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        objects.insert((Kind::Program, program.context("cannot list the kernel's BPF programs")?.id()));
    }
    for map in aya::maps::loaded_maps() {
        objects.insert((Kind::Map, map.context("cannot list the kernel's BPF maps")?.id()));
    }
    for link in aya::programs::loaded_links() {
        objects.insert((Kind::Link, link.context("cannot list the kernel's BPF links")?.id()));
    }
    Ok(objects)
}

/// The agent's pins, and the cgroups of `toolgate exec`.
fn pins_and_cgroups() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
    let mut paths = Vec::new();
    for entry in fs::read_dir(BPFFS).into_iter().flatten() {
        let path = entry.with_context(|| format!("cannot list `{BPFFS}`"))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("toolgate")) {
            paths.push(path);
        }
    }
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    for mount in fields.filter_map(|fields| match fields.as_slice() {
        [_device, folder, "cgroup2", ..] => Some((*folder).to_owned()),
        _other => None,
    }) {
        let cgroup = Path::new(&mount).join(EXEC_CGROUP);
        if cgroup.exists() {
            paths.push(cgroup);
        }
    }
    Ok(paths)
}

//! Hosts that are no good for capture, booted so: each is told by name with the next step, and nothing is attached. In a
//! virtual machine alone; `preflight` has those that a mount namespace can show.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use toolgate_tests::host::in_guest;
use toolgate_tests::{Agent, Host, Setup, kernel, netns};

/// From here on classes of version 1 are kept apart from a socket's cgroup.
const CLASSES_APART: (u32, u32) = (5, 15);

/// Mounted as long as this lives.
struct Mounted(&'static str);

impl Mounted {
    fn new(kind: &str, options: &str, at: &'static str) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        netns::run(&["mount", "-t", kind, "-o", options, kind, at])?;
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _shown_by_the_next = Command::new("umount").arg(self.0).status();
    }
}

/// The agent does not start, says these words, and has loaded nothing.
fn is_refused(words: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ended = Agent::refused(&Agent::other_settings(folder.path())?, "")?;
    println!("{}", ended.said);
    ensure!(!ended.status.success(), "{}", ended.said);
    for word in words {
        ensure!(ended.said.contains(word), "no `{word}` in {}", ended.said);
    }
    let programs = aya::programs::loaded_programs().collect::<Result<Vec<_>, _>>()?;
    ensure!(programs.is_empty(), "{programs:?}");
    ensure!(!Path::new("/sys/fs/bpf/toolgate").exists(), "pins are left");
    Ok(())
}

#[test]
fn no_cgroups_at_all() -> Result<()> {
    in_guest()?;
    let _turn = Host::turn()?;
    is_refused(&["no cgroup2 file system is mounted", "mount -t cgroup2"])
}

#[test]
fn cgroups_of_version_1_alone() -> Result<()> {
    in_guest()?;
    let _turn = Host::turn()?;
    let _folder = Mounted::new("tmpfs", "mode=755", "/sys/fs/cgroup")?;
    let _cpu = Mounted::new("cgroup", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct")?;
    is_refused(&[
        "only version 1 of cgroups is mounted",
        "systemd.unified_cgroup_hierarchy=1",
        "mount -t cgroup2",
    ])
}

/// Beside version 2, as systemd's hybrid hierarchy has them. The last by its name: old kernels do not forget it.
#[test]
fn the_classes_of_version_1_beside_version_2() -> Result<()> {
    in_guest()?;
    let turn = Host::turn()?;
    let _folder = Mounted::new("tmpfs", "mode=755", "/sys/fs/cgroup")?;
    let _version_2 = Mounted::new("cgroup2", "rw", "/sys/fs/cgroup/unified")?;
    let _classes = Mounted::new("cgroup", "net_cls,net_prio", "/sys/fs/cgroup/net_cls,net_prio")?;
    if kernel()? < CLASSES_APART {
        return is_refused(&["`/sys/fs/cgroup/net_cls,net_prio`", "5.15", "cgroup_no_v1=net_cls,net_prio"]);
    }
    Agent::start_in(turn, Setup::default()).map(drop)
}

/// It mounts it by itself, as root may.
#[test]
fn no_bpf_file_system() -> Result<()> {
    in_guest()?;
    let turn = Host::turn()?;
    let _version_2 = Mounted::new("cgroup2", "rw", "/sys/fs/cgroup")?;
    let agent = Agent::start_in(turn, Setup::default())?;
    let said = agent.process().said();
    ensure!(said.contains("mounted the bpf file system at `/sys/fs/bpf`"), "{said}");
    Ok(())
}

/// The machine was started with `lockdown=confidentiality`.
#[test]
fn locked_down_for_confidentiality() -> Result<()> {
    in_guest()?;
    let _turn = Host::turn()?;
    let words = ["locked down for confidentiality", "lockdown=integrity"];
    is_refused(&words)?;
    // As long as nobody has mounted what says so.
    netns::run(&["umount", "/sys/kernel/security"])?;
    let told = is_refused(&words);
    Mounted::new("securityfs", "rw", "/sys/kernel/security").map(std::mem::forget)?;
    told
}

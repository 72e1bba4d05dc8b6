//! Two hosts for two hops, as far as proxies and agents see them, and a link between the two.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use super::cgroups::cgroup2;
use crate::workspace::run_quietly;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// The device at either end.
const DEVICE: &str = "eth0";
/// Becomes what follows on the host of a network namespace ($0), a cgroup ($1) that is the root of all cgroups there, and
/// mounts of its own ($2 is where cgroup2 is).
const ENTER: &str = "netns=$0 cgroup=$1 mount=$2; shift 2; echo $$ > \"$cgroup\"/cgroup.procs &&
exec nsenter --net=\"$netns\" unshare --mount --cgroup --propagation private sh -c '
umount \"$0\" && mount -t cgroup2 none \"$0\" && mount -t bpf none /sys/fs/bpf && mkdir -p /run/toolgate &&
mount -t tmpfs none /run/toolgate && exec \"$@\"' \"$mount\" \"$@\"";
/// A process that has ended leaves its cgroup a moment later.
const PATIENCE: Duration = Duration::from_secs(5);

/// Both, with a link between them.
pub(super) struct Hosts {
    pub(super) callers: Host,
    pub(super) servers: Host,
}

/// One of them. Dropped: it is gone, once nobody is there any more.
pub(super) struct Host {
    name: &'static str,
    address: IpAddr,
    cgroup: PathBuf,
    /// Where cgroup2 is mounted.
    mount: PathBuf,
}

impl Hosts {
    pub(super) fn make() -> Result<Self> {
        let callers = Host::make("toolgate-bench-callers", [10, 232, 0, 1])?;
        let servers = Host::make("toolgate-bench-servers", [10, 232, 0, 2])?;
        let (one, other) = (callers.name, servers.name);
        ip(&["-n", one, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", other])?;
        for host in [&callers, &servers] {
            let address = format!("{}/24", host.address);
            ip(&["-n", host.name, "address", "add", &address, "dev", DEVICE])?;
            for device in ["lo", DEVICE] {
                ip(&["-n", host.name, "link", "set", device, "up"])?;
            }
        }
        Ok(Self { callers, servers })
    }
}

impl Host {
    fn make(name: &'static str, address: [u8; 4]) -> Result<Self> {
        let mount = cgroup2()?;
        let host = Self { name, address: address.into(), cgroup: mount.join(name), mount };
        host.remove()?; // of a bench that was killed
        ip(&["netns", "add", name])?;
        let cgroup = &host.cgroup;
        fs::create_dir(cgroup).with_context(|| format!("cannot make `{}`", cgroup.display()))?;
        Ok(host)
    }

    /// A port there.
    pub(super) fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// The root of its cgroups.
    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The command in its network.
    pub(super) fn networked(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.netns().display()));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// The command there, with all that is the host's own.
    pub(super) fn entered(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", ENTER]).arg(self.netns()).args([&self.cgroup, &self.mount]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// Does `work` on a thread in its network.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let door = File::open(self.netns()).context("the network namespace is gone")?;
        // The thread ends inside: it needs no way back.
        let inside = || setns(door, CloneFlags::CLONE_NEWNET).context("cannot enter").map(|()| work());
        std::thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow!("it panicked inside"))?
    }

    fn netns(&self) -> PathBuf {
        Path::new(NAMES).join(self.name)
    }

    fn remove(&self) -> Result<()> {
        if self.netns().exists() {
            ip(&["netns", "del", self.name])?;
        }
        let until = Instant::now() + PATIENCE;
        while let Err(error) = remove_tree(&self.cgroup) {
            if Instant::now() > until {
                return Err(error).with_context(|| format!("cannot remove `{}`", self.cgroup.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _reported_by_the_leftovers = self.remove();
    }
}

/// A cgroup and those below it, which have no processes.
fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

fn ip(words: &[&str]) -> Result<()> {
    run_quietly(Command::new("ip").args(words)).map(drop)
}

//! A network namespace of a test's own.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

use crate::{Cgroup, wait};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// A namespace under a name, so that it lives without processes. `lo` is up.
#[derive(Debug)]
pub struct Netns {
    /// As `ip netns` has it.
    pub name: String,
    number: u32,
    /// The host's end of its link.
    device: String,
}

impl Netns {
    /// What a test left that was killed goes first: its links have the same addresses.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        remove_left()?;
        let new = Self::of(std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &new.name])?;
        new.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(new)
    }

    fn of(pid: u32, number: u32) -> Self {
        Self { name: format!("tg{pid}-{number}"), number, device: format!("tg{pid}v{number}") }
    }

    /// The device at the host's end of its link.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Links it to the host: 10.231.N.1 there, 10.231.N.2 here. No route leads further.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn link(&self) -> Result<[IpAddr; 2]> {
        let [host, inside] = [1, 2].map(|end| format!("10.231.{}.{end}", self.number));
        let device = self.device();
        run(&["ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", &self.name])?;
        run(&["ip", "address", "add", &format!("{host}/24"), "dev", device])?;
        run(&["ip", "link", "set", device, "up"])?;
        self.run(&["ip", "address", "add", &format!("{inside}/24"), "dev", "eth0"])?;
        self.run(&["ip", "link", "set", "eth0", "up"])?;
        Ok([host.parse()?, inside.parse()?])
    }

    /// Links it to another one: 10.232.N.1 here, 10.232.N.2 there.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn link_to(&self, other: &Self) -> Result<[IpAddr; 2]> {
        const DEVICE: &str = "eth1";
        let [here, there] = [1, 2].map(|end| format!("10.232.{}.{end}", self.number));
        let far = ["peer", "name", DEVICE, "netns", &other.name];
        self.run(&[&["ip", "link", "add", DEVICE, "type", "veth"], &far[..]].concat())?;
        for (end, address) in [(self, &here), (other, &there)] {
            end.run(&["ip", "address", "add", &format!("{address}/24"), "dev", DEVICE])?;
            end.run(&["ip", "link", "set", DEVICE, "up"])?;
        }
        Ok([here.parse()?, there.parse()?])
    }

    /// Gives both ends of its link IPv6 addresses too (RFC 3849): 2001:db8:N::1 there, 2001:db8:N::2 here.
    ///
    /// # Errors
    /// It has no link.
    pub fn link6(&self) -> Result<[IpAddr; 2]> {
        let [host, inside] = [1, 2].map(|end| format!("2001:db8:{:x}::{end}", self.number));
        run(&["ip", "address", "add", &format!("{host}/64"), "dev", self.device(), "nodad"])?;
        self.run(&["ip", "address", "add", &format!("{inside}/64"), "dev", "eth0", "nodad"])?;
        Ok([host.parse()?, inside.parse()?])
    }

    /// A command inside.
    #[must_use]
    pub fn command(&self, command: &[&str]) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.path().display())).args(command);
        inside
    }

    /// Runs a command inside, and waits for it.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        finish(self.command(command))
    }

    /// A command that becomes `command` inside.
    #[must_use]
    pub fn entered_by(&self, command: &Command) -> Command {
        let mut inside = self.command(&[]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// A command that enters `cgroup`, then the namespace, before it becomes what is appended.
    #[must_use]
    pub fn in_cgroup(&self, cgroup: &Cgroup) -> Command {
        let mut inside = in_cgroup(cgroup);
        inside.arg("nsenter").arg(format!("--net={}", self.path().display()));
        inside
    }

    /// Does `work` on a thread inside.
    ///
    /// # Errors
    /// It cannot be entered; `work` fails.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let door = File::open(self.path()).context("the namespace is gone")?;
        // The thread ends inside: it needs no way back.
        let inside = || setns(door, CloneFlags::CLONE_NEWNET).context("cannot enter").and_then(|()| work());
        std::thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow!("it panicked inside"))?
    }

    /// Gives its name up: it lives as long as somebody is in it, or holds it. Returns the host's end of its link, which goes with it.
    ///
    /// # Errors
    /// It has no name any more.
    pub fn unname(self) -> Result<Link> {
        let device = self.device.clone();
        // Not dropped: the link would go before the namespace.
        std::mem::ManuallyDrop::new(self).delete_name()?;
        Ok(Link(device))
    }

    /// Its file, for setns(2).
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    fn delete_name(&self) -> Result<String> {
        run(&["ip", "netns", "del", &self.name])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The kernel ends a namespace some time after its last name: the next test has the same addresses.
        let _has_none = run(&["ip", "link", "del", self.device()]);
        let _gone_already = self.delete_name();
    }
}

/// Removes the namespaces of tests that were killed, and their links.
fn remove_left() -> Result<()> {
    for entry in fs::read_dir(NAMES).into_iter().flatten() {
        let name = entry.context("cannot read the names")?.file_name();
        let Some((pid, number)) = name.to_str().and_then(of_test) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        drop(Netns::of(pid, number));
    }
    Ok(())
}

/// The process that made a namespace of this name, and its number there.
fn of_test(name: &str) -> Option<(u32, u32)> {
    let (pid, number) = name.strip_prefix("tg")?.split_once('-')?;
    Some((pid.parse().ok()?, number.parse().ok()?))
}

/// The host's end of a namespace's link.
#[derive(Debug)]
pub struct Link(String);

impl Link {
    /// Waits until the namespace at its other end is no more.
    ///
    /// # Errors
    /// Somebody holds it.
    pub fn is_gone(&self) -> Result<()> {
        let device = PathBuf::from(format!("/sys/class/net/{}", self.0));
        wait::until("the end of a namespace", || Ok((!device.exists()).then_some(())))
    }
}

/// A command that enters `cgroup` before it becomes what is appended.
#[must_use]
pub fn in_cgroup(cgroup: &Cgroup) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(cgroup.path());
    shell
}

/// Runs a command of the host's.
///
/// # Errors
/// It fails; with what it said.
pub fn run(command: &[&str]) -> Result<String> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command)
}

fn finish(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! The part of `cargo xtask vm` that runs inside: this program is the virtual machine's first process.
//!
//! Out of the initial archive it loads modules, mounts the disk and becomes its own twin there. That one mounts what a
//! host has, runs the steps one after the other, and writes a report for each to the second serial port. The first one
//! is the console. A machine that ends without its last report has failed, whatever else it said.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, chroot};
use serde::{Deserialize, Serialize};

use super::report::{Outcome, Report};
use crate::workspace::run;

/// Files of the initial archive.
pub(super) const INIT: &str = "/xtask";
pub(super) const GOAL: &str = "/goal.json";
pub(super) const MODULES: &str = "/modules";
/// Where the disk is mounted before it is everything.
pub(super) const DISK: &str = "/disk";
/// The disk itself, once its driver is there.
const DEVICE: &str = "/dev/vda";
const REPORTS: &str = "/dev/ttyS1";
/// What any host has: loopback, and a way out, though nobody answers there.
const NETWORK: [&str; 5] = [
    "link set lo up",
    "link add eth0 type dummy",
    "addr add 198.51.100.2/24 dev eth0",
    "link set eth0 up",
    "route add default via 198.51.100.1",
];
/// Open files of a process.
const DESCRIPTORS_MAX: u64 = 65_536;
/// How long the disk may take to appear, in the guest's time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What becomes of the machine once it has its disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Goal {
    /// This program runs the plan.
    Run(Plan),
    /// The system on the disk is started.
    Start { init: PathBuf },
}

/// What is mounted before the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mounts {
    /// All that a host has.
    All,
    /// Neither cgroups nor a bpf file system.
    Bare,
}

/// What is to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) mounts: Mounts,
    /// This program on the disk.
    pub(super) xtask: PathBuf,
    pub(super) path: String,
    /// Where tests are started, as cargo would.
    pub(super) folder: PathBuf,
    pub(super) steps: Vec<Step>,
}

/// One program to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
}

/// How a step's output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A test executable.
    Tests,
    /// The test that says how often each program ran.
    Programs,
    /// The demo.
    Demo,
}

/// The first process. Never returns: a first process that ends is a panic of the kernel.
pub(crate) fn first() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is for the inside of a virtual machine: run `cargo xtask vm`");
    }
    let Err(error) = enter();
    eprintln!("error: {error:#}");
    end()
}

/// Loads modules, mounts the disk and goes there.
fn enter() -> Result<std::convert::Infallible> {
    mount_one("devtmpfs", "/dev", "devtmpfs")?;
    let mut names: Vec<_> =
        fs::read_dir(MODULES).context("no modules")?.flatten().map(|e| e.path()).collect();
    names.sort();
    for module in names {
        let file = File::open(&module).with_context(|| format!("cannot open `{}`", module.display()))?;
        if let Err(error) = nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty()) {
            // Some are for hardware that is not here; the tests tell what is really missing.
            println!("module `{}`: {error}", module.display());
        }
    }
    let goal = fs::read(GOAL).context("no goal")?;
    let goal: Goal = serde_json::from_slice(&goal).context("not a goal")?;
    let until = Instant::now() + PATIENCE;
    while !Path::new(DEVICE).exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    mount(Some(DEVICE), DISK, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)
        .with_context(|| format!("cannot mount `{DEVICE}`"))?;
    mount(Some("/dev"), &*format!("{DISK}/dev"), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move /dev")?;
    chdir(DISK).context("cannot enter the disk")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("cannot move the disk")?;
    chroot(".").context("cannot enter the disk")?;
    chdir("/").context("cannot enter the disk")?;
    let (program, mut command) = match goal {
        Goal::Start { init } => (init.clone(), Command::new(init)),
        Goal::Run(plan) => {
            let mut twin = Command::new(&plan.xtask);
            twin.arg("vm-guest-host")
                .arg(serde_json::to_string(&plan).context("a plan that cannot be written")?);
            twin.env("PATH", &plan.path);
            (plan.xtask, twin)
        }
    };
    Err(command.exec()).with_context(|| format!("cannot start `{}`", program.display()))
}

/// The first process on the disk: mounts the rest, starts what runs the steps, and takes away what lost its parent.
pub(crate) fn host(plan: &str) -> Result<()> {
    if let Err(error) = mount_all(plan).and_then(|()| run_and_reap(plan)) {
        eprintln!("error: {error:#}");
    }
    end()
}

fn mount_all(plan: &str) -> Result<()> {
    let plan: Plan = serde_json::from_str(plan).context("not a plan")?;
    mount_one("proc", "/proc", "proc")?;
    mount_one("sysfs", "/sys", "sysfs")?;
    mount_one("securityfs", "/sys/kernel/security", "securityfs")?;
    if plan.mounts == Mounts::All {
        mount_one("cgroup2", "/sys/fs/cgroup", "cgroup2")?;
        mount_one("bpf", "/sys/fs/bpf", "bpf")?;
    }
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    // A checkout below one of them lies on the disk, and would be hidden.
    for folder in ["/tmp", "/run"].into_iter().filter(|folder| !this.starts_with(folder)) {
        mount_one("tmpfs", folder, "tmpfs")?;
    }
    fs::create_dir_all("/dev/pts")
        .and_then(|()| fs::create_dir_all("/dev/shm"))
        .context("cannot create a folder")?;
    mount_one("devpts", "/dev/pts", "devpts")?;
    mount_one("tmpfs", "/dev/shm", "tmpfs")?;
    std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd").context("cannot link /dev/fd")?;
    // As a service manager has it, rather than the kernel's 4096.
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX).context("cannot raise a limit")?;
    for words in NETWORK {
        run(Command::new("ip").args(words.split(' ')))?;
    }
    Ok(())
}

fn run_and_reap(plan: &str) -> Result<()> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    wait_as_first(Command::new(this).arg("vm-guest-steps").arg(plan)).map(|_code| ())
}

/// Runs a command as the first process of a system does: whatever loses its parent meanwhile is waited for, too. Returns
/// the command's exit code; 1 where a signal ended it.
pub(crate) fn wait_as_first(command: &mut Command) -> Result<i32> {
    let started = command.spawn().context("cannot start a command")?;
    let started = Pid::from_raw(i32::try_from(started.id()).context("a process id above 2^31")?);
    loop {
        let ended = waitpid(None, Some(WaitPidFlag::empty())).context("cannot wait")?;
        if ended.pid() == Some(started) {
            return Ok(if let WaitStatus::Exited(_, code) = ended { code } else { 1 });
        }
    }
}

/// Turns the machine off, with what was written on its way.
fn end() -> Result<()> {
    // SAFETY: sync(2) takes nothing and cannot fail.
    unsafe { libc::sync() };
    // The machine was started so that a reboot is its end.
    reboot(RebootMode::RB_AUTOBOOT).context("cannot end the machine")?;
    Ok(())
}

/// Runs the steps and reports each.
pub(crate) fn steps(plan: &str) -> Result<()> {
    let plan: Plan = serde_json::from_str(plan).context("not a plan")?;
    let mut reports = OpenOptions::new().write(true).open(REPORTS).context("no second serial port")?;
    let mut report = |report: &Report| -> Result<()> {
        let line = serde_json::to_string(report).context("a report that cannot be written")?;
        writeln!(reports, "{line}").context("cannot write a report")
    };
    report(&Report::Booted)?;
    for step in &plan.steps {
        println!("==> {}", step.name);
        let outcome = perform(step, &plan)
            .unwrap_or_else(|error| Outcome { passed: Vec::new(), failed: vec![format!("{error:#}")] });
        report(&Report::Step { name: step.name.clone(), outcome })?;
    }
    report(&Report::End)
}

fn perform(step: &Step, plan: &Plan) -> Result<Outcome> {
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).current_dir(&plan.folder).env("PATH", &plan.path).env("HOME", "/root");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start `{}`", step.program.display()))?;
    let lines = lines(&mut child)?;
    let status = child.wait().context("cannot wait")?;
    let mut outcome = match step.kind {
        Kind::Tests => Outcome::of_tests(&lines),
        Kind::Programs => Outcome::of_programs(&lines),
        Kind::Demo => Outcome::of_demo(&lines),
    };
    if !status.success() && outcome.failed.is_empty() {
        outcome.failed.push(format!("`{}` ended with {status}", step.name));
    }
    Ok(outcome)
}

/// What it says, shown on the console as it comes.
fn lines(child: &mut Child) -> Result<Vec<String>> {
    let stdout = child.stdout.take().context("no output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the output")?;
        println!("{line}");
        lines.push(line);
    }
    Ok(lines)
}

fn mount_one(source: &str, at: &str, kind: &str) -> Result<()> {
    mount(Some(source), at, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} at `{at}`"))
}

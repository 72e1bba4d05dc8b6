//! QEMU: found or installed, with the processor's help where it really works, and watched until it ends.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::apt;
use super::kernel::Kernel;
use crate::workspace::{find_program, say};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// What a kernel is told that starts with our initial archive.
pub(crate) const CMDLINE: &str = "console=ttyS0 rdinit=/xtask loglevel=5 panic=-1 mitigations=off random.trust_cpu=on \
    net.ifnames=0 -- vm-guest";
/// What else it is told, before that.
pub(super) const LOCKED_DOWN: &str = "lockdown=confidentiality ";
/// Without a sign of life on its ports for this long a machine hangs.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// How long a kernel may take to find out that it has no file system, with the processor's help.
const PROBE_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Lines of the console in an error.
const LAST_LINES: usize = 40;

/// How the guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    /// Translated, one instruction a nanosecond of the guest's time: so its clock does not run away from a slow or busy
    /// machine, and nothing inside is late that would not be late on a real one.
    Translation,
}

/// What a machine is made of.
pub(super) struct Machine<'m> {
    pub(super) kernel: &'m Kernel,
    pub(super) initrd: &'m Path,
    pub(super) disk: &'m Path,
    /// Where the console goes.
    pub(super) console: &'m Path,
    /// Where the guest's reports go.
    pub(super) reports: &'m Path,
    pub(super) accelerator: Accelerator,
    /// What the kernel is told beside [`CMDLINE`], with a space behind it.
    pub(super) told: &'m str,
}

/// The program's file. Installs it where this is root or there is sudo.
pub(super) fn find(vm: &Path) -> Result<PathBuf> {
    apt::install(vm, &[(PROGRAM, PACKAGE)])?;
    find_program(PROGRAM).with_context(|| format!("the package `{PACKAGE}` has brought no `{PROGRAM}`"))
}

/// KVM where a kernel really runs with it: the device alone proves nothing within another virtual machine.
pub(super) fn accelerator(qemu: &Path, kernel: &Kernel, vm: &Path) -> Result<Accelerator> {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Translation);
    }
    let console = vm.join("probe.log");
    let mut command = base(qemu, kernel, Accelerator::Kvm);
    command.args(["-append", "console=ttyS0 panic=-1", "-serial"]).arg(format!("file:{}", console.display()));
    command.stderr(Stdio::null());
    let mut running = Running::start(&mut command)?;
    let until = Instant::now() + PROBE_MAX;
    while running.ended()?.is_none() && Instant::now() < until {
        std::thread::sleep(POLL);
    }
    // It has no file system: to get so far is all that it can.
    let said = fs::read(&console).unwrap_or_default();
    if String::from_utf8_lossy(&said).contains("Unable to mount root fs") {
        return Ok(Accelerator::Kvm);
    }
    say("/dev/kvm is there, but no kernel starts with it: instructions are translated");
    Ok(Accelerator::Translation)
}

fn base(qemu: &Path, kernel: &Kernel, accelerator: Accelerator) -> Command {
    let mut command = Command::new(qemu);
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Translation => {
            // Time is counted in instructions, so that nobody is too slow. Where there are none it must pass as it does
            // here, or a wait for the disk would end with whatever timer is next.
            command.args(["-accel", "tcg", "-cpu", "max,la57=off", "-icount", "shift=0,sleep=on"])
        }
    };
    command.args(["-smp", "2", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot", "-kernel"]);
    command.arg(&kernel.image);
    command
}

impl Machine<'_> {
    /// Runs it to its end; `look` is asked again and again, so that it can show what is new.
    pub(super) fn run(&self, qemu: &Path, mut look: impl FnMut() -> Result<()>) -> Result<()> {
        let mut command = base(qemu, self.kernel, self.accelerator);
        command.arg("-initrd").arg(self.initrd);
        command.arg("-append").arg(format!("{}{CMDLINE}", self.told));
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on", self.disk.display()));
        for port in [self.console, self.reports] {
            let _none_before = fs::remove_file(port);
            command.arg("-serial").arg(format!("file:{}", port.display()));
        }
        let mut running = Running::start(&mut command)?;
        let mut said = 0;
        let mut last = Instant::now();
        loop {
            let ended = running.ended()?;
            look()?;
            if let Some(status) = ended {
                return self.verdict(status);
            }
            let bytes =
                [self.console, self.reports].map(|port| fs::metadata(port).map_or(0, |about| about.len()));
            let now: u64 = bytes.iter().sum();
            if now != said {
                (said, last) = (now, Instant::now());
            }
            if last.elapsed() > SILENCE_MAX {
                bail!(
                    "the virtual machine hangs: no sign of life for {SILENCE_MAX:?}\n{}",
                    self.last_lines()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    fn verdict(&self, status: ExitStatus) -> Result<()> {
        if !status.success() {
            bail!("QEMU ended with {status}\n{}", self.last_lines());
        }
        Ok(())
    }

    /// The console's last lines.
    pub(super) fn last_lines(&self) -> String {
        let text = fs::read(self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let lines: Vec<_> = text.lines().collect();
        let shown = lines.len().saturating_sub(LAST_LINES);
        let mut said = format!("the end of `{}`:\n    ", self.console.display());
        said += &lines.get(shown..).unwrap_or_default().join("\n    ");
        said
    }
}

/// A QEMU that runs. Dropped: it is killed.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: between fork and exec nothing is called but prctl(2), which is async-signal-safe.
        unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
        Ok(Self(command.spawn().context("cannot start QEMU")?))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().context("cannot wait for QEMU")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_before = self.0.kill();
        let _waited_before = self.0.wait();
    }
}

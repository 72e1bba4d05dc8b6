//! What of a host keeps the agent from capturing is told by name, and nothing is left half attached. Each state is made
//! in a mount namespace of its own, or by taking capabilities away.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tempfile::TempDir;
use toolgate_tests::{Agent, Host, Process, cgroup2, toolgate};

/// An agent's configuration, and the host for as long as this test runs.
struct Stage {
    folder: TempDir,
    /// What another left in the cgroup of `exec` keeps that there.
    had_exec: bool,
    _host: Host,
}

impl Stage {
    fn set() -> Result<Self> {
        let host = Host::turn()?;
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("resources"))?;
        fs::write(folder.path().join("toolgate.yaml"), Agent::other_settings(folder.path())?)?;
        Ok(Self { folder, had_exec: exec_cgroup()?.exists(), _host: host })
    }

    /// `toolgate run`, as a shell in a mount namespace of its own starts it after `script`.
    fn run_after(&self, script: &str) -> Command {
        let agent = toolgate().get_program().to_owned();
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]).arg(agent);
        shell.arg("run").arg("--config").arg(self.folder.path());
        shell
    }

    /// `toolgate run`
    fn run(&self) -> Command {
        let mut command = toolgate();
        command.arg("run").arg("--config").arg(self.folder.path());
        command
    }

    /// It must refuse with these words, and leave nothing.
    fn refuses(&self, command: &mut Command, words: &[&str]) -> Result<()> {
        let mut agent = Process::start(command)?;
        let status = agent.end().with_context(|| agent.said())?;
        let said = agent.said();
        ensure!(!status.success(), "it was to refuse: {said}");
        for word in words {
            ensure!(said.contains(word), "no `{word}` in {said}");
        }
        ensure!(!Path::new("/sys/fs/bpf/toolgate").exists(), "pins are left: {said}");
        ensure!(exec_cgroup()?.exists() == self.had_exec, "the cgroup of `exec` is left: {said}");
        Ok(())
    }
}

fn exec_cgroup() -> Result<PathBuf> {
    Ok(cgroup2()?.join("toolgate.exec"))
}

#[test]
fn each_state_of_a_host_is_told_by_name() -> Result<()> {
    let stage = Stage::set()?;
    let release = |release: &str| {
        format!(
            "mount -t tmpfs t /mnt; echo {release} > /mnt/r; mount --bind /mnt/r /proc/sys/kernel/osrelease"
        )
    };
    let cgroup2 = cgroup2()?.display().to_string();
    let table: [(String, &[&str]); 7] = [
        (release("5.9.16-old"), &["kernel `5.9.16-old` is too old", "5.10 or later"]),
        (
            "mount -t tmpfs t /sys/kernel/btf".to_owned(),
            &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
        ),
        (
            "mount -t tmpfs t /sys/kernel/security\n\
             echo 'none integrity [confidentiality]' > /sys/kernel/security/lockdown"
                .to_owned(),
            &["locked down for confidentiality", "lockdown=integrity"],
        ),
        (
            format!(
                "umount -l {cgroup2}; mount -t tmpfs t /mnt; mkdir /mnt/v1; mount -t cgroup -o none,name=toolgate-test v1 /mnt/v1"
            ),
            &["only version 1 of cgroups is mounted", "mount -t cgroup2"],
        ),
        (
            // All of them, of whatever version.
            format!(
                "umount -l {cgroup2}; awk '$3 == \"cgroup\" {{ print $2 }}' /proc/mounts | while read -r at; do umount -l \"$at\"; done"
            ),
            &["no cgroup2 file system is mounted", "mount -t cgroup2"],
        ),
        (
            format!("{}; mkdir /mnt/net; mount -t cgroup -o net_cls net /mnt/net", release("5.14.0")),
            &["`/mnt/net`", "before kernel 5.15 (this is `5.14.0`)", "cgroup_no_v1=net_cls,net_prio"],
        ),
        (
            "exec unshare --pid --fork --mount-proc \"$@\"".to_owned(),
            &["PID namespace of its own", "run it in the host's"],
        ),
    ];
    for (script, words) in table {
        stage.refuses(&mut stage.run_after(&script), words).context(script)?;
    }
    Ok(())
}

#[test]
fn missing_capabilities_are_told_by_name() -> Result<()> {
    const SYS_ADMIN: u64 = 21;
    let stage = Stage::set()?;
    let table: [(&[u64], &str); 4] = [
        (&[39, SYS_ADMIN], "missing CAP_BPF:"),
        (&[38, SYS_ADMIN], "missing CAP_PERFMON:"),
        (&[12], "missing CAP_NET_ADMIN:"),
        (&[2], "missing CAP_DAC_READ_SEARCH:"),
    ];
    for (dropped, words) in table {
        let mut command = stage.run();
        without(&mut command, dropped);
        stage.refuses(&mut command, &[words, "run as root, or with CAP_BPF"]).context(words)?;
    }
    // Nobody mounts it where the agent may not.
    let mut command = Command::new("unshare");
    let script = "umount -l /sys/fs/bpf; exec capsh --drop=cap_sys_admin -- -c \"exec $0 run --config $1\"";
    command.args(["--mount", "sh", "-ec", script]).arg(toolgate().get_program()).arg(stage.folder.path());
    stage.refuses(&mut command, &["bpf file system at `/sys/fs/bpf`", "mount -t bpf bpf /sys/fs/bpf"])
}

/// Takes capabilities away from what a command becomes.
fn without(command: &mut Command, capabilities: &'static [u64]) {
    let drop_them = move || {
        for capability in capabilities {
            // SAFETY: a call without pointers.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec nothing is called but prctl(2), which is async-signal-safe.
    unsafe { command.pre_exec(drop_them) };
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() -> Result<()> {
    let stage = Stage::set()?;
    let agent = Process::start(&mut stage.run_after("umount -l /sys/fs/bpf"))?;
    agent.line("toolgate: ready")?;
    ensure!(agent.said().contains("mounted the bpf file system at `/sys/fs/bpf`"), "{}", agent.said());
    Ok(())
}

#[test]
fn a_program_that_is_attached_for_itself_alone_is_named() -> Result<()> {
    let stage = Stage::set()?;
    let exclusive = Exclusive::attach()?;
    let words = ["in exclusive mode", "bpftool cgroup show", "BPF_F_ALLOW_MULTI"];
    stage.refuses(&mut stage.run(), &words)?;
    drop(exclusive);
    let agent = Process::start(&mut stage.run())?;
    agent.line("toolgate: ready")?;
    Ok(())
}

/// A program at the cgroup2 root that lets every connect pass, attached so that none may be beside it (flags 0).
struct Exclusive {
    root: fs::File,
    program: OwnedFd,
}

const PROGRAM_LOAD: libc::c_int = 5;
const PROGRAM_ATTACH: libc::c_int = 8;
const PROGRAM_DETACH: libc::c_int = 9;
const INET4_CONNECT: u32 = 10;

impl Exclusive {
    fn attach() -> Result<Self> {
        /// The beginning of `union bpf_attr` for BPF_PROG_LOAD, as far as it is used (linux/bpf.h).
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            program_type: u32,
            instructions: u32,
            code: u64,
            license: u64,
            log: [u64; 2],
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            interface: u32,
            attach_type: u32,
        }
        // r0 = 1; exit
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let load = Load {
            program_type: 18, // BPF_PROG_TYPE_CGROUP_SOCK_ADDR
            instructions: 2,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            attach_type: INET4_CONNECT,
            ..Load::default()
        };
        // Before 5.11, programs and maps count as locked memory; later kernels do not ask for it.
        let _not_allowed_everywhere = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let program = bpf(PROGRAM_LOAD, &load).context("cannot load it")?;
        // SAFETY: a descriptor that the call has just made, owned by nobody else.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let exclusive = Self { root: fs::File::open(cgroup2()?)?, program };
        bpf(PROGRAM_ATTACH, &exclusive.place()).context("cannot attach it")?;
        Ok(exclusive)
    }

    /// `union bpf_attr`: target, program, type and flags.
    fn place(&self) -> [u32; 4] {
        let number = |fd: libc::c_int| fd.cast_unsigned();
        [number(self.root.as_raw_fd()), number(self.program.as_raw_fd()), INET4_CONNECT, 0]
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let _reported_by_the_next_agent = bpf(PROGRAM_DETACH, &self.place());
    }
}

fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads the size of `attribute`, and what its pointers name outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    match libc::c_int::try_from(done) {
        Ok(done) if done >= 0 => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}

//! libvirtd and vagrant, in namespaces that nobody else is in: the machine's own libvirt is neither used nor changed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::vm::{CMDLINE, sbin, wait_as_first};
use crate::workspace::{root, run, run_quietly, say};

const BOX: &str = "toolgate-local";
/// Folders of libvirt that are replaced by empty ones below `target/vagrant/libvirt`.
const REPLACED: [&str; 4] = ["/etc/libvirt", "/var/cache/libvirt", "/var/lib/libvirt", "/var/log/libvirt"];
/// Debian's libvirtd looks its user up, whether or not its settings name another.
const USERS: [(&str, &str); 2] = [
    ("/etc/passwd", "libvirt-qemu:x:0:0::/nonexistent:/usr/sbin/nologin\n"),
    ("/etc/group", "libvirt-qemu:x:0:\nlibvirt:x:0:\n"),
];
const SOCKET: &str = "/run/libvirt/libvirt-sock";
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything runs as root, and what would ask the service manager is left out: there may be none.
const QEMU_SETTINGS: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
    cgroup_controllers = []\ndynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n";
const DAEMON_SETTINGS: &str = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n";

/// What the part in the namespaces is told by the part that made everything.
#[derive(clap::Args)]
pub(crate) struct Prepared {
    /// `target/vagrant`
    #[arg(long)]
    folder: PathBuf,
    /// The agent's binary
    #[arg(long)]
    agent: PathBuf,
    /// The box
    #[arg(long)]
    made_box: PathBuf,
    /// The SDK for the box
    #[arg(long)]
    sdk: PathBuf,
    /// The kernel's image
    #[arg(long)]
    kernel: PathBuf,
    /// What it starts with
    #[arg(long)]
    initrd: PathBuf,
}

/// Brings the machine up, which runs the acceptance test, and takes it down whatever came of it.
pub(crate) fn inside(prepared: &Prepared) -> Result<()> {
    if std::process::id() == 1 {
        // The first process of a namespace waits for all that lose their parents: libvirtd looks until they are gone.
        let mut itself = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
        std::process::exit(wait_as_first(itself.args(std::env::args_os().skip(1)))?);
    }
    if nix::unistd::getppid().as_raw() != 1 || fs::read_link("/proc/self/ns/pid").is_ok_and(is_initial) {
        bail!("this is for namespaces of its own: run `cargo xtask vagrant`");
    }
    let made = furnish(prepared)?;
    let mut libvirtd = start_libvirtd(prepared)?;
    let vagrant = |words: &[&str]| {
        let mut command = Command::new("vagrant");
        command.args(words).current_dir(root().join("vagrant"));
        environment(&mut command, prepared);
        command
    };
    run_quietly(
        vagrant(&["box", "add", "--force", "--provider", "libvirt", "--name", BOX]).arg(&prepared.made_box),
    )?;
    say("vagrant up");
    let up = shown(&mut vagrant(&["up", "--no-color", "--provider", "libvirt"]));
    let down = run_quietly(&mut vagrant(&["destroy", "--force"]));
    kill(Pid::from_raw(i32::try_from(libvirtd.id()).context("a process id above 2^31")?), Signal::SIGTERM)
        .context("cannot end libvirtd")?;
    libvirtd.wait().context("cannot wait for libvirtd")?;
    for at in made {
        umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount `{at}`"))?;
        fs::remove_dir(at).with_context(|| format!("cannot remove `{at}`"))?;
    }
    up.context("the acceptance test failed, or the machine did not come up")?;
    down.context("the machine cannot be destroyed")?;
    println!("accepted; machine, network and libvirtd are gone");
    Ok(())
}

/// Runs a command and shows its lines as they come, without the steps of its bars, which overwrite each other.
fn shown(command: &mut Command) -> Result<()> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start vagrant")?;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line.context("cannot read what vagrant says")?;
        println!("{}", line.rsplit("\u{1b}[K").next().unwrap_or_default());
    }
    let status = child.wait().context("cannot wait for vagrant")?;
    if !status.success() {
        bail!("vagrant ended with {status}");
    }
    Ok(())
}

/// Is that the process namespace that the kernel began with (PROC_PID_INIT_INO)?
#[expect(clippy::needless_pass_by_value, reason = "as `is_ok_and` gives it")]
fn is_initial(namespace: PathBuf) -> bool {
    namespace.as_os_str() == "pid:[4026531836]"
}

/// Mounts that only this namespace has, and its loopback. Returns the folders that were made to be mounted over.
fn furnish(prepared: &Prepared) -> Result<Vec<&'static str>> {
    let libvirt = prepared.folder.join("libvirt");
    if libvirt.exists() {
        fs::remove_dir_all(&libvirt).with_context(|| format!("cannot remove `{}`", libvirt.display()))?;
    }
    let mut made = Vec::new();
    for at in REPLACED {
        let ours = libvirt.join(at.trim_start_matches('/'));
        fs::create_dir_all(&ours).with_context(|| format!("cannot create `{}`", ours.display()))?;
        if !Path::new(at).exists() {
            fs::create_dir(at).with_context(|| format!("cannot create `{at}`"))?;
            made.push(at);
        }
        bind(&ours, Path::new(at))?;
    }
    for (file, line) in USERS {
        let ours = libvirt.join(file.trim_start_matches('/'));
        let text = fs::read_to_string(file).with_context(|| format!("cannot read `{file}`"))?;
        fs::write(&ours, text + line).with_context(|| format!("cannot write `{}`", ours.display()))?;
        bind(&ours, Path::new(file))?;
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .context("cannot mount /run")?;
    // libvirtd asks it what it can, and a KVM that starts no kernel answers all the same.
    if Path::new("/dev/kvm").exists() {
        bind(Path::new("/dev/null"), Path::new("/dev/kvm"))?;
    }
    fs::write("/etc/libvirt/qemu.conf", QEMU_SETTINGS).context("cannot write libvirt's settings")?;
    fs::write("/etc/libvirt/libvirtd.conf", DAEMON_SETTINGS).context("cannot write libvirt's settings")?;
    run(Command::new(sbin::program("ip")?).args(["link", "set", "lo", "up"]))?;
    Ok(made)
}

fn bind(from: &Path, at: &Path) -> Result<()> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount `{}` at `{}`", from.display(), at.display()))
}

fn start_libvirtd(prepared: &Prepared) -> Result<Child> {
    let log = prepared.folder.join("libvirtd.log");
    let output = fs::File::create(&log).with_context(|| format!("cannot create `{}`", log.display()))?;
    let mut command = Command::new(sbin::program("libvirtd")?);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    // SAFETY: between fork and exec nothing is called but prctl(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGTERM).map_err(Into::into)) };
    let mut libvirtd = command.spawn().context("cannot start libvirtd")?;
    let until = Instant::now() + PATIENCE;
    while !Path::new(SOCKET).exists() {
        if let Some(status) = libvirtd.try_wait().context("cannot wait for libvirtd")? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("libvirtd ended with {status}:\n{said}");
        }
        if Instant::now() > until {
            bail!("libvirtd does not listen: see `{}`", log.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(libvirtd)
}

/// What the Vagrantfile takes from the environment, and a home for vagrant.
fn environment(command: &mut Command, prepared: &Prepared) {
    let home = prepared.folder.join("home");
    let build = prepared.agent.parent().unwrap_or(Path::new("."));
    command
        .env("VAGRANT_HOME", &home)
        .env("VAGRANT_DOTFILE_PATH", prepared.folder.join("machine"))
        .env("VAGRANT_CHECKPOINT_DISABLE", "1")
        .env("VAGRANT_DEFAULT_PROVIDER", "libvirt")
        .env("LIBVIRT_DEFAULT_URI", "qemu:///system")
        .env("TOOLGATE_BUILD", build)
        .env("TOOLGATE_VAGRANT_BOX", BOX)
        .env("TOOLGATE_VAGRANT_DRIVER", "qemu")
        .env("TOOLGATE_VAGRANT_KERNEL", &prepared.kernel)
        .env("TOOLGATE_VAGRANT_INITRD", &prepared.initrd)
        .env("TOOLGATE_VAGRANT_CMDLINE", CMDLINE)
        .env("TOOLGATE_VAGRANT_NETWORK", "none")
        .env("TOOLGATE_VAGRANT_SDK", &prepared.sdk);
}

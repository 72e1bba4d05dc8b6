//! What vagrant is given: a box of Debian, the official SDK for its Python, one of Debian's kernels and what that starts
//! with. All of it is made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::packages::Packages;
use crate::sudo::{self, Root};
use crate::vm::{self, apt, sbin};
use crate::workspace::{root, run_quietly, say};

/// The release that the box is of: no older than the one that built the agent, or its libraries are too old for it.
const RELEASE: &str = "trixie";
/// That release's Python.
const PYTHON: &str = "3.13";
/// That release's kernels.
const KERNEL: &str = "6.12";
/// What the box has besides Debian's essential packages: a service manager, what vagrant asks of a box, and Python.
const PACKAGES: &str =
    "dbus,iproute2,openssh-server,python3,rsync,sudo,systemd,systemd-resolved,systemd-sysv,udev";
/// Where Debian has vagrant, in a folder with its version.
const GEMS: &str = "/usr/share/rubygems-integration/all/gems";
const SIZE: &str = "4G";
const STAMP: &str = "toolgate-stamp";

/// Where it lies.
pub(super) struct Made {
    pub(super) made_box: PathBuf,
    pub(super) sdk: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// Makes what is missing.
pub(super) fn make(root: Root, folder: &Path, vm: &Path, packages: &Packages) -> Result<Made> {
    let sdk = folder.join("sdk");
    let versions = fs::read_to_string(crate::workspace::root().join("xtask/packages/requirements.txt"))
        .context("cannot read the versions of the SDK")?;
    once(&sdk, &versions, "the official SDK for the box", || python_packages(&sdk, packages))?;
    let boxes = folder.join("box");
    let made_box = boxes.join("toolgate.box");
    once(&boxes, PACKAGES, "a box of Debian", || write_box(root, &boxes, &made_box))?;
    let initrd = folder.join("initrd");
    let kernel = vm::write_host_initrd(vm, KERNEL, &initrd)?;
    Ok(Made { made_box, sdk, kernel, initrd })
}

/// Fills `folder`, unless it was filled from the same `key` before.
fn once(folder: &Path, key: &str, what: &str, fill: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == key) {
        return Ok(());
    }
    say(format_args!("making {what}"));
    let started = Instant::now();
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    fill().with_context(|| format!("cannot make {what}"))?;
    say(format_args!("done in {:.0} s", started.elapsed().as_secs_f32()));
    fs::write(&stamp, key).with_context(|| format!("cannot write `{}`", stamp.display()))
}

/// The packages as the box' Python wants them, which need not be as this machine's does.
fn python_packages(folder: &Path, packages: &Packages) -> Result<()> {
    let mut pip = Command::new(&packages.python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary=:all:"]);
    pip.args(["--implementation=cp", "--python-version", PYTHON]);
    for glibc in ["2_34", "2_28", "2_17"] {
        pip.arg(format!("--platform=manylinux_{glibc}_x86_64"));
    }
    pip.arg("--platform=manylinux2014_x86_64").arg("--target").arg(folder);
    run_quietly(pip.arg("--requirement").arg(root().join("xtask/packages/requirements.txt")))?;
    Ok(())
}

fn write_box(root: Root, folder: &Path, file: &Path) -> Result<()> {
    let system = folder.join("system");
    let mut mmdebstrap = sudo::command(root, "mmdebstrap");
    mmdebstrap.args(["--quiet", "--variant=minbase", "--mode=root", &format!("--include={PACKAGES}")]);
    for left_out in ["doc", "locale", "man"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
    }
    for hook in hooks()? {
        mmdebstrap.arg(format!("--customize-hook={hook}"));
    }
    let lines = apt::sources(&[RELEASE]);
    run_quietly(mmdebstrap.arg(RELEASE).arg(&system).arg(lines.trim()))?;
    let (raw, image) = (folder.join("box.raw"), folder.join("box.img"));
    let mut mkfs = sudo::command(root, sbin::program("mkfs.ext4")?);
    run_quietly(mkfs.args(["-q", "-F", "-m", "0", "-d"]).arg(&system).arg(&raw).arg(SIZE))?;
    run_quietly(sudo::command(root, "rm").args(["--recursive", "--one-file-system"]).arg(&system))?;
    run_quietly(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&image))?;
    run_quietly(sudo::command(root, "rm").arg(&raw))?;
    let about = r#"{ "provider": "libvirt", "format": "qcow2", "virtual_size": 4 }"#;
    fs::write(folder.join("metadata.json"), about).context("cannot write the box' metadata")?;
    fs::write(folder.join("Vagrantfile"), "").context("cannot write the box' Vagrantfile")?;
    let names = ["metadata.json", "Vagrantfile", "box.img"];
    run_quietly(
        Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(file)
            .arg("--directory")
            .arg(folder)
            .args(names),
    )?;
    fs::remove_file(&image).with_context(|| format!("cannot remove `{}`", image.display()))
}

/// What makes a Debian a box: the user `vagrant` with vagrant's key, who may all, and an address by DHCP.
fn hooks() -> Result<Vec<String>> {
    let key = insecure_key()?;
    let network = "[Match]\\nType=ether\\n[Network]\\nDHCP=yes\\n";
    let in_it = |command: &str| format!("chroot \"$1\" {command}");
    Ok(vec![
        in_it("useradd --create-home --shell /bin/bash vagrant"),
        in_it("install --directory --owner=vagrant --mode=0700 /home/vagrant/.ssh"),
        format!("echo '{}' > \"$1/home/vagrant/.ssh/authorized_keys\"", key.trim()),
        in_it("chown vagrant:vagrant /home/vagrant/.ssh/authorized_keys"),
        "echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > \"$1/etc/sudoers.d/vagrant\"".to_owned(),
        format!("printf '{network}' > \"$1/etc/systemd/network/any.network\""),
        "echo toolgate > \"$1/etc/hostname\"".to_owned(),
        "echo '127.0.0.1 localhost toolgate' > \"$1/etc/hosts\"".to_owned(),
        in_it("systemctl enable systemd-networkd ssh"),
        // It waits for a resolver that an isolated network does not have.
        in_it("systemctl disable systemd-networkd-wait-online"),
    ])
}

/// The public key that vagrant's boxes have until the first start, when it is replaced.
fn insecure_key() -> Result<String> {
    let gems = fs::read_dir(GEMS).with_context(|| format!("cannot list `{GEMS}`"))?;
    let file = gems.flatten().map(|gem| gem.path().join("keys/vagrant.pub")).find(|file| file.is_file());
    let file = file.with_context(|| format!("no vagrant with its keys in `{GEMS}`"))?;
    fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))
}

//! `cargo xtask vagrant`: the acceptance test of `vagrant/Vagrantfile` where there is no KVM, no box and no libvirtd.
//!
//! - `made`: the box, the SDK for its Python, and what its kernel starts with; kept under `target/vagrant`
//! - `inside`: libvirtd and vagrant, in namespaces of their own: when these end, nothing of them is left
//!
//! With KVM and a published box plain `vagrant up` does the same.

mod inside;
mod made;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::build::{self, Build};
use crate::packages;
use crate::sudo;
use crate::vm::{apt, sbin};
use crate::workspace::{say, target};
pub(crate) use inside::{Prepared, inside};

/// What is used, and the packages of Debian that have it.
const PROGRAMS: [(&str, &str); 10] = [
    ("dnsmasq", "dnsmasq-base"),
    ("iptables", "iptables"),
    ("libvirtd", "libvirt-daemon"),
    ("mmdebstrap", "mmdebstrap"),
    ("qemu-img", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("rsync", "rsync"),
    ("ssh", "openssh-client"),
    ("vagrant", "vagrant"),
    ("virsh", "libvirt-clients"),
];
/// What vagrant needs to know of libvirt.
const PLUGIN: (&str, &str) = ("/usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json", "vagrant-libvirt");

/// Makes what is missing, then brings the machine up and takes it down again. An error if the acceptance test fails.
pub(crate) fn vagrant() -> Result<()> {
    let root = sudo::root()?;
    let folder = target()?.join("vagrant");
    let vm = target()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    apt::install(&vm, &PROGRAMS)?;
    if !PathBuf::from(PLUGIN.0).is_file() {
        apt::install(&vm, &[("the plugin for libvirt", PLUGIN.1)])?;
    }
    let packages = packages::install()?;
    let agent = build::build_to_package(&Build::Plain)?;
    let made = made::make(root, &folder, &vm, &packages)?;
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = sudo::command(root, sbin::program("unshare")?);
    // A process namespace ends with its first process, whatever was started in it; networks and mounts go with them.
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg(this);
    command.arg("vagrant-inside").arg("--folder").arg(&folder).arg("--agent").arg(&agent);
    command.arg("--made-box").arg(&made.made_box).arg("--sdk").arg(&made.sdk);
    command.arg("--kernel").arg(&made.kernel).arg("--initrd").arg(&made.initrd);
    say("starting libvirtd and vagrant");
    Err(command.exec()).context("cannot start `unshare`")
}

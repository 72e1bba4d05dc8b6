//! The initial archive of a virtual machine: this program, its libraries, the modules and what is to be done.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::guest::{DISK, GOAL, Goal, INIT, MODULES};
use super::kernel::Kernel;
use super::tree;

/// For the disk, and for what tests do with namespaces, tunnels and protocols that capture refuses.
const WANTED: [&str; 29] = [
    "virtio_net",
    "virtio_rng",
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "overlay",
    "veth",
    "dummy",
    "bridge",
    "macvlan",
    "ipvlan",
    "vrf",
    "tun",
    "sctp",
    "dccp",
    "dccp_ipv4",
    "dccp_ipv6",
    "vsock",
    "vsock_loopback",
    "nf_tables",
    "nft_chain_nat",
    "nft_redir",
    "nft_masq",
    "nft_ct",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "tls",
];

/// Writes it to `file`.
pub(super) fn write(kernel: &Kernel, xtask: &Path, goal: &Goal, file: &Path) -> Result<()> {
    let mut archive = Archive::default();
    archive.device(Path::new("/dev/console"), [5, 1])?;
    archive.folder(Path::new(DISK))?;
    archive.folder(Path::new("/tmp"))?;
    let mut programs = tree::libraries(xtask)?;
    programs.sort();
    for library in programs {
        archive.file(&library, &read(&library)?)?;
    }
    archive.file(Path::new(INIT), &read(xtask)?)?;
    for (number, module) in kernel.modules(&WANTED)?.iter().enumerate() {
        archive.file(&Path::new(MODULES).join(format!("{number:03}-{}.ko", module.name)), &module.content)?;
    }
    archive.file(Path::new(GOAL), &serde_json::to_vec(goal).context("a goal that cannot be written")?)?;
    fs::write(file, archive.finish()?).with_context(|| format!("cannot write `{}`", file.display()))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))
}

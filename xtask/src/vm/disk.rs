//! The virtual machine's disk: the programs, libraries and packages of this machine that the tests use, and what was
//! built, each at the path that it has here. Nothing is downloaded for it, and a program behaves there as it does here.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::built::Built;
use super::sbin;
use super::tree::{self, Tree};
use crate::packages::Packages;
use crate::workspace::{root, run_quietly, say};

/// What tests start by name, besides what is built here.
const PROGRAMS: [&str; 27] = [
    "bash",
    "capsh",
    "cat",
    "chmod",
    "cp",
    "env",
    "false",
    "id",
    "ip",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "node",
    "nsenter",
    "rm",
    "setpriv",
    "sh",
    "sha256sum",
    "sleep",
    "ss",
    "sysctl",
    "tar",
    "true",
    "umount",
    "unshare",
];
/// The interpreter that tests start by this path, rather than the one with the SDK.
const PYTHON: &str = "/usr/bin/python3";
/// Folders of its library that no program here uses; packages are those of `target/packages`.
const PYTHON_LEFT_OUT: [&str; 6] =
    ["dist-packages", "ensurepip", "idlelib", "site-packages", "test", "tkinter"];
/// Names of users and hosts, and where libraries are.
const SETTINGS: [&str; 6] =
    ["/etc/group", "/etc/hosts", "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/passwd", "/etc/protocols"];
/// What is mounted over, or written to.
pub(super) const FOLDERS: [&str; 12] = [
    "dev",
    "etc/toolgate",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "var/lib",
    "var/log",
    "var/tmp",
];
/// What any ext4 since Linux 5.10 has, whichever mkfs writes it. No journal: the disk is thrown away.
const FEATURES: &str =
    "none,dir_index,dir_nlink,extent,extra_isize,filetype,flex_bg,huge_file,large_file,sparse_super";
/// What tests may write.
const FREE_BYTES: u64 = 256 << 20;

/// The disk's file; written only if something in it has changed.
pub(super) fn make(vm: &Path, built: &Built, packages: &Packages) -> Result<PathBuf> {
    let (image, stamp) = (vm.join("disk.img"), vm.join("disk.stamp"));
    let tree = collect(built, packages)?;
    let wanted = tree.fingerprint()?;
    if image.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(image);
    }
    say("writing the virtual machine's disk");
    let staged = tempfile::Builder::new().prefix("disk.").tempdir_in(vm).context("cannot make a folder")?;
    let bytes = tree.copy_below(staged.path())?;
    for folder in FOLDERS {
        fs::create_dir_all(staged.path().join(folder))
            .with_context(|| format!("cannot create `{folder}`"))?;
    }
    let _none_before = fs::remove_file(&stamp);
    // A block of 4 KiB for each file is more than its bytes.
    let kilobytes = (bytes + bytes / 4 + FREE_BYTES) >> 10;
    let mut mkfs = Command::new(sbin::program("mkfs.ext4")?);
    mkfs.args([
        "-q",
        "-F",
        "-m",
        "0",
        "-b",
        "4096",
        "-i",
        "8192",
        "-O",
        FEATURES,
        "-E",
        "root_owner=0:0",
        "-d",
    ]);
    let _none_before = fs::remove_file(&image);
    run_quietly(mkfs.arg(staged.path()).arg(&image).arg(format!("{kilobytes}k")))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))?;
    Ok(image)
}

fn collect(built: &Built, packages: &Packages) -> Result<Tree> {
    let mut tree = Tree::default();
    for name in PROGRAMS {
        tree.program(&sbin::program(name)?)?;
    }
    for interpreter in [Path::new(PYTHON), &packages.python] {
        tree.program(interpreter)?;
        for folder in tree::python(interpreter)? {
            tree.add_all(&folder, &PYTHON_LEFT_OUT)?;
        }
    }
    for package in [&packages.python, &packages.server_everything] {
        tree.add_all(folder_of(package)?, &[])?;
    }
    for name in ["policies", "tests/fixtures", "xtask/src/demo"] {
        tree.add_all(&root().join(name), &[])?;
    }
    for file in built.programs() {
        tree.built(file)?;
    }
    for file in SETTINGS.iter().map(Path::new).filter(|file| file.exists()) {
        tree.add(file)?;
    }
    Ok(tree)
}

/// `target/packages/python` of `target/packages/python/bin/python`.
fn folder_of(package: &Path) -> Result<&Path> {
    let found = package
        .ancestors()
        .find(|folder| folder.parent().and_then(Path::file_name) == Some(OsStr::new("packages")));
    found.with_context(|| format!("`{}` is not below `packages`", package.display()))
}

//! How the privileged part of a task gets root. Building never needs it.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace::find_program;

/// How this user becomes root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// Is root already.
    Already,
    /// Through sudo.
    Sudo,
}

/// Finds out before anything is built, so that nobody waits for a build that cannot be used.
pub(crate) fn root() -> Result<Root> {
    if nix::unistd::geteuid().is_root() {
        Ok(Root::Already)
    } else if find_program("sudo").is_some() {
        Ok(Root::Sudo)
    } else {
        bail!("Toolgate loads BPF programs, which needs root: run this as root, or install sudo")
    }
}

/// The words before a command that make it run as root, with this user's `PATH` (rustup, Node and Python may be there).
pub(crate) fn prefix(root: Root) -> Vec<OsString> {
    match root {
        Root::Already => Vec::new(),
        Root::Sudo => {
            let mut path = OsString::from("PATH=");
            path.push(std::env::var_os("PATH").unwrap_or_default());
            ["sudo", "--", "env"].map(OsString::from).into_iter().chain([path]).collect()
        }
    }
}

/// A command that runs as root.
pub(crate) fn command(root: Root, program: impl AsRef<OsStr>) -> Command {
    let mut words = prefix(root).into_iter().chain([program.as_ref().to_owned()]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

//! Where things are, how commands are run and what is printed meanwhile.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The folder of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Cargo's target folder: the one this very program was built in, so that `CARGO_TARGET_DIR` is obeyed.
pub(crate) fn target() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    match this.parent().and_then(Path::parent) {
        Some(target) => Ok(target.to_owned()),
        None => bail!("`{}` is not in a target folder: start it as `cargo xtask`", this.display()),
    }
}

/// The cargo that started this program, in the workspace's root.
pub(crate) fn cargo<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Says what is being done: one line a step, on standard error, so that a task's result can be piped.
pub(crate) fn say(step: impl std::fmt::Display) {
    eprintln!("==> {step}");
}

/// Runs a command whose output the user may see; its failure is the task's.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| not_started(command))?;
    if !status.success() {
        bail!("{status}: `{}`", shown(command));
    }
    Ok(())
}

/// Runs a command whose output matters only if it fails; then it is part of the error.
pub(crate) fn run_quietly(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| not_started(command))?;
    if !output.status.success() {
        let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        bail!("{}: `{}`\n{}", output.status, shown(command), String::from_utf8_lossy(&said).trim_end());
    }
    Ok(output)
}

/// A command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The first file of that name in the folders of `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn not_started(command: &Command) -> String {
    format!("cannot start `{}`: is it installed?", command.get_program().to_string_lossy())
}

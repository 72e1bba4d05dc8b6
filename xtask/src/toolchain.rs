//! What compiles and links BPF programs: found, or made.
//!
//! A compiler is taken from, in this order:
//! 1. `TOOLGATE_BPF_RUSTC`, a rustc that has core for bpfel-unknown-none, or its source;
//! 2. rustup's nightly, then the toolchain that builds this workspace, where they have `rust-src` or can be given it;
//! 3. Debian's packages, which have a core for BPF ready: installed when this is root or there is sudo.
//!
//! The linker is `TOOLGATE_BPF_LINKER`, or bpf-linker from crates.io, kept under target/bpf-toolchain. It works with
//! the libLLVM of a rustup toolchain, which must be of the compiler's major version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::debian;
use crate::workspace::{cargo, root, run_quietly, say};

const RUSTC_ENV: &str = "TOOLGATE_BPF_RUSTC";
const LINKER_ENV: &str = "TOOLGATE_BPF_LINKER";
/// The last one that links against rustc's own LLVM, so that no LLVM packages are needed.
const LINKER_VERSION: &str = "0.10.3";
/// What that one is built for.
const LLVM_MAJOR: u32 = 22;
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Everything that building the programs needs.
pub(crate) struct Toolchain {
    pub(crate) name: String,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// Core for BPF has to be built from `rust-src`.
    pub(crate) builds_core: bool,
    pub(crate) linker: PathBuf,
    /// The folder of the linker's libLLVM.
    pub(crate) llvm: PathBuf,
    /// Strips debug info, where there is one.
    pub(crate) objcopy: Option<PathBuf>,
}

/// A rustc that can compile for BPF.
struct Compiler {
    name: String,
    rustc: PathBuf,
    cargo: PathBuf,
    builds_core: bool,
}

/// A rustup toolchain.
struct Installed {
    name: String,
    sysroot: PathBuf,
}

/// Finds the toolchain; makes what is missing and may be made.
pub(crate) fn find() -> Result<Toolchain> {
    let rustup = rustup_toolchains();
    let (llvm, objcopy) = llvm(&rustup)?;
    let compiler = compiler(&rustup)?;
    let linker = linker(&llvm)?;
    Ok(Toolchain {
        name: compiler.name,
        cargo: compiler.cargo,
        rustc: compiler.rustc,
        builds_core: compiler.builds_core,
        linker,
        llvm,
        objcopy,
    })
}

/// What the choice depends on besides this machine: part of the object's stamp.
pub(crate) fn settings() -> [Option<String>; 3] {
    let named = |variable| std::env::var(variable).ok();
    [named(RUSTC_ENV), named(LINKER_ENV), Some(LINKER_VERSION.to_owned())]
}

/// Takes away what the cargo that runs this program has set for itself: flags, and the choice of a toolchain.
pub(crate) fn clean(command: &mut Command) {
    let mine = [
        "RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
    ];
    for variable in mine {
        command.env_remove(variable);
    }
}

fn compiler(rustup: &[Installed]) -> Result<Compiler> {
    if let Some(named) = std::env::var_os(RUSTC_ENV) {
        let rustc = PathBuf::from(named);
        return probe(&rustc).with_context(|| format!("{RUSTC_ENV}, `{}`, cannot be used", rustc.display()));
    }
    let mut tried = Vec::new();
    for toolchain in rustup {
        match probe(&toolchain.rustc()) {
            Ok(found) => return Ok(found),
            Err(error) => tried.push(format!("{}: {error:#}", toolchain.name)),
        }
    }
    for toolchain in rustup {
        match add_source(toolchain).and_then(|()| probe(&toolchain.rustc())) {
            Ok(found) => return Ok(found),
            Err(error) => tried.push(format!("{} with rust-src: {error:#}", toolchain.name)),
        }
    }
    match from_debian() {
        Ok(found) => return Ok(found),
        Err(error) => tried.push(format!("Debian's packages: {error:#}")),
    }
    bail!(
        "no Rust compiler for BPF programs: run `rustup component add rust-src`, or name a rustc in {RUSTC_ENV}; tried\n  {}",
        tried.join("\n  ")
    )
}

/// Asks a rustc what it is and what it has for BPF.
fn probe(rustc: &Path) -> Result<Compiler> {
    let version = asked(rustc, &["-vV"])?;
    let line = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let release = line("release:").context("it does not tell its release")?;
    let major = line("LLVM version:").and_then(|llvm| llvm.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(major) if major <= LLVM_MAJOR => {}
        _other => bail!(
            "Rust {release} has an LLVM that bpf-linker {LINKER_VERSION} cannot read, {LLVM_MAJOR} at most"
        ),
    }
    let sysroot = PathBuf::from(asked(rustc, &["--print", "sysroot"])?.trim());
    let ready = asked(rustc, &["--print", "target-libdir", "--target", "bpfel-unknown-none"])
        .is_ok_and(|folder| has_file(Path::new(folder.trim()), "libcore-"));
    let source = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
    if !ready && !source {
        bail!("Rust {release} has neither core for BPF nor rust-src");
    }
    let own_cargo = sysroot.join("bin/cargo");
    let cargo = if own_cargo.is_file() { own_cargo } else { PathBuf::from(cargo([""; 0]).get_program()) };
    let from = if ready { "its own core" } else { "core from rust-src" };
    Ok(Compiler {
        name: format!("Rust {release}, {from}"),
        rustc: rustc.to_owned(),
        cargo,
        builds_core: !ready,
    })
}

/// Nightly if it is there, and the one that builds this workspace.
fn rustup_toolchains() -> Vec<Installed> {
    let nightly = asked(Path::new("rustup"), &["run", "nightly", "rustc", "--print", "sysroot"]);
    let active = asked(Path::new("rustc"), &["--print", "sysroot"]);
    [("rustup's nightly", nightly), ("this workspace's toolchain", active)]
        .into_iter()
        .filter_map(|(name, sysroot)| {
            Some(Installed { name: name.to_owned(), sysroot: PathBuf::from(sysroot.ok()?.trim()) })
        })
        .collect()
}

impl Installed {
    fn rustc(&self) -> PathBuf {
        self.sysroot.join("bin/rustc")
    }
}

/// Without it core for BPF cannot be built. A few megabytes; fails without a network, or where rustup does not manage
/// this toolchain.
fn add_source(toolchain: &Installed) -> Result<()> {
    let name = toolchain.sysroot.file_name().context("no rustup toolchain")?;
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain"]).arg(name);
    timed(&format!("adding rust-src to {}", toolchain.name), &mut command)
}

fn from_debian() -> Result<Compiler> {
    let rustc = Path::new(DEBIAN_RUSTC);
    if let Ok(found) = probe(rustc) {
        return Ok(found);
    }
    debian::install(&DEBIAN_PACKAGES)?;
    probe(rustc)
}

/// The folder of a libLLVM that the linker can work with, and the objcopy beside it.
fn llvm(rustup: &[Installed]) -> Result<(PathBuf, Option<PathBuf>)> {
    for toolchain in rustup.iter().rev() {
        let lib = toolchain.sysroot.join("lib");
        if has_file(&lib, &format!("libLLVM.so.{LLVM_MAJOR}"))
            || has_file(&lib, &format!("libLLVM-{LLVM_MAJOR}"))
        {
            let host = fs::read_dir(lib.join("rustlib")).into_iter().flatten().flatten();
            let objcopy = host.map(|entry| entry.path().join("bin/rust-objcopy")).find(|file| file.is_file());
            return Ok((lib, objcopy));
        }
    }
    bail!(
        "no rustup toolchain here has LLVM {LLVM_MAJOR}, which bpf-linker {LINKER_VERSION} needs: install Rust 1.95 by rustup"
    )
}

fn linker(llvm: &Path) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(LINKER_ENV) {
        let linker = PathBuf::from(named);
        linker_version(&linker, llvm)
            .with_context(|| format!("{LINKER_ENV}, `{}`, cannot be used", linker.display()))?;
        return Ok(linker);
    }
    let folder = root().join("target/bpf-toolchain");
    let linker = folder.join("bin/bpf-linker");
    if linker_version(&linker, llvm).is_ok_and(|version| version == LINKER_VERSION) {
        return Ok(linker);
    }
    let mut command = cargo(["install", "--locked", "--force", "bpf-linker", "--version"]);
    clean(&mut command);
    command
        .arg(format!("={LINKER_VERSION}"))
        .arg("--root")
        .arg(&folder)
        .current_dir("/")
        // It runs for a second a build: a quick build of itself is worth more than a quick linker.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    timed(
        &format!("installing bpf-linker {LINKER_VERSION} under target/, once: one to three minutes"),
        &mut command,
    )?;
    let version = linker_version(&linker, llvm)?;
    if version != LINKER_VERSION {
        bail!("bpf-linker {version} was installed where {LINKER_VERSION} was asked for");
    }
    Ok(linker)
}

fn linker_version(linker: &Path, llvm: &Path) -> Result<String> {
    let mut command = Command::new(linker);
    let output = run_quietly(command.arg("--version").env("LD_LIBRARY_PATH", llvm))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn asked(program: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let output = run_quietly(command.args(arguments))?;
    String::from_utf8(output.stdout).context("its answer is not UTF-8")
}

/// Says a step, runs it, and says how long it took.
fn timed(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let started = Instant::now();
    run_quietly(command)?;
    say(format_args!("done in {:.1} s", started.elapsed().as_secs_f32()));
    Ok(())
}

fn has_file(folder: &Path, prefix: &str) -> bool {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)))
}

//! `cargo xtask ebpf`: the BPF object that the agent embeds (agent/build.rs looks for it where this puts it).

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::{self, Toolchain};
use crate::workspace::{root, run_quietly, say};

const TARGET: &str = "bpfel-unknown-none";

/// Builds the object if its sources have changed, with a toolchain that is found or made. Returns where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let object = root().join("target/bpf/toolgate.bpf.o");
    let folder = root().join("target/bpf-build");
    let stamp = folder.join("stamp");
    let wanted = stamp_text()?;
    if object.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(object);
    }
    let toolchain = toolchain::find()?;
    let started = Instant::now();
    say(format_args!("building the BPF programs with {}", toolchain.name));
    let built = compile(&toolchain, &folder)?;
    let stripped = folder.join("toolgate.stripped.o");
    strip(&toolchain, &built, &stripped)?;
    place(&stripped, &object)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))?;
    let bytes = fs::metadata(&object).map_or(0, |found| found.len());
    say(format_args!("BPF object of {bytes} bytes in {:.1} s", started.elapsed().as_secs_f32()));
    Ok(object)
}

/// Everything that the object depends on: when it is what it was, there is nothing to do.
fn stamp_text() -> Result<String> {
    let mut sources = BTreeMap::new();
    for place in
        ["ebpf/Cargo.toml", "ebpf/Cargo.lock", "ebpf/src", "ebpf/common/Cargo.toml", "ebpf/common/src"]
    {
        read_into(&mut sources, &root().join(place))?;
    }
    let mut hasher = DefaultHasher::new();
    sources.hash(&mut hasher);
    toolchain::settings().hash(&mut hasher);
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn read_into(sources: &mut BTreeMap<PathBuf, Vec<u8>>, place: &Path) -> Result<()> {
    let context = || format!("cannot read `{}`", place.display());
    if place.is_dir() {
        for entry in fs::read_dir(place).with_context(context)? {
            read_into(sources, &entry.with_context(context)?.path())?;
        }
    } else {
        sources.insert(place.to_owned(), fs::read(place).with_context(context)?);
    }
    Ok(())
}

/// Clippy for the BPF programs, where their toolchain has it.
pub(crate) fn clippy() -> Result<()> {
    let toolchain = toolchain::find()?;
    let Some(clippy) = toolchain.rustc.parent().map(|folder| folder.join("cargo-clippy")) else {
        return Ok(());
    };
    if !clippy.is_file() {
        say(format_args!("{} has no clippy: the BPF programs go without", toolchain.name));
        return Ok(());
    }
    let mut command = Command::new(&clippy);
    prepare(&mut command, &toolchain, "clippy", &root().join("target/bpf-clippy"));
    command.env("CARGO", &toolchain.cargo).args(["--", "-D", "warnings"]);
    run_quietly(&mut command).context("clippy has found something in the BPF programs")?;
    Ok(())
}

fn compile(toolchain: &Toolchain, folder: &Path) -> Result<PathBuf> {
    let mut command = Command::new(&toolchain.cargo);
    prepare(&mut command, toolchain, "build", folder);
    run_quietly(&mut command).context("the BPF programs do not build")?;
    Ok(folder.join(TARGET).join("release/toolgate"))
}

/// What every cargo command needs for this target.
fn prepare(command: &mut Command, toolchain: &Toolchain, verb: &str, folder: &Path) {
    toolchain::clean(command);
    command
        .current_dir(root().join("ebpf"))
        .args([verb, "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(folder)
        .env("RUSTC", &toolchain.rustc)
        // asm_experimental_arch and, where core is built from source, -Zbuild-std.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        // BTF is made from the debug info.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
        .env("LD_LIBRARY_PATH", &toolchain.llvm);
    if toolchain.builds_core {
        command.arg("-Zbuild-std=core");
    }
}

/// Debug info is nine tenths of the object, and nobody reads it once there is BTF.
fn strip(toolchain: &Toolchain, built: &Path, stripped: &Path) -> Result<()> {
    let Some(objcopy) = &toolchain.objcopy else {
        fs::copy(built, stripped).with_context(|| format!("cannot copy `{}`", built.display()))?;
        return Ok(());
    };
    let mut command = Command::new(objcopy);
    command.arg("--strip-debug").arg(built).arg(stripped).env("LD_LIBRARY_PATH", &toolchain.llvm);
    run_quietly(&mut command).context("the BPF object cannot be stripped")?;
    Ok(())
}

/// Puts the object where the agent's build looks, in one step; an equal one stays as it is, so that the agent is
/// not built again for it.
fn place(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read `{}`", from.display()))?;
    if new.is_empty() {
        bail!("`{}` is empty", from.display());
    }
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let context = || format!("cannot write `{}`", to.display());
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(context)?;
    }
    fs::rename(from, to).with_context(context)
}

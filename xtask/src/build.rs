//! The agent with its BPF object.

use std::path::PathBuf;

use anyhow::Result;

use crate::ebpf;
use crate::workspace::{cargo, run, say, target};

/// Builds the BPF object, then the agent around it. Returns the agent's binary.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let (profile, folder) = if release { ("release", "release") } else { ("dev", "debug") };
    ebpf::build()?;
    say("building the agent");
    run(&mut cargo(["build", "--package", "toolgate", "--bin", "toolgate", "--profile", profile]))?;
    Ok(target()?.join(folder).join("toolgate"))
}

/// What the compiler does beside compiling.
pub(crate) enum Build {
    /// Nothing.
    Plain,
    /// The agent counts what runs, and leaves its counts in this folder when it ends.
    Counting(PathBuf),
    /// It is told by these counts what is worth its while.
    Counted(PathBuf),
}

/// The same as it is packaged: slower to build, faster to run. Its relocations are kept: what lays out its code needs them.
pub(crate) fn build_to_package(build: &Build) -> Result<PathBuf> {
    ebpf::build()?;
    let (what, flag, folder) = match build {
        Build::Plain => ("as it is packaged", None, ""),
        Build::Counting(counts) => {
            ("so that it counts what runs", Some(("profile-generate", counts)), "counting")
        }
        Build::Counted(profile) => ("as it is packaged", Some(("profile-use", profile)), "counted"),
    };
    say(format_args!("building the agent {what}"));
    let target = target()?.join(folder);
    let mut command = cargo(["rustc", "--package", "toolgate", "--bin", "toolgate", "--profile", "dist"]);
    command.arg("--target-dir").arg(&target);
    if let Some((flag, path)) = flag {
        // By this variable they hold for what it is built from, too; each of them has a target folder of its own.
        command.env("CARGO_ENCODED_RUSTFLAGS", format!("-C{flag}={}", path.display()));
    }
    run(command.args(["--", "-C", "link-arg=-Wl,--emit-relocs"]))?;
    Ok(target.join("dist/toolgate"))
}

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

/// The same as it is packaged: slower to build, faster to run. Its relocations are kept: what lays out its code needs them.
pub(crate) fn build_to_package() -> Result<PathBuf> {
    ebpf::build()?;
    say("building the agent as it is packaged");
    let what = ["rustc", "--package", "toolgate", "--bin", "toolgate", "--profile", "dist"];
    run(cargo(what).args(["--", "-C", "link-arg=-Wl,--emit-relocs"]))?;
    Ok(target()?.join("dist/toolgate"))
}

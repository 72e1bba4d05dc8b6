//! The agent with its BPF object.

use std::path::PathBuf;

use anyhow::Result;

use crate::ebpf;
use crate::workspace::{cargo, run, say, target};

/// Builds the BPF object, then the agent around it. Returns the agent's binary.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    if release { build_as("release", "release") } else { build_as("dev", "debug") }
}

/// The same as it is packaged: slower to build, faster to run.
pub(crate) fn build_to_package() -> Result<PathBuf> {
    build_as("dist", "dist")
}

fn build_as(profile: &str, folder: &str) -> Result<PathBuf> {
    ebpf::build()?;
    say("building the agent");
    run(&mut cargo(["build", "--package", "toolgate", "--bin", "toolgate", "--profile", profile]))?;
    Ok(target()?.join(folder).join("toolgate"))
}

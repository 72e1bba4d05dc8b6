//! The agent with its BPF object.

use std::path::PathBuf;

use anyhow::Result;

use crate::ebpf;
use crate::workspace::{cargo, run, say, target};

/// Builds the BPF object, then the agent around it. Returns the agent's binary.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    ebpf::build()?;
    say("building the agent");
    let mut command = cargo(["build", "--package", "toolgate", "--bin", "toolgate"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    Ok(target()?.join(if release { "release" } else { "debug" }).join("toolgate"))
}

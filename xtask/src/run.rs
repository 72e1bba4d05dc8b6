//! `cargo xtask run`: the agent in the foreground, on the user's configuration or the embedded default.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::workspace::say;
use crate::{build, sudo};

/// Builds the agent and becomes it: terminal, signals and exit code are its own.
pub(crate) fn run(release: bool, arguments: &[String]) -> Result<()> {
    let root = sudo::root()?;
    let agent = build::build(release)?;
    say(format_args!(
        "starting the agent; in another terminal, as root: {} exec --app-id NAME -- COMMAND",
        agent.display()
    ));
    let error = sudo::command(root, &agent).arg("run").args(arguments).exec();
    Err(error).with_context(|| format!("cannot start `{}`", agent.display()))
}

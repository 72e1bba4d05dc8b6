//! `cargo xtask demo`: one unmodified MCP client against one real MCP server, once without an agent and once captured.

mod show;
mod stage;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::leftovers::Leftovers;
use crate::packages::Packages;
use crate::sudo::{self, Root};
use crate::workspace::say;
use crate::{build, packages, process};
use stage::Stage;

/// What the part that runs as root is told by the part that built everything.
#[derive(clap::Args)]
pub(crate) struct Prepared {
    /// The agent's binary
    #[arg(long)]
    agent: PathBuf,
    /// A Python interpreter with the official SDK
    #[arg(long)]
    python: PathBuf,
    /// The entry file of `server-everything`
    #[arg(long)]
    server_everything: PathBuf,
}

/// Sets up what is missing and builds, as this user; then shows, as root.
pub(crate) fn demo() -> Result<()> {
    let root = sudo::root()?;
    let Packages { python, server_everything } = packages::install()?;
    let prepared = Prepared { agent: build::build(false)?, python, server_everything };
    match root {
        Root::Already => show(&prepared),
        Root::Sudo => {
            let this = std::env::current_exe().context("cannot tell where this program is")?;
            let mut command = sudo::command(root, this);
            command.arg("demo-as-root").arg("--agent").arg(&prepared.agent);
            command.arg("--python").arg(&prepared.python);
            command.arg("--server-everything").arg(&prepared.server_everything);
            Err(command.exec()).context("cannot start sudo")
        }
    }
}

/// The demo itself: needs root, builds nothing, leaves nothing behind whichever way it ends.
pub(crate) fn show(prepared: &Prepared) -> Result<()> {
    process::end_in_order()?;
    let mut leftovers = Leftovers::before()?;
    let folder =
        tempfile::Builder::new().prefix("toolgate-demo.").tempdir().context("cannot make a folder")?;
    let shown = Stage::set(prepared, folder.path(), &mut leftovers).and_then(|mut stage| {
        let shown = perform(&mut stage);
        shown.and(stage.strike())
    });
    let path = folder.path().to_owned();
    folder.close().with_context(|| format!("cannot remove `{}`", path.display()))?;
    let left = leftovers.check(&prepared.agent);
    if process::was_interrupted() {
        left?;
        say("interrupted; nothing is left behind");
        std::process::exit(130);
    }
    match (shown, left) {
        (Ok(()), Ok(())) => {
            println!("{}", show::footer());
            Ok(())
        }
        (Err(error), Ok(())) => Err(error),
        (Ok(()), Err(left)) => Err(left),
        (Err(error), Err(left)) => bail!("{error:#}\nand then: {left:#}"),
    }
}

fn perform(stage: &mut Stage<'_>) -> Result<()> {
    say("running the same client captured as `demo-agent`");
    let captured = stage.client_captured()?;
    let audit = stage.audit()?;
    let metrics = stage.metrics()?;
    println!("{}", show::heading(stage));
    println!(
        "{}",
        show::side_by_side(["captured as demo-agent", "without an agent"], [&captured, &stage.outside])
    );
    println!("{}", show::audit(&audit));
    println!("{}", show::metrics(&metrics));
    Ok(())
}

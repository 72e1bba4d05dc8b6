//! Programs from Debian's packages, installed where they are missing and may be.

use anyhow::{Context as _, Result, bail};

use crate::sudo;
use crate::workspace::{find_program, run_quietly, say};

/// A program and the package that has it.
pub(crate) type Packaged = (&'static str, &'static str);

/// Installs the packages of those programs that are missing, for `what`.
pub(crate) fn need(what: &str, programs: &[Packaged]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| find_program(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let by_hand = packages.join(" ");
    install(&packages).with_context(|| format!("{what} needs them: `apt-get install {by_hand}` or the like"))
}

/// Installs packages by apt-get, as root or by sudo. Nothing is removed for them.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("no apt-get here to install {}", packages.join(", "));
    }
    let root = sudo::root()?;
    let apt = |arguments: &[&str]| {
        let mut command = sudo::command(root, "env");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments);
        command
    };
    let install = [&["install", "--yes", "--no-install-recommends", "--no-remove"], packages].concat();
    say(format_args!("installing Debian's {}", packages.join(", ")));
    if run_quietly(&mut apt(&install)).is_err() {
        // Its lists may be missing or old.
        say("updating apt's lists");
        run_quietly(&mut apt(&["update"]))?;
        run_quietly(&mut apt(&install))?;
    }
    Ok(())
}

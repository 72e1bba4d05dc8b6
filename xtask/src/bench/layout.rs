//! The agent's code, laid out by what runs. A call meets each piece of it once, so that much of its time is waiting for code;
//! where what runs lies together, and what does not lies apart, up to a fifth of its CPU is saved. BOLT does so to a linked
//! binary, by counts from an instrumented one under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::lineup::lineup;
use super::rounds::Plan;
use super::stage::Stage;
use super::{Prepared, Wanted};
use crate::debian::Packaged;
use crate::leftovers::Leftovers;
use crate::workspace::{find_program, run_quietly, say};

/// BOLT, as Debian packages it.
pub(super) const BOLT: Packaged = ("llvm-bolt-19", "bolt-19");
/// How long each case runs while it is counted.
const MILLIS: u64 = 250;
/// Only what ran is moved; tight loops keep their place within a line.
const LAYOUT: [&str; 8] = [
    "-lite=1",
    "-reorder-blocks=ext-tsp",
    "-reorder-functions=cdsort",
    "-split-functions",
    "-split-all-cold",
    "-split-eh",
    "-align-blocks",
    "-preserve-blocks-alignment",
];
/// Assembly describes itself too loosely to be taken apart.
const LEFT_ALONE: &str = "-skip-funcs=aws_lc_.*,_?blake3_.*";

/// Where BOLT is, with all that belongs to it beside it.
pub(super) fn bolt() -> Result<PathBuf> {
    let (program, package) = BOLT;
    let found =
        find_program(program).with_context(|| format!("`{package}` is installed without `{program}`"))?;
    found.canonicalize().with_context(|| format!("cannot tell where `{}` leads", found.display()))
}

/// The agent laid out, beside the one that was built; made again where that is newer.
pub(super) fn laid_out(
    prepared: &Prepared,
    bolt: &Path,
    folder: &Path,
    leftovers: &mut Leftovers,
) -> Result<PathBuf> {
    let built = &prepared.agent;
    let laid_out = built.with_extension("laid-out");
    let changed = |file: &Path| fs::metadata(file).and_then(|file| file.modified());
    let built_at = changed(built).with_context(|| format!("cannot look at `{}`", built.display()))?;
    if changed(&laid_out).is_ok_and(|laid_out_at| laid_out_at > built_at) {
        return Ok(laid_out);
    }
    say("laying out the agent's code by what runs under load");
    let folder = folder.join("layout");
    let counts = folder.join("counts");
    fs::create_dir_all(&counts).context("cannot make a folder")?;
    let agent = folder.join("toolgate");
    let mut instrument = Command::new(bolt);
    instrument.arg(built).arg("-o").arg(&agent).args(["-instrument", LEFT_ALONE]);
    instrument.arg(format!("-instrumentation-file={}", counts.join("of").display()));
    run_quietly(instrument.arg("-instrumentation-file-append-pid"))?;
    load_all(&agent, &folder, leftovers)?;
    let all = folder.join("counts.fdata");
    let mut merge = Command::new(bolt.with_file_name("merge-fdata"));
    for one in fs::read_dir(&counts).context("cannot list the counts")? {
        merge.arg(one.context("cannot list the counts")?.path());
    }
    run_quietly(merge.arg("-o").arg(&all))?;
    let unnamed = laid_out.with_extension("unnamed");
    let mut lay_out = Command::new(bolt);
    lay_out.arg(built).arg("-o").arg(&unnamed).arg(format!("-data={}", all.display()));
    run_quietly(lay_out.args(LAYOUT).arg(LEFT_ALONE))?;
    fs::rename(&unnamed, &laid_out).with_context(|| format!("cannot make `{}`", laid_out.display()))?;
    Ok(laid_out)
}

/// Every case of the bench, for a moment, with one hop and with two.
pub(super) fn load_all(agent: &Path, folder: &Path, leftovers: &mut Leftovers) -> Result<()> {
    for two_hops in [false, true] {
        let wanted = Wanted { only: vec!["toolgate".to_owned()], two_hops, ..Wanted::default() };
        let counting = Prepared { agent: agent.to_owned(), envoy: None, bolt: None, counts: true, wanted };
        load(&counting, &folder.join(if two_hops { "two" } else { "one" }), leftovers)?;
    }
    Ok(())
}

fn load(counted: &Prepared, folder: &Path, leftovers: &mut Leftovers) -> Result<()> {
    fs::create_dir_all(folder).context("cannot make a folder")?;
    let mut stage = Stage::set(counted, folder)?;
    let contestants = lineup(&stage, &counted.wanted, leftovers)?;
    for case in Plan::of(&counted.wanted).cases {
        for agents in contestants.iter().filter(|contestant| contestant.captured) {
            stage.sample(agents, case, MILLIS)?;
        }
    }
    contestants.into_iter().rev().try_for_each(super::contestant::Contestant::stop)?;
    stage.strike()
}

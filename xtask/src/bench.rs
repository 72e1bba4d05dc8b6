//! `cargo xtask bench`: the agent beside other proxies, one upstream and one load generator for all of them.
//!
//! Figures of two runs do not compare, so all is in ratios to `direct`, taken round by round, their median over the rounds.

mod certificates;
mod cgroups;
mod compare;
mod contestant;
mod growth;
mod hosts;
mod layout;
mod lineup;
mod load;
mod peers;
mod profile;
mod report;
mod resources;
mod rounds;
mod soak;
mod stage;
mod streams;
mod tool;
mod usage;

pub(crate) use tool::{generate, serve};

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::build::{self, Build};
use crate::debian::{self, Packaged};
use crate::leftovers::Leftovers;
use crate::sudo::{self, Root};
use crate::workspace::say;
use crate::{packages, process};
use stage::Stage;

/// Beside the agent: the peers that Debian packages (Envoy is PyPI's), what makes hosts and certificates for two hops, and what
/// lays out the agent's code.
const NEEDED: [Packaged; 5] = [
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("openssl", "openssl"),
    layout::BOLT,
];
/// Two descriptors for each of 10,000 streams, and some more.
const DESCRIPTORS: u64 = 65_536;

/// What is measured.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct Wanted {
    /// Fewer and shorter rounds of the most important cases
    #[arg(long)]
    quick: bool,
    /// Write the results there, as a JSON array
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only these beside `direct`: nginx, haproxy, envoy, toolgate
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only cases whose name, as the table has it, contains this
    #[arg(long)]
    case: Option<String>,
    /// With two of each proxy, one on each of two hosts, and mutual TLS between them
    #[arg(long, conflicts_with_all = ["growth", "soak", "streams", "before"])]
    two_hops: bool,
    /// Measure instead how cost grows with rules, workloads, streams and connections
    #[arg(long)]
    growth: bool,
    /// Send instead 1,000,000 requests through one agent and watch its memory and descriptors
    #[arg(long)]
    soak: bool,
    /// Open instead 1,000 event streams with an event each second, and measure delay and memory
    #[arg(long)]
    streams: bool,
    /// Compare instead with this other build of the agent, pair by pair
    #[arg(long, value_name = "AGENT")]
    before: Option<PathBuf>,
}

/// What the part that runs as root is told by the part that built everything.
#[derive(Clone, clap::Args)]
pub(crate) struct Prepared {
    /// The agent's binary
    #[arg(long)]
    agent: PathBuf,
    /// Envoy's binary
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// What lays out the agent's code
    #[arg(long)]
    bolt: Option<PathBuf>,
    /// Measure nothing: the agent counts what runs under load
    #[arg(long)]
    counts: bool,
    #[command(flatten)]
    wanted: Wanted,
}

/// Sets up what is missing and builds, as this user; then measures, as root.
pub(crate) fn bench(wanted: Wanted) -> Result<()> {
    let root = sudo::root()?;
    debian::need("the bench", &NEEDED)?;
    let envoy = packages::envoy().inspect_err(|error| say(format_args!("Envoy is missing: {error:#}"))).ok();
    let build = profile::profile(root)?.map_or(Build::Plain, Build::Counted);
    let (agent, bolt) = (build::build_to_package(&build)?, layout::bolt()?);
    match root {
        Root::Already => measure(&Prepared { agent, envoy, bolt: Some(bolt), counts: false, wanted }),
        Root::Sudo => {
            let this = std::env::current_exe().context("cannot tell where this program is")?;
            let mut command = sudo::command(root, this);
            command.arg("bench-as-root").arg("--agent").arg(&agent).arg("--bolt").arg(&bolt);
            command.args(envoy.iter().flat_map(|envoy| ["--envoy".as_ref(), envoy.as_os_str()]));
            command.args(std::env::args_os().skip_while(|word| word != "bench").skip(1));
            Err(command.exec()).context("cannot start sudo")
        }
    }
}

/// The bench itself: needs root, builds nothing, leaves nothing behind whichever way it ends.
pub(crate) fn measure(prepared: &Prepared) -> Result<()> {
    process::end_in_order()?;
    let _turn = turn()?;
    let descriptors = raise_descriptor_limit()?;
    let mut leftovers = Leftovers::before()?;
    let folder =
        tempfile::Builder::new().prefix("toolgate-bench.").tempdir().context("cannot make a folder")?;
    let measured = if prepared.counts {
        layout::load_all(&prepared.agent, folder.path(), &mut leftovers)
    } else {
        measured(prepared, descriptors, folder.path(), &mut leftovers)
    };
    let path = folder.path().to_owned();
    folder.close().with_context(|| format!("cannot remove `{}`", path.display()))?;
    let left = leftovers.check(&prepared.agent);
    if process::was_interrupted() {
        left?;
        say("interrupted; nothing is left behind");
        std::process::exit(130);
    }
    match (measured, left) {
        (measured, Ok(())) => measured,
        (Ok(()), Err(left)) => Err(left),
        (Err(error), Err(left)) => bail!("{error:#}\nand then: {left:#}"),
    }
}

fn measured(prepared: &Prepared, descriptors: u64, folder: &Path, leftovers: &mut Leftovers) -> Result<()> {
    let prepared = with_layout(prepared, folder, leftovers)?;
    let mut stage = Stage::set(&prepared, folder)?;
    let wanted = &prepared.wanted;
    let measured = match (wanted.growth, wanted.soak, wanted.streams, &wanted.before) {
        (true, _, _, _) => growth::growth(&mut stage, descriptors, leftovers),
        (false, true, _, _) => soak::soak(&mut stage, leftovers),
        (false, false, true, _) => streams::streams(&stage, leftovers),
        (false, false, false, Some(before)) => compare::compare(&mut stage, before, wanted, leftovers),
        (false, false, false, None) => rounds::rounds(&mut stage, wanted, leftovers),
    };
    measured.and(stage.strike())
}

/// The agent that is measured: as it is packaged.
fn with_layout(prepared: &Prepared, folder: &Path, leftovers: &mut Leftovers) -> Result<Prepared> {
    let Some(bolt) = &prepared.bolt else { return Ok(prepared.clone()) };
    let agent = layout::laid_out(prepared, bolt, folder, leftovers)?;
    Ok(Prepared { agent, ..prepared.clone() })
}

/// One agent a host: the tests take turns by the same file.
fn turn() -> Result<File> {
    let path = std::env::temp_dir().join("toolgate-tests.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open `{}`", path.display()))?;
    if file.try_lock().is_err() {
        say("waiting for whoever uses this host for tests");
        file.lock().context("cannot take this host's lock")?;
    }
    Ok(file)
}

/// Whatever is started from here on inherits it. Returns the limit: root of a container may not raise it.
fn raise_descriptor_limit() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask for the descriptor limit")?;
    let wanted = hard.max(DESCRIPTORS);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(wanted);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the descriptor limit")?;
    Ok(hard)
}

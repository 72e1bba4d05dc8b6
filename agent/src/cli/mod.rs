//! The command line.

mod bypass;
mod exec;
mod log;
mod status;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::admin::client::{self, UpgradeRequest};
use crate::{app, capture, config, listeners, netns};

/// Where the configuration is looked for when `--config` does not say.
const CONFIG_DIR: &str = "/etc/toolgate";

/// An identity, a policy and a record on every MCP call of unmodified processes.
#[derive(Debug, Parser)]
#[command(name = "toolgate", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or `check` found errors; 2 wrong usage. \
`exec` leaves with the program's own; 126 it cannot be started, 127 there is none of that name.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGINT or SIGTERM; then nothing is captured any more
    Run {
        #[command(flatten)]
        config: Config,
        /// Let pass what policy would deny, undeclared servers included, and record it
        #[arg(long)]
        observe: bool,
        /// Keep capturing after the end: what is captured is refused until the next `run`, or `toolgate detach`
        ///
        /// So a restart opens no gap. For a service manager, whose units otherwise reach their servers unseen from the
        /// stop to the start. With `capture.agent_loss: dangerous_open` they do so all the same, after two seconds. A
        /// cgroup of `capture.cgroups` may be missing at the start then: at boot the agent is there before its units.
        #[arg(long)]
        stay_attached: bool,
        /// Take over from the agent at the standard input, which has started this one
        #[arg(long, hide = true)]
        handover: bool,
    },
    /// Start the agent's binary anew beside the running one, which hands over to it; no connection is refused
    #[command(after_help = UPGRADE_HELP)]
    Upgrade {
        #[command(flatten)]
        config: Config,
        /// The new binary [default: what is now at the path that the agent was started from]
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// Break glass: let a captured cgroup go where it is meant to for a while, unchecked; audited
    #[command(
        after_help = "Example: toolgate bypass --for 10m --reason 'incident 4711' --app-id research-agent"
    )]
    Bypass(bypass::Bypass),
    /// Run a program, unmodified, in a captured cgroup with an App ID
    #[command(after_help = "Example: toolgate exec --app-id research-agent -- python agent.py")]
    Exec(exec::Exec),
    /// Validate the configuration; print what would be captured, for whom, and each rule in words
    Check {
        #[command(flatten)]
        config: Config,
    },
    /// Show what the running agent did
    Status {
        #[command(flatten)]
        config: Config,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what a dead agent left in the kernel: captured processes reach their servers directly again
    Detach,
    /// A canary's flight: see `app::canary`
    #[command(name = app::canary::COMMAND, hide = true)]
    Canary,
}

const UPGRADE_HELP: &str = "The new one starts with the arguments of the running one, and reads toolgate.yaml and the \
resources anew. Where it does not start, the running one goes on, and this says why. Requests that run have the time of \
an orderly end (drain_time_max); event streams end, and clients open them again.";

/// Which configuration.
#[derive(Debug, Args)]
struct Config {
    /// Directory of toolgate.yaml and resources/ [default: /etc/toolgate where it exists, else the embedded one]
    #[arg(long = "config", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Config {
    fn dir(&self) -> Option<PathBuf> {
        self.dir.clone().or_else(|| Some(PathBuf::from(CONFIG_DIR)).filter(|dir| dir.is_dir()))
    }

    /// Where the agent of this configuration is asked.
    fn admin(&self) -> anyhow::Result<PathBuf> {
        let agent = match self.dir() {
            Some(dir) => config::load_agent(&dir).map_err(|all| errors(&all))?,
            None => config::embedded().0,
        };
        Ok(agent.listen.admin)
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            // Nobody reads it: then nobody misses it.
            let _ = writeln!(std::io::stderr(), "toolgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run { config, observe, stay_attached, handover } => {
                log::to_stderr();
                // Now, while the path still leads to what runs here.
                let binary = std::env::current_exe().context("cannot tell what runs here")?;
                let options = app::Options { config: config.dir(), observe, stay_attached, handover, binary };
                block_on(async { Ok(app::run(options).await?) })?;
            }
            Self::Upgrade { config, binary } => upgrade(&config, binary)?,
            Self::Bypass(bypass) => bypass.run()?,
            Self::Canary => return Ok(canary()),
            Self::Exec(exec) => return exec.run(),
            Self::Check { config } => check(&config)?,
            Self::Status { config, json } => {
                let answer = block_on(async { Ok(client::status(&config.admin()?).await?) })?;
                status::print(&answer, json)?;
            }
            Self::Detach => detach()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One thread, so that `exec` can replace the process from where it stands.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn errors(all: &[config::Diagnostic]) -> anyhow::Error {
    let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("the configuration has errors\n\n{}", texts.join("\n"))
}

fn check(config: &Config) -> anyhow::Result<()> {
    let dir = config.dir();
    let (agent, resources) = app::load(dir.as_ref()).map_err(|all| errors(&all))?;
    let mut out = std::io::stdout().lock();
    for warning in &resources.warnings {
        writeln!(out, "{warning}")?;
    }
    writeln!(out, "{}", config::explain(&agent, &resources))?;
    app::check_here(&agent)?;
    let found =
        listeners::check(&resources, &agent.trust_domain).context("cannot look at listening sockets")?;
    let (wrong, unsure): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|finding| finding.severity == config::Severity::Error);
    for finding in unsure {
        writeln!(out, "{finding}")?;
    }
    if !wrong.is_empty() {
        let texts: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        anyhow::bail!("servers are not behind who is to serve them\n\n{}", texts.join("\n"));
    }
    Ok(())
}

fn upgrade(config: &Config, binary: Option<PathBuf>) -> anyhow::Result<()> {
    let binary = binary.map(|path| path.canonicalize().with_context(|| shown(&path))).transpose()?;
    let wanted = UpgradeRequest { binary };
    let answer = block_on(async { Ok(client::upgrade(&config.admin()?, &wanted).await?) })?;
    writeln!(std::io::stdout(), "agent {} took over from agent {}", answer["pid"], answer["before"])?;
    Ok(())
}

fn canary() -> ExitCode {
    // Nobody reads it: then nobody misses it.
    let _ = writeln!(std::io::stdout(), "{}", app::canary::enter_and_fly());
    ExitCode::SUCCESS
}

fn detach() -> anyhow::Result<()> {
    if let Some(pid) = app::holder()? {
        anyhow::bail!("the agent runs (pid {pid}): stop it, and it detaches by itself");
    }
    let removed = capture::detach().context("cannot detach")?;
    let cgroup = app::exec_root::remove();
    netns::give_back_all();
    let mut out = std::io::stdout().lock();
    match (removed.links, cgroup) {
        (0, false) => writeln!(out, "nothing was attached")?,
        (links, _) => {
            let maps = removed.maps;
            writeln!(
                out,
                "removed {links} links, {maps} maps and the cgroup of `exec`; nothing is captured any more"
            )?;
        }
    }
    Ok(())
}

/// The path of a directory, for messages.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

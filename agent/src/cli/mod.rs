//! The command line.

mod bypass;
mod ca;
mod check;
mod discover;
mod exec;
mod exit;
mod inspect;
mod log;
mod status;
mod tools;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use serde_json::{Value, json};

use self::exit::ConfigurationError;
use crate::admin::client::{self, UpgradeRequest};
use crate::{app, capture, config, netns};

/// Where the configuration is looked for when `--config` does not say.
const CONFIG_DIR: &str = "/etc/toolgate";

/// An identity, a policy and a record on every MCP call of unmodified processes.
#[derive(Debug, Parser)]
#[command(name = "toolgate", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGINT or SIGTERM; then nothing is captured any more
    #[command(after_help = "Example: toolgate run --observe")]
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
        /// As JSON: the process ids `pid` and `before`
        #[arg(long)]
        json: bool,
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
    #[command(after_help = "Example: toolgate check --config ./toolgate && systemctl reload toolgate")]
    Check(check::Check),
    /// Show what the running agent did
    #[command(after_help = "Example: toolgate status --json | jq .requests")]
    Status {
        #[command(flatten)]
        config: Config,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the MCP servers that captured programs used though nothing declares them, and what would
    #[command(after_help = "Example: toolgate discover --json | jq .servers")]
    Discover {
        #[command(flatten)]
        config: Config,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// What servers offer: list it, see what changed, approve and revoke (Servers with `pins`)
    #[command(subcommand, after_help = "Example: toolgate tools approve docs --all")]
    Tools(tools::Tools),
    /// The authority of this node: its certificates and their rotation, the nodes that join it, its backup
    #[command(subcommand, after_help = "Example: toolgate ca status")]
    Ca(ca::Ca),
    /// TLS that is read (`capture.tls: inspect`): let programs believe this node's authority
    #[command(subcommand, after_help = "Example: toolgate inspect trust --unit research-agent")]
    Inspect(inspect::Inspect),
    /// Remove what a dead agent left in the kernel: captured processes reach their servers directly again
    #[command(after_help = "Example: toolgate detach --json")]
    Detach {
        /// As JSON: how many `links` and `maps` were removed, and whether the `cgroup` of `exec` was
        #[arg(long)]
        json: bool,
    },
    /// Print what completes this command line in a shell
    #[command(
        after_help = "Example: toolgate completions bash > /usr/share/bash-completion/completions/toolgate"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "Example: toolgate man /usr/share/man/man1")]
    Man {
        /// Gets `toolgate.1`, and a page for each command
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// A canary's flight: see `app::canary`
    #[command(name = app::canary::COMMAND, hide = true)]
    Canary,
}

const UPGRADE_HELP: &str = "Example: toolgate upgrade --binary ./toolgate

The new one starts with the arguments of the running one, and reads toolgate.yaml and the \
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
            Some(dir) => config::load_agent(&dir).map_err(ConfigurationError::Files)?,
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
            exit::code(&error)
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
            Self::Upgrade { config, binary, json } => upgrade(&config, binary, json)?,
            Self::Bypass(bypass) => bypass.run()?,
            Self::Tools(tools) => tools.run()?,
            Self::Ca(ca) => ca.run()?,
            Self::Inspect(inspect) => inspect.run()?,
            Self::Canary => return Ok(canary()),
            Self::Exec(exec) => return exec.run(),
            Self::Check(check) => check.run()?,
            Self::Status { config, json } => {
                let answer = block_on(async { Ok(client::status(&config.admin()?).await?) })?;
                status::print(&answer, json)?;
                if !answer["unready"].is_null() {
                    return Ok(ExitCode::from(exit::NOT_READY));
                }
            }
            Self::Discover { config, json } => {
                let answer = block_on(async { Ok(client::discover(&config.admin()?).await?) })?;
                discover::print(&answer, json)?;
            }
            Self::Detach { json } => detach(json)?,
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut shown_commands(), "toolgate", &mut std::io::stdout());
            }
            Self::Man { dir } => {
                clap_mangen::generate_to(Cli::command(), &dir).with_context(|| shown(&dir))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One thread, so that `exec` can replace the process from where it stands.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{value:#}").context("cannot print")
}

fn upgrade(config: &Config, binary: Option<PathBuf>, json: bool) -> anyhow::Result<()> {
    let binary = binary.map(|path| path.canonicalize().with_context(|| shown(&path))).transpose()?;
    let wanted = UpgradeRequest { binary };
    let answer = block_on(async { Ok(client::upgrade(&config.admin()?, &wanted).await?) })?;
    if json {
        return print_json(&answer);
    }
    writeln!(std::io::stdout(), "agent {} took over from agent {}", answer["pid"], answer["before"])?;
    Ok(())
}

/// Without what only the agent itself calls: shells would offer it.
fn shown_commands() -> clap::Command {
    let all = Cli::command();
    let shown: Vec<_> = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    clap::Command::new("toolgate").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

fn canary() -> ExitCode {
    // Nobody reads it: then nobody misses it.
    let _ = writeln!(std::io::stdout(), "{}", app::canary::enter_and_fly());
    ExitCode::SUCCESS
}

fn detach(json: bool) -> anyhow::Result<()> {
    if let Some(pid) = app::holder()? {
        anyhow::bail!("the agent runs (pid {pid}): stop it, and it detaches by itself");
    }
    let removed = capture::detach().context("cannot detach")?;
    let cgroup = app::exec_root::remove();
    netns::give_back_all();
    if json {
        return print_json(&json!({ "links": removed.links, "maps": removed.maps, "cgroup": cgroup }));
    }
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

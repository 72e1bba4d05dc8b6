//! `toolgate ca`: the authority of this node.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Config, block_on, print_json, shown};
use crate::admin::client::{self, AuthorityRequest};
use crate::ca::{self, Level};
use crate::{app, config};

/// What `ca` takes.
#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Show the authority's roots and issuing certificates, and the SVIDs of this node
    #[command(
        after_help = "Example: toolgate ca status --json | jq '.roots[] | select(.stage == \"active\")'"
    )]
    Status {
        #[command(flatten)]
        config: Config,
        /// As JSON: `roots`, `issuing`, `jwt_keys` and `svids`
        #[arg(long)]
        json: bool,
    },
    /// Rotate now what rotates by itself: prepare a new root, which signs when everybody knows it; audited
    #[command(after_help = "Example: toolgate ca rotate --issuing")]
    Rotate {
        #[command(flatten)]
        config: Config,
        /// The certificate that signs SVIDs instead: a new one signs at once
        #[arg(long)]
        issuing: bool,
        /// As JSON, like `status`
        #[arg(long)]
        json: bool,
    },
    /// Print a token by which one node may join, once: it may have SVIDs of these App IDs and no others; audited
    #[command(after_help = TOKEN_HELP)]
    Token(Token),
    /// List the nodes that have joined, and the tokens that wait
    #[command(after_help = "Example: toolgate ca nodes --json | jq '.nodes[].node'")]
    Nodes {
        #[command(flatten)]
        config: Config,
        /// As JSON: `nodes`, `tokens` and `revoked_serials`
        #[arg(long)]
        json: bool,
    },
    /// Revoke all that was issued to a node, or one certificate: nodes refuse it within twenty seconds; audited
    #[command(after_help = "Example: toolgate ca revoke node-a")]
    Revoke {
        #[command(flatten)]
        config: Config,
        /// A node's name, or a serial number as `ca status`, the audit or `openssl x509 -serial` shows it
        #[arg(value_name = "NODE|SERIAL")]
        what: String,
        /// As JSON, like `nodes`
        #[arg(long)]
        json: bool,
    },
    /// Write the whole authority, keys included, into one new file (mode 0600); audited
    #[command(after_help = "Example: toolgate ca backup /media/safe/toolgate-ca.json")]
    Backup {
        #[command(flatten)]
        config: Config,
        /// The file: there must be none
        file: PathBuf,
        /// As JSON: the `file`
        #[arg(long)]
        json: bool,
    },
    /// Put a backup's authority into the state directory, where there is none; while no agent runs
    #[command(after_help = RESTORE_HELP)]
    Restore(Restore),
}

const RESTORE_HELP: &str = "Example: systemctl stop toolgate && toolgate ca restore /media/safe/toolgate-ca.json

Let an authority run in one place only: two of one name do not know of each other's rotations and revocations.";

const TOKEN_HELP: &str = "Example: toolgate ca token --node node-a --app-ids research-agent,docs > node-a.token

On the node, the file (mode 0600) is named by `identity: { source: join, token_file: FILE }`. Whoever has the token first is \
that node: hand it over in secret.";

/// What `token` takes.
#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(flatten)]
    config: Config,
    /// The node's name
    #[arg(long, value_name = "NAME")]
    node: String,
    /// What it may have SVIDs of: App IDs, with their namespace where that is not `default`
    #[arg(long, value_name = "APP[.NAMESPACE],…", value_delimiter = ',', required = true)]
    app_ids: Vec<String>,
    /// How long it may take to join: `1h`, at most 30 days
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "1h")]
    ttl: Duration,
    /// Where the node finds this authority [default: listen.authority]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// As JSON: the `token`, and `until` when it is good
    #[arg(long)]
    json: bool,
}

/// What `restore` takes.
#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    config: Config,
    /// What `backup` wrote
    file: PathBuf,
    /// As JSON: the `folder`
    #[arg(long)]
    json: bool,
}

impl Ca {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Status { config, json } => print(&ask(&config, &AuthorityRequest::Status)?, json),
            Self::Rotate { config, issuing, json } => {
                let level = if issuing { Level::Issuing } else { Level::Root };
                print(&ask(&config, &AuthorityRequest::Rotate(level))?, json)
            }
            Self::Token(wanted) => wanted.run(),
            Self::Nodes { config, json } => print_nodes(&ask(&config, &AuthorityRequest::Nodes)?, json),
            Self::Revoke { config, what, json } => {
                print_nodes(&ask(&config, &AuthorityRequest::Revoke(what))?, json)
            }
            Self::Backup { config, file, json } => backup(&config, &file, json),
            Self::Restore(wanted) => wanted.run(),
        }
    }
}

fn backup(config: &Config, file: &Path, json: bool) -> anyhow::Result<()> {
    // Before anything is asked for: a backup that cannot be kept is not made.
    let mut kept = create(file)?;
    let answer = ask(config, &AuthorityRequest::Backup).inspect_err(|_| {
        // It holds nothing.
        let _ = std::fs::remove_file(file);
    })?;
    let text = answer["backup"].as_str().context("the agent's answer has no backup")?;
    kept.write_all(text.as_bytes()).and_then(|()| kept.sync_all()).with_context(|| shown(file))?;
    if json {
        return print_json(&json!({ "file": file }));
    }
    let words = "whoever can read it is the authority: keep it where nobody can";
    Ok(writeln!(std::io::stdout(), "{}: {words}", file.display())?)
}

impl Token {
    fn run(self) -> anyhow::Result<()> {
        let Self { config, node, app_ids, ttl, address, json } = self;
        let answer = ask(&config, &AuthorityRequest::Token { node, app_ids, ttl, address })?;
        if json {
            return print_json(&answer);
        }
        Ok(writeln!(std::io::stdout(), "{}", text(&answer, "token"))?)
    }
}

impl Restore {
    fn run(self) -> anyhow::Result<()> {
        if let Some(pid) = app::holder()? {
            anyhow::bail!("the agent runs (pid {pid}): stop it first");
        }
        let agent = match self.config.dir() {
            Some(dir) => config::load_agent(&dir).map_err(super::exit::ConfigurationError::Files)?,
            None => config::embedded().0,
        };
        let plan = app::authority_plan(&agent);
        ca::restore(&plan, &self.file)?;
        let folder = plan.folder();
        if self.json {
            return print_json(&json!({ "folder": folder }));
        }
        Ok(writeln!(
            std::io::stdout(),
            "restored to {}; it counts from the agent's next start",
            folder.display()
        )?)
    }
}

fn create(file: &Path) -> anyhow::Result<std::fs::File> {
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    new.with_context(|| format!("cannot make `{}`", file.display()))
}

fn ask(config: &Config, wanted: &AuthorityRequest) -> anyhow::Result<Value> {
    block_on(async { Ok(client::authority(&config.admin()?, wanted).await?) })
}

fn print(status: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(status);
    }
    Ok(std::io::stdout().write_all(words(status).as_bytes())?)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn print_nodes(nodes: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(nodes);
    }
    let rows = |key: &str| nodes[key].as_array().cloned().unwrap_or_default();
    let app_ids = |one: &Value| {
        let all = one["app_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
        all.collect::<Vec<_>>().join(", ")
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<24} {:<42} APP IDS", "NODE", "STATE")?;
    for node in rows("nodes") {
        let state = match node["revoked_at"].as_str() {
            Some(at) => format!("REVOKED {at}"),
            None => format!("joined {}", text(&node, "joined_at")),
        };
        writeln!(out, "{:<24} {state:<42} {}", text(&node, "node"), app_ids(&node))?;
    }
    for token in rows("tokens") {
        let state = format!("may join until {}", text(&token, "until"));
        writeln!(out, "{:<24} {state:<42} {}", text(&token, "node"), app_ids(&token))?;
    }
    for serial in rows("revoked_serials") {
        writeln!(out, "{:<24} REVOKED", serial.as_str().unwrap_or_default())?;
    }
    Ok(())
}

fn words(status: &Value) -> String {
    let rows = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let mut out = String::new();
    if status["source"] == "join" {
        let place = match status["node"].as_str() {
            Some(node) => format!("node {node} of the authority at {}", text(status, "authority")),
            None => "this node has not joined an authority yet".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{place}, trust domain {}", text(status, "trust_domain"));
        if let Some(why) = status["failed"].as_str() {
            let _ = writeln!(out, "FAILS: {why}");
        }
    } else if status["source"] == "workload-api" {
        let (socket, trust_domain) = (text(status, "socket"), text(status, "trust_domain"));
        let _ = writeln!(out, "the Workload API at {socket}, trust domain {trust_domain}");
        let names = |key| rows(key).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
        let _ = writeln!(out, "bundles of {}", names("trust_domains").join(", "));
        for id in names("not_given") {
            let _ = writeln!(out, "NOT GIVEN: {id}: its calls to other agents fail");
        }
        if let Some(why) = status["failed"].as_str() {
            let _ = writeln!(out, "FAILS: {why}");
        }
    } else {
        certificates(&mut out, status);
    }
    let svids = rows("svids");
    if !svids.is_empty() {
        let _ = writeln!(out, "\n{:<48} {:<21} {:<21} SERIAL", "SVID", "UNTIL", "RENEWED AT");
    }
    for svid in svids {
        let [id, until, renewed, serial] =
            ["spiffe_id", "not_after", "renewed_at", "serial"].map(|key| text(&svid, key));
        let _ = writeln!(out, "{id:<48} {until:<21} {renewed:<21} {serial}");
    }
    out
}

/// Those of an authority.
fn certificates(out: &mut String, status: &Value) {
    let rows = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "authority of trust domain {} in {}",
        text(status, "trust_domain"),
        text(status, "folder")
    );
    let _ =
        writeln!(out, "\n{:<8} {:<9} {:<9} {:<21} {:<10} SHA-256", "LEVEL", "ID", "STAGE", "UNTIL", "KEY");
    for (level, key) in [("root", "roots"), ("issuing", "issuing")] {
        for one in rows(key) {
            let [id, stage, until, kept, sha256] =
                ["id", "stage", "not_after", "key", "sha256"].map(|key| text(&one, key));
            let _ = writeln!(out, "{level:<8} {id:<9} {stage:<9} {until:<21} {kept:<10} {sha256}");
            if let Some(at) = one["active_at"].as_str() {
                let _ = writeln!(out, "{:<8} signs from {at} on", "");
            }
        }
    }
    for one in rows("jwt_keys") {
        let [id, stage, made_at] = ["id", "stage", "made_at"].map(|key| text(&one, key));
        let _ = writeln!(out, "{:<8} {id:<9} {stage:<9} made {made_at}", "jwt");
    }
}

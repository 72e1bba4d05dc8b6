//! `toolgate ca`: the authority of this node.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
        /// As JSON: `roots`, `issuing` and `svids`
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
            Self::Backup { config, file, json } => {
                // Before anything is asked for: a backup that cannot be kept is not made.
                let mut kept = create(&file)?;
                let answer = ask(&config, &AuthorityRequest::Backup).inspect_err(|_| {
                    // It holds nothing.
                    let _ = std::fs::remove_file(&file);
                })?;
                let text = answer["backup"].as_str().context("the agent's answer has no backup")?;
                kept.write_all(text.as_bytes())
                    .and_then(|()| kept.sync_all())
                    .with_context(|| shown(&file))?;
                if json {
                    return print_json(&json!({ "file": file }));
                }
                let words = "whoever can read it is the authority: keep it where nobody can";
                Ok(writeln!(std::io::stdout(), "{}: {words}", file.display())?)
            }
            Self::Restore(wanted) => wanted.run(),
        }
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

fn words(status: &Value) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let rows = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let mut out = String::new();
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

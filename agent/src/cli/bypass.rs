//! `toolgate bypass`: asks the agent to let a cgroup through for a while.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Config, block_on};
use crate::admin::client::{self, BypassRequest};
use crate::app::bypass::Whom;

/// What `bypass` takes.
#[derive(Debug, Args)]
pub(super) struct Bypass {
    #[command(flatten)]
    config: Config,
    /// How long, at most 24h: `10m`, `1h 30m`; then the kernel ends it, also without an agent
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration, required_unless_present = "end")]
    length: Option<Duration>,
    /// Why: the audit tells it
    #[arg(long, value_name = "TEXT", required_unless_present = "end")]
    reason: Option<String>,
    /// End it now
    #[arg(long, conflicts_with_all = ["length", "reason"])]
    end: bool,
    #[command(flatten)]
    whom: WhomArgs,
    /// As JSON: `bypasses`, each with its `cgroup` and, unless it was ended, `until`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct WhomArgs {
    /// The cgroup, with all below it: its path below the cgroup2 root; `/` is the whole host
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// The cgroups of an App ID: of its Workload, and what `toolgate exec` started
    #[arg(long, value_name = "NAME")]
    app_id: Option<String>,
}

impl Bypass {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let whom = match (self.whom.cgroup, self.whom.app_id) {
            (Some(path), _) => Whom::Cgroup(path),
            (None, app_id) => Whom::AppId(app_id.unwrap_or_default()),
        };
        let wanted = BypassRequest { whom, begin: self.length.zip(self.reason) };
        let answer = block_on(async { Ok(client::bypass(&self.config.admin()?, &wanted).await?) })?;
        if self.json {
            return super::print_json(&answer);
        }
        let mut out = std::io::stdout().lock();
        for one in answer["bypasses"].as_array().map(Vec::as_slice).unwrap_or_default() {
            match self.end {
                true => writeln!(out, "ended: {} is captured again", text(one, "cgroup"))?,
                false => {
                    writeln!(out, "{} goes unchecked until {}", text(one, "cgroup"), text(one, "until"))?
                }
            }
        }
        Ok(())
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

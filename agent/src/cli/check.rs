//! `toolgate check`: what a configuration means, or where it is wrong.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::exit::ConfigurationError;
use super::{Config, print_json};
use crate::config::{self, Diagnostic, Severity};
use crate::{app, listeners, names};

/// What `check` takes.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: Config,
    /// As JSON: `ok`, `diagnostics` and `explanation`
    #[arg(long)]
    json: bool,
}

/// What was found, as far as it was looked at.
#[derive(Default)]
struct Found {
    warnings: Vec<Diagnostic>,
    explanation: String,
    error: Option<ConfigurationError>,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let found = self.found()?;
        if self.json {
            print_json(&found.json())?;
        } else {
            let mut out = std::io::stdout().lock();
            for warning in &found.warnings {
                writeln!(out, "{warning}")?;
            }
            writeln!(out, "{}", found.explanation)?;
        }
        found.error.map_or(Ok(()), |error| Err(error.into()))
    }

    fn found(&self) -> anyhow::Result<Found> {
        let (agent, resources) = match app::load(self.config.dir().as_ref()) {
            Ok(loaded) => loaded,
            Err(all) => return Ok(Found { error: Some(ConfigurationError::Files(all)), ..Found::default() }),
        };
        let explanation = config::explain(&agent, &resources);
        if let Err(error) = app::check_here(&agent) {
            let error = Some(ConfigurationError::Cgroups(error));
            return Ok(Found { warnings: resources.warnings, explanation, error });
        }
        let listening =
            listeners::check(&resources, &agent.trust_domain).context("cannot look at listening sockets")?;
        let (wrong, unsure): (Vec<_>, Vec<_>) =
            listening.into_iter().partition(|finding| finding.severity == Severity::Error);
        let explanation = explanation + &names::look(resources.questions(), &agent.limits)?;
        Ok(Found {
            explanation,
            warnings: resources.warnings.into_iter().chain(unsure).collect(),
            error: Some(wrong).filter(|wrong| !wrong.is_empty()).map(ConfigurationError::Listeners),
        })
    }
}

impl Found {
    fn json(&self) -> Value {
        let mut diagnostics: Vec<_> = match &self.error {
            Some(ConfigurationError::Files(all) | ConfigurationError::Listeners(all)) => {
                all.iter().map(diagnostic).collect()
            }
            Some(ConfigurationError::Cgroups(error)) => {
                vec![json!({ "severity": "error", "message": error.to_string() })]
            }
            None => Vec::new(),
        };
        diagnostics.extend(self.warnings.iter().map(diagnostic));
        let explanation: Vec<_> = self.explanation.lines().collect();
        json!({ "ok": self.error.is_none(), "diagnostics": diagnostics, "explanation": explanation })
    }
}

/// Line and column count from 1; line 0 is the file as a whole.
fn diagnostic(of: &Diagnostic) -> Value {
    let severity = match of.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    json!({
        "severity": severity,
        "file": of.file.display().to_string(),
        "line": of.line,
        "column": of.column,
        "message": of.message,
        "excerpt": of.excerpt,
        "help": of.help,
    })
}

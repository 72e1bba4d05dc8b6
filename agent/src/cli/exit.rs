//! Exit codes: one table, here and in `--help`.

use std::process::ExitCode;

use crate::admin::client::ClientError;
use crate::app::{AppError, PlanError};
use crate::config::Diagnostic;

/// What `--help` and the manual pages say.
pub(super) const HELP: &str = "\
Exit codes:
  0    done; `status`: the agent runs and is ready
  1    failed, and the message says why
  2    wrong usage, or an error in the configuration
  3    no agent answers
  4    `status`: the agent runs and is not ready
  126  `exec`: the program cannot be started
  127  `exec`: there is none of that name; else it leaves with the program's own code";

/// Wrong usage (as clap leaves too), or wrong files.
const CONFIGURATION: u8 = 2;
/// No agent answers (as `systemctl status` says it of a service that does not run).
const NO_AGENT: u8 = 3;
/// An agent answers that is not ready.
pub(super) const NOT_READY: u8 = 4;

/// The configuration is not to be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigurationError {
    /// Its files are wrong.
    #[error("the configuration has errors\n\n{}", all(.0))]
    Files(Vec<Diagnostic>),
    /// This machine does not have the cgroups that it names.
    #[error(transparent)]
    Cgroups(PlanError),
    /// Servers are not behind who is to serve them.
    #[error("servers are not behind who is to serve them\n\n{}", all(.0))]
    Listeners(Vec<Diagnostic>),
}

fn all(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The code of a failure.
pub(super) fn code(error: &anyhow::Error) -> ExitCode {
    let of_the_agent = matches!(
        error.downcast_ref(),
        Some(
            AppError::Configuration(_)
                | AppError::Plan(PlanError::Missing { .. } | PlanError::Pattern { .. })
        )
    );
    if of_the_agent || error.is::<ConfigurationError>() {
        return ExitCode::from(CONFIGURATION);
    }
    match error.downcast_ref() {
        Some(ClientError::NoAgent { .. }) => ExitCode::from(NO_AGENT),
        Some(
            ClientError::NotRoot { .. }
            | ClientError::Broken(_)
            | ClientError::Unreadable(_)
            | ClientError::Refused(_),
        )
        | None => ExitCode::FAILURE,
    }
}

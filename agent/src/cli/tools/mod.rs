//! `toolgate tools`: what servers offer, what changed, and what of it may be used.

mod difference;

use std::io::Write as _;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Subcommand, ValueEnum};
use serde_json::{Value, json};
use toolgate_core::pin::hidden;

use super::{Cli, Config, block_on};
use crate::admin::client::{self, ChangeRequest, DefinitionsRequest};
use crate::pins::{Change, Which};

/// So many digits of a digest are shown.
const DIGITS: usize = 12;

/// What `tools` takes.
#[derive(Debug, Subcommand)]
pub(super) enum Tools {
    /// List what servers offer: tools, prompts, resource templates and instructions, approved and pending
    #[command(after_help = "Example: toolgate tools list docs --pending")]
    List {
        #[command(flatten)]
        config: Config,
        /// Of this Server alone
        server: Option<String>,
        /// Only what nobody has approved
        #[arg(long)]
        pending: bool,
        /// As JSON: `definitions`, each with its `state`, `digest` and who it is `given_to`
        #[arg(long)]
        json: bool,
    },
    /// Show how what is pending differs from what is approved, hidden characters escaped
    #[command(after_help = "Example: toolgate tools diff docs search")]
    Diff {
        #[command(flatten)]
        config: Config,
        /// The Server
        server: String,
        #[command(flatten)]
        one: One,
        /// As JSON: the `definitions`, approved and pending, each with its canonical `text`
        #[arg(long)]
        json: bool,
    },
    /// Approve what is pending: it is listed and may be called, as policy permits; audited
    #[command(after_help = "Example: toolgate tools approve docs search")]
    Approve(ChangeArgs),
    /// Withdraw an approval; what was not approved is forgotten; audited
    #[command(after_help = "Example: toolgate tools revoke docs search")]
    Revoke(ChangeArgs),
}

/// What `approve` and `revoke` take.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    config: Config,
    /// The Server
    server: String,
    #[command(flatten)]
    one: One,
    /// All of the Server that is pending
    #[arg(long, conflicts_with_all = ["name", "kind", "digest"])]
    all: bool,
    /// As JSON: the `definitions` that it is done to, and those left out for their `hidden_characters`
    #[arg(long)]
    json: bool,
}

/// Which of a server's definitions.
#[derive(Debug, Args)]
pub(super) struct One {
    /// The tool; with `--kind` the prompt or the URI template
    name: Option<String>,
    /// What it is [default: tool]
    #[arg(long)]
    kind: Option<KindArg>,
    /// The first digits of the definition that is meant, where there are several
    #[arg(long)]
    digest: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Tool,
    Prompt,
    ResourceTemplate,
    Instructions,
}

impl KindArg {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Prompt => "prompt",
            Self::ResourceTemplate => "resource-template",
            Self::Instructions => "instructions",
        }
    }
}

impl One {
    fn kind(&self) -> &'static str {
        self.kind.unwrap_or(KindArg::Tool).as_str()
    }

    /// Instructions have no name.
    fn name(self) -> Option<String> {
        self.name.or_else(|| (self.kind == Some(KindArg::Instructions)).then(String::new))
    }
}

impl Tools {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List { config, server, pending, json } => {
                let mut all = definitions(&config, server, false)?;
                all.retain(|one| !pending || text(one, "state") == "pending");
                if json {
                    return print_json(&json!({ "definitions": all }));
                }
                Ok(std::io::stdout().write_all(table(&all).as_bytes())?)
            }
            Self::Diff { config, server, one, json } => diff(&config, &server, one, json),
            Self::Approve(wanted) => wanted.run(Change::Approve),
            Self::Revoke(wanted) => wanted.run(Change::Revoke),
        }
    }
}

fn definitions(config: &Config, server: Option<String>, texts: bool) -> anyhow::Result<Vec<Value>> {
    let wanted = DefinitionsRequest { server, texts };
    let answer = block_on(async { Ok(client::definitions(&config.admin()?, &wanted).await?) })?;
    Ok(answer["definitions"].as_array().cloned().unwrap_or_default())
}

fn diff(config: &Config, server: &str, one: One, json: bool) -> anyhow::Result<()> {
    let mut all = definitions(config, Some(server.to_owned()), true)?;
    let (kind, digest) = (one.kind(), one.digest.clone());
    if let Some(name) = one.name() {
        all.retain(|one| text(one, "name") == name && text(one, "kind") == kind);
        if all.is_empty() {
            anyhow::bail!("no {kind} `{}` of `{server}` was seen", hidden::escaped(&name));
        }
    }
    if json {
        return print_json(&json!({ "definitions": all }));
    }
    let mut out = std::io::stdout().lock();
    let is_meant = |one: &&Value| match &digest {
        Some(digits) => text(one, "digest").starts_with(digits.as_str()),
        None => text(one, "state") == "pending",
    };
    let mut count = 0;
    for pending in all.iter().filter(is_meant) {
        out.write_all(difference::words(pending, approved(&all, pending)).as_bytes())?;
        count += 1;
    }
    if count == 0 {
        writeln!(out, "nothing of `{server}` is pending here")?;
    }
    Ok(())
}

/// What is approved under the name of `other`, last.
fn approved<'v>(all: &'v [Value], other: &Value) -> Option<&'v Value> {
    let same = |one: &&Value| ["kind", "name"].iter().all(|key| one[*key] == other[*key]);
    let is_approved = |one: &&Value| text(one, "state") == "approved" && one["digest"] != other["digest"];
    all.iter().filter(same).filter(is_approved).max_by_key(|one| text(one, "approved_at"))
}

impl ChangeArgs {
    fn run(self, change: Change) -> anyhow::Result<()> {
        let Self { config, server, one, all, json } = self;
        let (kind, digest) = (one.kind().to_owned(), one.digest.clone());
        let which = match (all, one.name()) {
            (true, _) => Which::Pending,
            (false, Some(name)) => Which::Named { kind, name, digest, change },
            (false, None) => {
                let words = "name what is meant, or all that is pending by `--all`";
                Cli::command().error(ErrorKind::MissingRequiredArgument, words).exit()
            }
        };
        let wanted = ChangeRequest { server, which, change };
        let answer = block_on(async { Ok(client::change(&config.admin()?, &wanted).await?) })?;
        if json {
            return print_json(&answer);
        }
        let mut out = std::io::stdout().lock();
        for one in answer["definitions"].as_array().into_iter().flatten() {
            let done = match (change, text(one, "was")) {
                (Change::Approve, _) => "approved",
                (Change::Revoke, "approved") => "revoked",
                (Change::Revoke, _) => "forgotten",
            };
            writeln!(out, "{done}: {} {}", called(one), digits(one))?;
        }
        for one in answer["hidden_characters"].as_array().into_iter().flatten() {
            writeln!(out, "left out, as it has hidden characters: {} {}", called(one), digits(one))?;
        }
        Ok(())
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn digits(one: &Value) -> &str {
    let digest = text(one, "digest");
    digest.get(..DIGITS).unwrap_or(digest)
}

/// `tool search`, or `instructions`.
fn called(one: &Value) -> String {
    let (kind, name) = (text(one, "kind"), hidden::escaped(text(one, "name")));
    let name = name.replace('\n', "\\n");
    if name.is_empty() { kind.to_owned() } else { format!("{kind} {name}") }
}

/// Hidden characters are escaped, so that they do nothing to a terminal either.
fn print_json(value: &Value) -> anyhow::Result<()> {
    let shown = hidden::escaped_json(&format!("{value:#}\n"));
    Ok(std::io::stdout().write_all(shown.as_bytes())?)
}

fn table(all: &[Value]) -> String {
    if all.is_empty() {
        return "nothing was seen: a list that a caller asks for tells what its Server offers, where it has `pins`\n".to_owned();
    }
    let row = |cells: [&str; 6]| {
        let [server, what, state, digest, seen, given] = cells;
        format!("{server:<16} {what:<32} {state:<9} {digest:<12} {seen:<20} {given}\n")
    };
    let mut out = row(["SERVER", "WHAT", "STATE", "DIGEST", "SEEN", "GIVEN TO"]);
    for one in all {
        let given: Vec<&str> =
            one["given_to"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let state = match (text(one, "state"), one["changed"] == true) {
            ("pending", true) => "CHANGED",
            (state, _) => state,
        };
        let hides = if one["hidden_characters"] == true { " HIDDEN CHARACTERS" } else { "" };
        let given = format!("{}{hides}", given.join(", "));
        out += &row([text(one, "server"), &called(one), state, digits(one), text(one, "seen_at"), &given]);
    }
    out
}

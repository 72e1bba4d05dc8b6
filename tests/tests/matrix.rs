//! What each client can do with each revision and each way of answering: directly first, then captured. What works directly
//! must work captured; the table that is printed is of this run. `fixtures/matrix` has the servers, and what clients do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, Host, Process, Setup, connector, fixture, free_address, packages};

/// Longer than a client takes for all that it does, on a busy machine.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(120);
/// What a feature may take, in seconds: directly, where many do not work; captured, where all must.
const FOR: [&str; 2] = ["20", "60"];
/// So many cells work directly, at least: else the servers or the drivers are broken, and the rest says little.
const WORKING_MIN: usize = 860;

/// What is tried, and which revisions have it, from the first to the last.
const FEATURES: [(&str, &str, &str); 11] = [
    ("tools", "2024-11-05", STATELESS),
    ("resources", "2024-11-05", STATELESS),
    ("prompts", "2024-11-05", STATELESS),
    ("completion", "2024-11-05", STATELESS),
    ("sampling", "2024-11-05", STATELESS),
    ("elicitation", "2025-06-18", STATELESS),
    ("roots", "2024-11-05", STATELESS),
    ("progress", "2024-11-05", STATELESS),
    ("cancellation", "2024-11-05", STATELESS),
    ("tasks", "2025-11-25", "2025-11-25"),
    ("resumption", "2025-03-26", "2025-11-25"),
];
const REVISIONS: [&str; 5] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", STATELESS];
/// The revision that the server on the SDK's 2.x is for.
const STATELESS: &str = "2026-07-28";
/// How servers answer, and as which transport they are declared: `legacy` is that of 2024-11-05.
const MODES: [(&str, &str); 3] = [("json", "streamable"), ("sse", "streamable"), ("legacy", "sse")];

/// Name, interpreter below `target/packages` or program, script.
type Client = (&'static str, &'static str, &'static str);

const PYTHON: &str = "python/bin/python";
const PYTHON2: &str = "python2/bin/python";
const CLIENTS: [Client; 9] = [
    ("Python SDK 1.x", PYTHON, "mcp1.py"),
    ("Python SDK 2.x", PYTHON2, "mcp2.py"),
    ("TypeScript SDK 1.x", "node", "typescript1.mjs"),
    ("TypeScript SDK 2.x", "node", "typescript2.mjs"),
    ("rmcp", "rmcp_features", ""),
    ("FastMCP", PYTHON2, "fastmcp_client.py"),
    ("LangChain's adapters", "langgraph/bin/python", "langgraph_client.py"),
    ("OpenAI Agents", PYTHON2, "openai_agents.py"),
    ("curl", PYTHON, "curl.py"),
];

/// By column and feature: empty where it works, else why not.
type Said = BTreeMap<(String, String), String>;

/// A revision answered in one way, at an address.
struct Column {
    revision: &'static str,
    mode: &'static str,
    transport: &'static str,
    address: SocketAddr,
}

impl Column {
    fn all() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for revision in REVISIONS {
            // Sessions went with the old transport.
            for (mode, transport) in
                MODES.into_iter().filter(|(mode, _)| (*mode, revision) != ("legacy", STATELESS))
            {
                all.push(Self { revision, mode, transport, address: free_address()? });
            }
        }
        Ok(all)
    }

    fn name(&self) -> String {
        format!("{} {}", self.revision, self.mode)
    }

    fn path(&self) -> &'static str {
        if self.mode == "legacy" { "/sse" } else { "/mcp" }
    }

    /// What its revision has.
    fn features(&self) -> impl Iterator<Item = &'static str> {
        let has = |(_, first, last): &(&str, &str, &str)| (*first..=*last).contains(&self.revision);
        FEATURES.into_iter().filter(has).map(|(feature, ..)| feature)
    }

    /// What a driver is told; none where it has nothing to do.
    fn argument(&self, features: &[&str]) -> Option<String> {
        let Self { mode, address, .. } = self;
        (!features.is_empty())
            .then(|| format!("{},{mode},http://{address}{},{}", self.name(), self.path(), features.join("+")))
    }

    fn resource(&self) -> String {
        let Self { revision, mode, transport, address } = self;
        format!(
            "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: of-{revision}-{mode} }}\n\
             spec: {{ local: {{ address: \"{address}\" }}, path: {}, transport: {transport} }}\n---\n",
            self.path()
        )
    }
}

fn server(python: &str, script: &str, columns: &[&Column]) -> Result<Process> {
    let mut command = Command::new(packages(python)?);
    command.args(["-W", "ignore"]).arg(fixture("matrix").join(script));
    command
        .args(columns.iter().map(|column| format!("{},{},{}", column.revision, column.mode, column.address)));
    let process = Process::start(&mut command)?;
    process.line_within(CLIENT_TIME_MAX, 0, "listening")?;
    Ok(process)
}

fn resources(columns: &[Column]) -> String {
    let servers: String = columns.iter().map(Column::resource).collect();
    servers
        + "apiVersion: toolgate/v1
kind: Policy
metadata: { name: matrix }
spec:
  rules:
  - { name: tools, effect: allow, callers: [client], servers: [\"*\"], tools: [\"*\"] }
  - { name: resources, effect: allow, callers: [client], servers: [\"*\"], resources: [\"note://*\"] }
  - { name: prompts, effect: allow, callers: [client], servers: [\"*\"], prompts: [\"*\"] }
  - { name: asks, effect: allow, callers: [client], servers: [\"*\"], server_requests: [sampling, elicitation, roots] }
"
}

fn program(name: &str) -> Result<PathBuf> {
    match name {
        "node" => Ok(PathBuf::from(name)),
        "rmcp_features" => Ok(connector().with_file_name(name)),
        interpreter => packages(interpreter),
    }
}

/// Starts a client with what it is told to do.
fn started(client: Client, arguments: &[String], agent: Option<&Agent>) -> Result<Process> {
    let (_, interpreter, script) = client;
    let mut command = agent.map_or_else(|| Command::new("env"), |agent| agent.exec("client"));
    command.arg(program(interpreter)?);
    if !script.is_empty() {
        command.arg(fixture("matrix").join(script));
    }
    command.args(arguments).env("PACKAGES", packages("node")?);
    command.env("FOR", FOR[usize::from(agent.is_some())]);
    Process::start(&mut command)
}

/// What a client said, when it is through.
fn said(client: Client, process: &Process) -> Result<Said> {
    process.line_within(CLIENT_TIME_MAX, 0, "\"done\"").context(client.0)?;
    let mut said = Said::new();
    for line in process.said().lines() {
        // What its libraries log is none of it.
        if let Ok(line) = serde_json::from_str::<Value>(line)
            && line.get("feature").is_some()
        {
            let key = (text(&line, "column").to_owned(), text(&line, "feature").to_owned());
            said.insert(key, text(&line, "said").to_owned());
        }
    }
    Ok(said)
}

/// All clients at once, most of which wait most of the time; `asked` says what of each.
fn run(agent: Option<&Agent>, asked: impl Fn(usize) -> Vec<String>) -> Result<Vec<Said>> {
    let clients = CLIENTS.into_iter().enumerate();
    let running: Result<Vec<_>> =
        clients.map(|(number, client)| Ok((client, started(client, &asked(number), agent)?))).collect();
    running?.iter().map(|(client, process)| said(*client, process)).collect()
}

/// One client's rows: for each way of answering, with which of the revisions that have a feature it works.
fn rows(client: Client, columns: &[Column], works: impl Fn(&Column, &str) -> bool) -> String {
    let mut table = String::new();
    for (mode, _) in MODES {
        let cells = FEATURES.map(|(feature, ..)| {
            let has = |column: &&Column| column.mode == mode && column.features().any(|has| has == feature);
            let (working, others): (Vec<_>, Vec<_>) =
                columns.iter().filter(has).partition(|column| works(column, feature));
            let is_first =
                working.first().zip(others.first()).is_some_and(|(one, other)| one.revision < other.revision);
            match (working.as_slice(), others.as_slice()) {
                (_, []) => "all".to_owned(),
                ([], _) => String::new(),
                ([.., last], [next, ..]) if is_first && last.revision < next.revision => {
                    format!("up to {}", last.revision)
                }
                (some, _) => some.iter().map(|column| column.revision).collect::<Vec<_>>().join(" "),
            }
        });
        let _ = writeln!(table, "| {} | {mode} | {} |", client.0, cells.join(" | "));
    }
    table
}

#[test]
fn what_a_client_can_do_directly_it_can_do_captured() -> Result<()> {
    let host = Host::turn()?;
    let begun = Instant::now();
    let columns = Column::all()?;
    let (stateless, others): (Vec<_>, Vec<_>) =
        columns.iter().partition(|column| column.revision == STATELESS);
    let _servers = [server(PYTHON, "server1.py", &others)?, server(PYTHON2, "server2.py", &stateless)?];
    let all = |_client| {
        columns.iter().filter_map(|column| column.argument(&column.features().collect::<Vec<_>>())).collect()
    };
    let direct = run(None, all).context("directly")?;
    let works = |client: usize, column: &Column, feature: &str| {
        direct[client].get(&(column.name(), feature.to_owned())).is_some_and(String::is_empty)
    };
    let agent = Agent::start_in(host, Setup { resources: &resources(&columns), ..Setup::default() })?;
    let what_works = |client| {
        let features = |column: &Column| {
            column.features().filter(|feature| works(client, column, feature)).collect::<Vec<_>>()
        };
        columns.iter().filter_map(|column| column.argument(&features(column))).collect()
    };
    let captured = run(Some(&agent), what_works).context("captured")?;

    let mut wrong = BTreeSet::new();
    let mut working = 0;
    let mut table = format!(
        "| client | answers | {} |\n|{}\n",
        FEATURES.map(|(feature, ..)| feature).join(" | "),
        " --- |".repeat(FEATURES.len() + 2)
    );
    for (number, client) in CLIENTS.into_iter().enumerate() {
        for column in &columns {
            for feature in column.features().filter(|feature| works(number, column, feature)) {
                working += 1;
                let said = captured[number].get(&(column.name(), feature.to_owned()));
                if said.is_none_or(|said| !said.is_empty()) {
                    wrong.insert(format!("{}, {}, {feature}: {said:?}", client.0, column.name()));
                }
            }
        }
        table += &rows(client, &columns, |column, feature| works(number, column, feature));
    }
    // Not by `print!`, which shows only what fails.
    writeln!(std::io::stderr(), "{table}\n{working} cells, {} s", begun.elapsed().as_secs())
        .context("cannot show the table")?;
    ensure!(wrong.is_empty(), "works directly, not captured: {wrong:#?}");
    ensure!(working >= WORKING_MIN, "{working} cells work directly, not {WORKING_MIN}: {direct:#?}");
    Ok(())
}

//! The official conformance suite against an rmcp server: each part of it directly, then captured. Every check gives the
//! same, and the audit tells of exactly the messages that were sent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, Host, Process, Setup, connector, fixture, free_address, packages};

/// Longer than a revision takes on a busy machine.
const SUITE_TIME_MAX: Duration = Duration::from_secs(240);
/// What the suite gives a scenario.
const SCENARIO_TIME_MAX_MS: &str = "10000";

/// A part of the suite.
struct Part {
    /// What the table calls it.
    name: &'static str,
    run: Runs,
    /// How many checks it has.
    checks: usize,
}

enum Runs {
    /// All scenarios of that revision.
    Revision(&'static str),
    /// These of an extension, which the newest revision alone has any of.
    Scenarios(&'static [&'static str]),
}

const PARTS: [Part; 6] = [
    Part { name: "2025-03-26", run: Runs::Revision("2025-03-26"), checks: 3 },
    Part { name: "2025-06-18", run: Runs::Revision("2025-06-18"), checks: 56 },
    Part { name: "2025-11-25", run: Runs::Revision("2025-11-25"), checks: 83 },
    Part { name: "2026-07-28", run: Runs::Revision("2026-07-28"), checks: 153 },
    Part { name: "tasks of 2026-07-28", run: Runs::Scenarios(&TASKS), checks: 44 },
    Part { name: "skills of 2026-07-28", run: Runs::Scenarios(&SKILLS), checks: 45 },
];

const TASKS: [&str; 9] = [
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
];
const SKILLS: [&str; 3] =
    ["sep-2640-skills-directory", "sep-2640-skills-enumeration", "sep-2640-skills-manifest"];

/// The status of each check, by scenario and check; of several with one name the second is `name#2`.
type Checks = BTreeMap<(String, String), String>;

/// How many messages there were of each kind.
type Messages = BTreeMap<String, usize>;

/// One run of the suite.
struct Run {
    checks: Checks,
    /// What the suite sent.
    sent: usize,
    /// What of it reached the server.
    arrived: Messages,
}

/// The server, and how many of its lines were read.
struct Server {
    address: SocketAddr,
    process: Process,
    read: usize,
}

impl Server {
    fn start() -> Result<Self> {
        let address = free_address()?;
        let program = connector().with_file_name("conformance_server");
        let process = Process::start(Command::new(program).arg(address.to_string()))?;
        let (number, _) = process.line_from(0, "listening")?;
        Ok(Self { address, process, read: number + 1 })
    }

    /// What reached it since it was asked before.
    fn arrived(&mut self) -> Result<Messages> {
        let mut arrived = Messages::new();
        let said = self.process.said();
        for line in said.lines().skip(self.read) {
            self.read += 1;
            let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: `{line}`"))?;
            let kind = match text(&line, "http") {
                "GET" => "stream",
                "DELETE" => "session_end",
                _post => line.get("method").and_then(Value::as_str).unwrap_or("response"),
            };
            *arrived.entry(kind.to_owned()).or_default() += 1;
        }
        Ok(arrived)
    }

    /// Runs one part of the suite, captured by `agent` where there is one.
    fn asked(&mut self, part: &Part, agent: Option<&Agent>) -> Result<Run> {
        let started: Result<Vec<_>> = match part.run {
            Runs::Revision(revision) => {
                let all = ["--suite", "all", "--spec-version", revision];
                [all].iter().map(|what| Suite::start(self.address, what, agent)).collect()
            }
            Runs::Scenarios(scenarios) => {
                let each = scenarios.iter().map(|scenario| ["--scenario", scenario]);
                each.map(|what| Suite::start(self.address, &what, agent)).collect()
            }
        };
        let (mut checks, mut sent) = (Checks::new(), 0);
        for one in started? {
            let (more, messages) = one.end()?;
            checks.extend(more);
            sent += messages;
        }
        Ok(Run { checks, sent, arrived: self.arrived()? })
    }
}

/// A run of the suite's program.
struct Suite {
    process: Process,
    folder: TempDir,
    /// How its last line begins.
    last_line: &'static str,
}

impl Suite {
    fn start(server: SocketAddr, what: &[&str], agent: Option<&Agent>) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let suite = packages("conformance/node_modules")?;
        let mut command = agent.map_or_else(|| Command::new("env"), |agent| agent.exec("suite"));
        command.env("SENT", folder.path().join("sent")).arg(suite.join(".bin/node")).arg("--import");
        command.arg(fixture("conformance/sent.mjs"));
        command.arg(suite.join("@modelcontextprotocol/conformance/dist/index.js"));
        command.arg("server").args(what).args(["--timeout", SCENARIO_TIME_MAX_MS, "--output-dir"]);
        command.arg(folder.path().join("checks")).args(["--url", &format!("http://{server}/mcp")]);
        let last_line = if what.contains(&"--scenario") { "Passed: " } else { "Total: " };
        Ok(Self { process: Process::start(&mut command)?, folder, last_line })
    }

    /// Its checks, and how many messages it sent.
    fn end(mut self) -> Result<(Checks, usize)> {
        self.process.line_within(SUITE_TIME_MAX, 0, self.last_line)?;
        self.process.end()?;
        let sent = std::fs::read_to_string(self.folder.path().join("sent"));
        let sent = sent.context("it tells of nothing that it sent")?.lines().count();
        Ok((checks(&self.folder.path().join("checks"))?, sent))
    }
}

/// What the suite wrote: a folder for each scenario, with the time at the end of its name.
fn checks(folder: &Path) -> Result<Checks> {
    let mut checks = Checks::new();
    for scenario in std::fs::read_dir(folder).context("no results")? {
        let scenario = scenario.context("no results")?;
        let name = scenario.file_name().to_string_lossy().into_owned();
        let name = name.split("-20").next().unwrap_or(&name).to_owned();
        let file = std::fs::read(scenario.path().join("checks.json")).context("no checks")?;
        let list: Vec<Value> = serde_json::from_slice(&file).context("broken checks")?;
        let mut seen = BTreeMap::new();
        for check in &list {
            // What it only tells of is no check.
            if text(check, "status") == "INFO" {
                continue;
            }
            let times: &mut usize = seen.entry(text(check, "id")).or_default();
            *times += 1;
            let id = match *times {
                1 => text(check, "id").to_owned(),
                times => format!("{}#{times}", text(check, "id")),
            };
            checks.insert((name.clone(), id), text(check, "status").to_owned());
        }
    }
    Ok(checks)
}

fn resources(server: SocketAddr) -> String {
    format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: conformance }}
spec: {{ local: {{ address: \"{server}\" }}, path: /mcp }}
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: conformance }}
spec:
  rules:
  - {{ name: tools, effect: allow, callers: [suite], servers: [conformance], tools: [\"*\"] }}
  - {{ name: resources, effect: allow, callers: [suite], servers: [conformance], resources: [\"test://*\", \"test://*/*/*\", \"skill://*/*\", \"skill://*/*/*\"] }}
  - {{ name: prompts, effect: allow, callers: [suite], servers: [conformance], prompts: [\"*\"] }}
  - {{ name: skills, effect: allow, callers: [suite], servers: [conformance], methods: [\"skills/*\", resources/directory/read] }}
  - {{ name: asks, effect: allow, callers: [suite], servers: [conformance], server_requests: [sampling, elicitation, roots] }}
"
    )
}

/// Compares the two runs of a part check by check.
fn compare(part: &str, direct: &Checks, captured: &Checks, wrong: &mut Vec<String>) {
    for ((scenario, check), status) in direct {
        let said = captured.get(&(scenario.clone(), check.clone())).map_or("not said", String::as_str);
        if said != status {
            wrong.push(format!("{part}, {scenario}, {check}: captured {said}, directly {status}"));
        }
    }
}

/// The audit's messages of clients, by kind; with `permitted` alone those that were let through.
fn told(lines: &[Value], permitted: bool) -> Messages {
    let mut told = Messages::new();
    for line in lines {
        // What a server asked is no message of the suite's.
        if text(line, "direction") == "from_server" || (permitted && text(line, "decision") != "permit") {
            continue;
        }
        *told.entry(text(line, "method").to_owned()).or_default() += 1;
    }
    told
}

/// Waits until the audit tells of all that was `sent`, of which this `arrived`.
fn audited(agent: &Agent, sent: usize, arrived: &Messages) -> Result<()> {
    let lines = agent.audit_until(&format!("{sent} messages"), |lines| {
        told(lines, false).values().sum::<usize>() >= sent
    })?;
    let [all, permitted] = [false, true].map(|permitted| told(&lines, permitted));
    ensure!(all.values().sum::<usize>() == sent, "{sent} were sent, the audit tells of {all:#?}");
    ensure!(permitted == *arrived, "these arrived: {arrived:#?}, the audit permitted {permitted:#?}");
    Ok(())
}

#[test]
fn the_conformance_suite_says_the_same_captured_and_the_audit_tells_of_all_it_sent() -> Result<()> {
    let host = Host::turn()?;
    let mut server = Server::start()?;
    let (mut wrong, mut direct) = (Vec::new(), Vec::new());
    for part in &PARTS {
        let Part { name, checks: count, .. } = *part;
        let run = server.asked(part, None).with_context(|| format!("{name}, directly"))?;
        let passed = run.checks.values().filter(|status| *status == "SUCCESS").count();
        ensure!((passed, run.checks.len()) == (count, count), "{name}, directly: {:#?}", run.checks);
        let arrived = run.arrived.values().sum::<usize>();
        ensure!(run.sent == arrived, "{name}: {} were sent, {arrived} arrived directly", run.sent);
        direct.push(run);
    }
    let resources = resources(server.address);
    let agent = Agent::start_in(host, Setup { resources: &resources, ..Setup::default() })?;
    let (mut sent, mut arrived) = (0, Messages::new());
    let mut table =
        format!("{:<20} {:>6} {:>8} {:>8} {:>7}\n", "part", "checks", "captured", "messages", "arrived");
    for (part, direct) in PARTS.iter().zip(&direct) {
        let Part { name, checks: count, .. } = *part;
        let run = server.asked(part, Some(&agent)).with_context(|| format!("{name}, captured"))?;
        compare(name, &direct.checks, &run.checks, &mut wrong);
        let passed = run.checks.values().filter(|status| *status == "SUCCESS").count();
        let here: usize = run.arrived.values().sum();
        let _ = writeln!(table, "{name:<20} {count:>6} {passed:>8} {:>8} {here:>7}", run.sent);
        sent += run.sent;
        for (kind, count) in run.arrived {
            *arrived.entry(kind).or_default() += count;
        }
        audited(&agent, sent, &arrived).with_context(|| format!("up to {name}"))?;
    }
    // Not by `print!`, which shows only what fails.
    writeln!(std::io::stderr(), "{table}").context("cannot show the table")?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

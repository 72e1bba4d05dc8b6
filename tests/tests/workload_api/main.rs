//! `listen.workload_api`: processes get their own SVIDs by the SPIFFE client of PyPI, and nobody another's; and an agent that has its
//! SVIDs from such a socket.

mod nested;
mod streams;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, Cgroup, Process, Setup, fixture, netns, packages, toolgate};

/// Who is who there.
fn resources(reader: &Cgroup, twice: &Cgroup, runs: &Cgroup) -> Result<String> {
    let workload = |name: &str, selectors: String| {
        format!(
            "apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: {name} }}\nspec: {{ selectors: {{ {selectors} }} }}\n---\n"
        )
    };
    let [reader, twice, runs] = [reader, twice, runs].map(|one| one.name());
    let (reader, twice, runs) = (reader?, twice?, runs?);
    let python = std::fs::canonicalize(packages("spiffe/bin/python")?)?;
    Ok(workload("reader", format!("cgroup: \"{reader}\""))
        + &workload("twice", format!("cgroup: \"{twice}\""))
        + &workload("again", format!("cgroup: \"{twice}/*\", user: 0"))
        + &workload("runs", format!("cgroup: \"{runs}\", exe: {}", python.display())))
}

fn socket(agent: &Agent) -> PathBuf {
    agent.config().join("workload.sock")
}

/// The client, in the cgroup that its command enters.
struct Client {
    process: Process,
    read: usize,
}

impl Client {
    fn start(mut prefix: Command, socket: &Path) -> Result<Self> {
        prefix.arg(packages("spiffe/bin/python")?).arg(fixture("spiffe_client.py")).arg(socket);
        Ok(Self { process: Process::start(&mut prefix)?, read: 0 })
    }

    fn ask(&mut self, line: &str) -> Result<Value> {
        self.process.say(line)?;
        self.told(line.split(' ').next().unwrap_or_default())
    }

    /// The next line about that.
    fn told(&mut self, asked: &str) -> Result<Value> {
        let (at, line) = self.process.line_from(self.read, &format!("{{\"asked\": \"{asked}\""))?;
        self.read = at + 1;
        serde_json::from_str(&line).with_context(|| line.clone())
    }
}

#[test]
fn a_process_gets_its_own_identity_and_nobody_another_one() -> Result<()> {
    // Tests beside each other: each its own cgroups.
    let [reader, twice, runs, nobody] = ["reader", "twice", "runs", "nobody"].map(Cgroup::new);
    let (reader, twice, runs, nobody) = (reader?, twice?, runs?, nobody?);
    let both = twice.below("both")?;
    let resources = resources(&reader, &twice, &runs)?;
    let agent = Agent::start(Setup { resources: &resources, workload_api: true, ..Setup::default() })?;
    let socket = socket(&agent);
    let id = "spiffe://example.org/ns/default/reader";
    let refused = "no identity issued";
    // What ran when it connected is not known: a Workload that asks for it fits nobody here.
    let table: [(&str, Command, Result<&str, &str>); 5] = [
        ("its own cgroup", netns::in_cgroup(&reader), Ok(id)),
        (
            "`toolgate exec`",
            agent.exec("reader-of-exec"),
            Ok("spiffe://example.org/ns/default/reader-of-exec"),
        ),
        ("no Workload", netns::in_cgroup(&nobody), Err(refused)),
        ("two Workloads", netns::in_cgroup(&both), Err(refused)),
        ("a Workload that asks for the executable", netns::in_cgroup(&runs), Err(refused)),
    ];
    for (name, prefix, expected) in table {
        let mut client = Client::start(prefix, &socket)?;
        for asked in ["svid", "jwt docs", "bundles"] {
            let told = client.ask(asked)?;
            match expected {
                Ok(id) => {
                    ensure!(told.get("error").is_none(), "{name}: {asked}: {told}");
                    let is_it = match asked {
                        "svid" => told.get("ids") == Some(&serde_json::json!([id])),
                        "jwt docs" => text(&told, "id") == id,
                        _bundles => told.get("x509") == Some(&1.into()) && told.get("jwt") == Some(&1.into()),
                    };
                    ensure!(is_it, "{name}: {asked}: {told}");
                }
                Err(words) => ensure!(text(&told, "error").contains(words), "{name}: {asked}: {told}"),
            }
        }
    }
    let events = agent.audit_until("who was refused", |lines| {
        lines.iter().any(|line| text(line, "event") == "workload_api_refused")
    })?;
    ensure!(events.iter().any(|line| text(line, "event") == "workload_api_answered"), "{events:#?}");
    Ok(())
}

#[test]
fn svids_are_renewed_on_the_stream_and_tokens_are_for_whom_they_are() -> Result<()> {
    let [reader, twice, runs] = ["jwt-reader", "jwt-twice", "jwt-runs"].map(Cgroup::new);
    let (reader, twice, runs) = (reader?, twice?, runs?);
    let resources = resources(&reader, &twice, &runs)?;
    let more = "identity: { svid_ttl: 6s, issuing_ttl: 60s, root_ttl: 300s, overlap: 5s }\n";
    let agent = Agent::start(Setup { resources: &resources, workload_api: true, more, ..Setup::default() })?;
    let mut client = Client::start(netns::in_cgroup(&reader), &socket(&agent))?;
    client.process.say("stream")?;
    let mut serials = Vec::new();
    while serials.len() < 3 {
        let update = client.told("update")?;
        ensure!(text(&update, "subject").contains("O=workload-api"), "{update}");
        let serial = text(&update, "serial").to_owned();
        if !serials.contains(&serial) {
            serials.push(serial);
        }
    }
    let token = client.ask("jwt docs")?;
    let token = text(&token, "token").to_owned();
    let id = client.ask(&format!("validate {token} docs"))?;
    ensure!(text(&id, "id") == "spiffe://example.org/ns/default/reader", "{id}");
    for (token, audience) in [(token.as_str(), "search"), ("x.y.z", "docs")] {
        let refused = client.ask(&format!("validate {token} {audience}"))?;
        ensure!(refused.get("error").is_some(), "{audience}: {refused}");
    }
    let output = toolgate().args(["ca", "status", "--config"]).arg(agent.config()).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("jwt      "), "{output:?}");
    Ok(())
}

/// Connects, forks, and ends: the child has the connection, and says what becomes of it.
const PASSED: &str = "
import os, socket, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
connection.settimeout(20)
try:
    connection.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes(3) + b'\\x04\\x00' + bytes(4))
    while data := connection.recv(4096):
        # A ping of ours is answered by whoever is still there.
        connection.sendall(bytes(2) + b'\\x08\\x06\\x00' + bytes(4) + b'12345678')
        time.sleep(0.1)
    print('closed', flush=True)
except (BrokenPipeError, ConnectionResetError):
    print('closed', flush=True)
except TimeoutError:
    print('open', flush=True)
";

#[test]
fn a_connection_ends_with_the_process_that_made_it() -> Result<()> {
    let [reader, twice, runs] = ["own-reader", "own-twice", "own-runs"].map(Cgroup::new);
    let (reader, twice, runs) = (reader?, twice?, runs?);
    let resources = resources(&reader, &twice, &runs)?;
    let agent = Agent::start(Setup { resources: &resources, workload_api: true, ..Setup::default() })?;
    let mut command = netns::in_cgroup(&reader);
    command.args(["python3", "-c", PASSED]).arg(socket(&agent));
    let child = Process::start(&mut command)?;
    child.line("closed")?;
    Ok(())
}

//! What the demo runs: the server outside any captured cgroup, the agent, the client inside and outside.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Prepared;
use crate::leftovers::Leftovers;
use crate::ports::free_addresses;
use crate::process::{Process, not_interrupted};
use crate::workspace::{find_program, root, say};

/// The example that the demo runs: a copy of it, on ports that are free here.
const EXAMPLE: &str = "policies/examples/demo";
/// The address of the server in the example's resources.
const EXAMPLE_SERVER: &str = "127.0.0.1:8931";
/// The App ID that the captured client gets.
pub(super) const APP_ID: &str = "demo-agent";

/// Messages that the client sends: the handshake is two, then a stream, three calls, a list that the SDK asks for by
/// itself, the list, and the end of its session.
const MESSAGES: usize = 9;
/// How long the audit may take to have them all; then what there is is shown.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that runs while the demo shows. Dropped: the agent ends first, then the server.
pub(super) struct Stage<'p> {
    prepared: &'p Prepared,
    config: PathBuf,
    audit: PathBuf,
    metrics: SocketAddr,
    pub(super) server: SocketAddr,
    /// What the client said before there was an agent: from then on the server's port accepts the agent alone.
    pub(super) outside: Vec<String>,
    // In the order in which they are dropped.
    agent_process: Process,
    server_process: Process,
}

impl<'p> Stage<'p> {
    /// Starts the server and the agent, in `folder`, and waits until both are ready.
    pub(super) fn set(prepared: &'p Prepared, folder: &Path, leftovers: &mut Leftovers) -> Result<Self> {
        let [server, metrics, ready, outbound] = free_addresses()?;
        let config = folder.join("config");
        let audit = folder.join("audit.jsonl");
        copy_example(&config, server)?;
        let settings = format!(
            "listen: {{ outbound: {}, admin: {}, metrics: \"{metrics}\", ready: \"{ready}\" }}\n\
             store: {{ embedded: {} }}\n\
             audit: {{ file: {} }}\n",
            outbound.port(),
            folder.join("admin.sock").display(),
            folder.join("store").display(),
            audit.display(),
        );
        fs::write(config.join("toolgate.yaml"), settings)
            .context("cannot write the agent's configuration")?;

        say(format_args!("starting the MCP server `server-everything` on port {}", server.port()));
        let mut node = Command::new(find_program("node").context("`node` is missing")?);
        node.arg(&prepared.server_everything).arg("streamableHttp");
        // Its whole environment is what `get-env` gives away to whoever may call it.
        node.env_clear().env("PORT", server.port().to_string()).env("API_TOKEN", "not-for-agents");
        let mut server_process = Process::start("the MCP server", &mut node)?;
        server_process.wait_for("listening on port")?;

        say("running the client without an agent");
        let [python, client, url] = client_words(prepared, server);
        let outside =
            Process::start("the client outside", Command::new(python).args([client, url]))?.finish()?;

        say("starting the agent");
        let mut run = Command::new(&prepared.agent);
        run.arg("run").arg("--config").arg(&config);
        let mut agent_process = Process::start("the agent", &mut run)?;
        agent_process.wait_for("toolgate: ready")?;
        leftovers.note_held_by(agent_process.id())?;
        Ok(Self { prepared, config, audit, metrics, server, outside, agent_process, server_process })
    }

    /// The client, started by `toolgate exec`: that is all that makes it a captured one.
    pub(super) fn client_captured(&self) -> Result<Vec<String>> {
        let mut exec = Command::new(&self.prepared.agent);
        exec.args(["exec", "--app-id", APP_ID, "--config"]).arg(&self.config).arg("--");
        exec.args(client_words(self.prepared, self.server));
        Process::start("the captured client", &mut exec)?.finish()
    }

    /// One audit line for each of the captured client's messages, in the order in which they began. A line is written
    /// when its message has ended, which may be after the client has: waits for all of them.
    pub(super) fn audit(&self) -> Result<Vec<Value>> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut lines = self.audit_now()?;
            // The end of its session is the last that the client says.
            let ended = lines.iter().any(|line| line["method"] == "session_end");
            if (ended && lines.len() >= MESSAGES) || Instant::now() > until {
                lines.sort_by(|one, other| one["time"].as_str().cmp(&other["time"].as_str()));
                return Ok(lines);
            }
            not_interrupted()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn audit_now(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.audit)
            .with_context(|| format!("cannot read `{}`", self.audit.display()))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse =
            |line: &str| serde_json::from_str(line).with_context(|| format!("not an audit line: `{line}`"));
        let mut lines = whole.lines().map(parse).collect::<Result<Vec<Value>>>()?;
        // A stream has a line for its beginning, too.
        lines.retain(|line| line["phase"] != "opened");
        Ok(lines)
    }

    /// The agent's metrics.
    pub(super) fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.metrics).context("cannot reach the agent's metrics")?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).context("cannot set a timeout")?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.metrics)
            .context("cannot ask for the metrics")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).context("cannot read the metrics")?;
        Ok(reply)
    }

    /// Ends the agent, then the server, and tells whether the agent ended in order.
    pub(super) fn strike(self) -> Result<()> {
        let status = self.agent_process.stop()?;
        let _node_ends_by_the_signal = self.server_process.stop()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(())
    }
}

/// The same words with `toolgate exec` and without.
fn client_words(prepared: &Prepared, server: SocketAddr) -> [PathBuf; 3] {
    let client = root().join("xtask/src/demo/client.py");
    [prepared.python.clone(), client, format!("http://{server}/mcp").into()]
}

/// The example's resources, with the address that the server has here.
fn copy_example(config: &Path, server: SocketAddr) -> Result<()> {
    let from = root().join(EXAMPLE).join("resources");
    let to = config.join("resources");
    fs::create_dir_all(&to).with_context(|| format!("cannot create `{}`", to.display()))?;
    for entry in fs::read_dir(&from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let file = entry.context("cannot list the example")?.path();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let text = text.replace(EXAMPLE_SERVER, &server.to_string());
        let name = file.file_name().unwrap_or_default();
        fs::write(to.join(name), text).with_context(|| format!("cannot write `{}`", to.display()))?;
    }
    Ok(())
}

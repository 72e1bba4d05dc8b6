//! The official SDKs at both ends: `tests/fixtures/server.py` and `client.py`, and a client in JavaScript for HTTP with SSE.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Process, free_address};

/// A FastMCP server. Its log tells what really reached it.
#[derive(Debug)]
pub struct SdkServer {
    /// Where it listens.
    pub address: SocketAddr,
    folder: TempDir,
    /// Held open so that the server's open of the gate does not wait for the test.
    gate: File,
    _process: Process,
}

/// A client on an SDK, behind whatever prefix it was started with.
#[derive(Debug)]
pub struct SdkClient {
    process: Process,
    /// Lines that were read already.
    read: usize,
}

impl SdkServer {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start() -> Result<Self> {
        Self::with(&[])
    }

    /// One that other hosts reach.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn at(ip: IpAddr) -> Result<Self> {
        Self::on(ip, &[("HOST", &ip.to_string())])
    }

    /// One whose streams can be resumed: `slow_count` closes its own after the first step.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn resumable() -> Result<Self> {
        Self::with(&[("EVENTS", "kept")])
    }

    /// One that has each tool on a page of its own; its replies are streams, or JSON.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn paged(by_json: bool) -> Result<Self> {
        let environment = [("PAGES", "one"), ("JSON", "yes")];
        Self::with(if by_json { &environment } else { &environment[..1] })
    }

    /// One that speaks HTTP with SSE.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn legacy() -> Result<Self> {
        Self::with(&[("TRANSPORT", "sse")])
    }

    fn with(environment: &[(&str, &str)]) -> Result<Self> {
        Self::on(Ipv4Addr::LOCALHOST.into(), environment)
    }

    fn on(ip: IpAddr, environment: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let gate = folder.path().join("gate");
        mkfifo(&gate, Mode::S_IRWXU).context("cannot make a FIFO")?;
        let gate_end =
            OpenOptions::new().read(true).write(true).open(&gate).context("cannot open the FIFO")?;
        let address = SocketAddr::new(ip, free_address()?.port());
        let mut command = Command::new(python()?);
        command.arg(fixture("server.py")).env("PORT", address.port().to_string());
        command.env("LOG", folder.path().join("log")).env("GATE", &gate).envs(environment.iter().copied());
        let process = Process::start(&mut command)?;
        process.line("Uvicorn running on")?;
        Ok(Self { address, folder, gate: gate_end, _process: process })
    }

    /// The same of one that speaks HTTP with SSE.
    #[must_use]
    pub fn legacy_url(&self) -> String {
        format!("http://{}/sse", self.address)
    }

    /// Its URL, as any client would be given it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Lets `slow_count` go on by one step.
    ///
    /// # Errors
    /// The FIFO is gone.
    pub fn release(&mut self) -> Result<()> {
        self.gate.write_all(b".").context("cannot write to the gate")
    }

    /// The messages that reached it so far.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn messages(&self) -> Result<Vec<Value>> {
        let log = std::fs::read_to_string(self.folder.path().join("log"))
            .context("cannot read the server's log")?;
        let mut messages = Vec::new();
        for line in log.lines() {
            let entry: Value = serde_json::from_str(line).context("a broken log line")?;
            let body = entry.get("body").and_then(Value::as_str).unwrap_or_default();
            if let Ok(message) = serde_json::from_slice(&unhex(body)?) {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    /// The tool calls that reached it so far, by name.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn calls(&self) -> Result<Vec<String>> {
        let messages = self.messages()?;
        let calls =
            messages.iter().filter(|message| message.get("method").is_some_and(|name| name == "tools/call"));
        Ok(calls.filter_map(|call| call.pointer("/params/name")?.as_str().map(str::to_owned)).collect())
    }
}

impl SdkClient {
    /// Starts it behind `prefix` and waits until it has its session.
    ///
    /// # Errors
    /// It gets none.
    pub fn start(mut prefix: Command, url: &str) -> Result<Self> {
        prefix.arg(python()?).arg(fixture("client.py")).arg(url);
        Self::ready(prefix)
    }

    /// The same by HTTP with SSE.
    ///
    /// # Errors
    /// It gets none.
    pub fn legacy(mut prefix: Command, url: &str) -> Result<Self> {
        prefix.arg(python()?).arg(fixture("client.py")).arg(url).arg("sse");
        Self::ready(prefix)
    }

    /// The same on the Python SDK 2.x.
    ///
    /// # Errors
    /// It gets none.
    pub fn legacy_python2(mut prefix: Command, url: &str) -> Result<Self> {
        prefix.arg(packages("python2/bin/python")?).arg(fixture("sse_client2.py")).arg(url);
        Self::ready(prefix)
    }

    /// The same on the TypeScript SDK.
    ///
    /// # Errors
    /// It gets none.
    pub fn legacy_typescript(mut prefix: Command, url: &str) -> Result<Self> {
        prefix.arg("node").arg(fixture("client.mjs")).arg(url).env("PACKAGES", packages("node")?);
        Self::ready(prefix)
    }

    /// The same by streamable HTTP.
    ///
    /// # Errors
    /// It gets no session.
    pub fn typescript(mut prefix: Command, url: &str) -> Result<Self> {
        prefix.arg("node").arg(fixture("client.mjs")).args([url, "http"]).env("PACKAGES", packages("node")?);
        Self::ready(prefix)
    }

    fn ready(mut command: Command) -> Result<Self> {
        let mut client = Self { process: Process::start(&mut command)?, read: 0 };
        client.answer("ready")?;
        Ok(client)
    }

    /// One that is not captured.
    ///
    /// # Errors
    /// It gets no session.
    pub fn outside(url: &str) -> Result<Self> {
        let mut plain = Command::new("env");
        plain.arg("--");
        Self::start(plain, url)
    }

    /// Sends a tool call; its answers are read by `answer`.
    ///
    /// # Errors
    /// The client is gone.
    pub fn call(&mut self, tool: &str, arguments: &Value) -> Result<()> {
        self.process.say(&serde_json::json!(["call", tool, arguments]).to_string())
    }

    /// Asks for the names of the tools.
    ///
    /// # Errors
    /// The client gets no list.
    pub fn tools(&mut self) -> Result<Vec<String>> {
        self.process.say("[\"list\"]")?;
        serde_json::from_value(self.answer("tools")?).context("not a list of names")
    }

    /// Asks for page after page: the names of the tools on each.
    ///
    /// # Errors
    /// The client gets no list.
    pub fn pages(&mut self) -> Result<Vec<Vec<String>>> {
        self.process.say("[\"pages\"]")?;
        serde_json::from_value(self.answer("pages")?).context("not lists of names")
    }

    /// Waits for the next answer that has the member `name`, and returns it.
    ///
    /// # Errors
    /// There is none.
    pub fn answer(&mut self, name: &str) -> Result<Value> {
        let (number, line) = self.process.line_from(self.read, &format!("{{\"{name}\": "))?;
        self.read = number + 1;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("not an answer: `{line}`"))?;
        answer.get(name).cloned().with_context(|| format!("no `{name}` in `{line}`"))
    }
}

/// The interpreter with the SDK.
fn python() -> Result<PathBuf> {
    packages("python/bin/python")
}

/// What `cargo xtask packages` installed at `path`.
///
/// # Errors
/// It is missing.
pub fn packages(path: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this test is")?;
    let target = this.ancestors().nth(3).context("this test is in no target folder")?;
    let installed = target.join("packages").join(path);
    ensure!(installed.exists(), "`{}` is missing: run `cargo xtask packages`", installed.display());
    Ok(installed)
}

/// A file of `tests/fixtures`.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |at: usize| text.get(at..at + 2).context("an odd number of digits");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(digit(at)?, 16).context("not hex")).collect()
}

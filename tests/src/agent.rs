//! An agent on a configuration of the test's own: free ports, its own socket, its own audit file.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::scene::text;
use crate::{Caller, Host, PATIENCE, Process, wait};

/// Where it finds the token that it joins by.
const TOKEN: &str = "join.token";
/// What the agent says once it serves.
const READY: &str = "toolgate: ready";

/// What a test wants of its agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup<'t> {
    /// `resources/all.yaml`.
    pub resources: &'t str,
    /// The `capture` section of `toolgate.yaml`, as a flow mapping; empty: the default.
    pub capture: &'t str,
    /// Its `audit` section, as a flow mapping; empty: `FOLDER/audit.jsonl`, which `Agent::audit` reads.
    pub audit: &'t str,
    /// Its `limits` section, as a flow mapping; empty: the default.
    pub limits: &'t str,
    /// Where other agents come to.
    pub peer: Option<SocketAddr>,
    /// Where nodes join its authority, if they may.
    pub authority: Option<SocketAddr>,
    /// Whether processes get their SVIDs at `FOLDER/workload.sock`.
    pub workload_api: bool,
    /// Where captured processes call by App ID.
    pub invoke: Option<SocketAddr>,
    /// The token by which it joins another agent's authority; empty: it has its own.
    pub token: &'t str,
    /// More of `toolgate.yaml`.
    pub more: &'t str,
    /// Run with `--observe`.
    pub observe: bool,
    /// Run with `--stay-attached`.
    pub stay_attached: bool,
    /// Set in its environment.
    pub environment: &'t [(&'t str, &'t str)],
    /// What becomes the agent: a command that takes another one as its last arguments; empty: it is started as it is.
    pub behind: &'t [&'t str],
}

/// A running agent. Dropped: it ends, and whatever it left is detached.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    /// The agent that took over, and is no child of the test's.
    successor: Option<u32>,
    flags: Vec<&'static str>,
    /// What becomes it, and its environment: it may be started again.
    behind: Vec<String>,
    environment: Vec<(String, String)>,
    /// Where `GET /metrics` is answered.
    pub metrics: SocketAddr,
    /// Where readiness is answered.
    pub ready: SocketAddr,
    /// Where captured connections arrive.
    pub outbound: SocketAddr,
    folder: TempDir,
    /// On a [`Node`](crate::Node) of its own: the host is another agent's.
    is_beside: bool,
    // Last: the next test's turn begins when all else is gone.
    host: Option<Host>,
}

/// An agent that did not get ready.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// All it said.
    pub said: String,
}

impl Agent {
    /// Waits for this test's turn, starts an agent and waits until it is ready.
    ///
    /// # Errors
    /// It does not get ready; with what it said.
    pub fn start(setup: Setup<'_>) -> Result<Self> {
        Self::start_in(Host::turn()?, setup)
    }

    /// The same, in a turn that the test has already.
    ///
    /// # Errors
    /// It does not get ready; with what it said.
    pub fn start_in(host: Host, setup: Setup<'_>) -> Result<Self> {
        let mut agent = Self::start_somewhere(setup)?;
        agent.host = Some(host);
        Ok(agent)
    }

    /// The same beside the agent that has the turn.
    pub(crate) fn start_beside(setup: Setup<'_>) -> Result<Self> {
        let mut agent = Self::start_somewhere(setup)?;
        agent.is_beside = true;
        Ok(agent)
    }

    fn start_somewhere(setup: Setup<'_>) -> Result<Self> {
        loop {
            let folder = tempfile::tempdir().context("cannot make a folder")?;
            let ports = [free_address()?, free_address()?, free_address()?];
            match Self::start_at(ports, folder, setup) {
                // The ports are of those that the kernel gives to any connection: one had been faster.
                Err(error) if format!("{error:#}").contains("Address already in use") => {}
                started => return started,
            }
        }
    }

    fn start_at(
        [outbound, metrics, ready]: [SocketAddr; 3],
        folder: TempDir,
        setup: Setup<'_>,
    ) -> Result<Self> {
        let settings = settings(folder.path(), [outbound, metrics, ready], setup);
        write_config(folder.path(), &settings, setup.resources)?;
        if !setup.token.is_empty() {
            let mut file = OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o600).open(folder.path().join(TOKEN));
            file.and_then(|mut file| file.write_all(setup.token.as_bytes()))
                .context("cannot keep a token")?;
        }
        let given = [(setup.observe, "--observe"), (setup.stay_attached, "--stay-attached")];
        let flags: Vec<&str> = given.iter().filter(|(given, _)| *given).map(|(_, flag)| *flag).collect();
        let owned = |word: &&str| (*word).to_owned();
        let behind: Vec<String> = setup.behind.iter().map(owned).collect();
        let environment: Vec<_> =
            setup.environment.iter().map(|(name, value)| (owned(name), owned(value))).collect();
        let process = started(folder.path(), &flags, &behind, &environment)?;
        let (successor, is_beside, host) = (None, false, None);
        let agent = Self {
            process,
            successor,
            flags,
            behind,
            environment,
            metrics,
            ready,
            outbound,
            folder,
            is_beside,
            host,
        };
        agent.process.line(READY)?;
        Ok(agent)
    }

    /// Starts an agent that is expected to refuse, in a turn that the test has; `settings` is all of its
    /// `toolgate.yaml`.
    ///
    /// # Errors
    /// It starts all the same.
    pub fn refused(settings: &str, resources: &str) -> Result<Ended> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        write_config(folder.path(), settings, resources)?;
        let mut process = Process::start(&mut run_command(folder.path()))?;
        // Silence is no proof: either it says that it is ready, or it ends.
        if process.line(READY).is_ok() {
            bail!("it was to refuse, and it started:\n{}", process.said());
        }
        let status = process.end()?;
        Ok(Ended { status, said: process.said() })
    }

    /// A second configuration beside this agent's, as another agent would have.
    ///
    /// # Errors
    /// No free port.
    pub fn other_settings(folder: &Path) -> Result<String> {
        Ok(settings(folder, [free_address()?, free_address()?, free_address()?], Setup::default()))
    }

    /// The folder given as `--config`.
    #[must_use]
    pub fn config(&self) -> &Path {
        self.folder.path()
    }

    /// `toolgate exec --app-id APP_ID --config DIR --`; the test adds the command.
    #[must_use]
    pub fn exec(&self, app_id: &str) -> Command {
        let mut command = self.toolgate("exec");
        command.args(["--app-id", app_id, "--"]);
        command
    }

    /// `toolgate VERB --config DIR`.
    #[must_use]
    pub fn toolgate(&self, verb: &str) -> Command {
        let mut command = toolgate();
        command.arg(verb).arg("--config").arg(self.config());
        command
    }

    /// A captured process with that App ID, which connects where it is told.
    ///
    /// # Errors
    /// `toolgate exec` fails.
    pub fn caller(&self, app_id: &str) -> Result<Caller> {
        Caller::start(self.exec(app_id))
    }

    /// Waits until the audit file tells of `count` messages, and returns what it tells of all: a line for each, in the
    /// order in which they began. A line is written when its message has ended, which its client may know before; that a
    /// stream began is no line of its own here.
    ///
    /// # Errors
    /// There are fewer for too long, or one is no JSON.
    pub fn audit(&self, count: usize) -> Result<Vec<Value>> {
        self.audit_until(&format!("{count} audit lines"), |lines| lines.len() >= count)
    }

    /// The same until the lines are `enough`; `what` says for what.
    ///
    /// # Errors
    /// They are not for too long, or one is no JSON.
    pub fn audit_until(&self, what: &str, enough: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let found = wait::until(what, || {
            let lines = self.audit_now()?;
            Ok(enough(&lines).then_some(lines))
        });
        found.with_context(|| format!("the audit tells: {:#?}", self.audit_now()))
    }

    fn audit_now(&self) -> Result<Vec<Value>> {
        let file = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        let whole = file.rfind('\n').map_or("", |end| &file[..end]);
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("not JSON: `{line}`"));
        let mut lines = whole.lines().map(parse).collect::<Result<Vec<Value>>>()?;
        lines.retain(|line| line.get("phase") != Some(&json!("opened")));
        // RFC 3339 in UTC to the microsecond: the order of the texts is that of the times.
        lines.sort_by(|one, other| text(one, "time").cmp(text(other, "time")));
        Ok(lines)
    }

    /// Writes `resources/all.yaml` anew, as an editor would: beside it, then renamed over it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_resources(&self, resources: &str) -> Result<()> {
        let folder = self.config().join("resources");
        let fresh = folder.join(".all.yaml.fresh");
        let mut options = OpenOptions::new();
        // There may be keys in it.
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh);
        file.and_then(|mut file| file.write_all(resources.as_bytes()))
            .context("cannot write the resources")?;
        fs::rename(&fresh, folder.join("all.yaml")).context("cannot rename the resources")
    }

    /// The agent's process: its lines are its log.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it, as the kernel would when out of memory: it has no time to detach.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.end().map(|_status| ())
    }

    /// Asks it to end in order.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.end()
    }

    /// `toolgate upgrade`, with more arguments: its process id, which may be this test's child no longer.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn upgrade(&mut self, arguments: &[&str]) -> Result<u32> {
        let mut command = self.toolgate("upgrade");
        let output = command.arg("--json").args(arguments).output().context("cannot start it")?;
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("{said}{errors}");
        }
        let answer: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
        let pid = answer.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.with_context(|| format!("no process id: {said}"))?;
        self.successor = Some(pid);
        Ok(pid)
    }

    /// Asks the agent that took over to end in order, and waits until it has.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_successor(&mut self) -> Result<()> {
        let Some(pid) = self.successor.take() else { return Ok(()) };
        let process = Pid::from_raw(i32::try_from(pid).context("a process id above 2^31")?);
        kill(process, Signal::SIGTERM).context("cannot send it a signal")?;
        wait::until("the end of the agent that took over", || Ok(has_ended(pid).then_some(())))
    }

    /// Waits for its end after a signal that the test sent.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_after_signal(&mut self) -> Result<ExitStatus> {
        self.process.end()
    }

    /// Starts the same configuration again, after `kill` or `stop`.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = started(self.config(), &self.flags, &self.behind, &self.environment)?;
        self.process.line(READY).map(|_line| ())
    }

    /// A reply of the metrics port, head and all.
    ///
    /// # Errors
    /// The port does not answer.
    pub fn metrics(&self) -> Result<String> {
        get(self.metrics, "/metrics")
    }

    /// Waits until a metric, whose name and labels are as Prometheus writes them, is `value`: it is counted when its
    /// message has ended, which the client may know before.
    ///
    /// # Errors
    /// It is not for too long.
    pub fn counts(&self, name: &str, labels: &[&str], value: f64) -> Result<()> {
        let what = format!("{name} {labels:?} = {value}");
        let found = wait::until(&what, || Ok((self.metric(name, labels)? == value).then_some(())));
        found.with_context(|| format!("it is {:?}", self.metric(name, labels)))
    }

    /// The value of a metric now; 0 where there is none.
    ///
    /// # Errors
    /// The port does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics()?;
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
        let values =
            lines.filter_map(|line| line.rsplit_once(' ')).filter_map(|(_, value)| value.parse::<f64>().ok());
        Ok(values.sum())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended_before = self.stop_successor();
        let _ended_before = self.process.signal(Signal::SIGTERM);
        let _killed_by_its_guard = self.process.end();
        if !self.is_beside {
            let _nothing_to_detach = toolgate().arg("detach").output();
        }
    }
}

/// Gone, or waiting for whoever adopted it.
fn has_ended(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// The agent's binary: cargo puts it beside the folder that holds this test.
#[must_use]
pub fn toolgate() -> Command {
    let this = std::env::current_exe().unwrap_or_default();
    let folder = this.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    Command::new(folder.join("toolgate"))
}

/// Answers to `GET path`, head and all.
///
/// # Errors
/// Nobody answers.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .context("cannot ask")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).context("cannot read the answer")?;
    Ok(reply)
}

/// An address on loopback that nobody uses now.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on 127.0.0.1")?;
    listener.local_addr().context("a listener without address")
}

/// A `toolgate.yaml` whose files are all in `folder`.
fn settings(folder: &Path, [outbound, metrics, ready]: [SocketAddr; 3], setup: Setup<'_>) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    let audit = match setup.audit {
        "" => format!("{{ file: {} }}", file("audit.jsonl")),
        given => given.replace("FOLDER", &folder.display().to_string()),
    };
    let listener =
        |key: &str, at: Option<SocketAddr>| at.map(|at| format!("{key}: \"{at}\", ")).unwrap_or_default();
    let others = [("peer", setup.peer), ("authority", setup.authority), ("invoke", setup.invoke)];
    let mut others: String = others.into_iter().map(|(key, at)| listener(key, at)).collect();
    if setup.workload_api {
        others += &format!("workload_api: {}, ", file("workload.sock"));
    }
    let mut text = format!(
        "listen: {{ {others}outbound: {}, admin: {}, metrics: \"{metrics}\", ready: \"{ready}\" }}\n\
         store: {{ embedded: {} }}\n\
         audit: {audit}\n",
        outbound.port(),
        file("admin.sock"),
        file("store"),
    );
    if !setup.capture.is_empty() {
        text += &format!("capture: {}\n", setup.capture);
    }
    if !setup.limits.is_empty() {
        text += &format!("limits: {}\n", setup.limits);
    }
    if !setup.token.is_empty() {
        text += &format!("identity: {{ source: join, token_file: {} }}\n", file(TOKEN));
    }
    text + setup.more
}

fn write_config(folder: &Path, settings: &str, resources: &str) -> Result<PathBuf> {
    let below = folder.join("resources");
    fs::create_dir_all(&below).context("cannot make a folder")?;
    fs::write(folder.join("toolgate.yaml"), settings).context("cannot write the configuration")?;
    fs::write(below.join("all.yaml"), resources).context("cannot write the resources")?;
    Ok(below)
}

/// Starts it behind what becomes it.
fn started(
    config: &Path,
    flags: &[&str],
    behind: &[String],
    environment: &[(String, String)],
) -> Result<Process> {
    let mut command = run_command(config);
    if let Some((program, arguments)) = behind.split_first() {
        let mut behind = Command::new(program);
        behind.args(arguments).arg(command.get_program()).args(command.get_args());
        command = behind;
    }
    Process::start(command.args(flags).envs(environment.iter().map(|(name, value)| (name, value))))
}

fn run_command(config: &Path) -> Command {
    let mut command = toolgate();
    command.arg("run").arg("--config").arg(config);
    command
}

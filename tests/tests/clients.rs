//! Unmodified clients from their registries, over IPv4 and IPv6, in the host's and in another network namespace: each does
//! the same steps without an agent first, then captured. `fixtures/clients` has what they do and their server.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, Caller, Host, Netns, Process, Setup, connector, fixture, packages, wait};

/// Longer than any client takes to a step on a busy machine; the clients themselves give up earlier.
const STEP_TIME_MAX: Duration = Duration::from_secs(60);
/// Clients that run at a time: each takes a core while it starts.
const AT_ONCE: usize = 4;
/// The last step of each URL: a call in a new session.
const LAST_STEP: &str = "anew";

/// One client.
struct Client {
    name: &'static str,
    /// The interpreter below `target/packages`, or a program of its own.
    program: &'static str,
    script: &'static str,
    /// How it tells the revision, where it lets one choose.
    mode: &'static str,
    /// What a call comes to whose session the server has forgotten: the same with Toolgate and without.
    forgotten: &'static str,
}

/// A row without a choice of revisions.
const fn client(
    name: &'static str,
    program: &'static str,
    script: &'static str,
    forgotten: &'static str,
) -> Client {
    Client { name, program, script, mode: "", forgotten }
}

const PYTHON: &str = "python/bin/python";
const PYTHON2: &str = "python2/bin/python";
/// Where there are no sessions (2026-07-28, or one a call), a restart is not noticed.
const SERVED: &str = "42";

/// Names that end in a revision are of clients that speak more than one.
const CLIENTS: [Client; 12] = [
    client("Python SDK 1.x", PYTHON, "mcp1.py", "error: Session terminated"),
    Client {
        mode: "legacy",
        ..client("Python SDK 2.x, 2025-11-25", PYTHON2, "mcp2.py", "error: Session not found")
    },
    Client { mode: "auto", ..client("Python SDK 2.x, 2026-07-28", PYTHON2, "mcp2.py", SERVED) },
    client("TypeScript SDK 1.x", "node", "typescript1.mjs", "Session not found"),
    Client {
        mode: "legacy",
        ..client("TypeScript SDK 2.x, 2025-11-25", "node", "typescript2.mjs", "Session not found")
    },
    Client { mode: "auto", ..client("TypeScript SDK 2.x, 2026-07-28", "node", "typescript2.mjs", SERVED) },
    // It opens a new session by itself.
    Client { mode: "legacy", ..client("rmcp, 2025-11-25", "rmcp_client", "", SERVED) },
    Client { mode: "auto", ..client("rmcp, 2026-07-28", "rmcp_client", "", SERVED) },
    client("FastMCP, 2026-07-28", PYTHON2, "fastmcp_client.py", SERVED),
    client("LangGraph, a session a call", "langgraph/bin/python", "langgraph_client.py", SERVED),
    client("OpenAI Agents, 2026-07-28", PYTHON2, "openai_agents.py", SERVED),
    client("curl, 2025-11-25", PYTHON, "curl.py", "error: Session not found"),
];

/// What every client is to say: the step, without an agent, captured. A denial is said in the client's own words around
/// these, with the number of the request.
const STEPS: [(&str, &str, &str); 7] = [
    ("list", "add announce count delete_everything", "add announce count"),
    ("permitted", "42", "42"),
    ("denied_tool", "deleted", "toolgate: policy does not permit this"),
    ("denied_argument", "4002", "toolgate: policy does not permit these arguments"),
    ("progress", "1 2 3", "1 2 3"),
    ("counted", "counted to 3", "counted to 3"),
    ("notified", "told", "told"),
];

/// Who is asked, and from where.
struct Place<'p> {
    name: &'static str,
    netns: Option<&'p Netns>,
    /// The server's addresses: IPv4, IPv6.
    addresses: [SocketAddr; 2],
}

/// What a client said: by URL, then by step.
type Said = BTreeMap<String, BTreeMap<String, String>>;

/// The server that all clients are asked to call.
struct Server {
    addresses: Vec<String>,
    process: Process,
}

impl Server {
    fn start(addresses: &[SocketAddr]) -> Result<Self> {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        Ok(Self { process: Self::process(&addresses)?, addresses })
    }

    fn process(addresses: &[String]) -> Result<Process> {
        let mut command = Command::new(packages(PYTHON2)?);
        command.arg(fixture("clients/server.py")).args(addresses);
        let process = Process::start(&mut command)?;
        process.line_within(STEP_TIME_MAX, 0, "listening")?;
        Ok(process)
    }

    /// As after a crash: every connection ends, every session is forgotten.
    fn restart(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.end()?;
        self.process = Self::process(&self.addresses)?;
        Ok(())
    }
}

/// A running client, and what it said so far.
struct Driver {
    name: &'static str,
    process: Process,
    read: usize,
    said: Said,
}

impl Driver {
    fn start(client: &Client, place: &Place<'_>, agent: Option<&Agent>) -> Result<Self> {
        let mut command = match (agent, place.netns) {
            (Some(agent), Some(netns)) => netns.entered_by(&agent.exec("client")),
            (Some(agent), None) => agent.exec("client"),
            (None, Some(netns)) => netns.command(&[]),
            (None, None) => Command::new("env"),
        };
        command.arg(program(client.program)?);
        if !client.script.is_empty() {
            command.arg(fixture("clients").join(client.script));
        }
        command.args(place.addresses.map(url)).env("MODE", client.mode).env("PACKAGES", packages("node")?);
        Ok(Self { name: client.name, process: Process::start(&mut command)?, read: 0, said: Said::new() })
    }

    /// Takes what it says up to `last`, for both URLs. Progress is released step by step: an event that came late would
    /// be waited for in vain.
    fn until(&mut self, last: &str, server: &Mutex<&mut Server>) -> Result<()> {
        let mut left = 2;
        while left > 0 {
            let (number, line) =
                self.process.line_within(STEP_TIME_MAX, self.read, "{\"").context(self.name)?;
            self.read = number + 1;
            // What the client's libraries log is none of it.
            let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
            let step = text(&line, "step");
            let said = match line.get("said") {
                Some(Value::Array(names)) => {
                    let mut names: Vec<_> = names.iter().filter_map(Value::as_str).collect();
                    names.sort_unstable();
                    names.join(" ")
                }
                _text => text(&line, "said").to_owned(),
            };
            let steps = self.said.entry(text(&line, "url").to_owned()).or_default();
            steps
                .entry(step.to_owned())
                .and_modify(|before| {
                    let _ = write!(before, " {said}");
                })
                .or_insert(said);
            if step == "progress" {
                let mut server = server.lock().map_err(|_| anyhow!("another client's thread panicked"))?;
                server.process.say(text(&line, "key"))?;
            }
            left -= usize::from(step == last);
        }
        Ok(())
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/mcp")
}

fn program(name: &str) -> Result<PathBuf> {
    match name {
        "node" => Ok(PathBuf::from(name)),
        "rmcp_client" => Ok(connector().with_file_name(name)),
        interpreter => packages(interpreter),
    }
}

/// Does `work` with all of them at a time.
fn together(drivers: &mut [Driver], work: impl Fn(&mut Driver) -> Result<()> + Sync) -> Result<()> {
    let done: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = drivers.iter_mut().map(|driver| scope.spawn(|| work(driver))).collect();
        running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    done.into_iter().try_for_each(|done| done.map_err(|_| anyhow!("a client's thread panicked"))?)
}

/// All clients at one place, the server's restart in between.
fn run(place: &Place<'_>, agent: Option<&Agent>, server: &mut Server) -> Result<Vec<Said>> {
    let mut drivers = Vec::new();
    let shared = Mutex::new(&mut *server);
    for some in CLIENTS.chunks(AT_ONCE) {
        // Started by this thread: a process of the tests ends with the thread that started it.
        let fresh: Result<Vec<_>> = some.iter().map(|client| Driver::start(client, place, agent)).collect();
        let mut fresh = fresh?;
        together(&mut fresh, |driver| driver.until("restart", &shared))?;
        drivers.append(&mut fresh);
    }
    server.restart()?;
    let shared = Mutex::new(server);
    for some in drivers.chunks_mut(AT_ONCE) {
        together(some, |driver| {
            driver.process.say("restarted")?;
            driver.until(LAST_STEP, &shared)?;
            driver.process.close().map(|_code| ())
        })?;
    }
    Ok(drivers.into_iter().map(|driver| driver.said).collect())
}

/// Compares one client's steps for one URL with the table, and adds what is wrong to `wrong`.
fn check(client: &Client, place: &str, url: &str, direct: &Said, captured: &Said, wrong: &mut Vec<String>) {
    let [direct, captured] = [direct, captured].map(|said| said.get(url).cloned().unwrap_or_default());
    let mut expect = |how: &str, said: &BTreeMap<String, String>, step: &str, expected: &str| {
        let said = said.get(step).map_or("nothing", String::as_str);
        let is_text = step == "after" || expected.starts_with("toolgate: ");
        if said != expected && !(is_text && said.contains(expected)) {
            wrong.push(format!("{}, {place}, {url}, {how}: {step}: `{said}`, not `{expected}`", client.name));
        }
    };
    for (step, without, with) in STEPS {
        expect("directly", &direct, step, without);
        expect("captured", &captured, step, with);
    }
    for (how, said) in [("directly", &direct), ("captured", &captured)] {
        expect(how, said, "after", client.forgotten);
        expect(how, said, LAST_STEP, SERVED);
    }
    expect("captured as directly", &captured, "after", direct.get("after").map_or("", String::as_str));
}

/// Free ports at these addresses.
fn free(addresses: [IpAddr; 2]) -> Result<[SocketAddr; 2]> {
    let free = |address: IpAddr| -> Result<SocketAddr> {
        TcpListener::bind((address, 0))?.local_addr().context("a listener without address")
    };
    let [four, six] = addresses;
    Ok([free(four)?, free(six)?])
}

fn resources(places: &[Place<'_>]) -> String {
    let mut text = String::new();
    for place in places {
        for (family, address) in ["four", "six"].iter().zip(place.addresses) {
            let _ = write!(
                text,
                "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: {}-{family} }}\n\
                 spec: {{ local: {{ address: \"{address}\" }}, path: /mcp }}\n---\n",
                place.name,
            );
        }
    }
    text + "apiVersion: toolgate/v1
kind: Policy
metadata: { name: clients }
spec:
  rules:
  - name: small-sums
    effect: allow
    callers: [client]
    servers: [\"*\"]
    tools: [add]
    arguments: { a: { max: 100 }, b: { max: 100 } }
  - name: at-the-pace-of-the-test
    effect: allow
    callers: [client]
    servers: [\"*\"]
    tools: [count, announce]
  - name: notes
    effect: allow
    callers: [client]
    servers: [\"*\"]
    resources: [\"note://*/*\"]
"
}

/// Waits until the agent serves a namespace: what connects before is refused.
fn served(agent: &Agent, netns: &Netns, addresses: [SocketAddr; 2]) -> Result<Caller> {
    let mut caller = Caller::start(netns.entered_by(&agent.exec("client")))?;
    for address in addresses {
        wait::until("a served namespace", || Ok(caller.connect(address).ok()))?;
    }
    Ok(caller)
}

#[test]
fn unmodified_clients_do_captured_what_they_do_directly_but_for_what_policy_denies() -> Result<()> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let ([four, _], [six, _]) = (netns.link()?, netns.link6()?);
    let loopback = free([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])?;
    let places = [
        Place { name: "host", netns: None, addresses: loopback },
        Place { name: "netns", netns: Some(&netns), addresses: free([four, six])? },
    ];
    let mut server = Server::start(&places.each_ref().map(|place| place.addresses).concat())?;
    let mut direct = Vec::new();
    for place in &places {
        direct.push(run(place, None, &mut server).with_context(|| format!("{}, directly", place.name))?);
    }
    let agent = Agent::start_in(host, Setup { resources: &resources(&places), ..Setup::default() })?;
    let _held = served(&agent, &netns, places[1].addresses)?;
    let mut captured = Vec::new();
    for place in &places {
        captured.push(
            run(place, Some(&agent), &mut server).with_context(|| format!("{}, captured", place.name))?,
        );
    }

    let mut wrong = Vec::new();
    let mut matrix = format!("{:<32} host v4  host v6  netns v4 netns v6 a forgotten session\n", "client");
    for (number, client) in CLIENTS.iter().enumerate() {
        let _ = write!(matrix, "{:<32}", client.name);
        for (place, (direct, captured)) in places.iter().zip(direct.iter().zip(&captured)) {
            for address in place.addresses {
                let before = wrong.len();
                check(client, place.name, &url(address), &direct[number], &captured[number], &mut wrong);
                let _ = write!(matrix, " {:<8}", if wrong.len() == before { "ok" } else { "WRONG" });
            }
        }
        let _ = writeln!(matrix, " {}", client.forgotten);
    }
    // Not by `print!`, which shows only what fails.
    writeln!(std::io::stderr(), "{matrix}").context("cannot show the matrix")?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    for reason in ["no_rule", "arguments_refused"] {
        let of_reason =
            |line: &&Value| text(line, "reason") == reason && line["caller"]["app_id"] == json!("client");
        let expected = CLIENTS.len() * 4;
        agent.audit_until(&format!("{expected} denials for {reason}"), |lines| {
            lines.iter().filter(of_reason).count() == expected
        })?;
    }
    Ok(())
}

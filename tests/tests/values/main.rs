//! Every value of `destinations`, `exclude`, `undeclared`, `unrecognised`, `tls` and `opaque`, by what captured processes do: plain
//! MCP, other HTTP, servers that speak first, TLS, proxies, WebSockets, HTTP/2. `cases` is the table.

mod cases;
mod web;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::PoisonError;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, text};
use toolgate_tests::{Agent, Caller, Cgroup, Host, Process, Server, Setup, fixture, free_address, packages};

use cases::{Cases, Does, Row, Told, WORDS};
use web::{Names, Web};

/// What servers say that speak first.
const BANNER: &[u8] = b"SSH-2.0-test\r\n";

/// Says what a page says.
const REQUESTS: &str =
    "import requests, sys; print(requests.get(sys.argv[1], verify=False, timeout=20).text)";

/// Who can be reached, and by whom.
struct Stage {
    docs: Server,
    shadow: Server,
    web: Web,
    proxy: Web,
    oldproxy: Web,
    ssh: SocketAddr,
    oldssh: SocketAddr,
    /// TLS: undeclared, declared, and declared without a rule.
    tls: [SocketAddr; 3],
    _https: Process,
    cgroup: Cgroup,
}

impl Stage {
    fn set() -> Result<Self> {
        let names = Names::default();
        let tls = [free_address()?, free_address()?, free_address()?];
        let mut https = Command::new(packages("python2/bin/python")?);
        https.arg(fixture("https.py")).args(tls.map(|address| address.to_string()));
        let https = Process::start(&mut https)?;
        https.line("listening")?;
        let stage = Self {
            docs: Server::start()?,
            shadow: Server::start()?,
            web: Web::start(&names)?,
            proxy: Web::start(&names)?,
            oldproxy: Web::start(&names)?,
            ssh: speaks_first()?,
            oldssh: speaks_first()?,
            tls,
            _https: https,
            cgroup: Cgroup::new("values")?,
        };
        let known = [
            ("docs.internal", stage.docs.address),
            ("shadow.example", stage.shadow.address),
            ("web.example", stage.web.address),
            ("proxy.example", stage.proxy.address),
            ("ssh.example", stage.ssh),
            ("tls.example", tls[0]),
            ("secret.internal", tls[1]),
        ];
        let known: BTreeMap<_, _> = known.map(|(name, address)| (name.to_owned(), address)).into();
        *names.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(stage)
    }

    fn addresses(&self) -> [(&'static str, SocketAddr); 10] {
        [
            ("docs", self.docs.address),
            ("shadow", self.shadow.address),
            ("web", self.web.address),
            ("proxy", self.proxy.address),
            ("oldproxy", self.oldproxy.address),
            ("ssh", self.ssh),
            ("oldssh", self.oldssh),
            ("tls", self.tls[0]),
            ("secret", self.tls[1]),
            ("closed", self.tls[2]),
        ]
    }

    /// A text with what its words in braces stand for.
    fn filled(&self, text: &str) -> Result<String> {
        let mut text = WORDS.iter().fold(text.to_owned(), |text, (word, meant)| text.replace(word, meant));
        let body = String::from_utf8(call(1, "echo", &json!({})))?;
        let post = format!(
            "POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        text = text
            .replace("{post}", &post)
            .replace("{python}", &packages("python2/bin/python")?.display().to_string());
        for (name, address) in self.addresses() {
            let port = format!("{{{name}.port}}");
            text = text.replace(&port, &address.port().to_string());
            text = text.replace(&format!("{{{name}}}"), &address.to_string());
        }
        Ok(text)
    }

    /// The words of a command. What has spaces is filled in last.
    fn command(&self, words: &str) -> Result<Vec<String>> {
        let message = |tool| -> Result<[String; 4]> {
            let body = String::from_utf8(call(1, tool, &json!({})))?;
            Ok(["--header", "Content-Type: application/json", "--data", &body].map(str::to_owned))
        };
        let mut command = Vec::new();
        for word in self.filled(words)?.split(' ') {
            match word {
                "{mcp}" => command.extend(message("echo")?),
                "{secret_tool}" => command.extend(message("delete_everything")?),
                "{requests}" => command.push(REQUESTS.to_owned()),
                word => command.push(word.to_owned()),
            }
        }
        Ok(command)
    }

    fn resources(&self, opaque: &str) -> Result<String> {
        let mut resources = String::new();
        for (name, address) in self.addresses() {
            let hosts = match name {
                "docs" => format!("[docs.internal, \"{address}\"]"),
                "secret" => "[secret.internal]".to_owned(),
                "closed" => "[closed.internal]".to_owned(),
                "oldproxy" | "oldssh" => "[]".to_owned(),
                _undeclared => continue,
            };
            resources += &format!(
                "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: {name} }}\nspec: {{ local: {{ address: \
                 \"{address}\" }}, hosts: {hosts}, opaque: {opaque} }}\n---\n"
            );
        }
        let rule = "name: r, effect: allow, callers: [reader, agent], servers: [docs, secret, oldproxy, oldssh], tools: [echo]";
        Ok(resources
            + &format!(
                "apiVersion: toolgate/v1\nkind: Policy\nmetadata: {{ name: p }}\nspec: {{ rules: [{{ {rule} }}] }}\n---\n\
                 apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: reader }}\nspec: {{ selectors: {} }}\n",
                self.selectors()?
            ))
    }

    /// What `exec` starts has no selectors; the process in the cgroup has.
    fn selectors(&self) -> Result<String> {
        Ok(format!("{{ cgroup: \"{}\" }}", self.cgroup.name()?))
    }

    /// Who was reached since it was asked before.
    fn reached(&self) -> Vec<&'static str> {
        let servers = [("docs", &self.docs), ("shadow", &self.shadow)];
        let webs = [("oldproxy", &self.oldproxy), ("proxy", &self.proxy), ("web", &self.web)];
        let mut reached: Vec<_> = servers
            .into_iter()
            .filter(|(_, server)| !server.requests_now().is_empty())
            .map(|(name, _)| name)
            .collect();
        for (name, web) in webs {
            let heads = web.heads_now();
            assert!(
                heads.iter().all(|head| !head.contains("h2c")),
                "an offer of HTTP/2 has arrived: {heads:?}"
            );
            if !heads.is_empty() {
                reached.push(name);
            }
        }
        reached.sort_unstable();
        reached
    }
}

/// A server that says a banner before anything else, and nothing more.
fn speaks_first() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _the_client_left = stream.write_all(BANNER);
                let _the_client_left = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    Ok(address)
}

/// Whoever does what a row says.
struct Actor<'s> {
    stage: &'s Stage,
    agent: &'s Agent,
    by_exec: bool,
}

impl Actor<'_> {
    fn act(&self, does: Does, sees: &[&str]) -> Result<String> {
        match does {
            Does::Runs(words) => self.run(&self.stage.command(words)?),
            Does::Sends(to, bytes) => {
                let to = self.stage.filled(to)?.parse().context("not an address")?;
                let mut caller = self.caller()?;
                let mut connection = caller.http(to)?;
                connection.send(self.stage.filled(bytes)?.as_bytes())?;
                // Where more is awaited than came, its end is the end of the connection.
                let mut said = String::new();
                while !sees.iter().all(|words| said.contains(words)) || sees.is_empty() {
                    match connection.exactly(1) {
                        Ok(byte) => said.push(char::from(byte[0])),
                        Err(_the_end) => break,
                    }
                }
                Ok(said)
            }
        }
    }

    fn caller(&self) -> Result<Caller> {
        if self.by_exec {
            return self.agent.caller("agent");
        }
        let caller = Caller::outside()?;
        self.stage.cgroup.add(caller.id())?;
        Ok(caller)
    }

    fn run(&self, words: &[String]) -> Result<String> {
        let mut command = if self.by_exec {
            self.agent.exec("agent")
        } else {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "echo 0 > \"$0\" && exec \"$@\""])
                .arg(self.stage.cgroup.path().join("cgroup.procs"));
            shell
        };
        let mut process = Process::start(command.args(words))?;
        process.end()?;
        Ok(process.said())
    }
}

/// The message's line as the table has it.
fn told(line: &Value) -> [String; 4] {
    let target = text(line, "target").strip_prefix("undeclared").map_or(text(line, "target"), |_address| "");
    ["method", "decision", "reason"]
        .map(|name| text(line, name).to_owned())
        .into_iter()
        .fold(Vec::new(), |mut all, one| {
            all.push(one);
            if all.len() == 1 {
                all.push(target.to_owned());
            }
            all
        })
        .try_into()
        .unwrap_or_default()
}

fn check(stage: &Stage, host: Host, cases: &Cases, wrong: &mut Vec<String>) -> Result<Host> {
    let capture = stage.filled(cases.capture)?;
    let capture = if cases.by_exec {
        capture
    } else {
        format!("{{ cgroups: [\"{}\"], {capture} }}", stage.cgroup.name()?)
    };
    let resources = stage.resources(cases.opaque)?;
    let setup = Setup {
        resources: &resources,
        capture: &capture,
        limits: "{ silence_time_max: 300ms }",
        observe: cases.observe,
        ..Setup::default()
    };
    let agent = Agent::start_in(host, setup).with_context(|| capture.clone())?;
    let actor = Actor { stage, agent: &agent, by_exec: cases.by_exec };
    let mut counted: BTreeMap<Told, u32> = BTreeMap::new();
    let mut lines_before = 0;
    for &(name, does, sees, reaches, tells) in cases.rows {
        let told_before = lines_before;
        lines_before += tells.len();
        if let Err(error) = row_holds(&actor, (name, does, sees, reaches, tells), told_before) {
            let Cases { opaque, observe, .. } = cases;
            wrong.push(format!("{capture}, opaque: {opaque}, observe: {observe}: {name}: {error:#}"));
            // The rows behind it are judged by what it should not have said.
            lines_before = agent.audit(0)?.len();
            stage.reached();
        }
        for line in tells {
            *counted.entry(*line).or_default() += 1;
        }
    }
    for ((method, target, decision, reason), count) in counted.into_iter().filter(|_| wrong.is_empty()) {
        let target = if target.is_empty() { "undeclared" } else { target };
        let labels = [("method", method), ("target", target), ("decision", decision), ("reason", reason)]
            .map(|(name, value)| format!("{name}=\"{value}\""));
        let labels = labels.each_ref().map(String::as_str);
        agent.counts("toolgate_requests_total", &labels, count.into()).with_context(|| capture.clone())?;
    }
    agent.counts("toolgate_requests_total", &[], u32::try_from(lines_before)?.into())?;
    drop(agent);
    Host::turn()
}

fn row_holds(actor: &Actor<'_>, (_, does, sees, reaches, tells): Row, lines_before: usize) -> Result<()> {
    let said = actor.act(does, sees)?;
    for words in sees {
        ensure!(said.contains(words), "`{words}` is not in what the process saw: {said}");
    }
    ensure!(!sees.is_empty() || said.is_empty(), "nothing was to be seen: {said}");
    let lines = actor.agent.audit(lines_before + tells.len())?;
    let new: Vec<_> = lines.iter().skip(lines_before).map(told).collect();
    let expected: Vec<_> = tells.iter().map(|(a, b, c, d)| [*a, *b, *c, *d].map(str::to_owned)).collect();
    let details: Vec<_> = lines.iter().skip(lines_before).map(|line| text(line, "detail")).collect();
    ensure!(new == expected, "the audit tells {new:?}, {details:?}");
    // Of what goes to a name through a proxy, the audit tells the name.
    let (Does::Runs(words) | Does::Sends(_, words)) = does;
    if let (true, Some(detail)) = (words.contains("shadow.example"), details.last()) {
        ensure!(detail.contains("shadow.example") || detail.contains("HTTP/2"), "the audit tells: {detail}");
    }
    let reached = actor.stage.reached().join(" ");
    ensure!(reached == reaches, "reached: `{reached}`, not `{reaches}`");
    Ok(())
}

#[test]
fn every_value_decides_what_captured_processes_get_and_what_is_told_of_it() -> Result<()> {
    let stage = Stage::set()?;
    let (mut host, mut wrong) = (Host::turn()?, Vec::new());
    let by_exec = [
        &cases::DEFAULT,
        &cases::UNDECLARED_ALLOWED,
        &cases::UNRECOGNISED_DENIED,
        &cases::MCP_ALONE,
        &cases::OPAQUE_ALLOWED,
        &cases::TLS_DENIED,
        &cases::OBSERVED,
        &cases::EXEC_EXCLUDED,
    ];
    for cases in by_exec.into_iter().chain(&cases::DESTINATIONS) {
        host = check(&stage, host, cases, &mut wrong)?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

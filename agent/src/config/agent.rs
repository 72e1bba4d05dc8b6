//! `toolgate.yaml`: the agent's own settings, read at start. Every key has a default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toolgate_core::decision::{Excluded, TlsRule, Undeclared, Unrecognised};
use toolgate_core::policy::Glob;
use toolgate_core::spiffe::is_trust_domain;

use super::diagnostic::Diagnostic;
use super::identity::{self, IdentityConfig, IdentitySource};
use super::limits;
use super::schema::{AgentFile, AuditFile, CaptureFile, ListenFile, Words};
use super::source::Source;
use super::tls;
use super::words::{self, Destination, Findings, choice};
use crate::limits::Limits;

/// The agent's own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The trust domain of every identity here.
    pub trust_domain: String,
    /// What is captured, and what becomes of what policy does not speak of.
    pub capture: Capture,
    /// Who issues its SVIDs.
    pub identity: IdentityConfig,
    /// Where the agent listens.
    pub listen: Listen,
    /// Where it keeps its state.
    pub store: PathBuf,
    /// The record of what was decided.
    pub audit: Audit,
    /// What is too much.
    pub limits: Limits,
}

/// `capture:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Whose connections, besides what `toolgate exec` starts.
    pub cgroups: Vec<Cgroup>,
    /// To where.
    pub destinations: Destinations,
    /// To where not.
    pub exclude: Vec<Destination>,
    /// What is not MCP and goes to no declared server.
    pub unrecognised: Unrecognised,
    /// MCP to no declared server.
    pub undeclared: Undeclared,
    /// What becomes of TLS.
    pub tls: TlsRule,
    /// Hosts whose TLS is never read.
    pub tls_exclude: Vec<Excluded>,
    /// Whom clients whose TLS is read believe besides the system's (DER).
    pub tls_roots: Arc<[Box<[u8]>]>,
    /// What becomes of captured connects while the agent is lost.
    pub agent_loss: AgentLoss,
    /// What becomes of connections that are older than their capture.
    pub existing: Existing,
    /// How often each captured cgroup is tried.
    pub canary: Duration,
}

/// What becomes of captured connects while the agent does not answer: killed, stopped, starved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentLoss {
    /// Refused.
    Closed,
    /// They go where they are meant to, unseen.
    DangerousOpen,
}

/// What becomes of connections of captured processes that are older than their capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Logged and counted.
    Report,
    /// Ended as well: their processes connect again, and are captured then.
    End,
}

/// Which cgroups, with all that is below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// The whole host.
    Root,
    /// Those below the cgroup2 root that fit, without the leading `/`.
    Below(Glob),
}

/// As it is configured.
impl std::fmt::Display for Cgroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => f.write_str("/"),
            Self::Below(glob) => f.write_str(glob.as_str()),
        }
    }
}

/// Which destinations are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// Addresses of declared servers.
    Declared,
    /// Every address.
    All,
    /// These, and those of declared servers.
    List(Vec<Destination>),
}

/// `listen:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The port that captured connections are redirected to.
    pub outbound: u16,
    /// Where other agents come to servers behind this one; `None`: nowhere.
    pub peer: Option<SocketAddr>,
    /// Where captured processes call servers by App ID; `None`: nowhere.
    pub invoke: Option<SocketAddr>,
    /// The socket of the admin API.
    pub admin: PathBuf,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where readiness is served.
    pub ready: SocketAddr,
    /// Where nodes join this node's authority, if they may.
    pub authority: Option<SocketAddr>,
    /// The socket where processes get their own SVIDs, if they may.
    pub workload_api: Option<PathBuf>,
}

/// `audit:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The file, one JSON line a message.
    pub file: PathBuf,
    /// What becomes of a message that cannot be recorded.
    pub on_failure: OnFailure,
    /// How often the file is synced: a crash loses no more than that.
    pub sync: Duration,
}

/// What becomes of a message that cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Denied.
    Deny,
    /// Passed on without record.
    DangerousAllow,
}

impl Default for AgentConfig {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            trust_domain: "example.org".to_owned(),
            capture: Capture {
                cgroups: Vec::new(),
                destinations: Destinations::Declared,
                exclude: Vec::new(),
                unrecognised: Unrecognised::Pass,
                undeclared: Undeclared::Deny,
                tls: TlsRule::Opaque,
                tls_exclude: Vec::new(),
                tls_roots: Arc::default(),
                agent_loss: AgentLoss::Closed,
                existing: Existing::Report,
                canary: Duration::from_secs(30),
            },
            identity: IdentityConfig::default(),
            listen: Listen {
                outbound: 15001,
                peer: None,
                invoke: None,
                admin: "/run/toolgate/admin.sock".into(),
                metrics: loopback(15020),
                ready: loopback(15021),
                authority: None,
                workload_api: None,
            },
            store: "/var/lib/toolgate".into(),
            audit: Audit {
                file: "/var/log/toolgate/audit.jsonl".into(),
                on_failure: OnFailure::Deny,
                sync: Duration::from_millis(100),
            },
            limits: Limits::default(),
        }
    }
}

impl Listen {
    /// The addresses at which a captured process calls by App ID: `localhost` is both.
    pub fn doors(&self) -> impl Iterator<Item = SocketAddr> {
        let sibling = |at: SocketAddr| match at.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
        let both = move |at: SocketAddr| {
            [Some(at), sibling(at).map(|ip: IpAddr| SocketAddr::new(ip, at.port()))].into_iter().flatten()
        };
        self.invoke.into_iter().flat_map(both)
    }
}

impl AgentConfig {
    /// The settings that let unchecked or unrecorded MCP through, to be logged at start.
    #[must_use]
    pub fn dangerous(&self) -> Vec<&'static str> {
        let undeclared = (self.capture.undeclared == Undeclared::DangerousAllow)
            .then_some("capture.undeclared: dangerous_allow lets MCP to undeclared servers pass");
        let audit = (self.audit.on_failure == OnFailure::DangerousAllow)
            .then_some("audit.on_failure: dangerous_allow lets messages pass without record");
        let loss = (self.capture.agent_loss == AgentLoss::DangerousOpen).then_some(
            "capture.agent_loss: dangerous_open lets captured processes pass while the agent does not answer",
        );
        undeclared.into_iter().chain(audit).chain(loss).collect()
    }
}

/// Reads `<dir>/toolgate.yaml`; without that file every key has its default.
///
/// # Errors
/// All that is wrong with it.
pub fn load_agent(dir: &Path) -> Result<AgentConfig, Vec<Diagnostic>> {
    if let Err(error) = std::fs::read_dir(dir) {
        let finding = Diagnostic::of_file(dir, format!("cannot read the directory: {error}"));
        return Err(vec![finding.help("create it, or name another with `--config`")]);
    }
    let file = dir.join("toolgate.yaml");
    if !file.exists() {
        return Ok(AgentConfig::default());
    }
    parse(&Source::read(&file).map_err(|finding| vec![finding])?)
}

/// Reads the text of a `toolgate.yaml`.
pub(super) fn parse(source: &Source) -> Result<AgentConfig, Vec<Diagnostic>> {
    let documents = source.documents();
    let document = match documents.as_slice() {
        [] => return Ok(AgentConfig::default()),
        [document] => document,
        [_, _, ..] => {
            let fault = Diagnostic::of_file(&source.file, "more than one YAML document".to_owned());
            return Err(vec![fault.help("resources belong into files of the directory `resources`")]);
        }
    };
    let file: AgentFile = source.parse(document).map_err(|finding| vec![finding])?;
    let mut findings = Findings::default();
    let config = build(source, file, &mut findings);
    if findings.all.is_empty() { Ok(config) } else { Err(findings.all) }
}

fn build(source: &Source, file: AgentFile, findings: &mut Findings) -> AgentConfig {
    let mut config = AgentConfig::default();
    if let Some(domain) = file.trust_domain {
        if !is_trust_domain(&domain.value) {
            let fault = source.error(&domain, format!("`{}` is no trust domain", domain.value));
            findings.push(fault.help("use a-z, 0-9, `.`, `-` and `_`, as in `example.org`"));
        }
        config.trust_domain = domain.value;
    }
    if let Some(capture) = &file.capture {
        read_capture(source, capture, &mut config.capture, findings);
    }
    if let Some(identity) = &file.identity {
        config.identity = identity::read(source, identity, findings);
    }
    if let Some(listen) = &file.listen {
        read_listen(source, listen, &mut config.listen, findings);
        if config.identity.source != IdentitySource::Embedded
            && let Some(word) = &listen.authority
        {
            let fault = source.error(word, "this node is no authority: `identity.source` is another one");
            findings.push(fault.help("leave it out: nodes join where the authority is"));
        }
        if config.identity.source == IdentitySource::WorkloadApi
            && let Some(word) = &listen.workload_api
        {
            let fault =
                source.error(word, "with `identity: { source: workload-api }` this node issues no SVIDs");
            findings.push(fault.help("leave it out: processes ask the socket that this agent asks"));
        }
    }
    if let Some(store) = file.store.and_then(|store| store.embedded) {
        config.store = findings.keep(words::file_path(source, &store)).unwrap_or(config.store);
    }
    if let Some(audit) = &file.audit {
        read_audit(source, audit, &mut config.audit, findings);
    }
    if let Some(limits) = &file.limits {
        limits::read(source, &limits.value, &mut config.limits, findings);
    }
    config
}

fn read_capture(source: &Source, file: &CaptureFile, capture: &mut Capture, findings: &mut Findings) {
    for word in file.cgroups.iter().flatten() {
        capture.cgroups.extend(findings.keep(cgroup(source, word)));
    }
    for word in file.exclude.iter().flatten() {
        capture.exclude.extend(findings.keep(words::destination(source, word)));
    }
    match file.destinations.as_ref().map(|given| (given, &given.value)) {
        None => {}
        Some((given, Words::One(word))) => {
            let built = [("declared", false), ("all", true)];
            let word = Some(serde_saphyr::Spanned::new(word.clone(), given.referenced, given.defined));
            if findings.keep(choice(source, &word, ("destinations", false), &built, &[])) == Some(true) {
                capture.destinations = Destinations::All;
            }
        }
        Some((_, Words::Many(list))) => {
            let list =
                list.iter().filter_map(|word| findings.keep(words::destination(source, word))).collect();
            capture.destinations = Destinations::List(list);
        }
    }
    let unrecognised = [("pass", Unrecognised::Pass), ("deny", Unrecognised::Deny)];
    let default = ("unrecognised", capture.unrecognised);
    capture.unrecognised =
        findings.keep(choice(source, &file.unrecognised, default, &unrecognised, &[])).unwrap_or(default.1);
    let undeclared = [("deny", Undeclared::Deny), ("dangerous_allow", Undeclared::DangerousAllow)];
    let default = ("undeclared", capture.undeclared);
    capture.undeclared =
        findings.keep(choice(source, &file.undeclared, default, &undeclared, &[])).unwrap_or(default.1);
    tls::read(source, file, capture, findings);
    read_life(source, file, capture, findings);
}

/// What becomes of captured processes while the agent is lost, or was not there yet.
fn read_life(source: &Source, file: &CaptureFile, capture: &mut Capture, findings: &mut Findings) {
    let agent_loss = [("closed", AgentLoss::Closed), ("dangerous_open", AgentLoss::DangerousOpen)];
    let default = ("agent_loss", capture.agent_loss);
    capture.agent_loss =
        findings.keep(choice(source, &file.agent_loss, default, &agent_loss, &[])).unwrap_or(default.1);
    let existing = [("report", Existing::Report), ("end", Existing::End)];
    let default = ("existing", capture.existing);
    capture.existing =
        findings.keep(choice(source, &file.existing, default, &existing, &[])).unwrap_or(default.1);
    if let Some(canary) = &file.canary {
        capture.canary = findings.keep(words::duration(source, canary)).unwrap_or(capture.canary);
    }
}

fn cgroup(source: &Source, word: &serde_saphyr::Spanned<String>) -> Result<Cgroup, Diagnostic> {
    if word.value == "/" {
        return Ok(Cgroup::Root);
    }
    let path = word.value.trim_matches('/');
    Glob::new(path).map(Cgroup::Below).map_err(|error| source.error(word, error.to_string()))
}

fn read_listen(source: &Source, file: &ListenFile, listen: &mut Listen, findings: &mut Findings) {
    if let Some(port) = &file.outbound {
        if port.value == 0 {
            findings.push(
                source.error(port, "the kernel redirects to a fixed port").help("leave it out for 15001"),
            );
        }
        listen.outbound = port.value;
    }
    if let Some(word) = &file.peer {
        listen.peer = findings.keep(words::listening(source, word));
    }
    if let Some(word) = &file.invoke {
        listen.invoke = findings.keep(invoke(source, word));
    }
    if let Some(admin) = &file.admin {
        listen.admin = findings.keep(words::file_path(source, admin)).unwrap_or_default();
    }
    if let Some(word) = &file.authority {
        listen.authority = findings.keep(words::address(source, word));
    }
    if let Some(word) = &file.workload_api {
        listen.workload_api = findings.keep(words::file_path(source, word));
    }
    for (word, address) in [(&file.metrics, &mut listen.metrics), (&file.ready, &mut listen.ready)] {
        if let Some(word) = word {
            *address = findings.keep(words::address(source, word)).unwrap_or(*address);
        }
    }
    let Some((word, invoke)) = file.invoke.as_ref().zip(listen.invoke) else { return };
    let others = [("metrics", listen.metrics.port()), ("ready", listen.ready.port())];
    let others = others.into_iter().chain([("outbound", listen.outbound)]);
    let others = others.chain(listen.peer.map(|peer| ("peer", peer.port())));
    for (key, _) in others.filter(|(_, port)| *port == invoke.port()) {
        let fault = source.error(word, format!("`{invoke}` has the port of `listen.{key}`"));
        findings.push(fault.help("give each its own port: Dapr's is 3500"));
    }
}

/// Where calls by App ID come: captured processes find it on the loopback of their own network namespace.
fn invoke(source: &Source, word: &serde_saphyr::Spanned<String>) -> Result<SocketAddr, Diagnostic> {
    let address = words::address(source, word)?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    let fault = source.error(word, format!("`{address}` is not on loopback"));
    Err(fault.help("write `127.0.0.1:3500`: captured processes alone get there, each on its own loopback"))
}

fn read_audit(source: &Source, file: &AuditFile, audit: &mut Audit, findings: &mut Findings) {
    if let Some(path) = &file.file {
        audit.file = findings.keep(words::file_path(source, path)).unwrap_or_default();
    }
    if let Some(sync) = &file.sync {
        audit.sync = findings.keep(words::duration(source, sync)).unwrap_or_default();
    }
    let built = [("deny", OnFailure::Deny), ("dangerous_allow", OnFailure::DangerousAllow)];
    let default = ("on_failure", audit.on_failure);
    audit.on_failure =
        findings.keep(choice(source, &file.on_failure, default, &built, &[])).unwrap_or(default.1);
}

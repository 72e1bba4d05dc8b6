//! The resources: every `*.yaml` and `*.yml` of one directory, all or nothing.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_saphyr::Spanned;
use toolgate_core::decision::{Enforcement, External, Host, Opaque, Place, Server, TlsRule, Transport};
use toolgate_core::identity::{Identity, check_name};
use toolgate_core::policy::Policies;
use toolgate_core::workload::Workload;

use super::agent::AgentConfig;
use super::callers::{read_agents, read_workloads};
use super::content::{read_opaque, read_pinning};
use super::diagnostic::{Diagnostic, Severity};
use super::endpoint;
use super::place;
use super::policies::read_policy;
use super::schema::{Given, Head, Metadata, PolicySpec, Resource, ServerSpec, WorkloadSpec};
use super::source::{Source, did_you_mean};
use super::words::{self, Findings, choice};
use crate::names::Question;

/// One generation of resources. All that decides a request comes from one of these.
#[derive(Debug, Default)]
pub struct Resources {
    /// Who calls.
    pub workloads: Vec<Workload>,
    /// What is called.
    pub servers: Vec<Arc<Server>>,
    /// Those of them that are known by their URL.
    externals: Vec<Arc<Server>>,
    /// What is permitted.
    pub policies: Policies,
    /// Counts up with every load, so that an audit line tells which files it was decided by.
    pub generation: u64,
    /// What is probably not meant.
    pub warnings: Vec<Diagnostic>,
    /// Workloads that are agents themselves, each with the App IDs that it has the SVIDs of.
    pub agents: HashMap<Identity, Vec<Identity>>,
    /// Local Servers whose process a Workload names.
    pub local_workloads: Vec<LocalWorkload>,
    /// Workloads whose TLS is read.
    pub inspected: Vec<Identity>,
    /// The files of `exe` selectors, held: else a caller could delete one and make its own with the same inode.
    _executables: Vec<File>,
}

/// `local.workload` of a Server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Where its process listens.
    pub address: SocketAddr,
    /// Whose process that is.
    pub workload: Identity,
    /// Where it is written: an error without words.
    pub place: Diagnostic,
}

impl Resources {
    /// The declared server at an address.
    #[must_use]
    pub fn server_at(&self, address: SocketAddr) -> Option<&Arc<Server>> {
        self.servers.iter().find(|server| server.address() == Some(address))
    }

    /// The external server whom a request names by its Host header and its path; of the paths of one host that are no
    /// server's, the first's. `is_tls`: its client speaks TLS, which was read.
    #[must_use]
    pub fn external(&self, host: &str, path: &str, is_tls: bool) -> Option<&Arc<Server>> {
        let mut meant = self
            .externals
            .iter()
            .filter(|server| server.external().is_some_and(|external| external.is_meant(host, is_tls)));
        let first = meant.next()?;
        if first.path == path {
            Some(first)
        } else {
            meant.find(|server| server.path == path).or(Some(first))
        }
    }

    /// The servers that are known by name.
    pub fn externals(&self) -> impl Iterator<Item = &Arc<External>> {
        self.externals.iter().filter_map(|server| server.external())
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_externals(&self) -> bool {
        !self.externals.is_empty()
    }

    /// Those that go by this name in TLS, at this port.
    pub fn externals_in_tls<'r>(&'r self, name: &str, port: u16) -> impl Iterator<Item = &'r Arc<Server>> {
        self.externals.iter().filter(move |server| {
            server.external().is_some_and(|one| one.tls.is_some() && one.port == port && one.has_name(name))
        })
    }

    /// What is to be asked of name servers: where servers are, and where their clients may connect to.
    #[must_use]
    pub fn questions(&self) -> BTreeSet<Question> {
        let hosts = self.externals().filter_map(|external| match &external.host {
            Host::Name(name) => Some(Question::Addresses(name.clone())),
            Host::Address(_) => None,
        });
        let endpoints = self.servers.iter().flat_map(|server| server.endpoints());
        hosts.chain(endpoints.filter_map(Question::of)).collect()
    }

    /// Whether the TLS of this caller is read.
    #[must_use]
    pub fn inspects(&self, caller: &Identity) -> bool {
        self.inspected.contains(caller)
    }

    /// The servers behind this agent.
    pub fn local_servers(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.iter().filter(|server| matches!(server.place, Place::Local { .. }))
    }

    /// The server of that name behind this agent.
    #[must_use]
    pub fn local_server(&self, identity: &Identity) -> Option<&Server> {
        self.local_servers().find(|server| server.identity == *identity).map(Arc::as_ref)
    }
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

/// A resource with its file.
pub(super) struct Placed<'s, S> {
    pub(super) source: &'s Source,
    pub(super) metadata: Metadata,
    pub(super) spec: S,
}

/// All resources by kind, before anything refers to anything.
#[derive(Default)]
struct Kinds<'s> {
    workloads: Vec<Placed<'s, WorkloadSpec>>,
    servers: Vec<Placed<'s, ServerSpec>>,
    policies: Vec<Placed<'s, PolicySpec>>,
}

/// What policies may refer to.
pub(super) struct Known<'k> {
    pub(super) trust_domain: &'k str,
    pub(super) workloads: &'k [Workload],
    pub(super) servers: &'k [Identity],
}

/// Reads the resources of a directory.
///
/// # Errors
/// All that is wrong with any of the files; then none counts.
pub fn load_resources(dir: &Path, agent: &AgentConfig) -> Result<Resources, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    let files = files(dir).map_err(|finding| vec![finding])?;
    let sources: Vec<Source> = files.iter().filter_map(|file| findings.keep(Source::read(file))).collect();
    compile(&sources, agent, findings)
}

/// In the order of their names. Hidden files are editors' and kubelets' own.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Diagnostic> {
    let fault = |error: std::io::Error| {
        Diagnostic::of_file(dir, format!("cannot read the directory: {error}"))
            .help("create it; an empty one declares nothing, and every MCP call is denied")
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Makes one generation of all sources.
pub(super) fn compile(
    sources: &[Source],
    agent: &AgentConfig,
    mut findings: Findings,
) -> Result<Resources, Vec<Diagnostic>> {
    let mut kinds = Kinds::default();
    for source in sources {
        for document in source.documents() {
            let read = kinds.read(source, &document);
            findings.keep(read);
        }
    }
    // What could not be read would be missed by everything that refers to it.
    if !findings.all.is_empty() {
        return Err(findings.all);
    }
    let mut executables = Vec::new();
    let (workloads, inspected) = read_workloads(&kinds.workloads, agent, &mut executables, &mut findings);
    let agents = read_agents(&kinds.workloads, agent, &mut findings);
    let (servers, local_workloads) = read_servers(&kinds.servers, agent, &workloads, &mut findings);
    let identities: Vec<Identity> = servers.iter().map(|server| server.identity.clone()).collect();
    // One that has an error is there all the same: what refers to it is not wrong for that.
    let named: Vec<Identity> =
        kinds.servers.iter().filter_map(|placed| server_name(placed, agent).ok()).collect();
    let known = Known { trust_domain: &agent.trust_domain, workloads: &workloads, servers: &named };
    let mut policies = Vec::new();
    let mut names = Names::default();
    for Placed { source, metadata, spec } in &kinds.policies {
        let identity = findings.keep(names.claim(source, metadata, agent, "Policy"));
        let policy = read_policy(source, identity.as_ref(), spec, &known, &mut findings);
        policies.extend(policy);
    }
    let policies = Policies::new(policies, &identities);
    let failed = |findings: &Findings| findings.all.iter().any(|finding| finding.severity == Severity::Error);
    // A policy that could not be read may be the one that is missed.
    if !failed(&findings) {
        warn_ungoverned(&kinds.servers, &servers, &policies, &mut findings);
    }
    findings.all.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    if failed(&findings) {
        return Err(findings.all);
    }
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let warnings = findings.all;
    let externals = servers.iter().filter(|server| server.external().is_some()).cloned().collect();
    Ok(Resources {
        workloads,
        servers,
        externals,
        policies,
        generation,
        warnings,
        agents,
        local_workloads,
        inspected,
        _executables: executables,
    })
}

impl<'s> Kinds<'s> {
    fn read(&mut self, source: &'s Source, document: &str) -> Result<(), Diagnostic> {
        const KINDS: [&str; 4] = ["Workload", "Server", "Policy", "HTTPEndpoint"];
        const LATER: [&str; 4] = ["Configuration", "Component", "Resiliency", "MCPServer"];
        let Head { api_version, kind } = source.parse(document)?;
        if LATER.contains(&kind.value.as_str()) {
            let fault = source.error(&kind, format!("kind `{}` is designed but not built yet", kind.value));
            return Err(fault.help("move it to another directory for now"));
        }
        if !KINDS.contains(&kind.value.as_str()) {
            let fault = source.error(&kind, format!("unknown kind `{}`", kind.value));
            return Err(fault.help(did_you_mean(&kind.value, &KINDS)));
        }
        let version = if kind.value == "HTTPEndpoint" { "dapr.io/v1alpha1" } else { "toolgate/v1" };
        if api_version.value != version {
            let fault =
                source.error(&api_version, format!("no version `{}` of `{}`", api_version.value, kind.value));
            return Err(fault.help(format!("write `apiVersion: {version}`")));
        }
        fn placed<'s, S>(source: &'s Source, resource: Resource<S>) -> Placed<'s, S> {
            Placed { source, metadata: resource.metadata, spec: resource.spec }
        }
        match kind.value.as_str() {
            "Workload" => self.workloads.push(placed(source, source.parse(document)?)),
            "Server" => self.servers.push(placed(source, source.parse(document)?)),
            "HTTPEndpoint" => {
                let (metadata, spec) = endpoint::server(source, source.parse(document)?)?;
                self.servers.push(Placed { source, metadata, spec });
            }
            _ => self.policies.push(placed(source, source.parse(document)?)),
        }
        Ok(())
    }
}

/// The names of one kind that are taken.
#[derive(Default)]
pub(super) struct Names {
    taken: Vec<Identity>,
}

impl Names {
    /// The name and namespace of a resource as an identity, once.
    pub(super) fn claim(
        &mut self,
        source: &Source,
        metadata: &Metadata,
        agent: &AgentConfig,
        kind: &str,
    ) -> Result<Identity, Diagnostic> {
        let identity = identity(source, &metadata.name, &metadata.namespace, agent)?;
        if self.taken.contains(&identity) {
            let fault = source.error(&metadata.name, format!("another {kind} is called `{identity}`"));
            return Err(fault.help("give each its own name"));
        }
        self.taken.push(identity.clone());
        Ok(identity)
    }
}

pub(super) fn identity(
    source: &Source,
    app_id: &Spanned<String>,
    namespace: &Given<String>,
    agent: &AgentConfig,
) -> Result<Identity, Diagnostic> {
    if let Some(namespace) = namespace {
        check_name(&namespace.value).map_err(|error| source.error(namespace, error.to_string()))?;
    }
    let namespace = namespace.as_ref().map_or("default", |namespace| &namespace.value);
    Identity::new(&agent.trust_domain, namespace, &app_id.value)
        .map_err(|error| source.error(app_id, error.to_string()))
}

/// The App ID of a Server: its resource's name where it says no other.
fn server_name(
    Placed { source, metadata, spec }: &Placed<'_, ServerSpec>,
    agent: &AgentConfig,
) -> Result<Identity, Diagnostic> {
    identity(source, spec.app_id.as_ref().unwrap_or(&metadata.name), &metadata.namespace, agent)
}

fn read_servers(
    placed: &[Placed<'_, ServerSpec>],
    agent: &AgentConfig,
    workloads: &[Workload],
    findings: &mut Findings,
) -> (Vec<Arc<Server>>, Vec<LocalWorkload>) {
    let mut servers: Vec<Arc<Server>> = Vec::new();
    let mut local_workloads = Vec::new();
    let mut names = Names::default();
    for placed in placed {
        let Placed { source, metadata, spec } = placed;
        findings.keep(names.claim(source, metadata, agent, "Server"));
        let app_id = spec.app_id.as_ref().unwrap_or(&metadata.name);
        let identity = findings.keep(server_name(placed, agent));
        let server = read_server(source, metadata, spec, findings);
        if let (TlsRule::Deny, Some(word)) = (agent.capture.tls, spec.opaque.as_ref())
            && server.as_ref().is_some_and(|server| server.opaque == Opaque::Allow)
        {
            let warning = source.error(word, "TLS to this server does not pass: this node denies all of it");
            findings.push(warning.warning().help("`capture: { tls: deny }` in toolgate.yaml says so"));
        }
        let word = spec.local.as_ref().and_then(|local| local.value.workload.as_ref());
        let workload = word.and_then(|word| findings.keep(named(source, word, metadata, workloads)));
        let (Some(identity), Some(server)) = (identity, server) else { continue };
        if servers.iter().any(|other| other.identity == identity) {
            let fault = source.error(app_id, format!("another Server has the App ID `{identity}`"));
            findings.push(fault.help("give each its own `app_id`"));
        }
        let local = spec.local.as_ref().and_then(|local| local.value.address.as_ref());
        let peer = spec.peer.as_ref().and_then(|peer| peer.value.address.as_ref());
        let address = local.or(peer);
        let twin = servers.iter().find(|one| one.address().is_some() && one.address() == server.address());
        if let (Some(other), Some(at)) = (twin, address) {
            let fault =
                source.error(at, format!("`{}` is the address of Server `{}` too", at.value, other.identity));
            findings.push(fault.help("one address is one server: which one is meant could not be told"));
        }
        if let Some(spec) = &spec.external {
            findings.keep(place::told_apart(source, spec, &server, &servers));
        }
        let door = agent.listen.doors().find(|door| server.address() == Some(*door));
        if let (Some(at), Some(_)) = (address, door) {
            let fault =
                source.error(at, format!("`{}` is where calls by App ID come (listen.invoke)", at.value));
            findings.push(fault.help("give the server, or `listen.invoke`, another port"));
        }
        if let (Some(word), Some(workload), Some(address)) = (word, workload, server.address()) {
            let place = source.error(word, "");
            local_workloads.push(LocalWorkload { address, workload, place });
        }
        servers.push(Arc::new(Server { identity, ..server }));
    }
    (servers, local_workloads)
}

/// The Workload that a Server of the same namespace refers to.
fn named(
    source: &Source,
    word: &Spanned<String>,
    metadata: &Metadata,
    workloads: &[Workload],
) -> Result<Identity, Diagnostic> {
    let namespace = metadata.namespace.as_ref().map_or("default", |namespace| &namespace.value);
    let mut known = workloads.iter().map(|one| &one.identity).filter(|one| one.namespace() == namespace);
    known.clone().find(|one| one.app_id() == word.value).cloned().ok_or_else(|| {
        let names: Vec<&str> = known.by_ref().map(Identity::app_id).collect();
        let fault = source.error(word, format!("no Workload is called `{}`", word.value));
        fault.help(did_you_mean(&word.value, &names))
    })
}

/// A server whose identity is still to be set.
fn read_server(
    source: &Source,
    metadata: &Metadata,
    spec: &ServerSpec,
    findings: &mut Findings,
) -> Option<Server> {
    findings.refuse_later(source, &[("configuration", &spec.configuration)]);
    let pinning = read_pinning(source, spec, findings);
    let opaque = read_opaque(source, spec, pinning, findings);
    let transports = [("streamable", Transport::Streamable), ("sse", Transport::Sse)];
    let transport = choice(source, &spec.transport, ("transport", Transport::Streamable), &transports, &[]);
    let enforcements =
        [("enforce", Enforcement::Enforce), ("dangerous_observe", Enforcement::DangerousObserve)];
    let enforcement = findings.keep(choice(
        source,
        &spec.enforcement,
        ("enforcement", Enforcement::Enforce),
        &enforcements,
        &[],
    ))?;
    if let Some(word) = spec.enforcement.as_ref().filter(|_| enforcement == Enforcement::DangerousObserve) {
        let warning = source.error(word, "what policy would deny on this server passes").warning();
        findings.push(warning.help("remove `enforcement` when its rules are complete"));
    }
    let hosts: Vec<String> =
        spec.hosts.iter().flatten().filter_map(|word| findings.keep(words::host(source, word))).collect();
    let path = match &spec.path {
        Some(word) => findings.keep(place::http_path(source, word)),
        // As the official SDKs have it.
        None => Some(if matches!(transport, Ok(Transport::Sse)) { "/sse" } else { "/mcp" }.to_owned()),
    };
    let place::Found { place, path: of_url } = place::read_place(source, metadata, spec, findings)?;
    let path = if let Some(path) = of_url { Some(path) } else { path };
    let identity = Identity::new("unset", "unset", "unset").ok()?;
    let transport = findings.keep(transport)?;
    let (path, pinning, opaque) = (path?, pinning?, opaque?);
    Some(Server { identity, place, hosts, path, enforcement, transport, pinning, opaque })
}

fn warn_ungoverned(
    placed: &[Placed<'_, ServerSpec>],
    servers: &[Arc<Server>],
    policies: &Policies,
    findings: &mut Findings,
) {
    for Placed { source, metadata, spec } in placed {
        let app_id = &spec.app_id.as_ref().unwrap_or(&metadata.name).value;
        let namespace = metadata.namespace.as_ref().map_or("default", |namespace| &namespace.value);
        let server =
            servers.iter().find(|s| s.identity.app_id() == app_id && s.identity.namespace() == namespace);
        let is_here = |server: &&&Arc<Server>| !matches!(server.place, Place::Peer { .. });
        if server.as_ref().filter(is_here).is_some_and(|server| !policies.govern(&server.identity)) {
            let message = format!("no policy names `{app_id}`: every call to it is denied");
            let warning = source.error(&metadata.name, message).warning();
            findings.push(warning.help("add a Policy with a rule whose `servers` name it"));
        }
    }
}

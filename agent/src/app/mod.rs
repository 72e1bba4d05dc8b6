//! Builds everything, in an order in which each failure leaves nothing behind; `life` serves, and takes it down again.

pub mod bypass;
pub mod canary;
mod error;
pub mod exec_root;
mod follow;
mod handover;
mod heartbeat;
mod life;
mod lock;
mod machine;
mod memory;
mod older;
mod peers;
mod plan;
mod spread;
mod systemd;
mod upgrade;
mod worker;

pub use error::AppError;
pub use handover::HandoverError;
pub use heartbeat::Pulse;
pub use lock::{AgentLock, LockError, holder};
pub use plan::PlanError;
pub use worker::{Worker, Working};

pub(crate) use handover::{Heritage, Role};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use bypass::Bypasses;
use canary::Canaries;
use handover::{Inherited, Predecessor};
use heartbeat::Heart;
use life::{Life, Signals};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use toolgate_core::decision::{Mode, TlsRule, Undeclared, Unrecognised};

use crate::admin;
use crate::bindings::Bindings;
use crate::ca::{self, Authority};
use crate::capture::{Kernel, Loss, Plan, Settings, preflight};
use crate::config::{
    self, AgentConfig, AgentLoss, Diagnostic, IdentityConfig, IdentitySource, OnFailure, Resources, RootKey,
    Severity,
};
use crate::discovered::Discovered;
use crate::endpoints::Endpoints;
use crate::forward::Connectors;
use crate::identify::Identify;
use crate::inspect::{Inspection, Kept};
use crate::limits::Limits;
use crate::listeners;
use crate::names::Names;
use crate::netns::{self, Namespaces};
use crate::pins::Pins;
use crate::record::{self, AuditPlan, Metrics, Recent, Recorder, Writer};
use crate::replicas::Replicas;
use crate::shares::Shares;
use crate::svid::{JoinPlan, Joined, Provider, ProviderPlan, Source, SvidError, Svids};
use crate::views::Changes;

/// Below the configuration's directory: what is read again on change.
const RESOURCES: &str = "resources";

/// What the command line says of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration's directory; `None`: the embedded default.
    pub config: Option<PathBuf>,
    /// Let pass what policy would deny, and record it.
    pub observe: bool,
    /// Detach nothing at the end: what is captured is refused until the next run.
    pub stay_attached: bool,
    /// Another agent has started this one, to hand over to it: it is at the standard input.
    pub handover: bool,
    /// Where this binary was started from.
    pub binary: PathBuf,
}

/// What all threads share.
pub struct Node {
    /// The agent's own configuration, as read at start.
    pub agent: AgentConfig,
    /// The last good generation of the resources.
    pub resources: ArcSwap<Resources>,
    /// Turns recorded processes into callers.
    pub identify: Identify,
    /// The network namespaces that the agent listens in.
    pub namespaces: Arc<Namespaces>,
    /// Where the names of Servers lead.
    pub names: Names,
    /// TLS to external servers.
    pub connectors: Connectors,
    /// How the endpoints of servers with several are.
    pub replicas: Replicas,
    /// The ids that callers got from servers.
    pub bindings: Bindings,
    /// Undeclared servers that were seen.
    pub discovered: Discovered,
    /// Endpoints of open streams, and what waits on these.
    pub endpoints: Endpoints,
    /// What servers offer, as it was seen and approved.
    pub pins: Pins,
    /// TLS that ends here; `None`: nobody's does.
    pub inspection: Option<Inspection>,
    /// The identities that this node can show, and whom it believes.
    pub svids: Svids,
    /// Wakes streams whose callers may see other lists.
    pub changes: Changes,
    /// Where entries are opened.
    pub record: Recorder,
    /// Whether policy is only observed.
    pub mode: Mode,
    /// What becomes of traffic that is not MCP.
    pub unrecognised: Unrecognised,
    /// What becomes of MCP to no declared server.
    pub undeclared: Undeclared,
    /// The data path's limits.
    pub limits: Limits,
    /// What is in use of them.
    pub shares: Shares,
    /// The metrics, counted by the audit's writer.
    pub metrics: Arc<Metrics>,
    /// The last audit lines.
    pub recent: Recent,
    /// What is wrong with the configuration that was not taken over.
    pub refused: Mutex<Vec<String>>,
    /// Whether the workers work.
    pub pulse: Arc<Pulse>,
    /// Whether the captured cgroups are captured.
    pub canaries: Canaries,
    /// The cgroups that are let through for now.
    pub bypasses: Bypasses,
    config: Option<PathBuf>,
}

impl Node {
    /// Tells the kernel's programs what is to be captured now, and returns it.
    fn capture(&self, kernel: &Kernel, resources: &Resources) -> Result<Plan, PlanError> {
        let plan = plan::plan(&self.agent, resources, self.mode, &self.namespaces, &self.names)?;
        kernel.update(&plan)?;
        self.namespaces.guard(&plan.guarded);
        Ok(plan)
    }

    /// Whether a connection to that address calls by App ID.
    #[must_use]
    pub fn is_invoked(&self, original: SocketAddr) -> bool {
        let original = SocketAddr::new(original.ip().to_canonical(), original.port());
        self.agent.listen.doors().any(|door| door == original)
    }

    /// Why captured processes are not served as they should be; `None`: they are.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.pulse.is_missing() {
            return Some("a worker thread makes no progress".to_owned());
        }
        let lost = self.canaries.all().into_iter().filter_map(|(name, canary)| Some((name, canary.lost?)));
        let lost = lost.map(|(name, why)| format!("canary of cgroup `{}` lost: {why}", canary::shown(&name)));
        let lost: Vec<String> = lost.collect();
        (!lost.is_empty()).then(|| lost.join("; "))
    }

    /// Reads the resources again: all of them are taken over, or nothing changes.
    pub fn reload(&self, kernel: &Kernel) {
        let Some(dir) = &self.config else { return };
        let loaded = config::load_resources(&dir.join(RESOURCES), &self.agent)
            .map_err(|all| texts(&all))
            .and_then(|mut new| {
                new.generation = self.resources.load().generation + 1;
                let mut questions = self.resources.load().questions();
                questions.append(&mut new.questions());
                self.names.follow(questions);
                self.capture(kernel, &new).map_err(|e| vec![e.to_string()])?;
                Ok(new)
            });
        let refused = match loaded {
            Ok(new) => {
                let generation = new.generation;
                self.replicas.keep(|server| new.servers.iter().any(|one| one.identity == *server));
                self.resources.store(Arc::new(new));
                self.changes.tell();
                tracing::info!(generation, "configuration reloaded");
                Vec::new()
            }
            Err(errors) => {
                self.metrics.reload_failures.inc();
                for error in &errors {
                    tracing::error!("configuration not reloaded, the last good one stays:\n{error}");
                }
                errors
            }
        };
        self.names.follow(self.resources.load().questions());
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }
}

/// What keeps a configuration from being taken over.
fn texts(diagnostics: &[Diagnostic]) -> Vec<String> {
    let errors = diagnostics.iter().filter(|one| one.severity == Severity::Error);
    errors.map(ToString::to_string).collect()
}

/// Reads the configuration.
///
/// # Errors
/// All that is wrong with it, each with its place.
pub fn load(dir: Option<&PathBuf>) -> Result<(AgentConfig, Resources), Vec<Diagnostic>> {
    let Some(dir) = dir else { return Ok(config::embedded()) };
    let agent = config::load_agent(dir)?;
    let resources = config::load_resources(&dir.join(RESOURCES), &agent)?;
    Ok((agent, resources))
}

/// Whether this machine has the cgroups that a configuration names; one without cgroup2 can check it all the same.
///
/// # Errors
/// [`PlanError::Missing`] or [`PlanError::Pattern`].
pub fn check_here(agent: &AgentConfig) -> Result<(), PlanError> {
    plan::check_named(agent).or_else(|error| match error {
        PlanError::Capture(_) => Ok(()),
        PlanError::Missing { .. } | PlanError::Pattern { .. } => Err(error),
    })
}

/// Runs the agent until SIGINT or SIGTERM, or until it has handed over to another.
///
/// # Errors
/// What kept it from starting; then nothing is attached that was not before.
pub async fn run(options: Options) -> Result<(), AppError> {
    memory::keep_little();
    if !options.handover {
        return live(options, None).await;
    }
    // Blocks: there is nothing else to do before.
    let inherited = Predecessor::meet()?;
    let predecessor = inherited.predecessor.clone();
    let lived = live(options, Some(inherited)).await;
    if let Err(error) = &lived {
        predecessor.give_up(&error.to_string());
    }
    lived
}

async fn live(options: Options, inherited: Option<Inherited>) -> Result<(), AppError> {
    let (agent, resources) = load(options.config.as_ref()).map_err(AppError::Configuration)?;
    for warning in &resources.warnings {
        tracing::warn!("{warning}");
    }
    // Not refused: the server may be started again by who is to serve, while the agent runs.
    match listeners::check(&resources, &agent.trust_domain) {
        Ok(findings) => findings.iter().for_each(|finding| tracing::warn!("{finding}")),
        Err(error) => tracing::warn!(%error, "whose listeners there are at local servers cannot be told"),
    }
    preflight().map_err(AppError::Capture)?;
    let (predecessor, lock, mut heritage) = match inherited {
        Some(Inherited { predecessor, lock, heritage }) => (Some(predecessor), lock, Some(heritage)),
        None => (None, AgentLock::take()?, None),
    };
    raise_descriptor_limit();
    // Before anything is attached: a signal during the start is an orderly end, too.
    let signals = Signals::install().map_err(|cause| AppError::Start { what: "handle signals", cause })?;
    let mode = Mode { observe: options.observe };
    let exec_root = exec_root::ExecRoot::make(predecessor.is_none())?;
    match plan::check_named(&agent) {
        // At boot the agent is before its units; and one that runs follows units as they come and go.
        Err(error @ PlanError::Missing { .. }) if options.stay_attached || predecessor.is_some() => {
            tracing::warn!("{error}; it is captured from the moment it is made");
        }
        checked => checked?,
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let port = agent.listen.outbound;
    if let Some(heritage) = &heritage {
        heritage.check_port(port)?;
    }
    let kept = heritage.as_mut().and_then(Heritage::take_inspection);
    let sockets = admin::Sockets::bind(&agent, heritage.as_mut())?;
    // Before the listeners: as long as the programs of a dead agent are attached, only the agent may bind the port.
    let kernel = Arc::new(Kernel::attach(&settings(&agent)).map_err(AppError::Capture)?);
    let pulse = Arc::<Pulse>::default();
    let heart = Heart::start(Arc::clone(&pulse), Arc::clone(&kernel))?;
    let namespaces = Arc::new(Namespaces::at_home(&kernel)?);
    let (listeners, others) = match heritage {
        Some(heritage) => heritage.listeners(),
        None => (worker::listen(port, threads, kernel.is_adopted())?, BTreeMap::new()),
    };
    let home = namespaces.home().cookie;
    kernel.serve(home, netns::ipv6_leads_out(), &listeners.v4, &listeners.v6).map_err(AppError::Capture)?;
    let (node, writer) = build(&options, agent, resources, mode, namespaces, pulse, kept)?;
    node.names.follow(node.resources.load().questions());
    // What is captured by name is so at the addresses that are known then.
    node.names.settled().await;
    let life = Life { node, kernel, options, lock, sockets, exec_root, heart, predecessor };
    life.live(listeners, others, signals, writer).await
}

fn settings(agent: &AgentConfig) -> Settings {
    let agent_loss = match agent.capture.agent_loss {
        AgentLoss::Closed => Loss::Closed,
        AgentLoss::DangerousOpen => Loss::DangerousOpen,
    };
    Settings { port: agent.listen.outbound, agent_loss, heartbeat_age_max: heartbeat::AGE_MAX }
}

/// Two descriptors for each connection: the usual soft limit of 1,024 would end at 500.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(descriptors) => tracing::debug!(descriptors, "descriptor limit"),
        Err(error) => tracing::warn!(%error, "the descriptor limit stays as it is"),
    }
}

/// Where the authority of a configuration is, and how it is to be.
#[must_use]
pub fn authority_plan(agent: &AgentConfig) -> ca::Plan {
    let IdentityConfig { svid_ttl, issuing_ttl, root_ttl, overlap, clock_skew, root_key, .. } =
        agent.identity;
    let lives = ca::Lives {
        svid: svid_ttl,
        issuing: issuing_ttl,
        root: root_ttl,
        overlap,
        skew: clock_skew,
        root_is_credential: root_key == RootKey::Credential,
    };
    ca::Plan {
        state_directory: agent.store.clone(),
        trust_domain: agent.trust_domain.clone(),
        lives,
        credentials: config::credentials(),
    }
}

/// An authority that is there is opened now, so that what is wrong with it is said at the start. One that is not is made
/// when it is first needed.
fn svids(agent: &AgentConfig) -> Result<Svids, SvidError> {
    match agent.identity.source {
        IdentitySource::Embedded => {
            let plan = authority_plan(agent);
            let is_there = plan.folder().symlink_metadata().is_ok();
            let open = move || {
                let authority = Authority::open(plan.clone(), SystemTime::now())?;
                Ok(Source::Embedded(Box::new(authority)))
            };
            if is_there { Svids::start(open()?) } else { Svids::on_demand(open) }
        }
        IdentitySource::Join => {
            let folder = authority_plan(agent).folder();
            if folder.exists() {
                tracing::warn!(
                    folder = %folder.display(),
                    "this node was an authority itself: what that one issued is not believed by the one that it joins"
                );
            }
            let plan = JoinPlan {
                state_directory: agent.store.clone(),
                trust_domain: agent.trust_domain.clone(),
                token_file: agent.identity.token_file.clone(),
            };
            Svids::start(Source::Joined(Box::new(Joined::open(plan, SystemTime::now())?)))
        }
        IdentitySource::WorkloadApi => {
            let socket = agent.identity.socket.clone().unwrap_or_default();
            let plan = ProviderPlan { trust_domain: agent.trust_domain.clone(), socket };
            Svids::start(Source::WorkloadApi(Box::new(Provider::new(plan))))
        }
    }
}

fn build(
    options: &Options,
    agent: AgentConfig,
    resources: Resources,
    mode: Mode,
    namespaces: Arc<Namespaces>,
    pulse: Arc<Pulse>,
    kept: Option<Kept>,
) -> Result<(Arc<Node>, Writer), AppError> {
    let limits = machine::fit(&agent.limits);
    let inspection = match agent.capture.tls {
        TlsRule::Inspect => Some(Inspection::start(&agent, &limits, kept)?),
        TlsRule::Opaque | TlsRule::Deny => None,
    };
    let pins = Pins::open(&agent.store, &limits)?;
    let svids = svids(&agent)?;
    let (recorder, writer) = record::start(&AuditPlan {
        file: agent.audit.file.clone(),
        sync: agent.audit.sync,
        deny_on_failure: agent.audit.on_failure == OnFailure::Deny,
        state_directory: agent.store.clone(),
        entries_max: limits.audit_entries_max,
        write_time_max: limits.audit_write_max,
    })?;
    let connectors = Connectors::new(Arc::clone(&agent.capture.tls_roots));
    let node = Node {
        unrecognised: agent.capture.unrecognised,
        undeclared: agent.capture.undeclared,
        bypasses: Bypasses::load(&agent.store),
        canaries: Canaries::default(),
        pulse,
        agent,
        resources: ArcSwap::from_pointee(resources),
        identify: Identify::new(Arc::clone(&writer.metrics)),
        shares: Shares::new(&limits),
        namespaces,
        names: Names::new(&limits),
        connectors,
        replicas: Replicas::default(),
        inspection,
        bindings: Bindings::new(&limits),
        endpoints: Endpoints::new(limits.pending_per_stream_max),
        discovered: Discovered::new(&limits),
        pins,
        svids,
        changes: Changes::default(),
        record: recorder,
        mode,
        limits,
        metrics: Arc::clone(&writer.metrics),
        recent: Arc::clone(&writer.recent),
        refused: Mutex::default(),
        config: options.config.clone(),
    };
    Ok((Arc::new(node), writer))
}

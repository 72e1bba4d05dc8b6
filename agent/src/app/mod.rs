//! Builds everything, in an order in which each failure leaves nothing behind, and takes it down again.

mod error;
pub mod exec_root;
mod follow;
mod lock;
mod plan;
mod shares;
mod worker;

pub use error::AppError;
pub use lock::{AgentLock, LockError, holder};
pub use plan::PlanError;
pub use worker::{Worker, Working};

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use follow::Follow;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use toolgate_core::decision::{Mode, Undeclared, Unrecognised};

use crate::admin;
use crate::capture::{Kernel, Loss, Plan, Settings, preflight};
use crate::config::{self, AgentConfig, Diagnostic, OnFailure, Resources, Severity};
use crate::identify::Identify;
use crate::limits::Limits;
use crate::listeners;
use crate::netns::{self, Keeper, Keeping, Listeners, Namespaces};
use crate::record::{self, AuditPlan, Metrics, Recent, Recorder, Writer};
use crate::sessions::Sessions;

/// Below the configuration's directory: what is read again on change.
const RESOURCES: &str = "resources";

/// Without a beat for so long the kernel's programs take the agent for lost.
const HEARTBEAT_AGE_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// What the command line says of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration's directory; `None`: the embedded default.
    pub config: Option<PathBuf>,
    /// Let pass what policy would deny, and record it.
    pub observe: bool,
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
    /// Session bindings.
    pub sessions: Sessions,
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
    /// The metrics, counted by the audit's writer.
    pub metrics: Arc<Metrics>,
    /// The last audit lines.
    pub recent: Recent,
    /// What is wrong with the configuration that was not taken over.
    pub refused: Mutex<Vec<String>>,
    config: Option<PathBuf>,
}

impl Node {
    /// Tells the kernel's programs what is to be captured now, and returns it.
    fn capture(&self, kernel: &Kernel, resources: &Resources) -> Result<Plan, PlanError> {
        let plan = plan::plan(&self.agent, resources, self.mode, &self.namespaces)?;
        kernel.update(&plan)?;
        self.namespaces.guard(&plan.guarded);
        Ok(plan)
    }

    /// Reads the resources again: all of them are taken over, or nothing changes.
    pub fn reload(&self, kernel: &Kernel) {
        let Some(dir) = &self.config else { return };
        let loaded = config::load_resources(&dir.join(RESOURCES), &self.agent)
            .map_err(|all| texts(&all))
            .and_then(|mut new| {
                new.generation = self.resources.load().generation + 1;
                self.capture(kernel, &new).map_err(|e| vec![e.to_string()])?;
                Ok(new)
            });
        let refused = match loaded {
            Ok(new) => {
                let generation = new.generation;
                self.resources.store(Arc::new(new));
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

/// Runs the agent until SIGINT or SIGTERM.
///
/// # Errors
/// What kept it from starting; then nothing is attached and nothing left.
pub async fn run(options: Options) -> Result<(), AppError> {
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
    let _lock = AgentLock::take()?;
    raise_descriptor_limit();
    // Before anything is attached: a signal during the start is an orderly end, too.
    let signals = Signals::install().map_err(|cause| AppError::Start { what: "handle signals", cause })?;
    let mode = Mode { observe: options.observe };
    let _exec_root = exec_root::ExecRoot::make()?;
    plan::check_named(&agent)?;
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let admin = admin::Sockets::bind(&agent)?;
    let port = agent.listen.outbound;
    // Before the listeners: as long as the programs of a dead agent are attached, only the agent may bind the port.
    let settings = Settings { port, agent_loss: Loss::Closed, heartbeat_age_max: HEARTBEAT_AGE_MAX };
    let kernel = Arc::new(Kernel::attach(&settings).map_err(AppError::Capture)?);
    let namespaces = Arc::new(Namespaces::at_home(&kernel)?);
    let listeners = worker::listen(port, threads)?;
    let home = namespaces.home().cookie;
    kernel.serve(home, netns::ipv6_leads_out(), &listeners.v4, &listeners.v6).map_err(AppError::Capture)?;
    let (node, writer) = build(options, agent, resources, mode, namespaces)?;
    let running = start(&node, &kernel, listeners)?;
    let served = serve(&node, &kernel, running, admin, signals).await;
    // Again where serving ended early: what is gone already is no error.
    let detached = kernel.detach().map(drop).map_err(AppError::Detach);
    writer.finish();
    served.and(detached)?;
    tracing::info!("ended; nothing is captured any more");
    Ok(())
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

fn build(
    options: Options,
    agent: AgentConfig,
    resources: Resources,
    mode: Mode,
    namespaces: Arc<Namespaces>,
) -> Result<(Arc<Node>, Writer), AppError> {
    let limits = Limits::default();
    let (recorder, writer) = record::start(&AuditPlan {
        file: agent.audit.file.clone(),
        sync: agent.audit.sync,
        deny_on_failure: agent.audit.on_failure == OnFailure::Deny,
        state_directory: agent.store.clone(),
        entries_max: limits.audit_entries_max,
    })?;
    let node = Node {
        unrecognised: agent.capture.unrecognised,
        undeclared: agent.capture.undeclared,
        agent,
        resources: ArcSwap::from_pointee(resources),
        identify: Identify::default(),
        namespaces,
        sessions: Sessions::new(limits.sessions_max, limits.session_idle_max),
        record: recorder,
        mode,
        limits,
        metrics: Arc::clone(&writer.metrics),
        recent: Arc::clone(&writer.recent),
        refused: Mutex::default(),
        config: options.config,
    };
    Ok((Arc::new(node), writer))
}

/// The signals that the agent answers.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The threads of the data path.
struct Running {
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    keeping: Keeping,
}

/// Starts the workers, serves the network namespaces of what is captured, and only then begins to capture: in other
/// namespaces connections are refused.
fn start(node: &Arc<Node>, kernel: &Arc<Kernel>, listeners: Listeners) -> Result<Running, AppError> {
    let (stop, stopping) = watch::channel(false);
    let workers = worker::spawn(node, kernel, listeners, &stopping)?;
    let keeping = keep(node, kernel, workers.orders)?;
    if let Err(error) = node.capture(kernel, &node.resources.load()) {
        keeping.stop();
        return Err(error.into());
    }
    Ok(Running { stop, workers: workers.threads, keeping })
}

/// Serves until a signal, then detaches and drains.
async fn serve(
    node: &Arc<Node>,
    kernel: &Arc<Kernel>,
    running: Running,
    admin: admin::Sockets,
    mut signals: Signals,
) -> Result<(), AppError> {
    let (changed, mut changes) = mpsc::channel(1);
    let _watch = match &node.config {
        Some(dir) => Some(config::watch::watch(&dir.join(RESOURCES), move || {
            // A change that finds the channel full is seen with the one before it.
            let _ = changed.try_send(());
        })?),
        None => None,
    };
    let admin = admin::serve(Arc::clone(node), Arc::clone(kernel), admin);
    let mut follow = Follow::start(node)?;
    let log = read_log(kernel);
    let chores = chores(kernel);
    tokio::pin!(admin, log, chores);
    announce(node);
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => break,
            _ = signals.terminate.recv() => break,
            _ = signals.hangup.recv() => node.reload(kernel),
            Some(()) = changes.recv() => node.reload(kernel),
            () = follow.changed() => follow.update(node, kernel),
            () = &mut admin => break,
            () = &mut log => break,
            () = &mut chores => break,
        }
    }
    tracing::info!("ending: running requests have {:?} (drain_time_max)", node.limits.drain_time_max);
    running.keeping.stop();
    // From here on captured processes reach their servers directly: an orderly end is the operator's wish.
    let detached = kernel.detach().map(drop).map_err(AppError::Detach);
    let _ = running.stop.send(true); // no receiver: every worker has ended by itself
    for worker in running.workers {
        if !matches!(tokio::task::spawn_blocking(move || worker.join()).await, Ok(Ok(()))) {
            tracing::error!("a worker thread panicked: its connections were closed");
        }
    }
    detached
}

/// Follows the network namespaces of what is captured; those that are there are served when this returns.
fn keep(
    node: &Arc<Node>,
    kernel: &Arc<Kernel>,
    workers: Vec<mpsc::Sender<netns::Order>>,
) -> Result<Keeping, AppError> {
    let roots = plan::named(&node.agent, node.mode)?.iter().map(plan::Named::root).collect::<Result<_, _>>();
    let keeper = Keeper {
        namespaces: Arc::clone(&node.namespaces),
        kernel: Arc::clone(kernel),
        roots: roots.map_err(AppError::Capture)?,
        port: node.agent.listen.outbound,
        workers,
    };
    Ok(keeper.start()?)
}

/// Carries the programs' log on, for ever.
async fn read_log(kernel: &Kernel) {
    if let Some(log) = kernel.log_task() {
        log.await;
        tracing::warn!("the log of the BPF programs ended");
    }
    std::future::pending().await
}

/// What the kernel's side needs now and then: beats, stale records and empty `exec` cgroups removed.
async fn chores(kernel: &Kernel) {
    let mut every = tokio::time::interval(HEARTBEAT_AGE_MAX / 4);
    loop {
        every.tick().await;
        if let Err(error) = kernel.beat() {
            tracing::error!(%error, "the kernel's programs will take the agent for lost");
        }
        match kernel.sweep() {
            Ok(0) => {}
            Ok(records) => tracing::debug!(records, "stale kernel records removed"),
            Err(error) => tracing::warn!(%error, "stale kernel records stay"),
        }
        exec_root::sweep();
    }
}

fn announce(node: &Node) {
    if node.mode.observe {
        tracing::warn!("dangerous: --observe lets pass what policy would deny; it is recorded as `observe`");
    }
    for setting in node.agent.dangerous() {
        tracing::warn!("dangerous: {setting}");
    }
    let resources = node.resources.load();
    let from = node.config.as_ref().map_or("embedded default".into(), |dir| dir.display().to_string());
    tracing::info!(
        target: "toolgate",
        config = %from,
        workloads = resources.workloads.len(),
        servers = resources.servers.len(),
        admin = %node.agent.listen.admin.display(),
        "ready"
    );
}

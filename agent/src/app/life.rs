//! The agent's life once all is built: it serves until a signal, or until it hands over to another.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch as watched};

use super::canary::Patrol;
use super::exec_root::ExecRoot;
use super::follow::Follow;
use super::handover::{Estate, Predecessor, Role};
use super::heartbeat::Heart;
use super::older::Older;
use super::upgrade::{Attempt, Takeover};
use super::worker::Phase;
use super::{
    AgentLock, AppError, Node, Options, PlanError, RESOURCES, exec_root, memory, peers, plan, systemd,
    upgrade, worker,
};
use crate::admin;
use crate::capture::{Cookie, Kernel};
use crate::config::watch::{Watch, watch};
use crate::inspect::Inspection;
use crate::netns::{self, Keeper, Keeping, Listeners};
use crate::record::Writer;

/// How often stale records, empty cgroups and bypasses that are over are looked for.
const CHORES_EVERY: Duration = Duration::from_secs(1);
/// How long the answer to a last question of the operator's may take.
const LAST_ANSWER_MAX: Duration = Duration::from_secs(2);

/// The signals that the agent answers.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// All that was built.
pub(super) struct Life {
    pub(super) node: Arc<Node>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) options: Options,
    pub(super) lock: AgentLock,
    pub(super) sockets: admin::Sockets,
    pub(super) exec_root: ExecRoot,
    pub(super) heart: Heart,
    /// The agent that hands over to this one.
    pub(super) predecessor: Option<Predecessor>,
}

/// The threads of the data path.
struct Running {
    phase: watched::Sender<Phase>,
    workers: Vec<JoinHandle<()>>,
    keeping: Keeping,
    /// The listeners at home once more, for the next agent, and to serve home again after one that failed.
    home: Listeners,
}

/// What tells the agent of changes.
struct Watching {
    cgroups: Follow,
    /// The directory of the resources, if there is one.
    _resources: Option<Watch>,
    /// Hears of its changes.
    changes: mpsc::Receiver<()>,
}

impl Watching {
    /// # Errors
    /// No inotify instance is left, or the directory is gone.
    fn start(node: &Node) -> Result<Self, AppError> {
        let (changed, changes) = mpsc::channel(1);
        let resources = match &node.config {
            Some(dir) => Some(watch(&dir.join(RESOURCES), move || {
                // A change that finds the channel full is seen with the one before it.
                let _ = changed.try_send(());
            })?),
            None => None,
        };
        Ok(Self { cgroups: Follow::start(node)?, _resources: resources, changes })
    }
}

/// Why the agent ends.
enum End {
    /// It is told to.
    Stop,
    /// Another has taken over.
    Leave,
}

impl Life {
    /// Serves, and ends in order.
    ///
    /// # Errors
    /// It could not begin, or not end as it should.
    pub(super) async fn live(
        mut self,
        listeners: Listeners,
        others: BTreeMap<Cookie, Listeners>,
        signals: Signals,
        writer: Writer,
    ) -> Result<(), AppError> {
        let running = match self.start(listeners, others) {
            Ok(running) => running,
            Err(error) => {
                writer.finish();
                return Err(error);
            }
        };
        // Before it takes over: an agent that fails then would leave nobody.
        let taken_over = match Watching::start(&self.node) {
            Ok(watching) => self.take_over(&running).await.map(|()| watching),
            Err(error) => Err(error),
        };
        let (answering, answered) = mpsc::channel(1);
        let was_agent = self.predecessor.is_none() || taken_over.is_ok();
        let served = match taken_over {
            Ok(watching) => self.serve(&running, watching, signals, answering).await,
            Err(error) => {
                // Nobody was asked anything.
                drop(answering);
                Err(error)
            }
        };
        let Self { node, kernel, options, mut sockets, mut exec_root, heart, .. } = self;
        drop(heart);
        let is_left = matches!(served, Ok(End::Leave));
        if !is_left {
            systemd::stopping();
        }
        let stays = is_left || options.stay_attached || !was_agent;
        // From here on captured processes reach their servers directly: an orderly end is the operator's wish.
        let detached = if stays { Ok(()) } else { kernel.detach().map(drop).map_err(AppError::Detach) };
        if is_left {
            sockets.own(false);
        }
        if stays {
            exec_root.own(false);
        }
        running.end(&node, if is_left { Phase::Leaving } else { Phase::Stopping }, !stays).await;
        if stays && let Err(error) = kernel.retire() {
            tracing::warn!(%error, "this process stays known as an agent until the next start");
        }
        writer.finish();
        last_answers(answered).await;
        served?;
        detached?;
        tracing::info!(
            "ended; {}",
            match (is_left, options.stay_attached) {
                (true, _) => "the agent that took over goes on",
                (false, true) => "what is captured is refused until the next run, or `toolgate detach`",
                (false, false) => "nothing is captured any more",
            }
        );
        Ok(())
    }

    /// Starts the workers, serves the network namespaces of what is captured, and only then begins to capture: in other
    /// namespaces connections are refused. A successor accepts nothing yet.
    fn start(&self, listeners: Listeners, others: BTreeMap<Cookie, Listeners>) -> Result<Running, AppError> {
        let (node, kernel) = (&self.node, &self.kernel);
        let failed = |cause| AppError::Start { what: "share the listeners", cause };
        let home = Listeners::sorted(listeners.again().map_err(failed)?);
        let first = if self.predecessor.is_some() { Phase::Waiting } else { Phase::Serving };
        let (phase, phases) = watched::channel(first);
        let threads = listeners.v4.len();
        let peers = node.agent.listen.peer.map(|at| peers::listen(at, threads, self.predecessor.is_some()));
        let peers = peers.transpose()?.unwrap_or_default();
        let workers = worker::spawn(node, kernel, listeners, peers, &phases)?;
        let keeping = keep(node, kernel, workers.orders, others)?;
        let captured = || {
            node.capture(kernel, &node.resources.load())?;
            if self.predecessor.is_none() {
                kernel.lead().map_err(AppError::Capture)?;
            }
            Ok(())
        };
        match captured() {
            Ok(()) => Ok(Running { phase, workers: workers.threads, keeping, home }),
            Err(error) => {
                keeping.stop(self.predecessor.is_none());
                Err(error)
            }
        }
    }

    /// Waits for the predecessor's word, if there is one, and is the agent from then on.
    async fn take_over(&mut self, running: &Running) -> Result<(), AppError> {
        let Some(predecessor) = self.predecessor.clone() else { return Ok(()) };
        let node = Arc::clone(&self.node);
        let its = predecessor.clone();
        let heard = tokio::task::spawn_blocking(move || its.wait_for_its_word(&node.bindings)).await;
        heard.map_err(|error| AppError::Start { what: "take over", cause: error.into() })??;
        self.lock.sign()?;
        let (node, its) = (Arc::clone(&self.node), predecessor.clone());
        let follow = move || {
            its.follow(&node.bindings);
            node.record.predecessor_ended();
        };
        let thread = std::thread::Builder::new().name("toolgate-heir".to_owned()).spawn(follow);
        thread.map_err(|cause| AppError::Start { what: "follow the agent before", cause })?;
        // Last: an agent that takes the word and fails would leave nobody.
        predecessor.taken()?;
        if let Err(error) = self.kernel.lead() {
            tracing::error!(%error, "what the agent before left in the kernel stays: restart this one");
        }
        // What the agent before noted meanwhile. Where it cannot be read nothing is approved.
        if let Err(error) = self.node.pins.reload().await {
            tracing::error!(%error, "what was approved is not known: restart this agent");
        }
        running.phase.send_replace(Phase::Serving);
        self.sockets.own(true);
        self.exec_root.own(true);
        self.node.bypasses.reload();
        Ok(())
    }

    /// Serves until a signal or a hand-over.
    async fn serve(
        &mut self,
        running: &Running,
        mut watching: Watching,
        mut signals: Signals,
        answering: mpsc::Sender<Infallible>,
    ) -> Result<End, AppError> {
        let (node, kernel) = (&Arc::clone(&self.node), &Arc::clone(&self.kernel));
        let (upgrades, mut asked) = mpsc::channel(1);
        let context =
            admin::Context { node: Arc::clone(node), kernel: Arc::clone(kernel), upgrades, answering };
        let admin = admin::serve(context, &self.sockets);
        let mut older = Older::new(self.predecessor.is_some());
        let mut patrol = Patrol::new(node);
        let mut takeover = Takeover::default();
        let (log, chores) = (read_log(kernel), chores(node, kernel));
        tokio::pin!(admin, log, chores);
        let mut is_announced = false;
        let end = loop {
            tokio::select! {
                _ = signals.interrupt.recv() => break End::Stop,
                _ = signals.terminate.recv() => break End::Stop,
                // The next agent reads everything anew; should it fail, this one looks again.
                _ = signals.hangup.recv(), if takeover.is_idle() => node.reload(kernel),
                Some(()) = watching.changes.recv(), if takeover.is_idle() => node.reload(kernel),
                () = watching.cgroups.changed(), if takeover.is_idle() => {
                    watching.cgroups.update(node, kernel);
                    older.look(node);
                }
                Some((binary, outcome)) = asked.recv() => {
                    if !takeover.is_idle() {
                        upgrade::refuse(outcome, "another upgrade is under way".to_owned());
                    } else if !takeover.begin(self.attempt(running, binary).await, outcome) {
                        running.keeping.go_on().await;
                    }
                }
                attached = takeover.attached() => {
                    if attached.take_over(node) {
                        break End::Leave;
                    }
                    if let Err(error) = self.lock.sign() {
                        tracing::error!(%error, "this agent goes on, and its lock file names another");
                    }
                    go_on(node, kernel, running).await;
                    log.set(read_log(kernel));
                }
                () = patrol.back(node) => if !is_announced {
                    is_announced = true;
                    memory::give_back();
                    announce(node);
                    systemd::ready();
                } else {
                    systemd::status(&node.unready().unwrap_or_else(|| "ready".to_owned()));
                },
                () = &mut admin => break End::Stop,
                () = &mut log => break End::Stop,
                () = &mut chores => break End::Stop,
            }
        };
        takeover.give_up().await;
        Ok(end)
    }

    /// From here on nothing else is served by this agent than what it passes on.
    async fn attempt(&self, running: &Running, binary: Option<PathBuf>) -> Result<Attempt, AppError> {
        let binary = binary.unwrap_or_else(|| self.options.binary.clone());
        let failed = |cause| AppError::Start { what: "share the sockets", cause };
        let own = |socket: BorrowedFd<'_>| socket.try_clone_to_owned().map_err(failed);
        let home = running.home.again().map_err(failed)?.into_iter().map(|socket| (Role::Outbound, socket));
        let others = running.keeping.rest().await.map_err(failed)?.into_iter();
        let others = others.map(|(namespace, socket)| (Role::Namespace(namespace), socket));
        let operators = self.sockets.estate().map(|(role, socket)| Ok((role, own(socket)?)));
        let captured = home.chain(others).map(|(role, socket)| Ok((role, OwnedFd::from(socket))));
        let listeners = captured.chain(operators).collect::<Result<_, AppError>>()?;
        let estate = Estate {
            lock: own(self.lock.as_fd())?,
            port: self.node.agent.listen.outbound,
            listeners,
            inspection: self.node.inspection.as_ref().map(Inspection::kept),
        };
        Ok(Attempt::start(binary, estate)?)
    }
}

impl Running {
    /// Ends the threads when their requests have ended.
    async fn end(self, node: &Node, phase: Phase, detached: bool) {
        tracing::info!("ending: running requests have {:?} (drain_time_max)", node.limits.drain_time_max);
        self.keeping.stop(detached);
        // Nobody serves what would still wait in them.
        drop(self.home);
        let _ = self.phase.send(phase); // no receiver: every worker has ended by itself
        for worker in self.workers {
            if !matches!(tokio::task::spawn_blocking(move || worker.join()).await, Ok(Ok(()))) {
                tracing::error!("a worker thread panicked: its connections were closed");
            }
        }
    }
}

/// After a next agent that failed: whatever it changed becomes again what it was.
async fn go_on(node: &Node, kernel: &Kernel, running: &Running) {
    let Listeners { v4, v6 } = &running.home;
    let again = kernel
        .reinstate()
        .and_then(|()| kernel.serve(node.namespaces.home().cookie, netns::ipv6_leads_out(), v4, v6))
        .map_err(PlanError::from)
        .and_then(|()| node.capture(kernel, &node.resources.load()))
        .and_then(|_plan| Ok(kernel.lead()?));
    if let Err(error) = again {
        tracing::error!(%error, "this agent goes on with what the next one left: restart it");
    }
    node.record.successor_failed();
    running.keeping.go_on().await;
    // What was changed meanwhile was left to the next one.
    node.reload(kernel);
}

/// Who has asked for an upgrade is to hear of it.
async fn last_answers(mut answered: mpsc::Receiver<Infallible>) {
    if tokio::time::timeout(LAST_ANSWER_MAX, answered.recv()).await.is_err() {
        tracing::debug!("an operator did not wait for the answer");
    }
}

/// Follows the network namespaces of what is captured; those that are there are served when this returns.
fn keep(
    node: &Arc<Node>,
    kernel: &Arc<Kernel>,
    workers: Vec<mpsc::Sender<netns::Order>>,
    heritage: BTreeMap<Cookie, Listeners>,
) -> Result<Keeping, AppError> {
    let roots = plan::named(&node.agent, node.mode)?.iter().map(plan::Named::root).collect::<Result<_, _>>();
    let keeper = Keeper {
        namespaces: Arc::clone(&node.namespaces),
        kernel: Arc::clone(kernel),
        roots: roots.map_err(AppError::Capture)?,
        port: node.agent.listen.outbound,
        per_cgroup_max: node.limits.namespaces_per_cgroup_max,
        metrics: Arc::clone(&node.metrics),
        workers,
        heritage,
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

/// What is to be looked at now and then: stale records, empty `exec` cgroups, bypasses, memory that nobody needs.
async fn chores(node: &Node, kernel: &Kernel) {
    let mut every = tokio::time::interval(CHORES_EVERY);
    let mut rest = memory::Rest::new(Instant::now());
    loop {
        every.tick().await;
        if rest.is_due(node.pulse.was_busy(), Instant::now(), memory::resident_bytes()) {
            memory::give_back();
            rest.gave_back(Instant::now(), memory::resident_bytes());
        }
        node.bypasses.look(kernel, &node.record);
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

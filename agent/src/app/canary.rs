//! Canaries: a process in each captured cgroup connects to an address that only the agent answers. One that does not
//! get through to the agent shows a cgroup that is not captured, whatever the agent believes.
//!
//! The process is this program once more, with a hidden command, in a cgroup of its own below the captured one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Node, plan};
use crate::capture::cgroup;
use crate::netns::CANARY;

/// What the agent answers.
const GREETING: &[u8] = b"toolgate\n";
/// The hidden command.
pub const COMMAND: &str = "canary";
/// Below the captured cgroup, while the canary is in it.
pub(super) const CGROUP: &str = "toolgate.canary";
/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a canary may be away: it connects, and waits for its answer.
const FLIGHT_TIME_MAX: Duration = Duration::from_secs(5);
/// What it says when it got through.
const HOME: &str = "home";
/// Canaries at once.
const AT_ONCE: usize = 4;

/// What the last canaries said: captured cgroup by name -> why it does not get through.
#[derive(Debug, Default)]
pub struct Canaries(Mutex<BTreeMap<String, Canary>>);

/// What is known of one captured cgroup.
#[derive(Debug, Clone, Default)]
pub struct Canary {
    /// Why the last one did not get through; `None`: it did.
    pub lost: Option<String>,
    /// How many did not, since the start.
    pub failures: u64,
}

impl Canaries {
    /// Sends one into each of the cgroups, given by name below the cgroup2 root, and waits for all. One that is away
    /// has nobody to lose. Blocks for five seconds at most, for every four that are lost.
    pub fn send(&self, names: &[String]) {
        let mut answers = Vec::new();
        for some in names.chunks(AT_ONCE) {
            answers.extend(std::thread::scope(|scope| {
                let sent: Vec<_> = some.iter().map(|name| (name, scope.spawn(|| one(name)))).collect();
                let joined = sent.into_iter().map(|(name, sent)| {
                    let answer = sent.join().unwrap_or_else(|_| Err("its thread panicked".to_owned()));
                    (name.clone(), answer)
                });
                joined.collect::<Vec<_>>()
            }));
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| names.contains(name));
        for (name, answer) in answers {
            known.entry(name.clone()).or_default().hear(&name, answer.err());
        }
    }

    /// Each captured cgroup with what its last canary said.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Canary> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Canary {
    /// Says it once, when it changes.
    fn hear(&mut self, name: &str, lost: Option<String>) {
        let name = shown(name);
        match (&self.lost, &lost) {
            (None, Some(why)) => tracing::error!(
                cgroup = %name,
                "canary lost: a process in this cgroup does not get through to the agent: {why}"
            ),
            (Some(_), None) => tracing::info!(cgroup = %name, "canary is back: the cgroup is captured again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.failures += u64::from(lost.is_some());
        self.lost = lost;
    }
}

/// Sends canaries again and again.
pub(super) struct Patrol {
    every: Interval,
    flying: Option<JoinHandle<()>>,
}

impl Patrol {
    pub(super) fn new(node: &Node) -> Self {
        let mut every = interval(node.agent.capture.canary);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { every, flying: None }
    }

    /// Returns when one more was sent into each captured cgroup; the first are sent at once.
    pub(super) async fn back(&mut self, node: &Arc<Node>) {
        if self.flying.is_none() {
            self.every.tick().await;
            let node = Arc::clone(node);
            self.flying = Some(spawn_blocking(move || match plan::named(&node.agent, node.mode) {
                Ok(named) => node.canaries.send(
                    &named
                        .into_iter()
                        .map(|one| one.name)
                        .filter(|name| !node.bypasses.covers(name))
                        .collect::<Vec<_>>(),
                ),
                Err(error) => tracing::error!(%error, "no canaries"),
            }));
        }
        if let Some(flying) = &mut self.flying {
            if let Err(panic) = flying.await {
                tracing::error!(%panic, "no canaries");
            }
            self.flying = None;
        }
    }
}

/// A captured cgroup as the configuration names it.
#[must_use]
pub fn shown(name: &str) -> &str {
    if name.is_empty() { "/" } else { name }
}

/// Sends one. `Ok`: it got through, or there was nowhere to send it.
fn one(name: &str) -> Result<(), String> {
    let mount = cgroup::mount().map_err(|error| error.to_string())?;
    let captured = mount.join(name);
    if !captured.is_dir() || is_frozen(&captured) {
        return Ok(());
    }
    let nest = Nest(captured.join(CGROUP));
    let mut tries = 0;
    loop {
        match nest.send() {
            Ok(answer) => return answer,
            // Its cgroup was removed between making and entering it, or the captured one is gone with it.
            Err(_) if !captured.is_dir() => return Ok(()),
            Err(error) if tries > 2 => return Err(format!("it cannot be sent: {error}")),
            Err(_) => tries += 1,
        }
    }
}

/// Nobody runs in a frozen cgroup, so nobody there goes around the agent.
fn is_frozen(captured: &Path) -> bool {
    fs::read_to_string(captured.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
}

/// The canary's own cgroup.
struct Nest(PathBuf);

impl Drop for Nest {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes what a canary left.
pub(super) fn remove(nest: &Path) {
    // Gone already, or another agent's canary is in it.
    let _ = fs::remove_dir(nest);
}

impl Nest {
    fn send(&self) -> io::Result<Result<(), String>> {
        match fs::create_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Who may make cgroups here could keep one ready, to freeze what comes into it.
        if fs::metadata(&self.0)?.uid() != 0 {
            return Ok(Err(format!("`{}` belongs to another than root: remove it", self.0.display())));
        }
        let processes = File::options().write(true).open(self.0.join("cgroup.procs"))?;
        // It enters the cgroup when it is itself already: what befalls it there holds nothing of the agent's.
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND).stdin(processes).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut canary = command.spawn()?;
        let said = canary.stdout.take().map(heard);
        // It has ended by itself, or it never will.
        let _ = canary.kill();
        canary.wait()?;
        Ok(match said.flatten().as_deref().map(str::trim_end) {
            Some(HOME) => Ok(()),
            Some("") => Err("it ended without a word".to_owned()),
            Some(why) => Err(why.to_owned()),
            None => Err(format!("no word of it within {FLIGHT_TIME_MAX:?}")),
        })
    }
}

/// All that it says, if it ends in time. The thread ends with the canary.
fn heard(mut stdout: ChildStdout) -> Option<String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = String::new();
        let _cut_off = stdout.read_to_string(&mut said);
        let _too_late = tell.send(said);
    });
    told.recv_timeout(FLIGHT_TIME_MAX).ok()
}

/// Enters the cgroup that is given as the standard input, and flies from there: returns what to say.
#[must_use]
pub fn enter_and_fly() -> String {
    // `0` is the writer itself (cgroups.7).
    let entered =
        io::stdin().as_fd().try_clone_to_owned().and_then(|procs| File::from(procs).write_all(b"0"));
    match entered.map_err(|error| format!("it cannot enter its cgroup: {error}")).and_then(|()| fly()) {
        Ok(()) => HOME.to_owned(),
        Err(why) => why,
    }
}

/// `Err` says why it did not get through.
fn fly() -> Result<(), String> {
    let connected = TcpStream::connect_timeout(&CANARY, ANSWER_TIME_MAX);
    let mut stream = connected.map_err(|error| format!("it cannot connect to {CANARY}: {error}"))?;
    let mut answer = [0; GREETING.len()];
    let read = stream.set_read_timeout(Some(ANSWER_TIME_MAX)).and_then(|()| stream.read_exact(&mut answer));
    match read {
        Ok(()) if answer == GREETING => Ok(()),
        Ok(()) => Err(format!("somebody else than the agent answers at {CANARY}")),
        Err(error) => Err(format!("no answer at {CANARY}: {error}")),
    }
}

//! Stage 2, identify: the process that the kernel recorded -> the workload it belongs to. Of a caller of another node its
//! SVID has told.
//!
//! What the record does not tell, and a Workload asks for, is looked up once for a connection and only then: the
//! executable's SHA-256 ([`digest`]), a container's image ([`image`]). The connection waits, its thread does not.

mod digest;
mod image;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::OnceCell;
use toolgate_core::container::{Container, Image};
use toolgate_core::identity::Identity;
use toolgate_core::workload::{self, Asked, EXEC_CGROUP, Evidence, FileId, Process, Sha256, Unidentified};

use self::digest::{Connected, Digests, Ran};
use self::image::Runtimes;
use crate::capture::{CaptureError, Captured, Executable, Recorded, cgroup};
use crate::config::Resources;
use crate::file::{self, Sync};
use crate::limits::Limits;
use crate::record::Metrics;
use crate::shares::{Share, Sharer};

/// Cgroup paths remembered; an id is never used twice while the machine is up, so an entry never lies.
const CGROUPS_MAX: usize = 16_384;

/// Executables and callers remembered; more, and all are looked up again.
const KNOWN_MAX: usize = 4_096;

/// Who connected, and where to: one for each connection.
#[derive(Debug)]
pub struct Origin {
    /// Who.
    pub source: Source,
    /// What it may have in use at once.
    pub share: Arc<Share>,
    /// Who, and where to, as each line of the record puts it; written by the first.
    pub shown: OnceLock<[Box<str>; 2]>,
}

/// Who connected.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every connection is of a captured process")]
pub enum Source {
    /// A captured process of this node.
    Process(Connecting),
    /// The agent of another node, for a caller there.
    Peer(Remote),
}

/// A captured process, as it was at connect.
#[derive(Debug)]
pub struct Connecting {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The same in terms that selectors speak of; `None` where the cgroup is gone.
    pub process: Option<Process>,
    /// The executable's path for the record, when `/proc` still shows the recorded file there.
    pub exe: Option<Arc<str>>,
    connected: Connected,
    exe_sha256: OnceCell<Result<Sha256, Arc<str>>>,
    image: OnceCell<Result<Image, Arc<str>>>,
}

/// A caller of another node, as its SVID proved it.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Who it is.
    pub caller: Identity,
    /// The server whose SVID it was shown.
    pub server: Identity,
    /// The agent that speaks for it.
    pub address: SocketAddr,
    /// The number of its SVID.
    pub serial: Box<str>,
}

impl Origin {
    /// Of a connection from another agent.
    #[must_use]
    pub fn remote(remote: Remote, share: Arc<Share>) -> Self {
        Self { source: Source::Peer(remote), share, shown: OnceLock::new() }
    }
}

/// A process between two execs: its id, its start, what it runs.
type Running = (u32, u64, Executable);

/// Whose processes are whose, where the kernel's record alone decides, under these resources.
#[derive(Default)]
struct Callers {
    resources: Option<Arc<Resources>>,
    known: HashMap<(u64, u32, Option<FileId>), Result<Identity, Unidentified>>,
}

/// Turns recorded processes into callers.
pub struct Identify {
    cgroups: Mutex<HashMap<u64, Arc<str>>>,
    /// What [`Process`]es run. Another exec is another key.
    exes: Mutex<HashMap<Running, Arc<str>>>,
    callers: Mutex<Callers>,
    digests: Digests,
    runtimes: Runtimes,
    metrics: Arc<Metrics>,
}

impl Identify {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            cgroups: Mutex::default(),
            exes: Mutex::default(),
            callers: Mutex::default(),
            digests: Digests::default(),
            runtimes: Runtimes::default(),
            metrics,
        }
    }

    /// Names what the kernel recorded.
    #[must_use]
    pub fn origin(&self, captured: Captured, share: Arc<Share>) -> Origin {
        let recorded = &captured.process;
        let process = match self.cgroup(recorded.cgroup_id) {
            Ok(cgroup) => Some(Process {
                cgroup: cgroup.to_string(),
                uid: recorded.uid,
                exe: Some(FileId { dev: recorded.exe.dev, ino: recorded.exe.ino }),
            }),
            Err(error) => {
                tracing::warn!(%error, cgroup = recorded.cgroup_id, "caller's cgroup cannot be named");
                None
            }
        };
        let exe = self.exe(recorded);
        let connected = Connected::at(recorded.connected_ns);
        let (exe_sha256, image) = (OnceCell::new(), OnceCell::new());
        let connecting = Connecting { captured, process, exe, connected, exe_sha256, image };
        Origin { source: Source::Process(connecting), share, shown: OnceLock::new() }
    }

    /// Whose share of the limits a process takes from: the captured cgroup's, or of what `exec` started the one of its own
    /// that only root makes.
    #[must_use]
    pub fn sharer(&self, recorded: &Recorded) -> Sharer {
        Sharer::Cgroup(self.sharing_cgroup(recorded))
    }

    fn sharing_cgroup(&self, recorded: &Recorded) -> u64 {
        let Ok(path) = self.cgroup(recorded.cgroup_id) else { return recorded.captured_id };
        let mut parts = path.trim_start_matches('/').split('/');
        let (Some(EXEC_CGROUP), Some(own)) = (parts.next(), parts.next()) else {
            return recorded.captured_id;
        };
        if parts.next().is_none() {
            return recorded.cgroup_id;
        }
        let above = cgroup::mount().and_then(|mount| cgroup::id(&mount.join(EXEC_CGROUP).join(own)));
        above.unwrap_or(recorded.captured_id)
    }

    /// Who `origin` is of: the one workload that fits its process.
    ///
    /// # Errors
    /// [`Unidentified`]: no workload matches, or more than one, or of one it cannot be told, or the `exec` claim is
    /// contradicted.
    pub async fn caller(
        &self,
        origin: &Origin,
        resources: &Arc<Resources>,
        trust_domain: &str,
        limits: &Limits,
    ) -> Result<Identity, Unidentified> {
        let origin = match &origin.source {
            Source::Process(connecting) => connecting,
            Source::Peer(remote) => return Ok(remote.caller.clone()),
        };
        let process = origin.process.as_ref().ok_or(Unidentified::Unknown)?;
        let key = (origin.captured.process.cgroup_id, process.uid, process.exe);
        if let Some(caller) = self.known_caller(&key, resources) {
            return caller;
        }
        let asked = workload::asked(process, &resources.workloads);
        let by_record = asked == Asked::default();
        let evidence = self.evidence(origin, asked, limits).await;
        let claim = workload::exec_claim(&process.cgroup, trust_domain);
        let caller = workload::identify(process, &evidence, &resources.workloads, claim.as_ref());
        // What was looked up besides is of this connection alone.
        if by_record {
            self.remember_caller(key, resources, &caller);
        }
        caller
    }

    /// Who has connected to a Unix socket, of whom the kernel kept its user and its process id alone.
    ///
    /// # Errors
    /// As [`caller`](Self::caller). What it ran when it connected nobody knows: a Workload that asks for it cannot be told.
    pub(crate) async fn local(
        &self,
        process: &Process,
        resources: &Resources,
        trust_domain: &str,
    ) -> Result<Identity, Unidentified> {
        let asked = workload::asked(process, &resources.workloads);
        let untold = || Err("what it ran when it connected is not known".into());
        let exe_sha256 = asked.exe_sha256.then(untold);
        let image = match asked.image {
            Some(container) => Some(self.image(container).await),
            None => None,
        };
        let claim = workload::exec_claim(&process.cgroup, trust_domain);
        let evidence = Evidence { exe_sha256, image };
        workload::identify(process, &evidence, &resources.workloads, claim.as_ref())
    }

    fn known_caller(
        &self,
        key: &(u64, u32, Option<FileId>),
        resources: &Arc<Resources>,
    ) -> Option<Result<Identity, Unidentified>> {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let same = callers.resources.as_ref().is_some_and(|known| Arc::ptr_eq(known, resources));
        callers.known.get(key).filter(|_| same).cloned()
    }

    fn remember_caller(
        &self,
        key: (u64, u32, Option<FileId>),
        resources: &Arc<Resources>,
        caller: &Result<Identity, Unidentified>,
    ) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let same = callers.resources.as_ref().is_some_and(|known| Arc::ptr_eq(known, resources));
        if !same || callers.known.len() >= KNOWN_MAX {
            callers.known.clear();
            callers.resources = Some(Arc::clone(resources));
        }
        callers.known.insert(key, caller.clone());
    }

    /// The path of the recorded executable, looked up once between two execs.
    fn exe(&self, recorded: &Recorded) -> Option<Arc<str>> {
        let key = (recorded.tgid, recorded.start_ns, recorded.exe);
        let known = self.exes.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        known.or_else(|| {
            let path: Arc<str> = exe_path(recorded)?.into();
            let mut exes = self.exes.lock().unwrap_or_else(PoisonError::into_inner);
            if exes.len() >= KNOWN_MAX {
                exes.clear();
            }
            exes.insert(key, Arc::clone(&path));
            Some(path)
        })
    }

    /// Looks up what is asked, once for each connection.
    async fn evidence(&self, origin: &Connecting, asked: Asked, limits: &Limits) -> Evidence {
        let exe_sha256 = match asked.exe_sha256 {
            true => Some(origin.exe_sha256.get_or_init(|| self.digest(origin, limits)).await.clone()),
            false => None,
        };
        let image = match asked.image {
            Some(container) => Some(origin.image.get_or_init(|| self.image(container)).await.clone()),
            None => None,
        };
        Evidence { exe_sha256, image }
    }

    async fn digest(&self, origin: &Connecting, limits: &Limits) -> Result<Sha256, Arc<str>> {
        let recorded = &origin.captured.process;
        let (pid, exe) = (recorded.tgid, FileId { dev: recorded.exe.dev, ino: recorded.exe.ino });
        let found = self.digests.of(Ran { pid, exe }, origin.connected, limits).await;
        found.map_err(|error| {
            if let Some(limit) = error.limit() {
                self.metrics.limits.count(limit, &error);
            }
            tracing::warn!(%error, pid, "no exe_sha256 of a caller: Workloads with that selector do not fit it");
            error.to_string().into()
        })
    }

    async fn image(&self, container: Container) -> Result<Image, Arc<str>> {
        let runtimes = self.runtimes.clone();
        let id = container.id.clone();
        let found = tokio::task::spawn_blocking(move || runtimes.image(&container)).await;
        let found =
            found.map_err(|error| error.to_string()).and_then(|it| it.map_err(|error| error.to_string()));
        found.map_err(|error| {
            tracing::warn!(
                error,
                id,
                "no image of a caller's container: Workloads with that selector do not fit it"
            );
            error.into()
        })
    }

    fn cgroup(&self, id: u64) -> Result<Arc<str>, CaptureError> {
        let mut known = self.cgroups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = known.get(&id) {
            return Ok(Arc::clone(path));
        }
        let path: Arc<str> = cgroup::path_of(id)?.into();
        if known.len() >= CGROUPS_MAX {
            known.clear();
        }
        known.insert(id, Arc::clone(&path));
        Ok(path)
    }
}

/// The path of what `/proc` shows, if it is still the file that the kernel recorded at connect. Nobody who serves a
/// file system is asked: this is on the accept path.
fn exe_path(recorded: &Recorded) -> Option<String> {
    let held = file::hold(&PathBuf::from(format!("/proc/{}/exe", recorded.tgid))).ok()?;
    let now = file::stamp(&held, Sync::Never).ok()?;
    let same = now.ino == recorded.exe.ino && now.dev == recorded.exe.dev;
    let path = same.then(|| file::path(&held).ok())??;
    Some(path.to_string_lossy().into_owned())
}

//! Stage 2, identify: the process that the kernel recorded -> the workload it belongs to.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use toolgate_core::identity::Identity;
use toolgate_core::workload::{self, FileId, Process, Unidentified};

use crate::capture::{CaptureError, Captured, Recorded, cgroup};
use crate::config::Resources;

/// Cgroup paths remembered; an id is never used twice while the machine is up, so an entry never lies.
const CGROUPS_MAX: usize = 16_384;

/// Who connected, and where to: one for each connection.
#[derive(Debug)]
pub struct Origin {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The same in terms that selectors speak of; `None` where the cgroup is gone.
    pub process: Option<Process>,
    /// The executable's path for the record, when `/proc` still shows the recorded file there.
    pub exe: Option<String>,
}

/// Turns recorded processes into callers.
#[derive(Default)]
pub struct Identify {
    cgroups: Mutex<HashMap<u64, Arc<str>>>,
}

impl Identify {
    /// Names what the kernel recorded.
    #[must_use]
    pub fn origin(&self, captured: Captured) -> Origin {
        let recorded = &captured.process;
        let process = match self.cgroup(recorded.cgroup_id) {
            Ok(cgroup) => Some(Process {
                cgroup: cgroup.to_string(),
                uid: recorded.uid,
                exe: FileId { dev: recorded.exe.dev, ino: recorded.exe.ino },
            }),
            Err(error) => {
                tracing::warn!(%error, cgroup = recorded.cgroup_id, "caller's cgroup cannot be named");
                None
            }
        };
        let exe = exe_path(recorded);
        Origin { captured, process, exe }
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

/// The path that `/proc` shows, if it is still the file that the kernel recorded at connect.
fn exe_path(recorded: &Recorded) -> Option<String> {
    let link = format!("/proc/{}/exe", recorded.tgid);
    let now = std::fs::metadata(&link).ok()?;
    let same = now.ino() == recorded.exe.ino && now.dev() == recorded.exe.dev;
    let path = same.then(|| std::fs::read_link(&link).ok())??;
    Some(path.to_string_lossy().into_owned())
}

/// The one workload that `origin` is of.
///
/// # Errors
/// [`Unidentified`]: no workload matches, or more than one, or the `exec` claim is contradicted.
pub fn caller(origin: &Origin, resources: &Resources, trust_domain: &str) -> Result<Identity, Unidentified> {
    let process = origin.process.as_ref().ok_or(Unidentified::Unknown)?;
    let claim = workload::exec_claim(&process.cgroup, trust_domain);
    workload::identify(process, &resources.workloads, claim.as_ref())
}

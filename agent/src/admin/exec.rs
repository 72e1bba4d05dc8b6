//! `toolgate exec`: the agent puts the process that asks into a captured cgroup of its App ID.
//!
//! Which process asks is told by the socket (SO_PEERCRED). The cgroup's name is the claim: it is root's, outlives the
//! agent, and is removed when the last process in it has ended.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use tokio::net::unix::UCred;
use toolgate_core::identity::InvalidName;
use toolgate_core::workload::{self, EXEC_CGROUP, Evidence, FileId, Process, Unidentified};

use super::api::ExecRequest;
use crate::app::Node;
use crate::capture::{CaptureError, cgroup};
use crate::config::Cgroup;

/// Why a process does not get its App ID.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    #[error("only root may choose an App ID; run `toolgate exec` with sudo")]
    NotRoot,
    #[error("the asking process is in another PID namespace; run `toolgate exec` on the host")]
    NoPid,
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("cannot look at `{path}`: {cause}")]
    Exe { path: String, cause: io::Error },
    #[error("{0}")]
    Contradicted(Unidentified),
    #[error("cannot make cgroup `{}`: {cause}", path.display())]
    Cgroup { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// Moves the peer into a cgroup of its App ID. Returns the cgroup's path below the root.
pub(super) fn enter(wanted: &ExecRequest, peer: UCred, node: &Node) -> Result<String, ExecError> {
    if peer.uid() != 0 {
        return Err(ExecError::NotRoot);
    }
    let pid = peer.pid().filter(|pid| *pid > 0).ok_or(ExecError::NoPid)?;
    toolgate_core::identity::check_name(&wanted.app_id)?;
    let name = format!("/{EXEC_CGROUP}/{}.{pid}", wanted.app_id);
    let exe =
        std::fs::metadata(&wanted.exe).map_err(|cause| ExecError::Exe { path: wanted.exe.clone(), cause })?;
    let process = Process {
        cgroup: name.clone(),
        uid: wanted.uid,
        exe: Some(FileId { dev: exe.dev(), ino: exe.ino() }),
    };
    // Said now, so that nobody wonders later why every call of the program is denied.
    let claim = workload::exec_claim(&name, &node.agent.trust_domain);
    match workload::identify(&process, &Evidence::default(), &node.resources.load().workloads, claim.as_ref())
    {
        // What is to be looked up is looked up when the program connects.
        Ok(_) | Err(Unidentified::Untold { .. }) => {}
        Err(unidentified) => return Err(ExecError::Contradicted(unidentified)),
    }
    let path = cgroup::mount()?.join(name.trim_start_matches('/'));
    let made = match std::fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => std::fs::write(path.join("cgroup.procs"), pid.to_string()),
    };
    made.map_err(|cause| ExecError::Cgroup { path, cause })?;
    tracing::info!(app_id = %wanted.app_id, pid, exe = %wanted.exe, "exec");
    Ok(name)
}

/// Who asks, for the audit: root, and who became root, if the kernel knows (`pam_loginuid`).
pub(super) fn who(peer: UCred) -> String {
    let uid = peer.uid();
    let Some(pid) = peer.pid() else { return format!("uid {uid}") };
    let login = std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok();
    match login.and_then(|text| text.trim().parse::<u32>().ok()).filter(|login| *login != u32::MAX) {
        Some(login) => format!("uid {uid}, logged in as uid {login}, pid {pid}"),
        None => format!("uid {uid}, pid {pid}"),
    }
}

/// Whether a process is in a captured cgroup. One that cannot be looked at counts as captured; where the whole host is
/// captured, only what `exec` started does, or nobody could ask anything.
pub(super) fn is_captured(pid: Option<i32>, captured: &[Cgroup]) -> bool {
    let Some(pid) = pid else { return true };
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return true };
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return true };
    let below = |cgroup: &Cgroup| match cgroup {
        Cgroup::Root => false,
        Cgroup::Below(glob) => glob.matches_ancestor(path),
    };
    path.starts_with(&format!("{EXEC_CGROUP}/")) || captured.iter().any(below)
}

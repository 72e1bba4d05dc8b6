//! Connections that are older than the capture of their processes: they go where they went, unseen.
//!
//! Found by the kernel's list of sockets, in every namespace that a captured process is in: by the cgroup that made the
//! socket, and by who holds it now (a process may have been moved since, or got the socket from another). What the agent
//! has captured goes to its listeners, and is none of them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::capture::{CaptureError, CapturedCgroup, Destination, Destinations, Plan, Scope, cgroup};
use crate::sockdiag::{Diag, Socket, inode_of};

/// Why nobody knows of older connections.
#[derive(Debug, thiserror::Error)]
pub enum ExistingError {
    /// The kernel's list.
    #[error(
        "the kernel does not list its TCP sockets: {cause}; it needs CONFIG_INET_DIAG (module `tcp_diag`)"
    )]
    List {
        /// What it said.
        cause: io::Error,
    },
    /// A namespace.
    #[error("cannot enter the network namespace of process {pid}: {cause}")]
    Namespace {
        /// A process in it.
        pid: u32,
        /// What the kernel said.
        cause: nix::Error,
    },
    /// Cgroups.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// A connection that is older than its capture.
#[derive(Debug)]
pub struct Older {
    /// The captured cgroup.
    pub cgroup: String,
    /// Who holds it; `None`: nobody did any more, or who did could not be seen.
    pub pid: Option<u32>,
    /// Where it goes.
    pub remote: SocketAddr,
    /// Where it comes from.
    pub local: SocketAddr,
    /// What became of it, where it was to be ended.
    pub ended: Option<io::Result<()>>,
}

/// What is looked for, and where.
#[derive(Debug)]
pub struct Search<'p> {
    /// Whose connections, and to where.
    pub plan: &'p Plan,
    /// The port of the agent's listeners: what goes there is captured.
    pub listener_port: u16,
    /// The agent's own processes: two while one hands over to the other.
    pub agents: &'p [u32],
    /// Cgroups that have a bypass, by name: theirs and what is below is left alone.
    pub bypassed: &'p [String],
    /// Whether what is found is ended.
    pub end: bool,
}

/// What the captured cgroups hold.
#[derive(Default)]
struct Holdings {
    /// Cgroup id -> place in the plan.
    cgroups: HashMap<u64, usize>,
    /// Socket -> process and place in the plan.
    sockets: HashMap<u64, (u32, usize)>,
    /// Network namespaces by inode, with a process in each.
    namespaces: HashMap<u64, u32>,
}

impl Search<'_> {
    /// Looks in this thread's namespace and in those of the captured processes. Blocks; minutes it does not take.
    ///
    /// # Errors
    /// [`ExistingError`]: of a namespace that has gone meanwhile nothing is said.
    pub fn run(&self) -> Result<Vec<Older>, ExistingError> {
        let mut held = Holdings::default();
        let mount = cgroup::mount()?;
        // Gone since the plan was made: then there is nothing to find.
        let path_of = |captured: &CapturedCgroup| cgroup::path_of(captured.id).unwrap_or_default();
        let names: Vec<String> = self.plan.cgroups.iter().map(path_of).collect();
        let mut places: Vec<(usize, (&CapturedCgroup, &String))> =
            self.plan.cgroups.iter().zip(&names).enumerate().collect();
        // The deepest of nested ones has the last word, as in the kernel.
        places.sort_by_key(|(_, (_, name))| name.matches('/').count());
        for (place, (captured, name)) in places.into_iter().filter(|(_, (_, name))| !name.is_empty()) {
            held.walk(&mount.join(name.trim_start_matches('/')), captured, place, self, &mount);
        }
        let spared: HashSet<u64> = self.agents.iter().flat_map(|pid| sockets_of(*pid)).collect();
        let mut found = self.here(&held, &names, &spared)?;
        let own = namespace(std::process::id());
        for (_, pid) in held.namespaces.iter().filter(|(inode, _)| Some(**inode) != own) {
            match self.inside(*pid, &held, &names, &spared) {
                Ok(more) => found.extend(more),
                Err(error) => tracing::debug!(%error, "older connections"),
            }
        }
        Ok(found)
    }

    /// In another namespace: on a thread that ends with it.
    fn inside(
        &self,
        pid: u32,
        held: &Holdings,
        names: &[String],
        spared: &HashSet<u64>,
    ) -> Result<Vec<Older>, ExistingError> {
        let failed = |cause: nix::Error| ExistingError::Namespace { pid, cause };
        let namespace = File::open(format!("/proc/{pid}/ns/net"));
        let namespace = namespace.map_err(|_| failed(nix::Error::ESRCH))?;
        std::thread::scope(|scope| {
            let look = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(failed)?;
                self.here(held, names, spared)
            });
            look.join().unwrap_or_else(|_| Err(failed(nix::Error::UnknownErrno)))
        })
    }

    fn here(
        &self,
        held: &Holdings,
        names: &[String],
        spared: &HashSet<u64>,
    ) -> Result<Vec<Older>, ExistingError> {
        let failed = |cause| ExistingError::List { cause };
        let diag = Diag::open().map_err(failed)?;
        let mut found = Vec::new();
        for socket in diag.clients().map_err(failed)? {
            let holder = held.sockets.get(&socket.inode);
            let made_in = || socket.cgroup_id.and_then(|id| held.cgroups.get(&id));
            let Some(place) = holder.map(|(_, place)| place).or_else(made_in) else { continue };
            let Some(captured) = self.plan.cgroups.get(*place) else { continue };
            if spared.contains(&socket.inode) || !self.goes_around(&socket, captured) {
                continue;
            }
            found.push(Older {
                cgroup: names.get(*place).cloned().unwrap_or_default(),
                pid: holder.map(|(pid, _)| *pid),
                remote: socket.remote(),
                local: socket.local(),
                ended: self.end.then(|| diag.destroy(&socket)),
            });
        }
        Ok(found)
    }

    /// Whether a new connection to the same place would be captured, and this one is not.
    fn goes_around(&self, socket: &Socket, captured: &CapturedCgroup) -> bool {
        let remote = socket.remote();
        if remote.ip().is_loopback() && remote.port() == self.listener_port {
            return false;
        }
        let named = |list: &[Destination]| list.iter().any(|one| covers(one, remote));
        !named(&self.plan.exclude)
            && (captured.destinations == Destinations::All || named(&self.plan.capture))
    }
}

fn covers(destination: &Destination, address: SocketAddr) -> bool {
    destination.net.contains(&address.ip()) && destination.port.is_none_or(|port| port == address.port())
}

impl Holdings {
    /// A captured cgroup and all below it.
    fn walk(
        &mut self,
        directory: &Path,
        captured: &CapturedCgroup,
        place: usize,
        search: &Search<'_>,
        mount: &Path,
    ) {
        let let_through = |name: &String| {
            directory.strip_prefix(mount).is_ok_and(|own| own.starts_with(name.trim_matches('/')))
        };
        if search.bypassed.iter().any(let_through) {
            return;
        }
        let is_top = fs::metadata(directory).is_ok_and(|top| top.ino() == captured.id);
        if !(is_top && captured.scope == Scope::BelowOnly) {
            self.cgroup(directory, place, search.agents);
        }
        for below in fs::read_dir(directory).into_iter().flatten().flatten() {
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.walk(&below.path(), captured, place, search, mount);
            }
        }
    }

    fn cgroup(&mut self, directory: &Path, place: usize, agents: &[u32]) {
        let Ok(metadata) = fs::metadata(directory) else { return };
        self.cgroups.insert(metadata.ino(), place);
        let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| line.parse().ok()) {
            if agents.contains(&pid) {
                continue;
            }
            for socket in sockets_of(pid) {
                self.sockets.insert(socket, (pid, place));
            }
            if let Some(inode) = namespace(pid) {
                self.namespaces.entry(inode).or_insert(pid);
            }
        }
    }
}

/// The inode of a process's network namespace; `None`: it has ended.
fn namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|file| file.ino())
}

/// The sockets that a process holds, by inode: its descriptors are links to `socket:[INODE]`.
fn sockets_of(pid: u32) -> Vec<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    links.filter_map(|link| inode_of(link.to_str()?)).collect()
}

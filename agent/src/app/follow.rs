//! Follows the captured cgroups by their names. `systemctl restart` removes a unit's cgroup and makes another of the
//! same name, which the kernel's programs know nothing of until they are told its id.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::plan::{self, Named, PlanError};
use super::{AppError, Node};
use crate::capture::{CapturedCgroup, Kernel, Plan, cgroup};
use crate::netns::Namespaces;

/// How often it looks without being told: for a watch that the kernel refused, or events that it dropped.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Which names have a cgroup, and which one.
type Present = BTreeMap<String, u64>;

/// Watches every directory on the way to the captured cgroups.
pub(super) struct Follow {
    inotify: AsyncFd<Fd>,
    named: Vec<Named>,
    /// As the kernel's programs were told last.
    present: Present,
    told: Option<Plan>,
    look: Interval,
    namespaces: Arc<Namespaces>,
    names: watch::Receiver<u64>,
}

/// An inotify instance, as the runtime wants descriptors.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Follow {
    /// # Errors
    /// No inotify instance is left.
    pub(super) fn start(node: &Node) -> Result<Self, AppError> {
        let what = "follow cgroups (`fs.inotify.max_user_instances` may be too low)";
        let failed = |cause| AppError::Start { what, cause };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| failed(io::Error::from(errno)))?;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // SAFETY: it owns its descriptor, and gives the same one as long as it lives.
        let inotify = unsafe { AsyncFd::register_with_interest(Fd(inotify), Interest::READABLE) };
        Ok(Self {
            inotify: inotify.map_err(|error| failed(error.into()))?,
            named: plan::named(&node.agent, node.mode)?,
            present: Present::new(),
            told: None,
            look,
            namespaces: Arc::clone(&node.namespaces),
            names: node.names.changed(),
        })
    }

    /// Returns when cgroups, served namespaces or the addresses of names came or went, and every two seconds, the first time at once.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            ready = self.inotify.readable() => if let Ok(mut ready) = ready {
                // What happened does not matter: all names are looked up again.
                while self.inotify.get_ref().0.read_events().is_ok() {}
                ready.clear_ready();
            },
            () = self.namespaces.changed() => {}
            Ok(()) = self.names.changed() => {}
            _ = self.look.tick() => {}
        }
    }

    /// Tells the programs of the cgroups that have the names now, and of the ports to be guarded, if they are others than
    /// before.
    pub(super) fn update(&mut self, node: &Node, kernel: &Kernel) {
        match self.told(node, kernel) {
            Ok(now) => {
                self.log(&now);
                self.present = now;
            }
            Err(error) => tracing::error!("captured cgroups cannot be followed, trying again: {error}"),
        }
    }

    fn told(&mut self, node: &Node, kernel: &Kernel) -> Result<Present, PlanError> {
        self.watch()?;
        // After the watch: what is made from here on wakes `changed`.
        let now = self.look_up()?;
        let resources = node.resources.load();
        let plan = plan::plan(&node.agent, &resources, node.mode, &node.namespaces, &node.names)?;
        if self.told.as_ref() != Some(&plan) {
            self.told = Some(node.capture(kernel, &resources)?);
        }
        Ok(now)
    }

    fn look_up(&self) -> Result<Present, PlanError> {
        let mut present = Present::new();
        for named in &self.named {
            if let Some(CapturedCgroup { id, .. }) = named.present()? {
                present.insert(named.name.clone(), id);
            }
        }
        Ok(present)
    }

    /// From the root down, so that a directory that is made meanwhile is seen by the watch above it. A directory
    /// that is watched already is not watched twice.
    fn watch(&self) -> Result<(), PlanError> {
        let root = cgroup::mount()?;
        for named in &self.named {
            let above = Path::new(&named.name).parent().unwrap_or(Path::new(""));
            let mut directory = root.clone();
            let mut watched = self.add(&directory);
            for part in above {
                directory.push(part);
                watched = watched && self.add(&directory);
            }
        }
        Ok(())
    }

    fn add(&self, directory: &Path) -> bool {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        let added = self.inotify.get_ref().0.add_watch(directory, flags);
        if let Err(errno) = added
            && errno != nix::Error::ENOENT
        {
            tracing::warn!(directory = %directory.display(), %errno, "not watched: looked at every two seconds");
        }
        added.is_ok()
    }

    fn log(&self, now: &Present) {
        for (name, id) in now.iter().filter(|(name, id)| self.present.get(*name) != Some(*id)) {
            tracing::info!(%name, id, "cgroup captured");
        }
        for name in self.present.keys().filter(|name| !now.contains_key(*name)) {
            tracing::info!(%name, "captured cgroup is gone until it is made again");
        }
    }
}

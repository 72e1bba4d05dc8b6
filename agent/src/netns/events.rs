//! What wakes the keeper: connects from namespaces that are not served, and cgroups that change.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::discover::Change;
use super::follower::LOOK_EVERY;
use crate::capture::{Cookie, Kernel, Seen, SeenReader};

/// An inotify instance, as the runtime wants descriptors.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Tells which directories of cgroups change. A directory that cannot be watched, or not any more, is looked at every two
/// seconds.
pub(super) struct Watch {
    inotify: Option<AsyncFd<Fd>>,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

/// The ring, if it can be read.
pub(super) fn ring(kernel: &Kernel) -> Option<AsyncFd<SeenReader>> {
    let reader = kernel.seen()?;
    // SAFETY: the reader owns its descriptor, and gives the same one as long as it lives.
    let ring = unsafe { AsyncFd::register_with_interest(reader, Interest::READABLE) };
    told("the ring of unknown namespaces", ring.map_err(io::Error::from))
}

/// Processes that connected from namespaces that are not served, each once.
pub(super) async fn seen(ring: &mut Option<AsyncFd<SeenReader>>) -> BTreeSet<(u32, Cookie)> {
    let mut events = BTreeSet::new();
    let Some(ring) = ring else { return std::future::pending().await };
    match ring.readable_mut().await {
        Ok(mut ready) => {
            ready.get_inner_mut().drain(|Seen { tgid, namespace, .. }| {
                events.insert((tgid, namespace));
            });
            ready.clear_ready();
        }
        Err(error) => {
            tracing::error!(%error, "the kernel's ring of unknown namespaces cannot be read: they are looked for every {LOOK_EVERY:?}");
            std::future::pending::<()>().await;
        }
    }
    events
}

impl Watch {
    /// Of nothing yet, and of nothing at all where no inotify instance is left.
    pub(super) fn new() -> Self {
        Self { inotify: inotify(), watched: HashMap::new() }
    }

    /// What changed: something did.
    pub(super) async fn changed(&mut self) -> BTreeSet<Change> {
        let mut changes = BTreeSet::new();
        while changes.is_empty() {
            let Some(inotify) = &self.inotify else { return std::future::pending().await };
            let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
            let mut events = Vec::new();
            while let Ok(more) = inotify.get_ref().0.read_events() {
                events.extend(more);
            }
            ready.clear_ready();
            changes.extend(events.into_iter().filter_map(|event| self.change(event)));
        }
        changes
    }

    fn change(&mut self, event: InotifyEvent) -> Option<Change> {
        let has = |flag| event.mask.contains(flag);
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Change::Any);
        }
        if has(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
            return None;
        }
        let directory = self.watched.get(&event.wd)?;
        match event.name {
            Some(name) if has(AddWatchFlags::IN_CREATE) => Some(Change::New(directory.join(name))),
            _ => Some(Change::Populated(directory.clone())),
        }
    }

    /// Children that come, and `cgroup.events`, which changes with the first process and after the last.
    pub(super) fn add(&mut self, directory: &Path) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONLYDIR;
        let Some(inotify) = &self.inotify else { return };
        match inotify.get_ref().0.add_watch(directory, flags) {
            Ok(descriptor) => {
                self.watched.entry(descriptor).or_insert_with(|| directory.to_owned());
            }
            Err(nix::Error::ENOENT) => {}
            Err(errno) => {
                tracing::debug!(directory = %directory.display(), %errno, "not watched: looked at every two seconds");
            }
        }
    }
}

/// An inotify instance, if one is left.
fn inotify() -> Option<AsyncFd<Fd>> {
    let made = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    let inotify = told("inotify", made.map_err(io::Error::from))?;
    // SAFETY: it owns its descriptor, and gives the same one as long as it lives.
    let watch = unsafe { AsyncFd::register_with_interest(Fd(inotify), Interest::READABLE) };
    told("inotify", watch.map_err(io::Error::from))
}

fn told<T>(what: &str, made: io::Result<T>) -> Option<T> {
    made.inspect_err(
        |error| tracing::warn!(%error, "no {what}: namespaces are looked for every {LOOK_EVERY:?}"),
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_changed_is_told_by_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("cgroup.events"), "populated 0").unwrap();
        }
        let mut watch = Watch::new();
        for directory in [folder.path(), &path("a"), &path("b"), &path("a"), &path("gone")] {
            watch.add(directory);
        }
        fs::write(path("b/cgroup.events"), "populated 1").unwrap();
        assert_eq!(watch.changed().await, BTreeSet::from([Change::Populated(path("b"))]));
        fs::create_dir(path("a/c")).unwrap();
        assert_eq!(watch.changed().await, BTreeSet::from([Change::New(path("a/c"))]));
        // Gone and there again: what it was is forgotten, what it is is new.
        fs::remove_dir_all(path("b")).unwrap();
        fs::create_dir(path("b")).unwrap();
        assert_eq!(watch.changed().await, BTreeSet::from([Change::New(path("b"))]));
        assert_eq!(watch.watched.len(), 2);
    }
}

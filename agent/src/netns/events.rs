//! What wakes the keeper: connects from namespaces that are not served, and cgroups that change.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::keeper::LOOK_EVERY;
use crate::capture::{Cookie, Kernel, Seen, SeenReader};

/// An inotify instance, as the runtime wants descriptors.
pub(super) struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The ring, if it can be read.
pub(super) fn ring(kernel: &Kernel) -> Option<AsyncFd<SeenReader>> {
    let reader = kernel.seen()?;
    // SAFETY: the reader owns its descriptor, and gives the same one as long as it lives.
    let ring = unsafe { AsyncFd::register_with_interest(reader, Interest::READABLE) };
    told("the ring of unknown namespaces", ring.map_err(io::Error::from))
}

/// An inotify instance, if one is left.
pub(super) fn inotify() -> Option<AsyncFd<Fd>> {
    let made = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    let inotify = told("inotify", made.map_err(io::Error::from))?;
    // SAFETY: it owns its descriptor, and gives the same one as long as it lives.
    let watch = unsafe { AsyncFd::register_with_interest(Fd(inotify), Interest::READABLE) };
    told("inotify", watch.map_err(io::Error::from))
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

pub(super) async fn cgroups_changed(inotify: &Option<AsyncFd<Fd>>) {
    let Some(inotify) = inotify else { return std::future::pending().await };
    match inotify.readable().await {
        Ok(mut ready) => {
            while inotify.get_ref().0.read_events().is_ok() {}
            ready.clear_ready();
        }
        Err(_) => std::future::pending().await, // looked at every two seconds
    }
}

/// Children that come and go, and `cgroup.events`, which changes with the first process and after the last. A
/// directory that cannot be watched, or not any more, is looked at every two seconds.
pub(super) fn watch(inotify: &Option<AsyncFd<Fd>>, directory: &Path) {
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ONLYDIR;
    if let Some(inotify) = inotify
        && let Err(errno) = inotify.get_ref().0.add_watch(directory, flags)
        && errno != nix::Error::ENOENT
    {
        tracing::debug!(directory = %directory.display(), %errno, "not watched: looked at every two seconds");
    }
}

fn told<T>(what: &str, made: io::Result<T>) -> Option<T> {
    made.inspect_err(
        |error| tracing::warn!(%error, "no {what}: namespaces are looked for every {LOOK_EVERY:?}"),
    )
    .ok()
}

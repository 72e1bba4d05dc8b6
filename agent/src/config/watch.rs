//! Tells when files of a directory changed: written, renamed into place, or reached through a link that was
//! swapped.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::unistd::pipe2;

/// For how long nothing must happen before a change counts as finished: editors and package managers write in
/// several steps.
const QUIET_MS: u16 = 50;

/// After how many further changes a callback comes even without quiet.
const CHANGES_WAITED_MAX: usize = 64;

/// A watch that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No inotify instance, or none left.
    #[error(
        "cannot watch for changes: {errno}; raise `fs.inotify.max_user_instances`, or reload with SIGHUP"
    )]
    Inotify {
        /// What the kernel said.
        errno: nix::Error,
    },
    /// The directory cannot be watched.
    #[error("cannot watch `{}`: {errno}; see that it exists, or raise `fs.inotify.max_user_watches`", dir.display())]
    Directory {
        /// Which one.
        dir: PathBuf,
        /// What the kernel said.
        errno: nix::Error,
    },
    /// No thread.
    #[error("cannot start the thread that watches for changes: {source}")]
    Thread {
        /// Why not.
        source: io::Error,
    },
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closing the write end wakes the thread.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A callback that panicked has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// Calls `on_change` from a thread of its own after `dir`, or a directory that its files link to, changed and has
/// been quiet for a moment.
///
/// # Errors
/// [`WatchError`].
pub fn watch(dir: &Path, on_change: impl Fn() + Send + 'static) -> Result<Watch, WatchError> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .map_err(|errno| WatchError::Inotify { errno })?;
    let mut watched = Watched { inotify, dir: dir.to_owned(), above: None };
    watched.add(dir).map_err(|errno| WatchError::Directory { dir: dir.to_owned(), errno })?;
    watched.follow_links();
    let (stopped, stop) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| WatchError::Inotify { errno })?;
    let thread = std::thread::Builder::new()
        .name("config-watch".to_owned())
        .spawn(move || watched.run(&stopped, &on_change))
        .map_err(|source| WatchError::Thread { source })?;
    Ok(Watch { stop: Some(stop), thread: Some(thread) })
}

struct Watched {
    inotify: Inotify,
    dir: PathBuf,
    /// The watch on the directory above, of which only this one's name matters.
    above: Option<WatchDescriptor>,
}

enum Woken {
    Changed,
    Quiet,
    Stopped,
}

impl Watched {
    fn add(&self, dir: &Path) -> nix::Result<WatchDescriptor> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        self.inotify.add_watch(dir, flags)
    }

    /// Watches the directories that hold what links in the directory lead to (configuration management keeps the
    /// files elsewhere), and the one above it: the directory itself may be a link that is swapped.
    fn follow_links(&mut self) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let targets = entries
            .filter_map(|path| path.canonicalize().ok())
            .filter_map(|path| path.parent().map(Path::to_owned));
        let dirs: BTreeSet<PathBuf> = targets.chain([self.dir.clone()]).collect();
        for dir in &dirs {
            // What cannot be watched (it may be gone again) is still read on SIGHUP.
            if let Err(errno) = self.add(dir) {
                tracing::debug!(dir = %dir.display(), %errno, "not watched");
            }
        }
        let above = self.dir.parent().filter(|above| !dirs.contains(*above));
        self.above = above.and_then(|above| self.add(above).ok());
    }

    fn counts(&self, event: &InotifyEvent) -> bool {
        Some(event.wd) != self.above || event.name.as_deref() == self.dir.file_name()
    }

    fn run(mut self, stopped: &OwnedFd, on_change: &impl Fn()) {
        loop {
            match self.wait(stopped, PollTimeout::NONE) {
                Woken::Stopped => return,
                Woken::Quiet => continue,
                Woken::Changed => {}
            }
            for _ in 0..CHANGES_WAITED_MAX {
                match self.wait(stopped, PollTimeout::from(QUIET_MS)) {
                    Woken::Stopped => return,
                    Woken::Quiet => break,
                    Woken::Changed => {}
                }
            }
            self.follow_links();
            on_change();
        }
    }

    /// Waits for a change, and takes all there is to read of it.
    fn wait(&self, stopped: &OwnedFd, timeout: PollTimeout) -> Woken {
        let mut fds = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => return Woken::Quiet,
            Ok(_) => {}
            Err(errno) => {
                tracing::error!(%errno, "configuration is no longer watched: reload with SIGHUP");
                return Woken::Stopped;
            }
        }
        let [changed, stop] = &fds;
        if stop.revents().is_some_and(|events| !events.is_empty()) {
            return Woken::Stopped;
        }
        if changed.revents().is_none_or(|events| events.is_empty()) {
            return Woken::Quiet;
        }
        let mut changed = false;
        while let Ok(events) = self.inotify.read_events() {
            changed |= events.iter().any(|event| self.counts(event));
        }
        if changed { Woken::Changed } else { Woken::Quiet }
    }
}

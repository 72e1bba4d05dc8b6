//! Pins on the bpf file system. They keep links and maps alive without the agent, so that captured
//! connections are refused, not let through, when it is killed, and the next one goes on with them.
//!
//! `<bpffs>/toolgate/<ABI>-<LAYOUT>/{links,maps}/<name>`: one directory for each layout of the maps.

use std::{
    collections::BTreeSet,
    ffi::{CStr, OsStr},
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use toolgate_ebpf_common::{ABI, LAYOUT};

use super::{CaptureError, bpf, host};

const BPFFS: &str = "/sys/fs/bpf";
const FOLDER: &str = "toolgate";
const LINKS: &str = "links";
const MAPS: &str = "maps";

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Programs that were detached.
    pub links: usize,
    /// Maps that lost their pin.
    pub maps: usize,
}

/// Removes whatever agents of any version left attached. The caller makes sure that none lives.
/// What is not attached is no error: nothing is removed.
pub fn detach() -> Result<Removed, CaptureError> {
    match mounted()? {
        Some(bpffs) => remove_all(&bpffs.join(FOLDER), None),
        None => Ok(Removed::default()),
    }
}

/// The directory of this layout. Dropped before [`Pins::keep`] it takes with it what was pinned newly.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
    directory: PathBuf,
    maps_found: BTreeSet<PathBuf>,
    links_made: Mutex<Vec<PathBuf>>,
    kept: AtomicBool,
}

impl Pins {
    /// Opens the directory, or makes it.
    pub(super) fn open() -> Result<Self, CaptureError> {
        let folder = bpffs()?.join(FOLDER);
        let directory = folder.join(format!("{ABI}-{LAYOUT:08x}"));
        for path in [&folder, &directory, &directory.join(LINKS), &directory.join(MAPS)] {
            make(path)?;
        }
        let maps_found = entries(&directory.join(MAPS))?.into_iter().collect();
        Ok(Self { folder, directory, maps_found, links_made: Mutex::default(), kept: AtomicBool::new(false) })
    }

    /// Where the maps are pinned by their names.
    pub(super) fn maps(&self) -> PathBuf {
        self.directory.join(MAPS)
    }

    /// Whether an agent was here before.
    pub(super) fn is_adopted(&self) -> bool {
        !self.maps_found.is_empty()
    }

    /// Puts `program` into the pinned link, or attaches it to `target` and pins that.
    pub(super) fn link(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        hook: bpf::Hook,
    ) -> Result<(), CaptureError> {
        let path = self.link_path(name);
        let failed = |cause| CaptureError::Link { path: path.clone(), cause };
        if fs::exists(&path).map_err(failed)? {
            let updated = bpf::open(&path).and_then(|link| bpf::update(link.as_fd(), program));
            match updated {
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => unpin(&path)?,
                other => return other.map_err(failed),
            }
        }
        let link = bpf::link(program, target, hook)
            .map_err(|cause| CaptureError::attaching(name, cause).unwrap_or_else(failed))?;
        bpf::pin(link.as_fd(), &path).map_err(failed)?;
        self.links_made.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        Ok(())
    }

    /// Attaches `program` to a raw tracepoint and pins that, in the place of an earlier one, which goes last.
    pub(super) fn tracepoint(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        tracepoint: &CStr,
    ) -> Result<(), CaptureError> {
        let path = self.link_path(name);
        let failed = |cause| CaptureError::Link { path: path.clone(), cause };
        let link = bpf::tracepoint(program, tracepoint).map_err(failed)?;
        let adopted = fs::exists(&path).map_err(failed)?;
        remove_link(&path)?;
        bpf::pin(link.as_fd(), &path).map_err(failed)?;
        if !adopted {
            self.links_made.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        }
        Ok(())
    }

    /// Detaches one link; none of that name is no error.
    pub(super) fn unlink(&self, name: &str) -> Result<(), CaptureError> {
        let path = self.link_path(name);
        remove_link(&path)?;
        self.links_made.lock().unwrap_or_else(PoisonError::into_inner).retain(|made| *made != path);
        Ok(())
    }

    /// Removes the links of `prefix` whose network namespace is gone.
    pub(super) fn remove_gone(&self, prefix: &str) -> Result<(), CaptureError> {
        for path in entries(&self.directory.join(LINKS))? {
            let named = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(prefix));
            if named && bpf::open(&path).is_ok_and(|link| bpf::is_netns_gone(link.as_fd()).unwrap_or(false)) {
                remove_link(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the links of `prefix` but those.
    pub(super) fn remove_but(&self, prefix: &str, but: &BTreeSet<String>) -> Result<(), CaptureError> {
        for path in entries(&self.directory.join(LINKS))? {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if name.starts_with(prefix) && !but.contains(name) {
                remove_link(&path)?;
            }
        }
        Ok(())
    }

    /// Removes links of these names that programs of other layouts left.
    pub(super) fn remove_others_links(&self, names: &[&str]) -> Result<(), CaptureError> {
        let mut directories = entries(&self.folder)?;
        directories.retain(|found| *found != self.directory);
        // The first version had a directory for each agent below the version's.
        while let Some(directory) = directories.pop() {
            for name in names {
                remove_link(&directory.join(LINKS).join(name))?;
            }
            let is_directory = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
            directories.extend(entries(&directory)?.into_iter().filter(is_directory));
        }
        Ok(())
    }

    /// Removes the pins of all other layouts.
    pub(super) fn remove_others(&self) -> Result<Removed, CaptureError> {
        remove_all(&self.folder, Some(&self.directory))
    }

    /// From now on the pins outlive the process.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Removes all pins of all layouts.
    pub(super) fn remove(&self) -> Result<Removed, CaptureError> {
        remove_all(&self.folder, None)
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.directory.join(LINKS).join(name)
    }

    fn remove_new(&self) -> Result<(), CaptureError> {
        let mut made = self.links_made.lock().unwrap_or_else(PoisonError::into_inner);
        made.sort();
        for link in made.drain(..) {
            remove_link(&link)?;
        }
        for map in entries(&self.maps())?.iter().filter(|&map| !self.maps_found.contains(map)) {
            unpin(map)?;
        }
        Ok(())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.remove_new() {
            tracing::error!(%error, "attached programs could not be removed: run `toolgate detach`");
        }
        let own = [self.directory.join(LINKS), self.maps(), self.directory.clone(), self.folder.clone()];
        for directory in own {
            let _not_empty = fs::remove_dir(directory);
        }
    }
}

fn mounted() -> Result<Option<PathBuf>, CaptureError> {
    let mounts = host::mounts()?;
    let mut found = mounts.into_iter().filter(|mount| mount.kind == "bpf").map(|mount| mount.at).peekable();
    let first = found.peek().cloned();
    // Where it usually is, should there be several.
    Ok(found.find(|at| at == Path::new(BPFFS)).or(first))
}

/// Where the bpf file system is mounted; mounts it at its usual place if it is not.
fn bpffs() -> Result<PathBuf, CaptureError> {
    if let Some(at) = mounted()? {
        return Ok(at);
    }
    // SAFETY: three strings that end in NUL, and no data.
    let done = unsafe {
        libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
    };
    if done != 0 {
        return Err(CaptureError::Bpffs { path: BPFFS.into(), cause: io::Error::last_os_error() });
    }
    tracing::info!("mounted the bpf file system at `{BPFFS}`");
    Ok(BPFFS.into())
}

/// Makes a directory that nobody else may write. bpffs is often open to all, as /tmp is: who made the directory first
/// could detach what lies in it.
fn make(path: &Path) -> Result<(), CaptureError> {
    let failed = |cause| CaptureError::Pin { path: path.to_owned(), cause };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(failed),
    }
    let found = fs::symlink_metadata(path).map_err(failed)?;
    // SAFETY: a call without arguments that cannot fail.
    let own = unsafe { libc::geteuid() };
    if found.is_dir() && found.uid() == own && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(CaptureError::ForeignPins { path: path.to_owned(), uid: found.uid(), mode: found.mode() & 0o7777 })
}

/// All directories below `folder` but `except`, whichever way a version arranged its own.
fn remove_all(folder: &Path, except: Option<&Path>) -> Result<Removed, CaptureError> {
    let mut removed = Removed::default();
    remove_below(folder, except, &mut removed)?;
    Ok(removed)
}

/// Links before maps, by their names: programs without pinned maps still work, and connect* goes before what it needs.
fn remove_below(directory: &Path, except: Option<&Path>, removed: &mut Removed) -> Result<(), CaptureError> {
    let mut found = entries(directory)?;
    found.sort();
    for path in found.iter().filter(|&path| Some(path.as_path()) != except) {
        let metadata = fs::symlink_metadata(path)
            .map_err(|source| CaptureError::Pin { path: path.clone(), cause: source })?;
        if metadata.is_dir() {
            remove_below(path, except, removed)?;
        } else if directory.ends_with(LINKS) {
            remove_link(path)?;
            removed.links += 1;
        } else {
            unpin(path)?;
            removed.maps += 1;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if except.is_none() && error.kind() != io::ErrorKind::NotFound => {
            Err(CaptureError::Pin { path: directory.to_owned(), cause: error })
        }
        _ => Ok(()),
    }
}

/// Detaches at once. Removing the last pin does so too, but a moment later, from a work queue.
/// A link that cannot be opened or is detached already needs no more than its pin removed.
fn remove_link(path: &Path) -> Result<(), CaptureError> {
    if let Ok(link) = bpf::open(path) {
        let _detached_already = bpf::detach(link.as_fd());
    }
    unpin(path)
}

fn unpin(path: &Path) -> Result<(), CaptureError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CaptureError::Pin { path: path.to_owned(), cause: error })
        }
        _ => Ok(()),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let failed = |source| CaptureError::Pin { path: directory.to_owned(), cause: source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

//! Pins on the bpf file system. They keep links and maps alive without the agent, so that captured
//! connections are refused, not let through, when it is killed.
//!
//! `<bpffs>/toolgate/<ABI>/<pid>-<start>/{links,maps}/<name>`: one directory for each agent, so that
//! a new one attaches before the programs of a dead one are removed.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
};

use aya::programs::links::FdLink;
use toolgate_ebpf_common::ABI;

use super::{CaptureError, host};

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
        Some(bpffs) => remove_generations(&bpffs.join(FOLDER), None),
        None => Ok(Removed::default()),
    }
}

/// The directory of one agent. Dropped before [`Generation::keep`] it takes its pins with it.
#[derive(Debug)]
pub(super) struct Generation {
    folder: PathBuf,
    directory: PathBuf,
    kept: bool,
}

impl Generation {
    /// `start_ns` tells this process from an earlier one of the same number.
    pub(super) fn create(start_ns: u64) -> Result<Self, CaptureError> {
        let folder = bpffs()?.join(FOLDER);
        let directory = folder.join(ABI).join(format!("{}-{start_ns}", std::process::id()));
        // This process attached before and did not detach.
        remove_generation(&directory)?;
        let generation = Self { folder, directory, kept: false };
        for inner in [LINKS, MAPS] {
            let path = generation.directory.join(inner);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| CaptureError::Pin { path, cause: source })?;
        }
        Ok(generation)
    }

    pub(super) fn map_path(&self, name: &str) -> PathBuf {
        self.directory.join(MAPS).join(name)
    }

    pub(super) fn pin_link(&self, name: &str, link: FdLink) -> Result<(), CaptureError> {
        let path = self.directory.join(LINKS).join(name);
        link.pin(&path).map_err(|error| CaptureError::Pin { path, cause: io::Error::other(error) })?;
        Ok(())
    }

    /// Removes the pins of all other agents, which are dead: the caller holds the agent's lock.
    pub(super) fn remove_others(&self) -> Result<Removed, CaptureError> {
        remove_generations(&self.folder, Some(&self.directory))
    }

    /// From now on the pins outlive the process.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    pub(super) fn remove(&self) -> Result<Removed, CaptureError> {
        let removed = remove_generation(&self.directory)?;
        remove_empty(&self.folder);
        Ok(removed)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove_generation(&self.directory) {
            tracing::error!(%error, "attached programs could not be removed: run `toolgate detach`");
        }
        remove_empty(&self.folder);
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

/// All generations of all versions but `except`.
fn remove_generations(folder: &Path, except: Option<&Path>) -> Result<Removed, CaptureError> {
    let mut removed = Removed::default();
    for version in entries(folder)? {
        for generation in entries(&version)? {
            if Some(generation.as_path()) != except {
                let more = remove_generation(&generation)?;
                removed.links += more.links;
                removed.maps += more.maps;
            }
        }
    }
    remove_empty(folder);
    Ok(removed)
}

/// Links first: a program without its maps' pins still works, one that is half removed should not be.
fn remove_generation(generation: &Path) -> Result<Removed, CaptureError> {
    let mut links = entries(&generation.join(LINKS))?;
    // connect4 first, so that nothing is turned to an agent whose other programs are gone.
    links.sort();
    for link in &links {
        detach_link(link);
        unpin(link)?;
    }
    let maps = entries(&generation.join(MAPS))?;
    for map in &maps {
        unpin(map)?;
    }
    for directory in [generation.join(LINKS), generation.join(MAPS), generation.to_owned()] {
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CaptureError::Pin { path: directory, cause: error });
            }
            _ => {}
        }
    }
    Ok(Removed { links: links.len(), maps: maps.len() })
}

fn unpin(path: &Path) -> Result<(), CaptureError> {
    fs::remove_file(path).map_err(|source| CaptureError::Pin { path: path.to_owned(), cause: source })
}

/// Directories of versions, and our own, as far as they are empty: another agent may be using them.
fn remove_empty(folder: &Path) {
    for version in entries(folder).unwrap_or_default() {
        let _not_empty = fs::remove_dir(version);
    }
    let _not_empty = fs::remove_dir(folder);
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let failed = |source| CaptureError::Pin { path: directory.to_owned(), cause: source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// Detaches at once. Removing the last pin does so too, but a moment later, from a work queue.
/// A link that cannot be opened or is detached already needs no more than its pin removed.
fn detach_link(path: &Path) {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return;
    };
    let mut by_name = [0; ATTRIBUTE_BYTES];
    by_name[..8].copy_from_slice(&(name.as_ptr() as u64).to_ne_bytes());
    let Ok(fd) = bpf(BPF_OBJ_GET, &by_name) else {
        return;
    };
    // SAFETY: a descriptor that the call has just made, owned by nobody else.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut by_fd = [0; ATTRIBUTE_BYTES];
    by_fd[..4].copy_from_slice(&link.as_raw_fd().to_ne_bytes());
    let _detached_already = bpf(BPF_LINK_DETACH, &by_fd);
}

/// As much of `union bpf_attr` as the two commands read: a path, or a descriptor, and zeros.
const ATTRIBUTE_BYTES: usize = 16;

fn bpf(command: libc::c_int, attribute: &[u8; ATTRIBUTE_BYTES]) -> io::Result<libc::c_int> {
    // SAFETY: the kernel copies the given number of bytes, and a path in them outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), ATTRIBUTE_BYTES) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

//! Cgroups by path and by id. The id, which the kernel records, is the inode of the directory.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{CaptureError, host};

/// File handles of kernfs: the node's id alone (linux/exportfs.h, since 5.5).
const FILEID_KERNFS: libc::c_int = 0xfe;

/// Below it `toolgate exec` makes a cgroup for what it starts, named after the App ID.
pub const fn exec_root() -> &'static str {
    "toolgate.exec"
}

/// Where the cgroup2 hierarchy is mounted: `/sys/fs/cgroup`, or beside version 1 somewhere below.
///
/// # Errors
/// [`CaptureError::NoCgroupMount`], or what is mounted cannot be read.
pub fn mount() -> Result<PathBuf, CaptureError> {
    // A host of many containers has thousands of mounts: all are read again only where it is no longer there.
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let is_there =
        |at: &PathBuf| statfs(at).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let mut known = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = known.clone().filter(is_there) {
        return Ok(at);
    }
    let found = host::mounts()?.into_iter().find(|mount| mount.kind == "cgroup2");
    let at = found.map(|mount| mount.at).ok_or(CaptureError::NoCgroupMount)?;
    Ok(known.insert(at).clone())
}

/// The id of the cgroup whose directory is `path`.
pub fn id(path: &Path) -> Result<u64, CaptureError> {
    let failed = |source| CaptureError::Cgroup { path: path.to_owned(), cause: source };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(metadata.ino())
}

/// The path of a cgroup below the cgroup2 root, with a leading `/`. Needs CAP_DAC_READ_SEARCH.
pub fn path_of(id: u64) -> Result<String, CaptureError> {
    let mount = mount()?;
    let failed = |source| CaptureError::CgroupId { id, cause: source };
    let directory = open_by_id(&mount, id).map_err(failed)?;
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(failed)?;
    let below = path.strip_prefix(&mount).map_err(|error| failed(io::Error::other(error)))?;
    let below = below.to_str().ok_or_else(|| failed(io::Error::other("its path is not UTF-8")))?;
    Ok(format!("/{below}"))
}

fn open_by_id(mount: &Path, id: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` with the 8 bytes that kernfs uses.
    #[repr(C)]
    struct Handle {
        handle_bytes: libc::c_uint,
        handle_type: libc::c_int,
        id: [u8; 8],
    }
    let mut handle = Handle { handle_bytes: 8, handle_type: FILEID_KERNFS, id: id.to_ne_bytes() };
    let mount = fs::File::open(mount)?;
    // SAFETY: `handle` is laid out as the call wants and outlives it; `mount` is open.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC | libc::O_DIRECTORY,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the call has just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_root_is_one_name() {
        assert!(!exec_root().contains('/'));
    }
}

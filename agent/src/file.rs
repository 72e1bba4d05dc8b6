//! Files as the kernel tells them apart. Asked by descriptor, so that all answers are about one file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What a file is, and which state it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// `st_dev`
    pub dev: u64,
    /// `st_ino`
    pub ino: u64,
    /// Length.
    pub bytes: u64,
    /// The last change of contents or owner, by the wall clock, in nanoseconds since 1970; users cannot set it.
    pub changed_ns: i128,
    /// Of what is mounted, as in mountinfo (kernel 5.8).
    pub mount_id: u64,
    /// Owner.
    pub uid: u32,
    /// Type and permissions.
    pub mode: u32,
}

impl Stamp {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether others than its owner may write it.
    #[must_use]
    pub fn is_writable_by_others(&self) -> bool {
        self.mode & 0o022 != 0
    }
}

/// Whether an answer may come from what the kernel remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// As `stat` does: whoever serves the file system is asked, and may take its time.
    AsStat,
    /// From memory: nobody is waited for.
    Never,
}

/// What and in which state the file of a descriptor is.
///
/// # Errors
/// What statx(2) says.
pub fn stamp(file: &impl AsFd, sync: Sync) -> io::Result<Stamp> {
    let flags = match sync {
        Sync::AsStat => libc::AT_STATX_SYNC_AS_STAT,
        Sync::Never => libc::AT_STATX_DONT_SYNC,
    };
    let mut answer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an open descriptor, an empty string and room for the answer, all of which outlive the call.
    let done = unsafe {
        libc::statx(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            libc::STATX_BASIC_STATS | libc::STATX_MNT_ID,
            answer.as_mut_ptr(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a value of it, and the call has filled it.
    let answer = unsafe { answer.assume_init() };
    Ok(Stamp {
        dev: libc::makedev(answer.stx_dev_major, answer.stx_dev_minor),
        ino: answer.stx_ino,
        bytes: answer.stx_size,
        changed_ns: i128::from(answer.stx_ctime.tv_sec) * 1_000_000_000
            + i128::from(answer.stx_ctime.tv_nsec),
        mount_id: answer.stx_mnt_id,
        uid: answer.stx_uid,
        mode: u32::from(answer.stx_mode),
    })
}

/// A descriptor that names a file and no more: its file system is not asked to open it.
///
/// # Errors
/// There is none, or it may not be looked at.
pub fn hold(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

/// The same file for reading.
///
/// # Errors
/// It may not be read.
pub fn readable(held: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Its path now.
///
/// # Errors
/// `/proc` is not there.
pub fn path(held: &File) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

/// What is mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device as the kernel's own records have it: on btrfs and some overlays `stat` says another.
    pub dev: u64,
    /// The file system's type.
    pub kind: String,
}

/// A mount by its number, in the mount namespace of a process (`self`: ours).
///
/// # Errors
/// The process is gone, or may not be looked at.
pub fn mount(process: &str, id: u64) -> io::Result<Option<Mount>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    Ok(text.lines().find_map(|line| parse_mount(line, id)))
}

/// `36 35 98:0 /root /mount/point options [fields...] - type source options` (proc_pid_mountinfo(5)).
fn parse_mount(line: &str, id: u64) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut fields = front.split(' ');
    if fields.next()?.parse() != Ok(id) {
        return None;
    }
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let dev = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    Some(Mount { dev, kind: back.split(' ').next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let line = "36 35 98:7 / /a b\\040c rw shared:1 - ext4 /dev/x rw";
        let mount = Mount { dev: libc::makedev(98, 7), kind: "ext4".to_owned() };
        for (line, id, expected) in [
            (line, 36, Some(mount)),
            (line, 35, None),
            ("36 35 98:7 / /a rw", 36, None),
            ("36 35 x / /a rw - ext4 a b", 36, None),
            ("", 36, None),
        ] {
            assert_eq!(parse_mount(line, id), expected, "{line}");
        }
    }

    #[test]
    fn stamps_are_those_of_stat() {
        use std::os::unix::fs::MetadataExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let (stamp, stat) =
            (stamp(file.as_file(), Sync::AsStat).unwrap(), file.as_file().metadata().unwrap());
        assert_eq!((stamp.dev, stamp.ino, stamp.bytes), (stat.dev(), stat.ino(), 3));
        assert_eq!(
            stamp.changed_ns,
            i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec())
        );
        assert_eq!((stamp.uid, stamp.mode), (stat.uid(), stat.mode()));
        assert!(stamp.is_file() && !stamp.is_writable_by_others());
        let held = hold(file.path()).unwrap();
        assert_eq!(self::stamp(&held, Sync::Never).unwrap(), stamp);
        assert_eq!(path(&held).unwrap(), file.path().canonicalize().unwrap());
        assert_eq!(self::stamp(&readable(&held).unwrap(), Sync::Never).unwrap(), stamp);
        assert!(mount("self", stamp.mount_id).unwrap().is_some());
    }
}

//! The SHA-256 of a caller's executable, for `exe_sha256`.
//!
//! What is hashed is what the kernel recorded at connect: the same device and inode, not changed since. While a process
//! runs a file the kernel lets nobody write it (ETXTBSY), so a file that has not changed since the connect, and that
//! nobody has open for writing, holds what ran then. A process that executed something else since is refused by the
//! inode; one that came back to the same file with other contents, by the time of its change.
//!
//! Read off the accept path: a connection waits for its own identification alone, two files are read at once, and all
//! who ask for one file share one reading.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256 as Hasher};
use tokio::sync::{OnceCell, Semaphore};
use toolgate_core::workload::{FileId, Sha256};

use crate::file::{self, Mount, Stamp, Sync};
use crate::limits::{Limit, Limits};

/// Files whose digest is remembered.
const DIGESTS_MAX: usize = 1_024;
/// Files that are read at once.
const READERS_MAX: usize = 2;
/// Read at a time.
const CHUNK_BYTES: usize = 128 * 1024;
/// The kernel stamps a change with the time of its last tick, at most so much before it (CONFIG_HZ=100).
const TICK_NS: i128 = 10_000_000;

/// What ran: a process, and its executable as the kernel recorded it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    pub(super) pid: u32,
    pub(super) exe: FileId,
}

/// Why an executable has no digest: its selector does not fit then.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undigested {
    /// The process has ended, or may not be looked at (CAP_SYS_PTRACE).
    #[error("`/proc/{pid}/exe`: {cause}; the process has ended, or the agent lacks CAP_SYS_PTRACE")]
    Gone { pid: u32, cause: io::Error },
    #[error("process {pid} runs another file by now than when it connected")]
    Replaced { pid: u32 },
    /// Inodes of two of its parts may be equal.
    #[error(
        "the {kind} that holds it shows another device than the kernel records, so that files cannot be told apart: use `unit`, `cgroup` or `container`"
    )]
    Device { kind: String },
    #[error("a process serves the {kind} that holds it, and could show each reader other contents")]
    Served { kind: String },
    #[error("it is on nothing that is mounted for process {pid}: a file in memory, perhaps")]
    Unmounted { pid: u32 },
    #[error("it is no regular file")]
    NoFile,
    #[error("it has {bytes} bytes, more than {max} ({})", Limit::ExecutableBytes)]
    TooLarge { bytes: u64, max: u64 },
    #[error("it was changed when the process connected, or since")]
    Changed,
    #[error("somebody has it open for writing")]
    Writers,
    #[error("reading it: {cause}")]
    Read { cause: io::Error },
    #[error("it was not read within {seconds} s ({})", Limit::IdentifyTime)]
    Slow { seconds: u64 },
}

impl Undigested {
    /// The limit that it ran into.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self {
            Self::TooLarge { .. } => Some(Limit::ExecutableBytes),
            Self::Slow { .. } => Some(Limit::IdentifyTime),
            Self::Gone { .. }
            | Self::Replaced { .. }
            | Self::Device { .. }
            | Self::Served { .. }
            | Self::Unmounted { .. }
            | Self::NoFile
            | Self::Changed
            | Self::Writers
            | Self::Read { .. } => None,
        }
    }
}

/// When the process connected, by the wall clock of then and of now: the earlier of them, should it have been set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connected {
    /// CLOCK_MONOTONIC
    monotonic_ns: i128,
    /// CLOCK_REALTIME - CLOCK_MONOTONIC at accept.
    offset_ns: i128,
}

impl Connected {
    pub(super) fn at(monotonic_ns: u64) -> Self {
        Self { monotonic_ns: monotonic_ns.into(), offset_ns: clock_offset_ns() }
    }

    /// Nanoseconds since 1970.
    fn wall_ns(self) -> i128 {
        self.monotonic_ns + self.offset_ns.min(clock_offset_ns())
    }
}

fn clock_offset_ns() -> i128 {
    clock_ns(libc::CLOCK_REALTIME) - clock_ns(libc::CLOCK_MONOTONIC)
}

fn clock_ns(clock: libc::clockid_t) -> i128 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer, and a clock that every Linux has, so that it cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// A file in one state: one that was changed is another.
#[derive(PartialEq, Eq, Hash)]
struct State {
    dev: u64,
    ino: u64,
    bytes: u64,
    changed_ns: i128,
}

/// Digests by file and state.
pub(super) struct Digests {
    known: Mutex<HashMap<State, Arc<OnceCell<Sha256>>>>,
    readers: Arc<Semaphore>,
}

impl Default for Digests {
    fn default() -> Self {
        Self { known: Mutex::default(), readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }
}

impl Digests {
    /// The digest of what ran when it connected.
    pub(super) async fn of(
        &self,
        ran: Ran,
        connected: Connected,
        limits: &Limits,
    ) -> Result<Sha256, Undigested> {
        let bytes_max = limits.executable_bytes_max as u64;
        let digest = async {
            let opened = blocking(move || open(ran, connected, bytes_max)).await?;
            self.shared(opened).await
        };
        let slow = |_elapsed| Undigested::Slow { seconds: limits.identify_time_max.as_secs() };
        tokio::time::timeout(limits.identify_time_max, digest).await.map_err(slow)?
    }

    /// Reads the file, or waits for who does already.
    async fn shared(&self, (file, stamp): (File, Stamp)) -> Result<Sha256, Undigested> {
        let cell = self.cell(&stamp);
        let read = || async {
            let turn = Arc::clone(&self.readers).acquire_owned().await;
            // Held until it is read, also where nobody waits for it any more.
            blocking(move || (turn, read(file, &stamp)).1).await
        };
        cell.get_or_try_init(read).await.copied()
    }

    fn cell(&self, &Stamp { dev, ino, bytes, changed_ns, .. }: &Stamp) -> Arc<OnceCell<Sha256>> {
        let state = State { dev, ino, bytes, changed_ns };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DIGESTS_MAX && !known.contains_key(&state) {
            known.clear();
        }
        Arc::clone(known.entry(state).or_default())
    }
}

/// On a thread that may wait for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Undigested> + Send + 'static,
) -> Result<T, Undigested> {
    let failed = |error| Err(Undigested::Read { cause: io::Error::other(error) });
    tokio::task::spawn_blocking(work).await.unwrap_or_else(failed)
}

/// What a process runs, if it is what the kernel recorded, and has not changed since.
fn open(ran: Ran, connected: Connected, bytes_max: u64) -> Result<(File, Stamp), Undigested> {
    let pid = ran.pid;
    let gone = |cause| Undigested::Gone { pid, cause };
    let held = file::hold(&PathBuf::from(format!("/proc/{pid}/exe"))).map_err(gone)?;
    // From memory, as its file system may be one that answers when it likes.
    let stamp = file::stamp(&held, Sync::Never).map_err(gone)?;
    // Numbers of mounts mean the same everywhere, and a process sees none above its root: ours does where that is all.
    let mount = match file::mount(&pid.to_string(), stamp.mount_id).map_err(gone)? {
        None => file::mount("self", stamp.mount_id).map_err(gone)?,
        found => found,
    };
    told_apart(ran, &stamp, mount)?;
    if !stamp.is_file() {
        return Err(Undigested::NoFile);
    }
    let failed = |cause| Undigested::Read { cause };
    let file = file::readable(&held).map_err(failed)?;
    let stamp = file::stamp(&file, Sync::AsStat).map_err(failed)?;
    if stamp.bytes > bytes_max {
        return Err(Undigested::TooLarge { bytes: stamp.bytes, max: bytes_max });
    }
    if stamp.changed_ns + TICK_NS >= connected.wall_ns() {
        return Err(Undigested::Changed);
    }
    Ok((file, stamp))
}

/// Whether a file is the recorded one for certain, and its file system the kernel's own.
fn told_apart(Ran { pid, exe }: Ran, stamp: &Stamp, mount: Option<Mount>) -> Result<(), Undigested> {
    let Mount { dev, kind } = mount.ok_or(Undigested::Unmounted { pid })?;
    if (stamp.dev, stamp.ino) != (exe.dev, exe.ino) {
        let other_device = stamp.ino == exe.ino && dev == exe.dev;
        return Err(if other_device { Undigested::Device { kind } } else { Undigested::Replaced { pid } });
    }
    match kind == "fuse" || kind.starts_with("fuse.") {
        true => Err(Undigested::Served { kind }),
        false => Ok(()),
    }
}

/// The digest of a file that is `stamp` before and after.
fn read(mut file: File, stamp: &Stamp) -> Result<Sha256, Undigested> {
    let failed = |cause| Undigested::Read { cause };
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut hasher = Hasher::new();
    refuse_writers(&file)?;
    loop {
        match file.read(&mut chunk).map_err(failed)? {
            0 => break,
            bytes => hasher.update(chunk.get(..bytes).unwrap_or_default()),
        }
    }
    refuse_writers(&file)?;
    if file::stamp(&file, Sync::AsStat).map_err(failed)? != *stamp {
        return Err(Undigested::Changed);
    }
    Ok(Sha256(hasher.finalize().into()))
}

/// A read lease is to be had only while nobody writes (of a file of another user it takes CAP_LEASE). Where a file system knows no leases, the kernel's refusal to
/// write what runs must do.
fn refuse_writers(file: &File) -> Result<(), Undigested> {
    // Not in libc (fcntl.h).
    const F_SETSIG: libc::c_int = 10;
    let file = file.as_raw_fd();
    // SAFETY: calls without pointers on an open descriptor. Whoever opens it for writing in between breaks the lease,
    // which is told by a signal: SIGURG, which is ignored, instead of SIGIO, which kills.
    let refused = unsafe {
        libc::fcntl(file, F_SETSIG, libc::SIGURG);
        let leased = libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK);
        let error = io::Error::last_os_error();
        libc::fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
        // What cannot be told counts as a writer, but for file systems that know no leases.
        leased != 0 && !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
    };
    if refused { Err(Undigested::Writers) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test, as the kernel would record it.
    fn this() -> Ran {
        let own = file::stamp(&file::hold("/proc/self/exe".as_ref()).unwrap(), Sync::AsStat).unwrap();
        Ran { pid: std::process::id(), exe: FileId { dev: own.dev, ino: own.ino } }
    }

    fn now() -> Connected {
        Connected::at(u64::try_from(clock_ns(libc::CLOCK_MONOTONIC)).unwrap())
    }

    fn hex_of(contents: &[u8]) -> Sha256 {
        Sha256(Hasher::digest(contents).into())
    }

    /// A connect at some time by the wall clock.
    fn at(wall_ns: i128) -> Connected {
        Connected { monotonic_ns: wall_ns - clock_offset_ns(), offset_ns: clock_offset_ns() }
    }

    #[test]
    fn only_what_ran_at_connect_is_opened() {
        let (own, limit) = (this(), u64::MAX);
        let (file, stamp) = open(own, now(), limit).unwrap();
        assert_eq!(read(file, &stamp).unwrap(), hex_of(&std::fs::read("/proc/self/exe").unwrap()));

        let executable = |dev: u64, ino: u64| Ran { exe: FileId { dev, ino }, ..own };
        let changed = stamp.changed_ns;
        let nobody = Ran { pid: u32::MAX, ..own };
        let other = executable(stamp.dev, stamp.ino + 1);
        let elsewhere = executable(stamp.dev + 1, stamp.ino);
        let table: [(Ran, Connected, u64, &str); 7] = [
            (nobody, now(), limit, "the process has ended"),
            (other, now(), limit, "runs another file by now"),
            (elsewhere, now(), limit, "runs another file by now"),
            (own, now(), stamp.bytes - 1, "(`executable_bytes_max`)"),
            // Changed after the connect, at its very tick, and a moment before it, as ticks are coarse. The two clocks are
            // not read at once.
            (own, at(changed - 1_000_000_000), limit, "it was changed when the process connected, or since"),
            (own, at(changed), limit, "it was changed when the process connected, or since"),
            (
                own,
                at(changed + TICK_NS - 1_000_000),
                limit,
                "it was changed when the process connected, or since",
            ),
        ];
        for (ran, connected, bytes_max, words) in table {
            let said = open(ran, connected, bytes_max).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        assert!(open(own, at(changed + TICK_NS + 1_000_000), limit).is_ok());
    }

    #[test]
    fn a_file_is_the_recorded_one_for_certain_or_none() {
        let ran = this();
        let FileId { dev, ino } = ran.exe;
        let own = file::stamp(&file::hold("/proc/self/exe".as_ref()).unwrap(), Sync::AsStat).unwrap();
        let mount = |dev: u64, kind: &str| Some(Mount { dev, kind: kind.to_owned() });
        let table = [
            (own, mount(dev, "ext4"), None),
            (own, mount(dev, "fuseblk"), None),
            (own, mount(dev, "fuse"), Some("a process serves the fuse")),
            (own, mount(dev, "fuse.sshfs"), Some("a process serves the fuse.sshfs")),
            (own, None, Some("on nothing that is mounted")),
            (Stamp { ino: ino + 1, ..own }, mount(dev, "ext4"), Some("runs another file by now")),
            (Stamp { dev: dev + 1, ..own }, mount(dev + 1, "ext4"), Some("runs another file by now")),
            // As on btrfs: the mount has the recorded device, the file another.
            (
                Stamp { dev: dev + 1, ..own },
                mount(dev, "btrfs"),
                Some("the btrfs that holds it shows another"),
            ),
            (
                Stamp { dev: dev + 1, ino: ino + 1, ..own },
                mount(dev, "btrfs"),
                Some("runs another file by now"),
            ),
        ];
        for (stamp, mount, expected) in table {
            let said = told_apart(ran, &stamp, mount.clone()).map_err(|error| error.to_string()).err();
            let fits = match (&said, expected) {
                (Some(said), Some(words)) => said.contains(words),
                (said, words) => said.is_none() && words.is_none(),
            };
            assert!(fits, "{said:?} {expected:?} {mount:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_makes_nothing_older() {
        let now_ns = clock_ns(libc::CLOCK_REALTIME);
        let set_back = Connected { offset_ns: now().offset_ns + 3_600_000_000_000, ..now() };
        let set_forward = Connected { offset_ns: now().offset_ns - 3_600_000_000_000, ..now() };
        assert!(set_back.wall_ns() < now_ns + 60_000_000_000);
        assert!(set_forward.wall_ns() < now_ns - 3_500_000_000_000);
    }

    #[test]
    fn a_file_that_somebody_writes_has_no_digest() {
        let writer = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(writer.path(), "contents").unwrap();
        let reader = || File::open(writer.path()).unwrap();
        let before = file::stamp(&reader(), Sync::AsStat).unwrap();
        assert!(matches!(read(reader(), &before), Err(Undigested::Writers)));
        let path = writer.into_temp_path();
        let reader = || File::open(&path).unwrap();
        assert_eq!(read(reader(), &before).unwrap(), hex_of(b"contents"));
        // Written and closed meanwhile.
        let stale = Stamp { changed_ns: before.changed_ns - 1, ..before };
        assert!(matches!(read(reader(), &stale), Err(Undigested::Changed)));
    }

    #[tokio::test]
    async fn a_file_is_read_once_until_it_changes() {
        let digests = Digests::default();
        let contents = |text: &str| {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            std::fs::write(&path, text).unwrap();
            let file = File::open(&path).unwrap();
            let stamp = file::stamp(&file, Sync::AsStat).unwrap();
            (path, file, stamp) // its end would change it
        };
        let (_one, file, stamp) = contents("one");
        assert_eq!(digests.shared((file, stamp)).await.unwrap(), hex_of(b"one"));
        let (_two, other, changed) = contents("two");
        // Not read again: this file would say something else.
        assert_eq!(digests.shared((other.try_clone().unwrap(), stamp)).await.unwrap(), hex_of(b"one"));
        assert_eq!(digests.shared((other, changed)).await.unwrap(), hex_of(b"two"));
        for ino in 0..3_000 {
            digests.cell(&Stamp { ino, ..stamp });
        }
        assert!(digests.known.lock().unwrap().len() <= DIGESTS_MAX);
    }

    #[tokio::test]
    async fn who_asks_for_one_file_shares_one_reading() {
        let digests = Digests::default();
        let turns = Arc::clone(&digests.readers).acquire_many_owned(2).await.unwrap();
        let limits = Limits { identify_time_max: std::time::Duration::from_secs(60), ..Limits::default() };
        let own = hex_of(&std::fs::read("/proc/self/exe").unwrap());
        let asked = async {
            let ask = || digests.of(this(), now(), &limits);
            tokio::join!(ask(), ask(), ask())
        };
        let readers = async {
            // All three wait; one of them for its turn. Had each its own reading, one turn would not do for all.
            while digests.known.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(digests.known.lock().unwrap().len(), 1);
            drop(turns);
        };
        let ((one, two, three), ()) = tokio::join!(asked, readers);
        assert_eq!([one.unwrap(), two.unwrap(), three.unwrap()], [own; 3]);
    }

    #[tokio::test]
    async fn a_reading_that_takes_too_long_is_given_up() {
        let digests = Digests::default();
        let _turns = Arc::clone(&digests.readers).acquire_many_owned(2).await.unwrap();
        let limits = Limits { identify_time_max: std::time::Duration::from_millis(1), ..Limits::default() };
        let said = digests.of(this(), now(), &limits).await.unwrap_err();
        assert!(matches!(said, Undigested::Slow { .. }), "{said}");
    }
}

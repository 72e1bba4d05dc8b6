//! Which processes hold a socket: `/proc/PID/fd`, looked through once for all sockets.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use toolgate_core::workload::{FileId, Process};

use crate::file::{self, Sync};
use crate::sockdiag::inode_of;

/// A process that holds a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// Its number.
    pub(super) pid: u32,
    /// Its name, as it chose it.
    pub(super) name: String,
    /// In terms that selectors speak of.
    pub(super) process: Process,
}

/// Who holds which socket.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// By the socket's inode.
    by_inode: HashMap<u64, Vec<Holder>>,
    /// Processes that may not be looked at: there may be more holders.
    pub(super) hidden: usize,
}

impl Holders {
    /// Looks for all of `inodes`.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub(super) fn of(inodes: &[u64]) -> io::Result<Self> {
        let mut holders = Self::default();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let held = match held(pid) {
                Ok(held) => held,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    holders.hidden += 1;
                    continue;
                }
                Err(_ended) => continue,
            };
            for inode in inodes.iter().filter(|inode| held.contains(inode)) {
                if let Ok(holder) = look(pid) {
                    holders.by_inode.entry(*inode).or_default().push(holder);
                }
            }
        }
        Ok(holders)
    }

    /// Those of one socket.
    pub(super) fn holding(&self, inode: u64) -> Vec<Holder> {
        self.by_inode.get(&inode).cloned().unwrap_or_default()
    }
}

/// Inodes of the sockets that a process holds.
fn held(pid: u32) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let link = std::fs::read_link(entry?.path()).unwrap_or_default(); // closed meanwhile
        inodes.extend(link.to_str().and_then(inode_of));
    }
    Ok(inodes)
}

fn look(pid: u32) -> io::Result<Holder> {
    use std::os::unix::fs::MetadataExt as _;
    let proc = format!("/proc/{pid}");
    let read = |name: &str| std::fs::read_to_string(format!("{proc}/{name}"));
    let cgroup = read("cgroup")?;
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let exe =
        file::hold(Path::new(&format!("{proc}/exe"))).and_then(|held| file::stamp(&held, Sync::Never))?;
    let uid = std::fs::metadata(&proc)?.uid();
    let process =
        Process { cgroup: cgroup.to_owned(), uid, exe: Some(FileId { dev: exe.dev, ino: exe.ino }) };
    Ok(Holder { pid, name: read("comm")?.trim_end().to_owned(), process })
}

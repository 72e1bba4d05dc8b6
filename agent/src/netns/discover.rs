//! Captured cgroups -> their processes -> the network namespaces of these.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use toolgate_ebpf_common::CGROUP_LEVELS_MAX;

use crate::capture::cgroup;

/// A captured cgroup, by its directory: it may come and go.
#[derive(Debug, Clone)]
pub struct Root {
    /// Where it is when it is there.
    pub directory: PathBuf,
    /// Only what is below it is captured.
    pub below_only: bool,
}

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Anything.
    Any,
    /// A directory is new, and what is below it.
    New(PathBuf),
    /// A cgroup's first process entered it, or its last one left.
    Populated(PathBuf),
}

impl Root {
    /// How far below it a directory is; None: it is elsewhere.
    fn level_of(&self, directory: &Path) -> Option<u32> {
        directory.strip_prefix(&self.directory).ok()?.components().count().try_into().ok()
    }
}

/// The captured processes now, by thread group in the host's PID namespace: those in cgroups that may have changed.
/// `each` sees every directory on the way.
pub(super) fn processes(
    roots: &[Root],
    changes: &BTreeSet<Change>,
    mut each: impl FnMut(&Path),
) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let all =
        roots.iter().filter(|_| changes.contains(&Change::Any)).map(|root| (root.directory.clone(), true));
    let some = changes.iter().filter_map(|change| match change {
        Change::Any => None,
        Change::New(directory) => Some((directory.clone(), true)),
        Change::Populated(directory) => Some((directory.clone(), false)),
    });
    let mut left: Vec<_> = all.chain(some).collect();
    while let Some((directory, descends)) = left.pop() {
        // Before its content is looked at: what comes meanwhile is seen by the watch.
        each(&directory);
        let levels = || roots.iter().filter_map(|root| Some((root, root.level_of(&directory)?)));
        if levels().any(|(root, level)| level > 0 || !root.below_only) {
            found.extend(in_cgroup(&directory));
        }
        if descends && levels().any(|(_, level)| level < CGROUP_LEVELS_MAX) {
            left.extend(children(&directory).map(|child| (child, true)));
        }
    }
    found
}

/// A cgroup that was removed meanwhile, or whose processes its parent lists (a threaded one), holds none.
fn in_cgroup(directory: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    // A cgroup without children has two links, `.` and its parent's: most have none, and their files are many.
    let has_any = fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() != 2);
    let entries = has_any.then(|| fs::read_dir(directory)).into_iter().flatten().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// The captured cgroup that a process is in, of nested ones the deepest. None: it is in none, or has ended.
pub(super) fn captured_in(process: u32, roots: &[Root]) -> Option<PathBuf> {
    let listed = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let own = listed.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = cgroup::mount().ok()?.join(own.trim_start_matches('/'));
    let above = roots.iter().map(|root| &root.directory).filter(|root| own.starts_with(root));
    above.max_by_key(|root| root.components().count()).cloned()
}

/// The namespaces of processes by their inodes, each with a process in it.
pub(super) fn by_inode(processes: &BTreeSet<u32>) -> BTreeMap<u64, u32> {
    let of = |&process: &u32| Some((inode(Path::new(&format!("/proc/{process}/ns/net")))?, process));
    processes.iter().filter_map(of).collect()
}

/// Whether a thread of any of the processes is in a namespace that its leader is not in.
pub(super) fn has_thread_in(processes: &BTreeSet<u32>, namespace: u64) -> bool {
    let mut threads = processes.iter().flat_map(|&process| threads(process));
    threads.any(|thread| inode(&thread) == Some(namespace))
}

/// `ns/net` of every thread of a process, its leader's first.
pub(super) fn threads(process: u32) -> impl Iterator<Item = PathBuf> {
    let leader = PathBuf::from(format!("/proc/{process}/ns/net"));
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    std::iter::once(leader).chain(tasks.map(|task| task.path().join("ns/net")))
}

/// `net:[4026531840]`. None: the process or thread has ended.
fn inode(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_below_a_cgroup() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, processes: &str| {
            let directory = folder.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cgroup.procs"), processes).unwrap();
        };
        make("a", "1\n2\n");
        make("a/b", "3\n");
        make("a/b/c", "");
        make("d", "4\n");
        let root = |name: &str, below_only| Root { directory: folder.path().join(name), below_only };
        let of = |name: &str, change: fn(PathBuf) -> Change| change(folder.path().join(name));
        let check = |root: Root, change: Change, expected: &[u32], directories: usize| {
            let mut seen = Vec::new();
            let changes = BTreeSet::from([change.clone()]);
            let found = processes(&[root], &changes, |directory| seen.push(directory.to_owned()));
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{change:?}");
            assert_eq!(seen.len(), directories, "{change:?}: {seen:?}");
        };
        check(root("a", false), Change::Any, &[1, 2, 3], 3);
        check(root("a", true), Change::Any, &[3], 3);
        check(root("gone", false), Change::Any, &[], 1);
        check(root("a", true), of("a", Change::Populated), &[], 1);
        check(root("a", false), of("a", Change::Populated), &[1, 2], 1);
        check(root("a", false), of("a/b", Change::Populated), &[3], 1);
        check(root("a", false), of("a/b", Change::New), &[3], 2);
        // Captured no more, or never: the watch of a directory outlives its root.
        check(root("a", false), of("d", Change::New), &[], 1);
    }

    #[test]
    fn own_namespace() {
        let own = std::process::id();
        let found = by_inode(&BTreeSet::from([own, u32::MAX]));
        assert_eq!(found.values().copied().collect::<Vec<_>>(), [own]);
        let namespace = *found.keys().next().unwrap();
        assert!(has_thread_in(&BTreeSet::from([own]), namespace));
        assert!(!has_thread_in(&BTreeSet::from([own]), 1));
    }
}

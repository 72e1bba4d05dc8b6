//! Keeps the agent's port out of what the kernel gives to those who ask for none: outbound connections, and a `listen()`
//! without a bind, which no hook sees. `sk_lookup` gives such a one nothing; this is so that it does not get there.
//!
//! The list (`net.ipv4.ip_local_reserved_ports`, for both IP versions) is each namespace's own, and others write it too:
//! a port is added to what is there, and only a port that was added here is removed. Which ones were is noted in a file for
//! each namespace, by its inode, so that who comes after a death knows.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::Namespace;

const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// Gone at the next boot, as the lists are.
const NOTES: &str = "/run/toolgate/reserved";

/// The agent's port, and whether it was said already that it cannot be kept.
pub(super) struct Reserve {
    port: u16,
    is_told: bool,
}

impl Reserve {
    pub(super) fn new(port: u16) -> Self {
        Self { port, is_told: false }
    }

    /// Reserves the port in a namespace that this thread is in. Where that cannot be done, the agent goes on.
    pub(super) fn take(&mut self, namespace: &Namespace) {
        if let Err(error) = take(self.port, &namespace.cookie.to_string(), &note(namespace.inode()))
            && !self.is_told
        {
            self.is_told = true;
            tracing::warn!(
                namespace = %namespace.cookie, port = self.port, %error,
                "cannot reserve the agent's port (net.ipv4.ip_local_reserved_ports): a process that listens without a \
                 bind may get it, and is given no connection; not said again of other namespaces"
            );
        }
    }

    /// Gives the port back in a namespace, if it was reserved for an agent.
    pub(super) fn give_back(&self, namespace: &Namespace) {
        let given = namespace.within(|| give_back(&note(namespace.inode())));
        if let Err(error) = given.map_err(io::Error::other).and_then(|given| given) {
            tracing::warn!(namespace = %namespace.cookie, port = self.port, %error, "the agent's port stays reserved");
        }
    }
}

fn note(inode: u64) -> PathBuf {
    Path::new(NOTES).join(inode.to_string())
}

fn take(port: u16, cookie: &str, note: &Path) -> io::Result<()> {
    let own = format!("{cookie} {port}");
    match fs::read_to_string(note) {
        Ok(found) if found == own && ports()?.contains(&port) => return Ok(()),
        // Of an agent with another port; or of a namespace that is gone, whose number this one has now.
        Ok(found) if found.starts_with(&format!("{cookie} ")) => give_back(note)?,
        Ok(_) | Err(_) => {}
    }
    let mut ports = ports()?;
    if !ports.insert(port) {
        return match fs::remove_file(note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    fs::create_dir_all(NOTES)?;
    // Before the list: a note too many is put right by the next agent, one too few leaves the port reserved.
    fs::write(note, own)?;
    fs::write(LIST, listed(&ports))
}

fn give_back(note: &Path) -> io::Result<()> {
    let Ok(found) = fs::read_to_string(note) else { return Ok(()) };
    let port: Option<u16> = found.split_once(' ').and_then(|(_, port)| port.parse().ok());
    let mut ports = ports()?;
    if port.is_some_and(|port| ports.remove(&port)) {
        fs::write(LIST, listed(&ports))?;
    }
    fs::remove_file(note)
}

fn ports() -> io::Result<BTreeSet<u16>> {
    let text = fs::read_to_string(LIST)?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`", text.trim())))
}

/// `1,3-5`, as the kernel writes it.
fn parse(list: &str) -> Option<BTreeSet<u16>> {
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    let ranges = parts.map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    });
    Some(ranges.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The same; ports that follow each other as a range, for the list is read in one page on old kernels.
fn listed(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let shown = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    shown.collect::<Vec<_>>().join(",") + "\n"
}

/// Gives back what a dead agent reserved, here and in every namespace that a process is in. The caller makes sure that
/// none lives.
pub fn give_back_all() {
    for entry in fs::read_dir(NOTES).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(inode) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let given = match door(inode) {
            Some(door) => std::thread::scope(|scope| {
                let inside = || {
                    setns(&door, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                    give_back(&entry.path())
                };
                scope.spawn(inside).join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
            }),
            // Nobody is in it: its list is gone, or will be.
            None => fs::remove_file(entry.path()),
        };
        if let Err(error) = given {
            tracing::warn!(inode, %error, "the agent's port stays reserved in a network namespace");
        }
    }
    // Not empty: what was not given back stays noted.
    let _ = fs::remove_dir(NOTES);
}

fn door(inode: u64) -> Option<fs::File> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::iter::once(PathBuf::from("/proc/self/ns/net"));
    let paths = own.chain(processes.map(|process| process.path().join("ns/net")));
    paths
        .filter_map(|path| fs::File::open(path).ok())
        .find(|file| file.metadata().is_ok_and(|metadata| metadata.ino() == inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        let check = |list: &str, count: usize, shown: &str| {
            let ports = parse(list).unwrap();
            assert_eq!((ports.len(), listed(&ports).as_str()), (count, shown), "{list}");
        };
        check("\n", 0, "\n");
        check("15001\n", 1, "15001\n");
        check("1,3-5,9\n", 5, "1,3-5,9\n");
        check("3,4,5\n", 3, "3-5\n");
        check("65534-65535\n", 2, "65534-65535\n");
        assert!(parse("65536").is_none() && parse("a").is_none() && parse("1-").is_none());
    }
}

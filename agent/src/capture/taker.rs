//! Takes the kernel's record of an accepted connection, once.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use aya::maps::{HashMap, MapData, MapError};
use socket2::SockRef;
use toolgate_ebpf_common::{Connection, Record, v4_mapped};

use super::abi::Abi;

pub(super) type Connections = HashMap<MapData, Abi<Connection>, Abi<Record>>;

/// One a thread: its own handle of the map.
#[derive(Debug)]
pub struct Taker {
    connections: Connections,
    netns_cookie: u64,
}

/// A connection as it was before it was turned to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Where the client wanted to go; 0.0.0.0 as 127.0.0.1, which the kernel makes of it.
    pub original: SocketAddr,
    /// Who connected.
    pub process: Recorded,
}

/// The process as it was at connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Thread group, in the host's PID namespace.
    pub tgid: u32,
    /// Its start in nanoseconds since boot.
    pub start_ns: u64,
    /// What it runs.
    pub exe: Executable,
    /// Its cgroup: see [`super::cgroup::path_of`].
    pub cgroup_id: u64,
    /// In the initial user namespace.
    pub uid: u32,
    /// Its network namespace.
    pub netns_cookie: u64,
}

/// An executable, for comparison with what stat says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executable {
    /// `st_dev`. On overlay over two file systems and on btrfs stat says another.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Changes with every exec of the process; comparable between records only.
    pub exec_id: u64,
}

/// Why a connection has no record: it must be refused.
#[derive(Debug, thiserror::Error)]
pub enum NoRecord {
    /// Nothing under its addresses: taken already, swept, or not redirected by these programs.
    #[error("no kernel record for the connection from `{peer}`")]
    Absent {
        /// Its source.
        peer: SocketAddr,
    },
    /// The client reset the connection before it was accepted.
    #[error("the connection from `{peer}` ended before it was accepted")]
    Gone {
        /// Its source.
        peer: SocketAddr,
    },
    /// The kernel did not answer.
    #[error("the kernel record for the connection from `{peer}`: {cause}")]
    Kernel {
        /// Its source.
        peer: SocketAddr,
        /// aya's words.
        cause: MapError,
    },
}

impl Taker {
    pub(super) fn new(connections: Connections, netns_cookie: u64) -> Self {
        Self { connections, netns_cookie }
    }

    /// The record of the connection that was accepted from `peer`. A second call for the same connection finds
    /// nothing.
    ///
    /// One that was reset before has given its addresses away: what is found there may be another's, and is left to it.
    pub fn take(&mut self, stream: &impl AsFd, peer: SocketAddr) -> Result<Captured, NoRecord> {
        let stream = SockRef::from(stream);
        if !matches!(stream.take_error(), Ok(None)) {
            return Err(NoRecord::Gone { peer });
        }
        let local = stream.local_addr().ok().and_then(|local| local.as_socket());
        let local = local.ok_or(NoRecord::Gone { peer })?;
        let (IpAddr::V4(address), IpAddr::V4(_)) = (peer.ip().to_canonical(), local.ip().to_canonical())
        else {
            return Err(NoRecord::Absent { peer });
        };
        let key = Abi(Connection {
            netns_cookie: self.netns_cookie,
            address: v4_mapped(u32::from_ne_bytes(address.octets())),
            port: peer.port(),
            listener_port: local.port(),
            family: AF_INET,
            reserved: 0,
        });
        let failed = |source| no_record(peer, source);
        // Not in one call, which hash maps have since 5.14: whoever deletes it has taken it.
        let Abi(record) = self.connections.get(&key, 0).map_err(failed)?;
        self.connections.remove(&key).map_err(failed)?;
        Ok(captured(&record))
    }
}

/// aya tells a lookup that found nothing from a failed one, but not so for a removal.
fn no_record(peer: SocketAddr, source: MapError) -> NoRecord {
    let removed_before = |error: &MapError| matches!(error, MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ENOENT));
    if matches!(source, MapError::KeyNotFound) || removed_before(&source) {
        NoRecord::Absent { peer }
    } else {
        NoRecord::Kernel { peer, cause: source }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
const AF_INET: u16 = libc::AF_INET as u16;

fn captured(record: &Record) -> Captured {
    Captured {
        original: SocketAddr::new(Ipv6Addr::from(record.address).to_canonical(), record.port),
        process: Recorded {
            tgid: record.tgid,
            start_ns: record.start_ns,
            exe: Executable { dev: user_dev(record.exe_dev), ino: record.exe_ino, exec_id: record.exec_id },
            cgroup_id: record.cgroup_id,
            uid: record.uid,
            netns_cookie: record.netns_cookie,
        },
    }
}

/// The kernel's own encoding of a device has 20 bits of minor; stat's spreads them.
fn user_dev(kernel: u32) -> u64 {
    libc::makedev(kernel >> 20, kernel & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn record_becomes_captured() {
        let record = Record {
            address: v4_mapped(u32::from_ne_bytes(Ipv4Addr::new(192, 0, 2, 7).octets())),
            port: 8000,
            exe_dev: (259 << 20) | 0x1_0001,
            ..Record::default()
        };
        let captured = captured(&record);
        assert_eq!(captured.original, "192.0.2.7:8000".parse().unwrap());
        assert_eq!(libc::major(captured.process.exe.dev), 259);
        assert_eq!(libc::minor(captured.process.exe.dev), 0x1_0001);
    }
}

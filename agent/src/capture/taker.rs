//! Takes the kernel's record of an accepted connection.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _};

use aya::maps::{MapData, MapError, SkStorage};
use toolgate_ebpf_common::Record;

use super::{Cookie, abi::Abi, settings::is_absent};

/// One a thread: its own handle of the map.
#[derive(Debug)]
pub struct Taker(SkStorage<MapData, Abi<Record>>);

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
    /// The captured cgroup that it was in, or that its socket was made in.
    pub captured_id: u64,
    /// In the initial user namespace.
    pub uid: u32,
    /// Its network namespace.
    pub netns_cookie: Cookie,
    /// When it connected, in nanoseconds of CLOCK_MONOTONIC.
    pub connected_ns: u64,
}

/// An executable, for comparison with what stat says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// The handshake found none: it was not redirected by these programs.
    #[error("no kernel record for the connection from `{peer}`")]
    Absent {
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
    pub(super) fn new(accepted: SkStorage<MapData, Abi<Record>>) -> Self {
        Self(accepted)
    }

    /// The record of the connection that was accepted from `peer`. It belongs to the socket, whatever connection has
    /// its addresses by now.
    pub fn take(&mut self, stream: &impl AsFd, peer: SocketAddr) -> Result<Captured, NoRecord> {
        match self.0.get(&stream.as_fd().as_raw_fd(), 0) {
            // What it inherited from its listener.
            Ok(Abi(record)) if record.port == 0 => Err(NoRecord::Absent { peer }),
            Ok(Abi(record)) => Ok(captured(&record)),
            Err(error) if is_absent(&error) => Err(NoRecord::Absent { peer }),
            Err(cause) => Err(NoRecord::Kernel { peer, cause }),
        }
    }
}

fn captured(record: &Record) -> Captured {
    Captured {
        original: SocketAddr::new(Ipv6Addr::from(record.address).to_canonical(), record.port),
        process: Recorded {
            tgid: record.tgid,
            start_ns: record.start_ns,
            exe: Executable { dev: user_dev(record.exe_dev), ino: record.exe_ino, exec_id: record.exec_id },
            cgroup_id: record.cgroup_id,
            captured_id: record.captured_id,
            uid: record.uid,
            netns_cookie: Cookie(record.netns_cookie),
            connected_ns: record.connected_ns,
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

    use toolgate_ebpf_common::v4_mapped;

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

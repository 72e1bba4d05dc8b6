//! Records that wait between SYN and handshake: those that nobody will take, and how many each cgroup has.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use toolgate_ebpf_common::{Connection, Record};

use super::{CaptureError, abi::Abi, host, plan::map_error, settings::is_absent};

/// A record this old belongs to no connection that still waits: a SYN is given up after 127 s
/// with the kernel's default of 6 retries.
const RECORD_AGE_NS_MAX: u64 = 130 * 1_000_000_000;

/// Records by their addresses, and their number by captured cgroup.
pub(super) struct Waiting {
    connections: HashMap<MapData, Abi<Connection>, Abi<Record>>,
    pending: HashMap<MapData, u64, u64>,
    /// How far each count was off in the last sweep.
    off: BTreeMap<u64, i64>,
}

impl Waiting {
    pub(super) fn new(
        connections: HashMap<MapData, Abi<Connection>, Abi<Record>>,
        pending: HashMap<MapData, u64, u64>,
    ) -> Self {
        Self { connections, pending, off: BTreeMap::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.connections.keys().filter(Result::is_ok).count()
    }

    /// Removes what is too old. How many.
    pub(super) fn sweep(&mut self) -> Result<usize, CaptureError> {
        let now_ns = host::monotonic_ns();
        let mut left: BTreeMap<u64, u64> = BTreeMap::new();
        let mut old = Vec::new();
        for (key, Abi(record)) in self.connections.iter().filter_map(Result::ok) {
            if now_ns.saturating_sub(record.connected_ns) > RECORD_AGE_NS_MAX {
                old.push(key);
            } else {
                *left.entry(record.captured_id).or_default() += 1;
            }
        }
        // One that is gone was taken after all.
        let removed = old.iter().filter(|key| self.connections.remove(key).is_ok()).count();
        self.recount(&left)?;
        Ok(removed)
    }

    /// The programs count as they go, this puts right what was lost on the way. A count that is off by the same number
    /// twice is wrong; by another one, connections came and went in between.
    fn recount(&mut self, left: &BTreeMap<u64, u64>) -> Result<(), CaptureError> {
        let failed = map_error("PENDING");
        let counted: Vec<(u64, u64)> = self.pending.iter().filter_map(Result::ok).collect();
        let mut off = BTreeMap::new();
        for (cgroup, count) in counted {
            let right = left.get(&cgroup).copied().unwrap_or_default();
            let difference = count.cast_signed().wrapping_sub(right.cast_signed());
            if right == 0 && count == 0 {
                // So that cgroups that are gone leave room.
                match self.pending.remove(&cgroup) {
                    Err(error) if !is_absent(&error) => return Err(failed(error)),
                    _ => {}
                }
            } else if difference != 0 && self.off.get(&cgroup) == Some(&difference) {
                self.pending.insert(cgroup, right, 0).map_err(&failed)?;
            } else if difference != 0 {
                off.insert(cgroup, difference);
            }
        }
        self.off = off;
        Ok(())
    }
}

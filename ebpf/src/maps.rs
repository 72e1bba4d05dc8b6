//! The maps and globals that the programs share, and the agent fills or reads.

use aya_ebpf::{
    Global,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap},
};
use toolgate_ebpf_common::{
    CGROUPS_MAX, CONNECTIONS_MAX, Config, Connection, Counter, DESTINATIONS_MAX, Destination, LISTENERS_MAX,
    Offsets, Record,
};

/// Set by the agent before loading: the verifier sees constants, and drops branches that this kernel lacks.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_group_leader: 0,
    task_start_boottime: 0,
    task_self_exec_id: 0,
    task_mm: 0,
    mm_exe_file: 0,
    file_f_inode: 0,
    inode_i_ino: 0,
    inode_i_sb: 0,
    super_block_s_dev: 0,
    has_set_retval: 0,
    has_sock_ops_netns: 0,
});

/// The agent, one entry.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Cgroup id -> `SCOPE_*` and `DESTINATIONS_*`.
#[map]
pub static CAPTURED: HashMap<u64, u32> = HashMap::with_max_entries(CGROUPS_MAX, 0);

/// The agent's own ports, refused whatever else is said.
#[map]
pub static REFUSED: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(DESTINATIONS_MAX, 0);

/// Destinations that are left alone if they are not refused.
#[map]
pub static EXCLUDED: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(DESTINATIONS_MAX, 0);

/// Destinations that are captured. The value of each entry of the three tries is 1.
#[map]
pub static DESTINATIONS: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(DESTINATIONS_MAX, 0);

/// The record of a redirected socket, from connect until the socket is gone.
#[btf_map]
pub static ORIGINALS: SkStorage<Record> = SkStorage::new();

/// Records from the SYN until the agent takes them. No LRU: a full map refuses, it forgets nobody.
#[map]
pub static CONNECTIONS: HashMap<Connection, Record> = HashMap::with_max_entries(CONNECTIONS_MAX, 0);

/// The agent's listening sockets. The kernel removes one when it is closed, so also when the agent dies.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(LISTENERS_MAX, 0);

/// Whose turn it is among the listeners, one entry.
#[map]
pub static TURN: Array<u32> = Array::with_max_entries(1, 0);

/// One slot for each [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Counts the way a program took.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a live slot of this CPU; the program is not preempted by itself on it.
        unsafe { *slot += 1 };
    }
}

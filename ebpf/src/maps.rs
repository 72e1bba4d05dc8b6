//! The maps and globals that the programs share, and the agent fills or reads.

use aya_ebpf::{
    Global,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use toolgate_ebpf_common::{
    ADMITTED_MAX, AGENTS_MAX, Admitted, Agent, CGROUPS_MAX, CONNECTIONS_MAX, Config, Connection, Counter,
    DESTINATIONS_MAX, Destination, GUARDED_MAX, Guarded, LISTENERS_MAX, Made, NAMES_MAX, NAMESPACES_MAX,
    Name, Namespace, Offsets, Record, SEEN_BYTES, Served,
};

use crate::storage::{INHERITED, OWN, Storage};

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
    cgroup_kn: 0,
    cgroup_root: 0,
    kernfs_node_id: 0,
    cgroup_root_hierarchy_id: 0,
    has_set_retval: 0,
});

/// Set by the agent for each load of `sk_lookup`, one a namespace.
#[unsafe(no_mangle)]
pub static SERVED: Global<Served> =
    Global::new(Served { netns_cookie: 0, home_cookie: 0, listeners: 0, listeners6: 0 });

/// What the agent wants, one entry.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// When the agent gave its last sign of life, one entry: nanoseconds of CLOCK_MONOTONIC.
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);

/// The processes of the agent, by thread group.
#[map]
pub static AGENTS: HashMap<u32, Agent> = HashMap::with_max_entries(AGENTS_MAX, 0);

/// Cgroup id -> `SCOPE_*` and `DESTINATIONS_*`.
#[map]
pub static CAPTURED: HashMap<u64, u32> = HashMap::with_max_entries(CGROUPS_MAX, 0);

/// Names of captured cgroups, there or not -> what `CAPTURED` is to say of one that is made.
#[map]
pub static NAMES: HashMap<Name, u32> = HashMap::with_max_entries(NAMES_MAX, 0);

/// Where such a name is read to, one entry: the stack is too small for it.
#[map]
pub static NAME: PerCpuArray<Name> = PerCpuArray::with_max_entries(1, 0);

/// Cgroup id -> until when it has a bypass: nanoseconds of CLOCK_MONOTONIC.
#[map]
pub static BYPASSED: HashMap<u64, u64> = HashMap::with_max_entries(CGROUPS_MAX, 0);

/// Cookie -> the namespace that the agent listens in.
#[map]
pub static NAMESPACES: HashMap<u64, Namespace> = HashMap::with_max_entries(NAMESPACES_MAX, 0);

/// The agent's own ports, refused whatever else is said.
#[map]
pub static REFUSED: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(DESTINATIONS_MAX, 0);

/// Destinations that are left alone if they are not refused.
#[map]
pub static EXCLUDED: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(DESTINATIONS_MAX, 0);

/// Destinations that are captured. The value of each entry of the three tries is 1.
#[map]
pub static DESTINATIONS: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(DESTINATIONS_MAX, 0);

/// Ports of servers that only the agent may connect to. Each value is 1.
#[map]
pub static GUARDED: HashMap<Guarded, u32> = HashMap::with_max_entries(GUARDED_MAX, 0);

/// Connections that guarded ports accept -> the cookie of the dialling socket. From before the SYN until it is closed.
#[map]
pub static ADMITTED: HashMap<Admitted, u64> = HashMap::with_max_entries(ADMITTED_MAX, 0);

/// What a socket was last connected for: a record of a redirected one, or the mark of the agent's own dials.
#[btf_map]
pub static ORIGINALS: Storage<Record, OWN> = Storage::new();

/// In whose cgroup a socket was made, if that was captured.
#[btf_map]
pub static MADE: Storage<Made, OWN> = Storage::new();

/// The record of an accepted connection, for the agent to read by its descriptor. The agent puts one with its
/// namespace's cookie alone at each listener.
#[btf_map]
pub static ACCEPTED: Storage<Record, INHERITED> = Storage::new();

/// Records from the SYN until the handshake is done. No LRU: a full map refuses, it forgets nobody.
#[map]
pub static CONNECTIONS: HashMap<Connection, Record> = HashMap::with_max_entries(CONNECTIONS_MAX, 0);

/// How many of them each captured cgroup has.
#[map]
pub static PENDING: HashMap<u64, u64> = HashMap::with_max_entries(CGROUPS_MAX, 0);

/// Cookie of a datagram socket that the agent connected -> cookie of its namespace: before 5.14 there is no other way
/// to ask.
#[map]
pub static LEARNED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1_024, 0);

/// Captured processes in namespaces that the agent does not serve yet.
#[map]
pub static SEEN: RingBuf = RingBuf::with_byte_size(SEEN_BYTES, 0);

/// The agent's listening sockets in one namespace: IPv4 from slot 0, IPv6 from `LISTENERS_MAX`. The kernel removes one
/// when it is closed, so also when the agent dies.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(2 * LISTENERS_MAX, 0);

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

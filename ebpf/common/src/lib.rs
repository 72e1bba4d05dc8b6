//! The ABI between the BPF programs and the agent: what lies in maps and read-only globals.
//!
//! Every type is `repr(C)` with fixed widths and explicit padding, so both compilers, for two
//! targets, lay it out alike; sizes are asserted here and thereby on both sides. Addresses are
//! 16 bytes, IPv4 as `::ffff:a.b.c.d`; ports are in host order except in [`Destination`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

mod counter;

pub use counter::Counter;

/// Pins of programs that understand these layouts lie in a directory of this name, with [`LAYOUT`] behind it.
pub const ABI: &str = "v2";

/// Sockets that the agent may listen with in one namespace, for each address family: one a thread at home.
pub const LISTENERS_MAX: u32 = 256;
/// Connections between the SYN and the end of the handshake. Full: further captured connects are refused.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// The same of one captured cgroup: none can use up the others' share.
pub const CONNECTIONS_PER_CGROUP_MAX: u32 = 8_192;
/// Connections to guarded ports, of the agent and of cgroups with a bypass.
pub const ADMITTED_MAX: u32 = 65_536;
/// Captured cgroups.
pub const CGROUPS_MAX: u32 = 4_096;
/// Network namespaces that the agent listens in.
pub const NAMESPACES_MAX: u32 = 4_096;
/// Guarded ports in all namespaces.
pub const GUARDED_MAX: u32 = 16_384;
/// Processes of the agent: two while one hands over to the next.
pub const AGENTS_MAX: u32 = 16;
/// Entries of each of the three destination tries.
pub const DESTINATIONS_MAX: u32 = 16_384;
/// Names of cgroups that are captured when they are made.
pub const NAMES_MAX: u32 = 4_096;
/// Bytes of such a name, its end included. A longer one is left to the agent, which hears of it a moment later.
pub const NAME_BYTES_MAX: usize = 256;
/// Levels of the cgroup tree that are looked at, the root included.
pub const CGROUP_LEVELS_MAX: u32 = 16;
/// Bytes of the ring of [`Seen`].
pub const SEEN_BYTES: u32 = 65_536;

/// A type that may lie in a map or global: no padding, and every bit pattern is a value.
///
/// # Safety
/// The implementor has no padding, no references, and no invalid bit pattern.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($type:ty, $bytes:literal) => {
        const _: () = assert!(size_of::<$type>() == $bytes);
        // SAFETY: integers only; the fields add up to the size asserted above (see each struct).
        unsafe impl Plain for $type {}
    };
}

/// What the programs need to know of the agent. One entry, written before they are attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// A heartbeat older than this is a lost agent.
    pub heartbeat_age_ns_max: u64,
    /// Port of the agent's listeners: at 127.0.0.1 and ::1 of every namespace that it serves.
    pub listener_port: u32,
    /// `LOSS_OPEN`, `BYPASSES`.
    pub flags: u32,
}
plain!(Config, 16);

/// Flag of [`Config`]: what is captured passes while the agent is lost, instead of being refused.
pub const LOSS_OPEN: u32 = 1;
/// Flag of [`Config`]: the map of bypasses is to be looked at.
pub const BYPASSES: u32 = 1 << 1;

/// A process of the agent, by its thread group: its start, so that a reused number is not the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// First value of its start time in nanoseconds since boot: /proc rounds to ticks.
    pub start_from_ns: u64,
    /// First value beyond it.
    pub start_until_ns: u64,
}
plain!(Agent, 16);

/// A network namespace that the agent listens in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `ROUTES_IPV6`.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}
plain!(Namespace, 8);

/// Flag of [`Namespace`]: IPv6 destinations outside of it can be reached. Without it a connect to one that no Server
/// declares is refused at once, so that a client that tries both families goes on with IPv4.
pub const ROUTES_IPV6: u32 = 1;

/// The global of `sk_lookup`, of which each namespace has a program of its own: that hook knows no cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Cookie of the namespace that the program is attached to.
    pub netns_cookie: u64,
    /// Cookie of the agent's own, which declared servers are dialled from.
    pub home_cookie: u64,
    /// Slots of the listener map in use for IPv4, from 0.
    pub listeners: u32,
    /// The same for IPv6, from `LISTENERS_MAX`.
    pub listeners6: u32,
}
plain!(Served, 24);

/// A port in a namespace that only the agent may connect to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Cookie of the namespace that the server listens in.
    pub netns_cookie: u64,
    /// Port.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
}
plain!(Guarded, 16);

/// A connection that guarded ports accept, as the dialling end sees it: source and destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Cookie of the namespace that it was dialled from: in another one the same addresses are nobody's of ours.
    pub netns_cookie: u64,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Zero.
    pub reserved: u32,
}
plain!(Admitted, 48);

/// Where a socket was made: the deepest captured cgroup that the making task was in. A socket that is passed on, or
/// whose process is moved, stays what it was.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// That captured cgroup.
    pub captured_id: u64,
    /// The task's own cgroup.
    pub cgroup_id: u64,
}
plain!(Made, 16);

/// The path of a cgroup below the cgroup2 root, with a leading `/`, and zeros behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its bytes.
    pub path: [u8; NAME_BYTES_MAX],
}
plain!(Name, 256);

/// Tells the agent of a captured process in a namespace that it does not serve yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Cookie of the namespace.
    pub netns_cookie: u64,
    /// Cgroup of the task.
    pub cgroup_id: u64,
    /// Its thread group, in the host's PID namespace.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
}
plain!(Seen, 24);

/// Who connected to what, as the kernel saw it at connect.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Original destination.
    pub address: [u8; 16],
    /// Cookie of the connecting socket.
    pub socket_cookie: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Cgroup of the connecting task: the inode of its directory.
    pub cgroup_id: u64,
    /// The captured cgroup that it is in, or that the socket was made in.
    pub captured_id: u64,
    /// Nanoseconds since boot at which the thread group started.
    pub start_ns: u64,
    /// Inode of the executable.
    pub exe_ino: u64,
    /// `task->self_exec_id`: changes with every exec of the process.
    pub exec_id: u64,
    /// Nanoseconds of CLOCK_MONOTONIC at connect, for the sweep.
    pub connected_ns: u64,
    /// Device of the executable as the kernel encodes it: major << 20 | minor.
    pub exe_dev: u32,
    /// Thread group, in the host's PID namespace.
    pub tgid: u32,
    /// User, in the initial user namespace.
    pub uid: u32,
    /// Port of the original destination. 0: not redirected. So are marked the agent's own dials; and the listeners,
    /// whose storage has nothing but the namespace's cookie, which the sockets that they accept inherit.
    pub port: u16,
    /// `AF_INET` or `AF_INET6` as on the wire: v4-mapped is `AF_INET`.
    pub family: u16,
}
plain!(Record, 96);

/// Which connection a record belongs to, from the SYN until the handshake's end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Keeps equal addresses of two namespaces apart.
    pub netns_cookie: u64,
    /// Source address.
    pub address: [u8; 16],
    /// Source port.
    pub port: u16,
    /// Port of the agent's listener.
    pub listener_port: u16,
    /// `AF_INET` or `AF_INET6` as on the wire: v4-mapped is `AF_INET`.
    pub family: u16,
    /// Zero.
    pub reserved: u16,
}
plain!(Connection, 32);

/// Key of the destination tries, without the prefix length that the trie puts before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Port in network order: a trie compares bits from the left. Zero: any port.
    pub port: [u8; 2],
    /// Address.
    pub address: [u8; 16],
}
plain!(Destination, 18);

impl Destination {
    /// Bits of the port, which every prefix has.
    pub const PORT_BITS: u32 = 16;
    /// Bits of a whole key.
    pub const BITS: u32 = 16 + 128;
}

/// Flags of a captured cgroup: processes in the cgroup itself and below are captured.
pub const SCOPE_SUBTREE: u32 = 1;
/// Processes below the cgroup are captured, not those in it.
pub const SCOPE_BELOW_ONLY: u32 = 1 << 1;
/// The destinations in the trie are captured.
pub const DESTINATIONS_DECLARED: u32 = 1 << 2;
/// All destinations are captured.
pub const DESTINATIONS_ALL: u32 = 1 << 3;

/// Where this kernel keeps the fields that the record is read from, in bytes, from its BTF.
/// Rust emits no CO-RE relocations, so the agent sets these before the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct.self_exec_id`
    pub task_self_exec_id: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `file.f_inode`
    pub file_f_inode: u32,
    /// `inode.i_ino`
    pub inode_i_ino: u32,
    /// `inode.i_sb`
    pub inode_i_sb: u32,
    /// `super_block.s_dev`
    pub super_block_s_dev: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `cgroup_root.hierarchy_id`
    pub cgroup_root_hierarchy_id: u32,
    /// 1 where `bpf_set_retval` exists (5.18): a refused connect then says ECONNREFUSED, else EPERM.
    pub has_set_retval: u32,
}
plain!(Offsets, 56);

/// `a.b.c.d` in network order as `::ffff:a.b.c.d`.
#[inline(always)]
pub const fn v4_mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Sums up the layouts above: programs and maps of another sum are not touched, but for their removal.
pub const LAYOUT: u32 = {
    let sizes = [
        size_of::<Config>(),
        size_of::<Agent>(),
        size_of::<Namespace>(),
        size_of::<Guarded>(),
        size_of::<Admitted>(),
        size_of::<Made>(),
        size_of::<Name>(),
        size_of::<Seen>(),
        size_of::<Record>(),
        size_of::<Connection>(),
        size_of::<Destination>(),
        Counter::ALL.len(),
        CONNECTIONS_MAX as usize,
        ADMITTED_MAX as usize,
        CGROUPS_MAX as usize,
        NAMESPACES_MAX as usize,
        GUARDED_MAX as usize,
        AGENTS_MAX as usize,
        DESTINATIONS_MAX as usize,
        SEEN_BYTES as usize,
    ];
    // FNV-1a over the numbers.
    let mut sum = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < sizes.len() {
        sum = (sum ^ sizes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    sum
};

/// `AF_INET`, as in [`Record`] and [`Connection`].
pub const AF_INET: u16 = 2;
/// `AF_INET6`.
pub const AF_INET6: u16 = 10;

/// `::1` in the form of all addresses here.
pub const LOOPBACK6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// `127.0.0.1` in the form of all addresses here.
pub const LOOPBACK4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

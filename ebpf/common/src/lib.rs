//! The ABI between the BPF programs and the agent: what lies in maps and read-only globals.
//!
//! Every type is `repr(C)` with fixed widths and explicit padding, so both compilers, for two
//! targets, lay it out alike; sizes are asserted here and thereby on both sides. Addresses are
//! 16 bytes, IPv4 as `::ffff:a.b.c.d`; ports are in host order except in [`Destination`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

mod counter;

pub use counter::Counter;

/// Pins of programs that understand these layouts lie in a directory of this name.
pub const ABI: &str = "v1";

/// How many sockets the agent may listen with: one a thread.
pub const LISTENERS_MAX: u32 = 256;
/// Connections between the SYN and accept. Full: further captured connects are refused.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// Captured cgroups.
pub const CGROUPS_MAX: u32 = 4_096;
/// Entries of each of the three destination tries.
pub const DESTINATIONS_MAX: u32 = 16_384;
/// Levels of the cgroup tree that are looked at, the root included.
pub const CGROUP_LEVELS_MAX: u32 = 16;

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
    /// Namespace that the listener is in, as `SO_NETNS_COOKIE` has it.
    pub netns_cookie: u64,
    /// First value of the agent's start time in nanoseconds since boot: /proc rounds to ticks.
    pub agent_start_from_ns: u64,
    /// First value beyond it.
    pub agent_start_until_ns: u64,
    /// Thread group of the agent; with the start time, so that a reused number is not the agent.
    pub agent_tgid: u32,
    /// Address of the listener, in network order as the hooks have it.
    pub listener_address: u32,
    /// Port of the listener.
    pub listener_port: u32,
    /// Slots of the listener map in use, from 0.
    pub listeners: u32,
}
plain!(Config, 40);

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
    /// Port of the original destination.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}
plain!(Record, 88);

/// Which connection a record belongs to, as the agent sees it at accept.
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
    /// 1 where `bpf_set_retval` exists (5.18): a refused connect then says ECONNREFUSED, else EPERM.
    pub has_set_retval: u32,
    /// 1 where `bpf_get_netns_cookie` exists in sock_ops (5.15).
    pub has_sock_ops_netns: u32,
}
plain!(Offsets, 44);

/// `a.b.c.d` in network order as `::ffff:a.b.c.d`.
#[inline(always)]
pub const fn v4_mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

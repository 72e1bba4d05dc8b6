//! What can go wrong between the agent and the kernel, with the next step. Each text is whole: the cause stands in
//! it, and not a second time as the error's source.

use std::{io, path::PathBuf};

use aya::programs::ProgramError;

/// Why the programs cannot be attached, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The binary was built before the BPF programs were.
    #[error(
        "this agent was built without its BPF programs: run `cargo xtask ebpf` and build again, or start it by `cargo xtask run`"
    )]
    NoObject,
    /// Neither root nor the capabilities.
    #[error(
        "missing {missing}: run as root, or with CAP_BPF, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Privilege {
        /// Names of the capabilities.
        missing: String,
    },
    /// Older than 5.10.
    #[error("kernel `{release}` is too old: 5.10 or later is needed")]
    KernelTooOld {
        /// As uname has it.
        release: String,
    },
    /// A container of its own.
    #[error(
        "the agent runs in a PID namespace of its own, where process ids mean other processes: run it in the host's"
    )]
    PidNamespace,
    /// No cgroup2.
    #[error(
        "no cgroup2 file system is mounted: mount one, for example `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoCgroupMount,
    /// Nothing but cgroups of version 1.
    #[error(
        "only version 1 of cgroups is mounted: boot with `systemd.unified_cgroup_hierarchy=1`, or mount version 2 beside it with `mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    CgroupVersion1,
    /// Classes of version 1 on a kernel where they take the place of a socket's cgroup.
    #[error(
        "net_cls or net_prio of cgroup version 1 is mounted at `{}`: before kernel 5.15 (this is `{release}`) its classes take the place of what tells a socket's cgroup; boot with `cgroup_no_v1=net_cls,net_prio`, or a newer kernel", at.display()
    )]
    NetClasses {
        /// Where they are mounted.
        at: PathBuf,
        /// As uname has it.
        release: String,
    },
    /// The kernel lets nobody read its memory.
    #[error(
        "the kernel is locked down for confidentiality (`/sys/kernel/security/lockdown`), so that programs cannot read who connects: boot with `lockdown=integrity`, or without"
    )]
    Lockdown,
    /// A cgroup that is not there.
    #[error("cgroup `{}`: {cause}", path.display())]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A cgroup that was removed since.
    #[error("no cgroup has the id `{id}`: {cause}; it was removed, or CAP_DAC_READ_SEARCH is missing")]
    CgroupId {
        /// Inode of its directory.
        id: u64,
        /// Why.
        cause: io::Error,
    },
    /// Too deep for the programs to see.
    #[error("cgroup `{path}` lies deeper than {max} levels: name one above it")]
    CgroupTooDeep {
        /// Below the cgroup2 root.
        path: String,
        /// The limit.
        max: u32,
    },
    /// No BTF, or one without a field that is needed.
    #[error(
        "kernel type information `/sys/kernel/btf/vmlinux`: {reason}; a kernel built with CONFIG_DEBUG_INFO_BTF is needed"
    )]
    Btf {
        /// What is missing.
        reason: String,
    },
    /// No bpffs, and none can be mounted.
    #[error("bpf file system at `{}`: {cause}; mount it, for example `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    Bpffs {
        /// Where it is or should be.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A pin that cannot be made or removed.
    #[error("pin `{}`: {cause}", path.display())]
    Pin {
        /// On the bpf file system.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A directory of pins that others could change.
    #[error(
        "`{}` belongs to user {uid} with mode {mode:o}, so that others could detach what is pinned in it: remove it",
        path.display()
    )]
    ForeignPins {
        /// On the bpf file system.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// A program that cannot be attached, replaced or pinned.
    #[error("attaching a BPF program as `{}`: {cause}", path.display())]
    Link {
        /// Its pin on the bpf file system.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A fact about this host that cannot be read.
    #[error("{what}: {cause}")]
    Host {
        /// Which fact.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// No listeners, or more than the map holds.
    #[error("{count} listening sockets: between 1 and {max} are possible")]
    Listeners {
        /// How many were given.
        count: usize,
        /// The limit.
        max: u32,
    },
    /// The object lacks a map or program, so it is another version's.
    #[error(
        "the BPF object has no `{name}`: it belongs to another version; run `cargo xtask ebpf` and build again"
    )]
    WrongObject {
        /// Map or program.
        name: &'static str,
    },
    /// The object was refused as a whole.
    #[error("loading the BPF object: {}", chain(cause.as_ref()))]
    Load {
        /// aya's words.
        cause: Box<aya::EbpfError>,
    },
    /// Another program is attached so that none may be beside it.
    #[error(
        "BPF program `{name}` may not be attached: another is at the cgroup2 root in exclusive mode; find it with `bpftool cgroup show <cgroup2 mount>`, and attach it by a link or with BPF_F_ALLOW_MULTI, or detach it"
    )]
    Exclusive {
        /// Which of ours.
        name: String,
    },
    /// The verifier refused a program.
    #[error("BPF program `{name}`: {}", chain(cause.as_ref()))]
    Program {
        /// Which.
        name: &'static str,
        /// aya's words; with the verifier's log where there is one.
        cause: Box<ProgramError>,
    },
    /// A map cannot be written or read.
    #[error("BPF map `{name}`: {}", chain(cause.as_ref()))]
    Map {
        /// Which.
        name: &'static str,
        /// aya's words.
        cause: Box<aya::maps::MapError>,
    },
    /// What is new must be there before what is old goes.
    #[error(
        "no room for {wanted} entries in the BPF map `{name}` beside {stale} old ones: at most {max} are possible at once; change the configuration in two steps, or restart the agent"
    )]
    NoRoom {
        /// Which map.
        name: &'static str,
        /// How many the new plan has.
        wanted: usize,
        /// How many of the old one it does without.
        stale: usize,
        /// The limit.
        max: u32,
    },
    /// More entries than a map holds.
    #[error("{count} entries for the BPF map `{name}`: at most {max} are possible")]
    TooMany {
        /// Which map.
        name: &'static str,
        /// How many were asked for.
        count: usize,
        /// The limit.
        max: u32,
    },
}

impl CaptureError {
    /// Why a program cannot be attached, or the cause again. With the capabilities at hand, EPERM says that a program is
    /// there whose flags allow none beside it.
    pub(super) fn attaching(name: &str, cause: io::Error) -> Result<Self, io::Error> {
        match cause.raw_os_error() {
            Some(libc::EPERM) => Ok(Self::Exclusive { name: name.to_owned() }),
            _ => Err(cause),
        }
    }
}

/// An error of aya with its causes: its own text often leaves out the errno.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

//! Who is connecting: the current task, read through the offsets of the running kernel.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_pid_tgid, bpf_get_current_task},
};

use crate::maps::{AGENTS, OFFSETS};

/// The current thread group, in the host's PID namespace.
#[inline(always)]
pub fn current_tgid() -> u32 {
    // SAFETY: helper without arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Whether the current task is the agent: by number and start, so that a reused number is not.
#[inline(always)]
pub fn is_agent() -> bool {
    // SAFETY: two u64 that never change while the entry is there.
    let Some(agent) = (unsafe { AGENTS.get(current_tgid()) }) else {
        return false;
    };
    Process::current().is_some_and(|process| {
        process.start_ns >= agent.start_from_ns && process.start_ns < agent.start_until_ns
    })
}

/// The current thread group.
#[derive(Clone, Copy)]
pub struct Process {
    pub tgid: u32,
    pub start_ns: u64,
    task: u64,
}

/// The executable of a thread group.
pub struct Executable {
    pub dev: u32,
    pub ino: u64,
    pub exec_id: u64,
}

impl Process {
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let offsets = OFFSETS.load();
        // SAFETY: helper without arguments.
        let task = unsafe { bpf_get_current_task() };
        let leader = read(task, offsets.task_group_leader)?;
        Some(Self { tgid: current_tgid(), start_ns: read(leader, offsets.task_start_boottime)?, task })
    }

    #[inline(always)]
    pub fn executable(&self) -> Option<Executable> {
        let offsets = OFFSETS.load();
        // Of the thread, not of the leader: a leader may have exited before the others.
        let mm = read(self.task, offsets.task_mm)?;
        let file = read(mm, offsets.mm_exe_file)?;
        let inode = read(file, offsets.file_f_inode)?;
        let super_block = read(inode, offsets.inode_i_sb)?;
        Some(Executable {
            dev: read(super_block, offsets.super_block_s_dev)?,
            ino: read(inode, offsets.inode_i_ino)?,
            exec_id: read(self.task, offsets.task_self_exec_id)?,
        })
    }
}

/// The field at `offset` of the kernel object at `base`; nothing for a null object.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 {
        return None;
    }
    let address = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails where it cannot be read.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}

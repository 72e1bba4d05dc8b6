//! Captures cgroups by their names when they are made. `systemctl restart` removes a unit's cgroup and makes another of the
//! same name; the agent would hear of it only after the first process could have connected.

use aya_ebpf::{
    helpers::bpf_probe_read_kernel_str_bytes, macros::raw_tracepoint, programs::RawTracePointContext,
};
use toolgate_ebpf_common::{Counter, NAME_BYTES_MAX};

use crate::{
    maps::{CAPTURED, NAME, NAMES, OFFSETS, count},
    process::read,
};

/// cgroup2; those of version 1 count from 1.
const UNIFIED: u32 = 0;

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)` (include/trace/events/cgroup.h).
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn toolgate_cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    count(made(ctx.arg(0), ctx.arg(1)));
    0
}

#[inline(always)]
fn made(cgroup: u64, path: u64) -> Counter {
    let Some(flags) = named(path) else {
        return Counter::MkdirOther;
    };
    let Some(id) = id(cgroup) else {
        return Counter::MkdirOther;
    };
    if CAPTURED.insert(id, flags, 0).is_ok() { Counter::MkdirCaptured } else { Counter::MkdirFull }
}

#[inline(always)]
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy does not fit on the stack")]
fn named(path: u64) -> Option<u32> {
    // SAFETY: a live slot of this CPU; the program is not preempted by itself on it.
    let name = unsafe { &mut *NAME.get_ptr_mut(0)? };
    name.path = [0; NAME_BYTES_MAX];
    // SAFETY: the helper checks the address, and ends what it reads with a zero.
    unsafe { bpf_probe_read_kernel_str_bytes(path as *const u8, &mut name.path) }.ok()?;
    // SAFETY: a u32 that is read once.
    unsafe { NAMES.get(&*name) }.copied()
}

#[inline(always)]
fn id(cgroup: u64) -> Option<u64> {
    let offsets = OFFSETS.load();
    let root = read(cgroup, offsets.cgroup_root)?;
    if read::<u32>(root, offsets.cgroup_root_hierarchy_id)? != UNIFIED {
        return None;
    }
    read(read(cgroup, offsets.cgroup_kn)?, offsets.kernfs_node_id)
}

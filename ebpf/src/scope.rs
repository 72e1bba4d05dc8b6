//! Whose sockets are captured: by the cgroups that the current task is in, or that a socket was made in.

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_ktime_get_ns,
};
use toolgate_ebpf_common::{BYPASSES, CGROUP_LEVELS_MAX, Config, SCOPE_SUBTREE};

use crate::maps::{BYPASSED, CAPTURED};

/// A captured cgroup.
#[derive(Clone, Copy)]
pub struct Captured {
    /// 0: not captured. No Option: its undefined payload would be spilled to the stack, and the verifier reads that as
    /// a leak.
    pub flags: u32,
    pub id: u64,
}

/// The deepest captured cgroup that the current task is in.
#[inline(always)]
pub fn of_task() -> Captured {
    // SAFETY: helper without arguments.
    let own = unsafe { bpf_get_current_cgroup_id() };
    let mut found = Captured { flags: 0, id: 0 };
    for level in 0..CGROUP_LEVELS_MAX as i32 {
        // SAFETY: the helper answers 0 beyond the task's own level.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        // SAFETY: a u32 that is read once; the agent replaces it whole.
        if let Some(&flags) = unsafe { CAPTURED.get(id) }
            && (flags & SCOPE_SUBTREE != 0 || id != own)
        {
            found = Captured { flags, id };
        }
    }
    found
}

/// The captured cgroup that a socket was made in, if it is captured still.
#[inline(always)]
pub fn made_in(id: u64) -> Captured {
    // SAFETY: as above.
    match unsafe { CAPTURED.get(id) } {
        Some(&flags) => Captured { flags, id },
        None => Captured { flags: 0, id: 0 },
    }
}

/// Whether a cgroup of the current task has a bypass that has not ended.
#[inline(always)]
pub fn is_bypassed(config: &Config) -> bool {
    if config.flags & BYPASSES == 0 {
        return false;
    }
    // SAFETY: helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    for level in 0..CGROUP_LEVELS_MAX as i32 {
        // SAFETY: the helper answers 0 beyond the task's own level.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        // SAFETY: a u64 that is read once.
        if let Some(&until_ns) = unsafe { BYPASSED.get(id) }
            && now_ns < until_ns
        {
            return true;
        }
    }
    false
}

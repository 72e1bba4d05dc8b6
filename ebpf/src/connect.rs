//! What `connect4` and `connect6` ask alike: who connects, and what the plan says of where to.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_set_retval},
    maps::lpm_trie::{Key, LpmTrie},
    programs::SockAddrContext,
};
use toolgate_ebpf_common::{CGROUP_LEVELS_MAX, Config, Counter, Destination, SCOPE_SUBTREE};

use crate::{
    maps::{CAPTURED, DESTINATIONS, EXCLUDED, OFFSETS, REFUSED, count},
    process::Process,
};

/// Loopback in network order.
pub const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// What the plan says of a destination.
pub enum Planned {
    Refused,
    Excluded,
    Captured,
    /// Nothing: it depends on the cgroup.
    Unnamed,
}

#[inline(always)]
pub fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: readable fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
}

/// The flags of the deepest captured cgroup that the current task is in; 0: it is in none. No
/// Option: its undefined payload would be spilled to the stack, and the verifier reads that as a leak.
#[inline(always)]
pub fn captured() -> u32 {
    // SAFETY: helper without arguments.
    let own = unsafe { bpf_get_current_cgroup_id() };
    let mut found = 0;
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
            found = flags;
        }
    }
    found
}

#[inline(always)]
pub fn is_agent(config: &Config, process: &Process) -> bool {
    process.tgid == config.agent_tgid
        && process.start_ns >= config.agent_start_from_ns
        && process.start_ns < config.agent_start_until_ns
}

/// The listener as a captured process could name it: its address, or another of 127.0.0.0/8.
/// sk_lookup refuses what comes by any other way.
#[inline(always)]
pub fn is_listener(config: &Config, address: u32, port: u16) -> bool {
    let local = address == config.listener_address || address.to_ne_bytes()[0] == 127;
    local && u32::from(port) == config.listener_port
}

/// What the tries say, with the port and for any port: refused, excluded, captured, in this order, so that neither a
/// wide exclusion nor a wide capture opens the agent's own ports.
#[inline(always)]
pub fn planned(address: [u8; 16], port: u16) -> Planned {
    let mut key = Key::new(Destination::BITS, Destination { port: port.to_be_bytes(), address });
    if holds(&REFUSED, &key) {
        return Planned::Refused;
    }
    let (excluded, captured) = (holds(&EXCLUDED, &key), holds(&DESTINATIONS, &key));
    key.data.port = [0, 0];
    if excluded || holds(&EXCLUDED, &key) {
        return Planned::Excluded;
    }
    if captured || holds(&DESTINATIONS, &key) { Planned::Captured } else { Planned::Unnamed }
}

/// By the value, which is never 0: of two pointers the compiler would make one by `|`, which the verifier refuses.
#[inline(always)]
fn holds(trie: &LpmTrie<Destination, u32>, key: &Key<Destination>) -> bool {
    trie.get(key).copied().unwrap_or_default() != 0
}

#[inline(always)]
pub fn pass(counter: Counter) -> i32 {
    count(counter);
    ALLOW
}

#[inline(always)]
pub fn refuse(counter: Counter) -> i32 {
    count(counter);
    if OFFSETS.load().has_set_retval != 0 {
        // SAFETY: a negative errno, as the helper wants; unreachable where the kernel lacks it.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

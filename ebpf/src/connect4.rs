//! Which connects are captured. A captured one is turned to the agent, with a note of who wanted what.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_uid_gid,
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use aya_log_ebpf::{debug, warn};
use toolgate_ebpf_common::{
    ACTION_CAPTURE, ACTION_REFUSE, CGROUP_LEVELS_MAX, Config, Counter, DESTINATIONS_ALL, Destination, Record,
    SCOPE_SUBTREE, v4_mapped,
};

use crate::{
    maps::{CAPTURED, CONFIG, DESTINATIONS, EXCLUDED, OFFSETS, ORIGINALS, count},
    process::Process,
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);

/// What becomes of a connect.
enum Verdict {
    Pass(Counter),
    Refuse(Counter),
    Capture,
}

/// Address and port of the destination: the address in network order, 0.0.0.0 resolved as the
/// kernel will, to loopback. Otherwise `connect(0.0.0.0:8000)` would pass by a server at 127.0.0.1.
#[derive(Clone, Copy)]
struct Target {
    address: u32,
    port: u16,
}

#[cgroup_sock_addr(connect4)]
pub fn toolgate_connect4(ctx: SockAddrContext) -> i32 {
    if !is_tcp(&ctx) {
        return pass(Counter::ConnectNotTcp);
    }
    let Some(config) = CONFIG.get(0) else {
        return refuse(Counter::ConnectNoConfig);
    };
    let target = target(&ctx);
    match verdict(&ctx, config, target) {
        Verdict::Capture => capture(&ctx, config, target),
        Verdict::Refuse(counter) => {
            debug!(
                &ctx,
                "refused connect to {:i}:{}, branch {}",
                u32::from_be(target.address),
                target.port,
                counter as u32
            );
            refuse(counter)
        }
        Verdict::Pass(counter) => {
            forget(&ctx);
            pass(counter)
        }
    }
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, config: &Config, target: Target) -> Verdict {
    let flags = captured();
    if flags == 0 {
        return Verdict::Pass(Counter::ConnectNotCaptured);
    }
    let Some(process) = Process::current() else {
        return Verdict::Refuse(Counter::ConnectNoProcess);
    };
    if is_agent(config, &process) {
        return Verdict::Pass(Counter::ConnectAgent);
    }
    if is_listener(config, target) {
        return Verdict::Refuse(Counter::ConnectListener);
    }
    if let Some(verdict) = by_destination(flags, target) {
        return verdict;
    }
    // SAFETY: the context of this hook.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != config.netns_cookie {
        return Verdict::Refuse(Counter::ConnectNamespace);
    }
    Verdict::Capture
}

/// Notes the original destination and the process in the socket's storage, then turns the
/// connection to the agent. Whatever cannot be noted is refused.
#[inline(always)]
fn capture(ctx: &SockAddrContext, config: &Config, target: Target) -> i32 {
    let Some(mut record) = record(ctx, target) else {
        warn!(
            ctx,
            "refused connect to {:i}:{}: executable not readable",
            u32::from_be(target.address),
            target.port
        );
        return refuse(Counter::ConnectNoProcess);
    };
    // SAFETY: the hook's own socket; the storage is this program's to write.
    let stored = unsafe { ORIGINALS.get_or_insert_ptr_mut(ctx, Some(&mut record)) };
    if stored.is_null() {
        warn!(
            ctx,
            "refused connect to {:i}:{}: no socket storage",
            u32::from_be(target.address),
            target.port
        );
        return refuse(Counter::ConnectNoStorage);
    }
    // SAFETY: not null, and as large as a record. A socket that connects again has an old record.
    unsafe { *stored = record };
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: fields that this hook may write.
    unsafe {
        (*addr).user_ip4 = config.listener_address;
        (*addr).user_port = u32::from((config.listener_port as u16).to_be());
    }
    pass(Counter::ConnectRedirected)
}

#[inline(always)]
fn record(ctx: &SockAddrContext, target: Target) -> Option<Record> {
    let process = Process::current()?;
    let executable = process.executable()?;
    // SAFETY: helpers of this hook, with its context or without arguments.
    let (socket_cookie, netns_cookie, cgroup_id, connected_ns, uid) = unsafe {
        (
            bpf_get_socket_cookie(ctx.as_ptr()),
            bpf_get_netns_cookie(ctx.as_ptr()),
            bpf_get_current_cgroup_id(),
            bpf_ktime_get_ns(),
            bpf_get_current_uid_gid() as u32,
        )
    };
    Some(Record {
        address: v4_mapped(target.address),
        socket_cookie,
        netns_cookie,
        cgroup_id,
        start_ns: process.start_ns,
        exe_ino: executable.ino,
        exec_id: executable.exec_id,
        connected_ns,
        exe_dev: executable.dev,
        tgid: process.tgid,
        uid,
        port: target.port,
        reserved: 0,
    })
}

#[inline(always)]
fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: readable fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
}

#[inline(always)]
fn target(ctx: &SockAddrContext) -> Target {
    // SAFETY: readable fields of the context.
    let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    Target { address: if address == 0 { LOOPBACK } else { address }, port: u16::from_be(port as u16) }
}

/// The flags of the deepest captured cgroup that the current task is in; 0: it is in none. No
/// Option: its undefined payload would be spilled to the stack, and the verifier reads that as a leak.
#[inline(always)]
fn captured() -> u32 {
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
fn is_agent(config: &Config, process: &Process) -> bool {
    process.tgid == config.agent_tgid
        && process.start_ns >= config.agent_start_from_ns
        && process.start_ns < config.agent_start_until_ns
}

/// The listener as a captured process could name it: its address, or another of 127.0.0.0/8.
/// sk_lookup refuses what comes by any other way.
#[inline(always)]
fn is_listener(config: &Config, target: Target) -> bool {
    let local = target.address == config.listener_address || target.address.to_ne_bytes()[0] == 127;
    local && u32::from(target.port) == config.listener_port
}

/// What the tries say, with the port and for any port: refused, excluded, captured, in this order, so that a wide
/// exclusion does not open the agent's own ports. Nothing: captured.
#[inline(always)]
fn by_destination(flags: u32, target: Target) -> Option<Verdict> {
    let mut key = Key::new(
        Destination::BITS,
        Destination { port: target.port.to_be_bytes(), address: v4_mapped(target.address) },
    );
    let excluded = EXCLUDED.get(&key).is_some();
    let action = DESTINATIONS.get(&key).copied().unwrap_or_default();
    key.data.port = [0, 0];
    let any_port = DESTINATIONS.get(&key).copied().unwrap_or_default();
    if action == ACTION_REFUSE || any_port == ACTION_REFUSE {
        return Some(Verdict::Refuse(Counter::ConnectRefused));
    }
    if excluded || EXCLUDED.get(&key).is_some() {
        return Some(Verdict::Pass(Counter::ConnectExcluded));
    }
    if action == ACTION_CAPTURE || any_port == ACTION_CAPTURE || flags & DESTINATIONS_ALL != 0 {
        return None;
    }
    Some(Verdict::Pass(Counter::ConnectOther))
}

/// A socket may be connected again, to where it is not captured: its old record goes.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: the hook's own socket.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let _absent = ORIGINALS.delete(sk);
    }
}

#[inline(always)]
fn pass(counter: Counter) -> i32 {
    count(counter);
    ALLOW
}

#[inline(always)]
fn refuse(counter: Counter) -> i32 {
    count(counter);
    if OFFSETS.load().has_set_retval != 0 {
        // SAFETY: a negative errno, as the helper wants; unreachable where the kernel lacks it.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

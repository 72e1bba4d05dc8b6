//! Which connects are captured. A captured one is turned to the agent, with a note of who wanted what.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie,
        bpf_ktime_get_ns, bpf_set_retval,
    },
    maps::lpm_trie::{Key, LpmTrie},
    programs::SockAddrContext,
};
use toolgate_ebpf_common::{
    AF_INET6, Config, Counter, DESTINATIONS_ALL, Destination, LOOPBACK4, LOOPBACK6, LOSS_OPEN, ROUTES_IPV6,
    Record, Seen,
};

use crate::{
    address::Target,
    maps::{
        CONFIG, DESTINATIONS, EXCLUDED, HEARTBEAT, LEARNED, MADE, NAMESPACES, OFFSETS, ORIGINALS, REFUSED,
        SEEN, count,
    },
    process::{self, Process},
    scope::{self, Captured},
};

pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ENETUNREACH: i32 = 101;
pub const ECONNREFUSED: i32 = 111;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
/// Where QUIC is spoken.
const HTTPS: u16 = 443;
/// The loopback device has this index in every namespace.
const LOOPBACK_DEVICE: u32 = 1;

/// What becomes of a connect.
enum Verdict {
    /// By the agent, or with a bypass: guarded ports accept it.
    Dial(Counter),
    Pass(Counter),
    Refuse(Counter),
    Capture(Captured),
}

/// What the plan says of a destination.
enum Planned {
    Refused,
    Excluded,
    /// This port of it.
    Captured,
    /// Whatever its port.
    CapturedWhole,
    /// Nothing: it depends on the cgroup.
    Unnamed,
}

/// The family's own program rewrites the address where this says so.
#[inline(always)]
pub fn is_captured(ctx: &SockAddrContext, target: &Target) -> Result<u32, i32> {
    let Some(config) = CONFIG.get(0) else {
        return Err(refuse(Counter::ConnectNoConfig, ECONNREFUSED));
    };
    match verdict(ctx, config, target) {
        Verdict::Capture(captured) => {
            if !note(ctx, target, captured) {
                return Err(refuse(Counter::ConnectNoStorage, ECONNREFUSED));
            }
            count(Counter::ConnectRedirected);
            Ok(config.listener_port)
        }
        Verdict::Refuse(counter) => {
            let unreachable = counter as u32 == Counter::ConnectNoRoute as u32;
            Err(refuse(counter, if unreachable { ENETUNREACH } else { ECONNREFUSED }))
        }
        Verdict::Dial(counter) => {
            dial(ctx, target);
            count(counter);
            Err(ALLOW)
        }
        Verdict::Pass(counter) => {
            // A socket may be connected again, to where it is not captured: its old record goes.
            // SAFETY: the hook's own socket.
            unsafe { ORIGINALS.remove(socket(ctx)) };
            count(counter);
            Err(ALLOW)
        }
    }
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, config: &Config, target: &Target) -> Verdict {
    if process::is_agent() {
        return Verdict::Dial(Counter::ConnectAgent);
    }
    if is_listener(ctx, config, target) {
        return Verdict::Refuse(Counter::ConnectListener);
    }
    let captured = captured(ctx);
    if captured.flags == 0 {
        return Verdict::Pass(Counter::ConnectNotCaptured);
    }
    if scope::is_bypassed(config) {
        return Verdict::Dial(Counter::ConnectBypassed);
    }
    // SAFETY: readable fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    match (kind, protocol) {
        (SOCK_DGRAM, _) => datagram(captured, target),
        (SOCK_STREAM, IPPROTO_TCP) => stream(ctx, config, target, captured),
        (SOCK_STREAM, IPPROTO_MPTCP) => Verdict::Refuse(Counter::ConnectMptcp),
        _other => Verdict::Pass(Counter::ConnectOtherProtocol),
    }
}

/// The agent's port, in a namespace that it serves. Nobody is to connect there, captured or not: a record that lies
/// under the same addresses could be taken for theirs. What comes by another way has none, and sk_lookup drops it.
#[inline(always)]
fn is_listener(ctx: &SockAddrContext, config: &Config, target: &Target) -> bool {
    if u32::from(target.port) != config.listener_port || !target.is_loopback() {
        return false;
    }
    // SAFETY: the context of this hook; only the entry's presence is asked for.
    unsafe { NAMESPACES.get(bpf_get_netns_cookie(ctx.as_ptr())) }.is_some()
}

/// By the task that connects; else by where the socket was made, so that handing it out of the cgroup is no way out.
#[inline(always)]
pub fn captured(ctx: &SockAddrContext) -> Captured {
    let of_task = scope::of_task();
    if of_task.flags != 0 {
        return of_task;
    }
    // SAFETY: the hook's own socket; written once, when it was made.
    match unsafe { MADE.get(socket(ctx)) } {
        Some(made) => scope::made_in(made.captured_id),
        None => of_task,
    }
}

#[inline(always)]
fn stream(ctx: &SockAddrContext, config: &Config, target: &Target, captured: Captured) -> Verdict {
    let planned = planned(target);
    match planned {
        Planned::Refused => return Verdict::Refuse(Counter::ConnectRefused),
        Planned::Excluded => return Verdict::Pass(Counter::ConnectExcluded),
        Planned::Unnamed if captured.flags & DESTINATIONS_ALL == 0 => {
            return Verdict::Pass(Counter::ConnectOther);
        }
        Planned::Captured | Planned::CapturedWhole | Planned::Unnamed => {}
    }
    if is_lost(config) {
        let open = config.flags & LOSS_OPEN != 0;
        return if open {
            // A guarded server accepts it, too: whoever sets this wants connections to work.
            Verdict::Dial(Counter::ConnectLostOpen)
        } else {
            Verdict::Refuse(Counter::ConnectLost)
        };
    }
    if is_bound_to_device(ctx) {
        return Verdict::Refuse(Counter::ConnectDevice);
    }
    // SAFETY: the context of this hook.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: its flags are read once.
    let Some(namespace) = (unsafe { NAMESPACES.get(cookie) }) else {
        tell(cookie);
        return Verdict::Refuse(Counter::ConnectNamespace);
    };
    // Here and below the agent would be reached, and then nobody: a client that tries both families would not go on.
    // `localhost` is both, and the port of a declared server answers by its declared address alone.
    if matches!(planned, Planned::Unnamed) && target.is_loopback() && has_declared_sibling(target) {
        return Verdict::Refuse(Counter::ConnectSibling);
    }
    let abroad = matches!(planned, Planned::Unnamed) && target.family == AF_INET6 && !target.is_loopback();
    if abroad && namespace.flags & ROUTES_IPV6 == 0 {
        return Verdict::Refuse(Counter::ConnectNoRoute);
    }
    Verdict::Capture(captured)
}

/// Whether what the other family's `localhost` is at this port is captured by name.
#[inline(always)]
fn has_declared_sibling(target: &Target) -> bool {
    let address = if target.family == AF_INET6 { LOOPBACK4 } else { LOOPBACK6 };
    let key = Key::new(Destination::BITS, Destination { port: target.port.to_be_bytes(), address });
    holds(&DESTINATIONS, &key)
}

/// Datagrams are not captured: to a port that is captured by name, and to QUIC's where TCP would be captured, they are
/// refused, so that clients fall back to TCP. Whole networks go on to be asked for names and time.
#[inline(always)]
pub fn is_refused_datagram(captured: Captured, target: &Target) -> bool {
    match planned(target) {
        Planned::Refused | Planned::Captured => true,
        Planned::Excluded => false,
        Planned::CapturedWhole => target.port == HTTPS,
        Planned::Unnamed => captured.flags & DESTINATIONS_ALL != 0 && target.port == HTTPS,
    }
}

#[inline(always)]
fn datagram(captured: Captured, target: &Target) -> Verdict {
    if is_refused_datagram(captured, target) {
        Verdict::Refuse(Counter::ConnectUdp)
    } else {
        Verdict::Pass(Counter::ConnectUdpOther)
    }
}

/// A device that is not loopback would send the redirected SYN out, to be waited for in vain.
#[inline(always)]
fn is_bound_to_device(ctx: &SockAddrContext) -> bool {
    // SAFETY: the hook's own socket, a readable field.
    let device = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            return true;
        }
        (*sk).bound_dev_if
    };
    device != 0 && device != LOOPBACK_DEVICE
}

#[inline(always)]
fn is_lost(config: &Config) -> bool {
    // SAFETY: helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    match HEARTBEAT.get(0) {
        Some(&beat_ns) => now_ns.saturating_sub(beat_ns) > config.heartbeat_age_ns_max,
        None => true,
    }
}

/// A full ring forgets: the agent looks at every captured process now and then, too.
#[inline(always)]
fn tell(netns_cookie: u64) {
    // SAFETY: helper without arguments.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let seen = Seen { netns_cookie, cgroup_id, tgid: process::current_tgid(), reserved: 0 };
    let _full = SEEN.output::<Seen>(seen, 0);
}

/// Notes original destination and process in the socket's storage. Whatever cannot be noted is refused.
#[inline(always)]
fn note(ctx: &SockAddrContext, target: &Target, captured: Captured) -> bool {
    match record(ctx, target, captured) {
        // SAFETY: the hook's own socket; the storage is this program's to write.
        Some(record) => unsafe { ORIGINALS.set(socket(ctx), &record) },
        None => false,
    }
}

#[inline(always)]
fn record(ctx: &SockAddrContext, target: &Target, captured: Captured) -> Option<Record> {
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
        address: target.address,
        socket_cookie,
        netns_cookie,
        cgroup_id,
        captured_id: captured.id,
        start_ns: process.start_ns,
        exe_ino: executable.ino,
        exec_id: executable.exec_id,
        connected_ns,
        exe_dev: executable.dev,
        tgid: process.tgid,
        uid,
        port: target.port,
        family: target.family,
    })
}

/// Marks a socket whose connection guarded ports accept; and tells the agent which namespace it is in, if it asks so by
/// a datagram socket.
#[inline(always)]
fn dial(ctx: &SockAddrContext, target: &Target) {
    // SAFETY: readable fields and helpers of this hook, with its context.
    let (kind, socket_cookie, netns_cookie) = unsafe {
        ((*ctx.sock_addr).type_, bpf_get_socket_cookie(ctx.as_ptr()), bpf_get_netns_cookie(ctx.as_ptr()))
    };
    if kind == SOCK_DGRAM {
        let _asked_again = LEARNED.insert(socket_cookie, netns_cookie, 0);
        return;
    }
    let mark = Record { socket_cookie, netns_cookie, family: target.family, ..EMPTY };
    // Without it a guarded port drops the SYN.
    // SAFETY: the hook's own socket; the storage is this program's to write.
    let _marked = unsafe { ORIGINALS.set(socket(ctx), &mark) };
}

const EMPTY: Record = Record {
    address: [0; 16],
    socket_cookie: 0,
    netns_cookie: 0,
    cgroup_id: 0,
    captured_id: 0,
    start_ns: 0,
    exe_ino: 0,
    exec_id: 0,
    connected_ns: 0,
    exe_dev: 0,
    tgid: 0,
    uid: 0,
    port: 0,
    family: 0,
};

/// What the tries say, with the port and for any port: refused, excluded, captured, in this order, so that neither a
/// wide exclusion nor a wide capture opens the agent's own ports.
#[inline(always)]
fn planned(target: &Target) -> Planned {
    let at = Destination { port: target.port.to_be_bytes(), address: target.address };
    let mut key = Key::new(Destination::BITS, at);
    if holds(&REFUSED, &key) {
        return Planned::Refused;
    }
    let (excluded, captured) = (holds(&EXCLUDED, &key), holds(&DESTINATIONS, &key));
    key.data.port = [0, 0];
    if excluded || holds(&EXCLUDED, &key) {
        return Planned::Excluded;
    }
    if captured {
        return Planned::Captured;
    }
    if holds(&DESTINATIONS, &key) { Planned::CapturedWhole } else { Planned::Unnamed }
}

/// By the value, which is never 0: of two pointers the compiler would make one by `|`, which the verifier refuses.
#[inline(always)]
fn holds(trie: &LpmTrie<Destination, u32>, key: &Key<Destination>) -> bool {
    trie.get(key).copied().unwrap_or_default() != 0
}

/// The hook's socket, as the storage wants it.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> *mut c_void {
    // SAFETY: a readable field of the context.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk.cast() }
}

#[inline(always)]
pub fn refuse(counter: Counter, errno: i32) -> i32 {
    count(counter);
    if OFFSETS.load().has_set_retval != 0 {
        // SAFETY: a negative errno, as the helper wants; unreachable where the kernel lacks it.
        unsafe { bpf_set_retval(-errno) };
    }
    REFUSE
}

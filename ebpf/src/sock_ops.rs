//! Publishes the record of a redirected connection under its addresses, before the SYN leaves, and gives it to the
//! accepted socket when the handshake is done: from then on it is nobody else's, however long the agent takes to accept.
//! Publishes the addresses of the agent's own dials, too, for the guard of server ports.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    helpers::generated::bpf_get_socket_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};
use aya_log_ebpf::warn;
use toolgate_ebpf_common::{
    AF_INET, Admitted, CONNECTIONS_PER_CGROUP_MAX, Config, Connection, Counter, LOOPBACK4, LOOPBACK6, Record,
};

use crate::{
    address,
    maps::{ACCEPTED, ADMITTED, CONFIG, CONNECTIONS, ORIGINALS, PENDING, count},
};

const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

#[sock_ops]
pub fn toolgate_sock_ops(ctx: SockOpsContext) -> u32 {
    let counter = match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_STATE_CB => state(&ctx),
        _ => Counter::SockOpsOther,
    };
    count(counter);
    // The reply of these operations: nothing is overridden.
    0
}

/// A connect cannot be stopped here: what is not published, sk_lookup drops.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Counter {
    let Some(config) = CONFIG.get(0) else {
        return Counter::SockOpsNoConfig;
    };
    // SAFETY: the context's socket.
    let stored = unsafe { socket(ctx).and_then(|socket| ORIGINALS.get(socket)) };
    let Some(record) = stored else {
        return Counter::SockOpsNotOurs;
    };
    if record.port == 0 {
        return admit(ctx, record);
    }
    if is_to_listener(ctx, config, record.family) {
        publish(ctx, config, record)
    } else {
        Counter::SockOpsElsewhere
    }
}

#[inline(always)]
fn publish(ctx: &SockOpsContext, config: &Config, record: &Record) -> Counter {
    if !has_room(record.captured_id) {
        warn!(ctx, "refused a connect: its cgroup has too many that wait");
        return Counter::SockOpsQuota;
    }
    let key = connection(ctx, config, record.netns_cookie, record.family);
    match CONNECTIONS.insert(key, record, BPF_NOEXIST) {
        Ok(()) => {}
        // A record of these addresses was not taken, and must not be taken for this one's: neither gets it.
        Err(EEXIST) => {
            if CONNECTIONS.remove(key).is_ok() {
                one_less(record.captured_id);
            }
            return Counter::SockOpsCollision;
        }
        Err(_) => {
            warn!(ctx, "refused a connect: the map of connections is full");
            return Counter::SockOpsFull;
        }
    }
    one_more(record.captured_id);
    watch(ctx);
    Counter::SockOpsRecorded
}

/// A dial of the agent's own, or with a bypass.
#[inline(always)]
fn admit(ctx: &SockOpsContext, record: &Record) -> Counter {
    if ADMITTED.insert(admitted(ctx, record), socket_cookie(ctx), 0).is_err() {
        warn!(ctx, "the map of admitted connections is full");
        return Counter::SockOpsAdmittedFull;
    }
    watch(ctx);
    Counter::SockOpsAdmitted
}

/// The end of a handshake with the listener: the socket that will be accepted gets the record.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Counter {
    // SAFETY: the context's socket. Only children of the agent's listeners have such storage.
    let Some(own) = (unsafe { socket(ctx).and_then(|socket| ACCEPTED.get(socket)) }) else {
        return Counter::SockOpsNotOurs;
    };
    let family = ctx.family() as u16;
    let key = Connection {
        netns_cookie: own.netns_cookie,
        address: remote(ctx, family),
        port: remote_port(ctx) as u16,
        listener_port: ctx.local_port() as u16,
        family,
        reserved: 0,
    };
    // SAFETY: copied whole, and removed by nobody else: its connect is over.
    let Some(record) = (unsafe { CONNECTIONS.get(key) }) else {
        return Counter::SockOpsAcceptedNoRecord;
    };
    let captured_id = record.captured_id;
    *own = *record;
    if CONNECTIONS.remove(key).is_ok() {
        one_less(captured_id);
    }
    Counter::SockOpsAccepted
}

/// Removes the record of a connect that failed, and the admission of a connection that ended.
#[inline(always)]
fn state(ctx: &SockOpsContext) -> Counter {
    if ctx.arg(1) != BPF_TCP_CLOSE {
        return Counter::SockOpsKept;
    }
    // SAFETY: the context's socket.
    let stored = unsafe { socket(ctx).and_then(|socket| ORIGINALS.get(socket)) };
    let (Some(record), Some(config)) = (stored, CONFIG.get(0)) else {
        return Counter::SockOpsKept;
    };
    if record.port == 0 {
        let key = admitted(ctx, record);
        // SAFETY: a u64 that is read once. Only this socket's own entry is removed.
        let own = unsafe { ADMITTED.get(key) }.is_some_and(|&cookie| cookie == socket_cookie(ctx));
        return if own && ADMITTED.remove(key).is_ok() {
            Counter::SockOpsRemoved
        } else {
            Counter::SockOpsKept
        };
    }
    if ctx.arg(0) != BPF_TCP_SYN_SENT {
        return Counter::SockOpsKept;
    }
    let key = connection(ctx, config, record.netns_cookie, record.family);
    // SAFETY: the cookie is read once. Only this socket's own record is removed.
    let own = unsafe { CONNECTIONS.get(key).is_some_and(|found| found.socket_cookie == socket_cookie(ctx)) };
    if own && CONNECTIONS.remove(key).is_ok() {
        one_less(record.captured_id);
        return Counter::SockOpsRemoved;
    }
    Counter::SockOpsKept
}

/// Asks for the state changes of this socket. Without them a failed connect leaves its record to the agent's sweep.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let _swept = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

#[inline(always)]
fn has_room(captured_id: u64) -> bool {
    // SAFETY: a u64 that is read once; a few too many at once do no harm.
    unsafe { PENDING.get(captured_id) }.is_none_or(|&pending| pending < u64::from(CONNECTIONS_PER_CGROUP_MAX))
}

#[inline(always)]
fn one_more(captured_id: u64) {
    // Another CPU may be first.
    if !change(captured_id, 1) && PENDING.insert(captured_id, 1, BPF_NOEXIST).is_err() {
        let _full = change(captured_id, 1);
    }
}

/// Two CPUs at once may count once too few: the agent counts anew now and then.
#[inline(always)]
fn one_less(captured_id: u64) {
    // SAFETY: a u64 that is read once.
    if unsafe { PENDING.get(captured_id) }.is_some_and(|&pending| pending != 0) {
        let _removed = change(captured_id, -1);
    }
}

/// Adds to the cgroup's count, if it has one. Whether it has.
#[inline(always)]
fn change(captured_id: u64, by: i64) -> bool {
    let Some(pending) = PENDING.get_ptr_mut(captured_id) else {
        return false;
    };
    // The standard library has no atomics for this target that change a value.
    // SAFETY: a live, aligned slot that all CPUs change in this way alone.
    unsafe { asm!("lock *(u64 *)({slot} + 0) += {by}", slot = in(reg) pending, by = in(reg) by) };
    true
}

/// The context's socket, loaded once: the verifier takes a second load for another.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut c_void> {
    // SAFETY: a readable field of the context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() { None } else { Some(socket.cast()) }
}

#[inline(always)]
fn is_to_listener(ctx: &SockOpsContext, config: &Config, family: u16) -> bool {
    let own = if family == AF_INET { LOOPBACK4 } else { LOOPBACK6 };
    remote_port(ctx) == config.listener_port && remote(ctx, family) == own
}

#[inline(always)]
fn connection(ctx: &SockOpsContext, config: &Config, netns_cookie: u64, family: u16) -> Connection {
    Connection {
        // Of the record: this hook has no namespace cookie before 5.15.
        netns_cookie,
        address: local(ctx, family),
        port: ctx.local_port() as u16,
        listener_port: config.listener_port as u16,
        family,
        reserved: 0,
    }
}

#[inline(always)]
fn admitted(ctx: &SockOpsContext, record: &Record) -> Admitted {
    Admitted {
        netns_cookie: record.netns_cookie,
        source: local(ctx, record.family),
        destination: remote(ctx, record.family),
        source_port: ctx.local_port() as u16,
        destination_port: remote_port(ctx) as u16,
        reserved: 0,
    }
}

#[inline(always)]
fn local(ctx: &SockOpsContext, family: u16) -> [u8; 16] {
    // SAFETY: readable fields of the context.
    unsafe { address::either(&raw const (*ctx.ops).local_ip4, &raw const (*ctx.ops).local_ip6, family) }
}

#[inline(always)]
fn remote(ctx: &SockOpsContext, family: u16) -> [u8; 16] {
    // SAFETY: as above.
    unsafe { address::either(&raw const (*ctx.ops).remote_ip4, &raw const (*ctx.ops).remote_ip6, family) }
}

/// In network order in the upper half, unlike the local one.
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u32 {
    u32::from_be(ctx.remote_port())
}

#[inline(always)]
fn socket_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context of this hook.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

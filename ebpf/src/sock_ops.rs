//! Publishes the record of a redirected connection under its addresses, before the SYN leaves.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
        BPF_TCP_SYN_SENT,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_storage_get},
    macros::sock_ops,
    programs::SockOpsContext,
};
use aya_log_ebpf::warn;
use toolgate_ebpf_common::{Config, Connection, Counter, Record, v4_mapped};

use crate::maps::{CONFIG, CONNECTIONS, OFFSETS, ORIGINALS, count};

const AF_INET: u16 = 2;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

#[sock_ops]
pub fn toolgate_sock_ops(ctx: SockOpsContext) -> u32 {
    let counter = match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(&ctx),
        BPF_SOCK_OPS_STATE_CB => remove(&ctx),
        _ => Counter::SockOpsOther,
    };
    count(counter);
    // The reply of these operations: nothing is overridden.
    0
}

/// A connect cannot be stopped here: what is not published, sk_lookup drops.
#[inline(always)]
fn publish(ctx: &SockOpsContext) -> Counter {
    let Some(config) = CONFIG.get(0) else {
        return Counter::SockOpsNoConfig;
    };
    let to_listener = ctx.remote_ip4() == config.listener_address && remote_port(ctx) == config.listener_port;
    let record = match (stored(ctx), to_listener) {
        (Some(record), true) => record,
        (Some(_), false) => return Counter::SockOpsElsewhere,
        (None, true) => return forget(ctx, config),
        (None, false) => return Counter::SockOpsNotOurs,
    };
    let key = connection(ctx, config, record.netns_cookie);
    match CONNECTIONS.insert(key, record, BPF_NOEXIST) {
        Ok(()) => {}
        // A connection of these addresses ended before it was accepted. It waits for accept still, and must not be
        // taken for this one: neither gets a record.
        Err(EEXIST) => {
            let _raced = CONNECTIONS.remove(key);
            return Counter::SockOpsCollision;
        }
        Err(_) => {
            warn!(ctx, "refused a connect: the map of connections is full");
            return Counter::SockOpsFull;
        }
    }
    // Without the flag a failed connect leaves its record to the agent's sweep.
    let _swept = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    Counter::SockOpsRecorded
}

/// A socket that was not redirected connects to the listener. A record of an earlier connection from the same address,
/// one that was never accepted, must not be taken for its own.
#[inline(always)]
fn forget(ctx: &SockOpsContext, config: &Config) -> Counter {
    // SAFETY: the context of this hook; unreachable where the kernel has no such cookie here. There a process in
    // another namespace can make a captured connect fail, which is better than to let one through.
    if OFFSETS.load().has_sock_ops_netns != 0
        && unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != config.netns_cookie
    {
        return Counter::SockOpsNotOurs;
    }
    if CONNECTIONS.remove(connection(ctx, config, config.netns_cookie)).is_ok() {
        Counter::SockOpsStale
    } else {
        Counter::SockOpsNotOurs
    }
}

/// Removes the record of a connect that failed. A connection that was established keeps it, even
/// when the client closes first: the agent takes it at accept.
#[inline(always)]
fn remove(ctx: &SockOpsContext) -> Counter {
    if ctx.arg(0) != BPF_TCP_SYN_SENT || ctx.arg(1) != BPF_TCP_CLOSE {
        return Counter::SockOpsKept;
    }
    let (Some(record), Some(config)) = (stored(ctx), CONFIG.get(0)) else {
        return Counter::SockOpsKept;
    };
    let key = connection(ctx, config, record.netns_cookie);
    // SAFETY: the cookie is read once. Only this socket's own record is removed.
    let own = unsafe { CONNECTIONS.get(key).is_some_and(|found| found.socket_cookie == socket_cookie(ctx)) };
    if own && CONNECTIONS.remove(key).is_ok() { Counter::SockOpsRemoved } else { Counter::SockOpsKept }
}

#[inline(always)]
fn stored<'s>(ctx: &SockOpsContext) -> Option<&'s Record> {
    // SAFETY: the context's socket, loaded once: the verifier takes a second load for another.
    unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let map = (&raw const ORIGINALS).cast_mut().cast::<c_void>();
        bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Record>().as_ref()
    }
}

#[inline(always)]
fn connection(ctx: &SockOpsContext, config: &Config, netns_cookie: u64) -> Connection {
    Connection {
        // Mostly of a record: this hook has no namespace cookie before 5.15.
        netns_cookie,
        address: v4_mapped(ctx.local_ip4()),
        port: ctx.local_port() as u16,
        listener_port: config.listener_port as u16,
        // A v4-mapped socket says AF_INET6 here and is IPv4 on the wire.
        family: AF_INET,
        reserved: 0,
    }
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

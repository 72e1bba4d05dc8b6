//! Which connects are captured. A captured one is turned to the agent, with a note of who wanted what.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie,
        bpf_ktime_get_ns,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::{debug, warn};
use toolgate_ebpf_common::{Config, Counter, DESTINATIONS_ALL, Record, v4_mapped};

use crate::{
    connect::{LOOPBACK, Planned, captured, is_agent, is_listener, is_tcp, pass, planned, refuse},
    maps::{CONFIG, ORIGINALS},
    process::Process,
};

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
    if is_listener(config, target.address, target.port) {
        return Verdict::Refuse(Counter::ConnectListener);
    }
    match planned(v4_mapped(target.address), target.port) {
        Planned::Refused => return Verdict::Refuse(Counter::ConnectRefused),
        Planned::Excluded => return Verdict::Pass(Counter::ConnectExcluded),
        Planned::Unnamed if flags & DESTINATIONS_ALL == 0 => return Verdict::Pass(Counter::ConnectOther),
        Planned::Captured | Planned::Unnamed => {}
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
fn target(ctx: &SockAddrContext) -> Target {
    // SAFETY: readable fields of the context.
    let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    Target { address: if address == 0 { LOOPBACK } else { address }, port: u16::from_be(port as u16) }
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

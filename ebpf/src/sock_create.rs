//! Refuses sockets whose connections no hook would see, and notes where the others were made. Packet, vsock and Unix
//! sockets do not come here: units close those by `RestrictAddressFamilies`.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_current_cgroup_id, macros::cgroup_sock,
    programs::SockContext,
};
use toolgate_ebpf_common::{Counter, Made};

use crate::{
    connect::{ALLOW, refuse},
    maps::{CONFIG, MADE, count},
    process, scope,
};

const SOCK_RAW: u32 = 3;
const IPPROTO_DCCP: u32 = 33;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_MPTCP: u32 = 262;
const EPERM: i32 = 1;
/// Clients that ask for these and find them missing fall back to TCP.
const EPROTONOSUPPORT: i32 = 93;

#[cgroup_sock(sock_create)]
pub fn toolgate_sock_create(ctx: SockContext) -> i32 {
    let captured = scope::of_task();
    if captured.flags == 0 || process::is_agent() {
        count(Counter::CreateAllowed);
        return ALLOW;
    }
    // SAFETY: readable fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    // A bypass ends: what is made meanwhile is noted all the same.
    let bypassed = CONFIG.get(0).is_some_and(scope::is_bypassed);
    if kind == SOCK_RAW && !bypassed {
        return refuse(Counter::CreateRaw, EPERM);
    }
    if !bypassed && is_unseen(protocol) {
        return refuse(Counter::CreateProtocol, EPROTONOSUPPORT);
    }
    // SAFETY: helper without arguments.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let made = Made { captured_id: captured.id, cgroup_id };
    // SAFETY: in this hook the context stands for the socket.
    if unsafe { MADE.set(ctx.as_ptr(), &made) } {
        count(Counter::CreateNoted);
        ALLOW
    } else {
        refuse(Counter::CreateNoStorage, EPERM)
    }
}

/// Whether no other hook sees its connections.
#[inline(always)]
fn is_unseen(protocol: u32) -> bool {
    protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP || protocol == IPPROTO_MPTCP
}

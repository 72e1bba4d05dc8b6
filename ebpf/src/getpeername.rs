//! The client sees the peer that it asked for, not the agent.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use toolgate_ebpf_common::{Counter, Record};

use crate::{
    connect::{ALLOW, socket},
    maps::{ORIGINALS, count},
};

#[cgroup_sock_addr(getpeername4)]
pub fn toolgate_getpeername4(ctx: SockAddrContext) -> i32 {
    let Some(record) = redirected(&ctx) else {
        count(Counter::Peer4Untouched);
        return ALLOW;
    };
    let [.., a, b, c, d] = record.address;
    // SAFETY: fields that this hook may write.
    unsafe {
        (*ctx.sock_addr).user_ip4 = u32::from_ne_bytes([a, b, c, d]);
        (*ctx.sock_addr).user_port = u32::from(record.port.to_be());
    }
    count(Counter::Peer4Original);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn toolgate_getpeername6(ctx: SockAddrContext) -> i32 {
    let Some(record) = redirected(&ctx) else {
        count(Counter::Peer6Untouched);
        return ALLOW;
    };
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = record.address;
    // SAFETY: fields that this hook may write, word by word as the verifier wants.
    unsafe {
        let address = &raw mut (*ctx.sock_addr).user_ip6;
        (*address)[0] = u32::from_ne_bytes([a0, a1, a2, a3]);
        (*address)[1] = u32::from_ne_bytes([b0, b1, b2, b3]);
        (*address)[2] = u32::from_ne_bytes([c0, c1, c2, c3]);
        (*address)[3] = u32::from_ne_bytes([d0, d1, d2, d3]);
        (*ctx.sock_addr).user_port = u32::from(record.port.to_be());
    }
    count(Counter::Peer6Original);
    ALLOW
}

#[inline(always)]
fn redirected<'s>(ctx: &SockAddrContext) -> Option<&'s Record> {
    // SAFETY: the hook's own socket, which no connect changes meanwhile.
    let record = unsafe { ORIGINALS.get(socket(ctx)) }?;
    (record.port != 0).then_some(record)
}

//! Datagrams with an address of their own. Connected ones are decided at connect.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use toolgate_ebpf_common::Counter;

use crate::{
    address::Target,
    connect::{ALLOW, ECONNREFUSED, captured, is_refused_datagram, refuse},
    maps::{CONFIG, count},
    process, scope,
};

#[cgroup_sock_addr(sendmsg4)]
pub fn toolgate_sendmsg4(ctx: SockAddrContext) -> i32 {
    count(Counter::Sendmsg4Entered);
    decide(&ctx, &Target::ipv4(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn toolgate_sendmsg6(ctx: SockAddrContext) -> i32 {
    count(Counter::Sendmsg6Entered);
    decide(&ctx, &Target::ipv6(&ctx))
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, target: &Target) -> i32 {
    let Some(config) = CONFIG.get(0) else {
        return refuse(Counter::ConnectNoConfig, ECONNREFUSED);
    };
    let captured = captured(ctx);
    if captured.flags == 0 || process::is_agent() || scope::is_bypassed(config) {
        return ALLOW;
    }
    if is_refused_datagram(captured, target) {
        return refuse(Counter::ConnectUdp, ECONNREFUSED);
    }
    count(Counter::ConnectUdpOther);
    ALLOW
}

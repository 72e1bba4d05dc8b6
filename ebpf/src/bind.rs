//! Keeps the agent's port in the namespaces that it serves. Nobody else who holds it would be given a connection
//! (`sk_lookup` sees to that), but the agent could not come back to it.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use toolgate_ebpf_common::Counter;

use crate::{
    connect::{ALLOW, refuse},
    maps::{CONFIG, NAMESPACES, count},
    process,
};

const EADDRINUSE: i32 = 98;
const SOCK_STREAM: u32 = 1;

#[cgroup_sock_addr(bind4)]
pub fn toolgate_bind4(ctx: SockAddrContext) -> i32 {
    count(Counter::Bind4Entered);
    decide(&ctx)
}

#[cgroup_sock_addr(bind6)]
pub fn toolgate_bind6(ctx: SockAddrContext) -> i32 {
    count(Counter::Bind6Entered);
    decide(&ctx)
}

#[inline(always)]
fn decide(ctx: &SockAddrContext) -> i32 {
    // SAFETY: readable fields of the context.
    let (kind, port) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).user_port) };
    let port = u32::from(u16::from_be(port as u16));
    if kind != SOCK_STREAM || CONFIG.get(0).is_none_or(|config| config.listener_port != port) {
        return allow(Counter::BindOther);
    }
    // SAFETY: the context of this hook.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: only its presence is asked for.
    if unsafe { NAMESPACES.get(cookie) }.is_none() {
        return allow(Counter::BindNotServed);
    }
    if process::is_agent() { allow(Counter::BindAgent) } else { refuse(Counter::BindRefused, EADDRINUSE) }
}

#[inline(always)]
fn allow(counter: Counter) -> i32 {
    count(counter);
    ALLOW
}

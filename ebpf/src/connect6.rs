//! IPv6 sockets are not captured yet. Where they would reach what is captured they are refused, so that a server that
//! listens for both is not reached around the agent: clients fall back to IPv4.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::debug;
use toolgate_ebpf_common::{Config, Counter, DESTINATIONS_ALL, v4_mapped};

use crate::{
    connect::{LOOPBACK, Planned, captured, is_agent, is_listener, is_tcp, pass, planned, refuse},
    maps::CONFIG,
    process::Process,
};

/// Third word of `::ffff:a.b.c.d`, in network order.
const V4_MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
/// Last word of `::1`, in network order.
const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

/// What becomes of a connect.
enum Verdict {
    Pass(Counter),
    Refuse(Counter),
}

#[cgroup_sock_addr(connect6)]
pub fn toolgate_connect6(ctx: SockAddrContext) -> i32 {
    if !is_tcp(&ctx) {
        return pass(Counter::Connect6NotTcp);
    }
    let Some(config) = CONFIG.get(0) else {
        return refuse(Counter::Connect6NoConfig);
    };
    match verdict(&ctx, config) {
        Verdict::Pass(counter) => pass(counter),
        Verdict::Refuse(counter) => {
            debug!(&ctx, "refused an IPv6 connect, branch {}", counter as u32);
            refuse(counter)
        }
    }
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, config: &Config) -> Verdict {
    let flags = captured();
    if flags == 0 {
        return Verdict::Pass(Counter::Connect6NotCaptured);
    }
    let Some(process) = Process::current() else {
        return Verdict::Refuse(Counter::Connect6NoProcess);
    };
    if is_agent(config, &process) {
        return Verdict::Pass(Counter::Connect6Agent);
    }
    // SAFETY: readable fields of the context.
    let (words, port) = unsafe { ((*ctx.sock_addr).user_ip6, (*ctx.sock_addr).user_port) };
    let port = u16::from_be(port as u16);
    match by_own_address(words, port) {
        Planned::Refused => return Verdict::Refuse(Counter::Connect6Refused),
        Planned::Excluded => return Verdict::Pass(Counter::Connect6Excluded),
        Planned::Captured => return Verdict::Refuse(Counter::Connect6Captured),
        Planned::Unnamed => {}
    }
    let all = flags & DESTINATIONS_ALL != 0;
    match as_v4(words) {
        Some(address) => as_in_connect4(config, all, address, port),
        None if all => Verdict::Pass(Counter::Connect6NotYet),
        None => Verdict::Pass(Counter::Connect6Other),
    }
}

/// A mapped address is IPv4's own: what the plan says of it is asked once, below.
#[inline(always)]
fn by_own_address([a, b, c, d]: [u32; 4], port: u16) -> Planned {
    if a == 0 && b == 0 && c == V4_MAPPED {
        return Planned::Unnamed;
    }
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
    planned([a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3], port)
}

/// The IPv4 destination that a mapped address is, or that has the same server as `::1` and `::`.
#[inline(always)]
fn as_v4([a, b, c, d]: [u32; 4]) -> Option<u32> {
    if a != 0 || b != 0 {
        return None;
    }
    match (c, d) {
        (V4_MAPPED, 0) | (0, 0 | ONE) => Some(LOOPBACK),
        (V4_MAPPED, address) => Some(address),
        _other => None,
    }
}

/// What `connect4` would say, with a refusal where it would capture.
#[inline(always)]
fn as_in_connect4(config: &Config, all: bool, address: u32, port: u16) -> Verdict {
    if is_listener(config, address, port) {
        return Verdict::Refuse(Counter::Connect6Listener);
    }
    match planned(v4_mapped(address), port) {
        Planned::Refused => Verdict::Refuse(Counter::Connect6Refused),
        Planned::Excluded => Verdict::Pass(Counter::Connect6Excluded),
        Planned::Unnamed if !all => Verdict::Pass(Counter::Connect6Other),
        Planned::Captured | Planned::Unnamed => Verdict::Refuse(Counter::Connect6Captured),
    }
}

//! Connects of IPv4 sockets.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use toolgate_ebpf_common::Counter;

use crate::{
    address::Target,
    connect::{ALLOW, is_captured},
    maps::count,
};

/// Where the listener is, in network order.
const LISTENER: u32 = u32::from_ne_bytes([127, 0, 0, 1]);

#[cgroup_sock_addr(connect4)]
pub fn toolgate_connect4(ctx: SockAddrContext) -> i32 {
    count(Counter::Connect4Entered);
    let target = Target::ipv4(&ctx);
    match is_captured(&ctx, &target) {
        Ok(port) => {
            // SAFETY: fields that this hook may write.
            unsafe {
                (*ctx.sock_addr).user_ip4 = LISTENER;
                (*ctx.sock_addr).user_port = u32::from((port as u16).to_be());
            }
            ALLOW
        }
        Err(reply) => reply,
    }
}

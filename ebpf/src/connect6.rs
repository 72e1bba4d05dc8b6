//! Connects of IPv6 sockets. One to a v4-mapped address is IPv4 on the wire, and is turned to the IPv4 listener.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use toolgate_ebpf_common::{AF_INET, Counter};

use crate::{
    address::Target,
    connect::{ALLOW, is_captured},
    maps::count,
};

/// `::ffff:127.0.0.1` and `::1`, in network order.
const LISTENER4: [u32; 4] =
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes([127, 0, 0, 1])];
const LISTENER6: [u32; 4] = [0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])];

#[cgroup_sock_addr(connect6)]
pub fn toolgate_connect6(ctx: SockAddrContext) -> i32 {
    count(Counter::Connect6Entered);
    let target = Target::ipv6(&ctx);
    match is_captured(&ctx, &target) {
        Ok(port) => {
            let [a, b, c, d] = if target.family == AF_INET { LISTENER4 } else { LISTENER6 };
            // SAFETY: fields that this hook may write, word by word as the verifier wants.
            unsafe {
                let address = &raw mut (*ctx.sock_addr).user_ip6;
                (*address)[0] = a;
                (*address)[1] = b;
                (*address)[2] = c;
                (*address)[3] = d;
                (*ctx.sock_addr).user_port = u32::from((port as u16).to_be());
            }
            ALLOW
        }
        Err(reply) => reply,
    }
}

//! The peer of a redirected socket is the one that its owner asked for. Multipath TCP is captured, but its
//! record is on the subflow, which this hook is not given: there the peer is the agent.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use toolgate_ebpf_common::Counter;

use crate::maps::{ORIGINALS, count};

#[cgroup_sock_addr(getpeername4)]
pub fn toolgate_getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the hook's own socket; nothing is inserted.
    let counter = match unsafe { ORIGINALS.get_ptr_mut(&ctx).as_ref() } {
        Some(record) => {
            let [.., a, b, c, d] = record.address;
            // SAFETY: fields that this hook may write.
            unsafe {
                (*ctx.sock_addr).user_ip4 = u32::from_ne_bytes([a, b, c, d]);
                (*ctx.sock_addr).user_port = u32::from(record.port.to_be());
            }
            Counter::PeerOriginal
        }
        None => Counter::PeerUntouched,
    };
    count(counter);
    // This hook cannot refuse.
    1
}

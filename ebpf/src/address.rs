//! Where a socket is connected, bound or sent to: one form for both families.

use aya_ebpf::programs::SockAddrContext;
use toolgate_ebpf_common::{AF_INET, AF_INET6, LOOPBACK4, LOOPBACK6};

/// First three words of `::ffff:a.b.c.d`, in network order; the fourth is the address.
const MAPPED: [u32; 3] = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])];

/// An address as the ABI has it, and a port in host order. Unspecified addresses are resolved as the kernel will, to
/// loopback: otherwise `connect(0.0.0.0:8000)` would pass by a server at 127.0.0.1.
#[derive(Clone, Copy)]
pub struct Target {
    pub address: [u8; 16],
    pub port: u16,
    /// On the wire.
    pub family: u16,
}

impl Target {
    #[inline(always)]
    pub fn ipv4(ctx: &SockAddrContext) -> Self {
        // SAFETY: readable fields of the context.
        let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
        Self { address: mapped(address), port: u16::from_be(port as u16), family: AF_INET }
    }

    #[inline(always)]
    pub fn ipv6(ctx: &SockAddrContext) -> Self {
        // SAFETY: readable fields of the context, word by word as the verifier wants.
        let (a, b, c, d, port) = unsafe {
            let address = &(*ctx.sock_addr).user_ip6;
            (address[0], address[1], address[2], address[3], (*ctx.sock_addr).user_port)
        };
        let port = u16::from_be(port as u16);
        if a == MAPPED[0] && b == MAPPED[1] && c == MAPPED[2] {
            return Self { address: mapped(d), port, family: AF_INET };
        }
        let address = if a == 0 && b == 0 && c == 0 && d == 0 { LOOPBACK6 } else { bytes([a, b, c, d]) };
        Self { address, port, family: AF_INET6 }
    }

    /// An address that leads back to this host in every namespace.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        if self.family == AF_INET { self.address[12] == 127 } else { self.address == LOOPBACK6 }
    }
}

/// Four words in network order as bytes.
#[inline(always)]
pub fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: as many bytes, in the same order. By shifts it would be a hundred instructions.
    unsafe { core::mem::transmute(words) }
}

/// The address of a context that has both forms of it, and says by the family which one counts. Both are read, and
/// whole: of two reads in two branches the compiler makes one by a computed pointer, which the verifier refuses.
///
/// # Safety
/// Both are readable fields of a context.
#[inline(always)]
pub unsafe fn either(ip4: *const u32, ip6: *const [u32; 4], family: u16) -> [u8; 16] {
    // SAFETY: as promised; word by word as the verifier wants.
    let (address, words) = unsafe {
        let word = ip6.cast::<u32>();
        let words = [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ];
        (ip4.read_volatile(), words)
    };
    if family == AF_INET6 { bytes(words) } else { bytes([MAPPED[0], MAPPED[1], MAPPED[2], address]) }
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    if address == 0 { LOOPBACK4 } else { bytes([MAPPED[0], MAPPED[1], MAPPED[2], address]) }
}

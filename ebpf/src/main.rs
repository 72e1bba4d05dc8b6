//! Toolgate's BPF programs, in the order in which one connection meets them:
//!
//! - [`cgroup_mkdir`] captures a cgroup of a captured name when it is made, before a process can be in it;
//! - [`sock_create`] refuses what no other hook would see, and notes in whose cgroup a socket was made;
//! - [`connect4`] and [`connect6`] say where to; [`connect`] decides whether that is captured, notes who connects where
//!   in the socket's storage, and turns the connection to the agent; [`sendmsg`] refuses datagrams;
//! - [`sock_ops`] publishes that record under the connection's addresses, before the SYN, and gives it to the accepted
//!   socket once the handshake is done;
//! - [`sk_lookup`] gives the SYN to a listener of the agent, and drops it where there is no record; to a server's own
//!   port it lets nobody but the agent;
//! - [`getpeername`] tells the client the peer that it asked for;
//! - [`bind`] keeps the agent's port for the agent.
//!
//! Every program leaves through [`maps::count`], so that no way through them is invisible.
#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]

mod address;
mod bind;
mod cgroup_mkdir;
mod connect;
mod connect4;
mod connect6;
mod getpeername;
mod maps;
mod process;
mod scope;
mod sendmsg;
mod sk_lookup;
mod sock_create;
mod sock_ops;
mod storage;

/// bpf_set_retval and most tracing helpers are for programs under a GPL-compatible licence;
/// this part of Toolgate is dual-licensed for the kernel's sake.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

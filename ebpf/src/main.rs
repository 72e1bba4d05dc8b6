//! Toolgate's BPF programs, in the order in which one connection meets them:
//!
//! - [`connect4`] decides whether a connect is captured, notes who connects where in the socket's
//!   storage, and turns the connection to the agent;
//! - [`connect6`] refuses what would reach a captured destination by IPv6; both ask [`connect`];
//! - [`sock_ops`] publishes that record under the connection's addresses, before the SYN;
//! - [`sk_lookup`] gives the SYN to a listener of the agent, and drops it where there is no record;
//! - [`getpeername4`] tells the client the peer that it asked for.
//!
//! Every program leaves through [`maps::count`], so that no way through them is invisible.
#![no_std]
#![no_main]

mod connect;
mod connect4;
mod connect6;
mod getpeername4;
mod maps;
mod process;
mod sk_lookup;
mod sock_ops;

/// bpf_set_retval and most tracing helpers are for programs under a GPL-compatible licence;
/// this part of Toolgate is dual-licensed for the kernel's sake.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

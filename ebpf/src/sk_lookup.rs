//! Who answers on the agent's address and port: a socket that the agent put into the map, whoever
//! else has bound the port; and only for connections with a record.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;
use toolgate_ebpf_common::{Config, Connection, Counter, v4_mapped};

use crate::maps::{CONFIG, CONNECTIONS, LISTENERS, TURN, count};

const AF_INET: u32 = 2;
/// Without it another socket of the same user in the listener's SO_REUSEPORT group gets a share.
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;

#[sk_lookup]
pub fn toolgate_sk_lookup(ctx: SkLookupContext) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return drop(Counter::LookupNoConfig);
    };
    if !is_listener(&ctx, config) {
        count(Counter::LookupOther);
        return SK_PASS;
    }
    let key = connection(&ctx, config);
    // SAFETY: only its presence is asked for.
    if unsafe { CONNECTIONS.get(key) }.is_none() {
        debug!(&ctx, "dropped a connection to the agent without record, source port {}", key.port);
        return drop(Counter::LookupNoRecord);
    }
    match LISTENERS.redirect_sk_lookup(&ctx, turn(config), BPF_SK_LOOKUP_F_NO_REUSEPORT) {
        Ok(()) => {
            count(Counter::LookupAssigned);
            SK_PASS
        }
        Err(_closed) => drop(Counter::LookupNoListener),
    }
}

#[inline(always)]
fn drop(counter: Counter) -> u32 {
    count(counter);
    SK_DROP
}

#[inline(always)]
fn is_listener(ctx: &SkLookupContext, config: &Config) -> bool {
    // SAFETY: readable fields of the context.
    let (family, address, port) =
        unsafe { ((*ctx.lookup).family, (*ctx.lookup).local_ip4, (*ctx.lookup).local_port) };
    family == AF_INET && port == config.listener_port && address == config.listener_address
}

#[inline(always)]
fn connection(ctx: &SkLookupContext, config: &Config) -> Connection {
    // SAFETY: readable fields of the context.
    let (address, port) = unsafe { ((*ctx.lookup).remote_ip4, (*ctx.lookup).remote_port) };
    Connection {
        // This hook knows no cookie, and is attached to the agent's namespace alone.
        netns_cookie: config.netns_cookie,
        address: v4_mapped(address),
        port: u16::from_be(port),
        listener_port: config.listener_port as u16,
        family: AF_INET as u16,
        reserved: 0,
    }
}

/// The next listener. Two SYNs at once may get the same one, which does no harm; an atomic that
/// returns its value would need 5.12.
#[inline(always)]
fn turn(config: &Config) -> u32 {
    let Some(turn) = TURN.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a live slot; torn reads are impossible for an aligned u32.
    let next = unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    };
    if config.listeners == 0 { 0 } else { next % config.listeners }
}

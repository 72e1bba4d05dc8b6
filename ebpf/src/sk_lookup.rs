//! Who answers in one namespace. On the agent's port: a socket that the agent put into the map, whoever else has bound
//! the port, and only for connections with a record. On a guarded port: whoever listens, and only to the agent.
//!
//! The guard is here rather than at the packets of `cgroup_skb`: the kernel has parsed the addresses already, servers
//! that start later or listen on every address need no care, and who is refused learns it at once.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use toolgate_ebpf_common::{
    AF_INET, Admitted, Connection, Counter, Guarded, LISTENERS_MAX, LOOPBACK4, LOOPBACK6, Served,
};

use crate::{
    address,
    maps::{ADMITTED, CONFIG, CONNECTIONS, GUARDED, LISTENERS, SERVED, TURN, count},
};

/// Without it another socket of the same user in the listener's SO_REUSEPORT group gets a share.
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;
const IPPROTO_TCP: u32 = 6;

/// Both ends of a connection, the remote one being who dials.
struct Ends {
    remote: [u8; 16],
    local: [u8; 16],
    remote_port: u16,
    local_port: u16,
    family: u16,
}

#[sk_lookup]
pub fn toolgate_sk_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: readable fields of the context.
    let (protocol, port) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).local_port) };
    if protocol != IPPROTO_TCP {
        return pass(Counter::LookupOther);
    }
    let Some(config) = CONFIG.get(0) else {
        return drop(Counter::LookupNoConfig);
    };
    let served = SERVED.load();
    if port == config.listener_port {
        return listener(&ctx, &served);
    }
    // SAFETY: only its presence is asked for.
    let guarded = unsafe { GUARDED.get(Guarded { netns_cookie: served.netns_cookie, port, reserved: 0 }) };
    if guarded.is_none() {
        return pass(Counter::LookupOther);
    }
    guard(&ctx, &served)
}

#[inline(always)]
fn listener(ctx: &SkLookupContext, served: &Served) -> u32 {
    let ends = ends(ctx);
    // Redirected connects go to loopback; by another address of the host the same ports could be in use.
    let own = if ends.family == AF_INET { ends.local == LOOPBACK4 } else { ends.local == LOOPBACK6 };
    let key = Connection {
        netns_cookie: served.netns_cookie,
        address: ends.remote,
        port: ends.remote_port,
        listener_port: ends.local_port,
        family: ends.family,
        reserved: 0,
    };
    // SAFETY: only its presence is asked for.
    if !own || unsafe { CONNECTIONS.get(key) }.is_none() {
        return drop(Counter::LookupNoRecord);
    }
    match LISTENERS.redirect_sk_lookup(ctx, turn(served, ends.family), BPF_SK_LOOKUP_F_NO_REUSEPORT) {
        Ok(()) => pass(Counter::LookupAssigned),
        Err(_closed) => drop(Counter::LookupNoListener),
    }
}

#[inline(always)]
fn guard(ctx: &SkLookupContext, served: &Served) -> u32 {
    let ends = ends(ctx);
    let mut key = Admitted {
        netns_cookie: served.netns_cookie,
        source: ends.remote,
        destination: ends.local,
        source_port: ends.remote_port,
        destination_port: ends.local_port,
        reserved: 0,
    };
    // SAFETY: only its presence is asked for.
    if unsafe { ADMITTED.get(key) }.is_some() {
        return pass(Counter::LookupAdmitted);
    }
    // What comes by loopback was dialled in this namespace.
    let loopback = if ends.family == AF_INET { ends.local[12] == 127 } else { ends.local == LOOPBACK6 };
    key.netns_cookie = served.home_cookie;
    // SAFETY: as above.
    if !loopback && unsafe { ADMITTED.get(key) }.is_some() {
        return pass(Counter::LookupAdmitted);
    }
    drop(Counter::LookupGuarded)
}

#[inline(always)]
fn pass(counter: Counter) -> u32 {
    count(counter);
    SK_PASS
}

#[inline(always)]
fn drop(counter: Counter) -> u32 {
    count(counter);
    SK_DROP
}

#[inline(always)]
fn ends(ctx: &SkLookupContext) -> Ends {
    // SAFETY: readable fields of the context.
    let (family, remote_port, local_port) =
        unsafe { ((*ctx.lookup).family, (*ctx.lookup).remote_port, (*ctx.lookup).local_port) };
    let family = family as u16;
    // SAFETY: as above.
    let (remote, local) = unsafe {
        (
            address::either(&raw const (*ctx.lookup).remote_ip4, &raw const (*ctx.lookup).remote_ip6, family),
            address::either(&raw const (*ctx.lookup).local_ip4, &raw const (*ctx.lookup).local_ip6, family),
        )
    };
    Ends { remote, local, remote_port: u16::from_be(remote_port), local_port: local_port as u16, family }
}

/// The next listener. Each round begins with another one: of a client that has a connection to ask by and one on which
/// little comes, and of the next such client, the busy ones would all be the same thread's. Two SYNs at once may get
/// the same one, which does no harm; an atomic that returns its value would need 5.12.
#[inline(always)]
fn turn(served: &Served, family: u16) -> u32 {
    let (first, listeners) =
        if family == AF_INET { (0, served.listeners) } else { (LISTENERS_MAX, served.listeners6) };
    let Some(turn) = TURN.get_ptr_mut(0) else {
        return first;
    };
    // SAFETY: a live slot; torn reads are impossible for an aligned u32.
    let next = unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    };
    match next.checked_div(listeners) {
        Some(round) => first + next.wrapping_add(round) % listeners,
        None => first,
    }
}

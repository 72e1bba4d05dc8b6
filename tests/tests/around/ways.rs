//! What is tried, and what comes of it.

/// Who the attacker is, and who runs beside it.
pub(crate) const ATTACKER: &str = "attacker";
pub(crate) const BESIDE: &str = "beside";

/// One way around.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// The words of the attacker; see `Stage::filled` for the names in braces.
    pub(crate) how: &'static str,
    /// What comes of it where only the declared server is captured, and where everything is.
    pub(crate) declared: Outcome,
    pub(crate) all: Outcome,
    /// What is done before.
    pub(crate) given: Given,
}

/// What comes of a way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The audit shows the call under this App ID, denied, and the server never saw it.
    Captured(&'static str),
    /// The same, and no workload fits what was recorded.
    Nobody,
    /// The kernel says so, and nobody saw anything.
    Refused(&'static [&'static str]),
    /// The server answered. Out of scope, or not captured by what was asked for: SECURITY.md says which and why.
    Reached,
    /// A socket was made, a port bound: nothing that can be said of a server.
    Done(&'static str),
}

/// The state that a way starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Given {
    Nothing,
    /// The map of connections under way is full.
    ConnectionsFull,
    /// The attacker's cgroup has used up its share of them.
    QuotaUsed,
    /// The agent was killed.
    AgentDead,
    /// The server's port is guarded no longer: a guard is seen to be what refuses.
    GuardGone,
    /// So with the captured cgroup.
    CaptureGone,
    /// The host has few process ids, so that each comes again soon.
    FewPids,
}

use Outcome::{Captured, Done, Nobody, Reached, Refused};

const CAPTURED: Outcome = Captured(ATTACKER);
/// What a refused connect says.
pub(crate) const REFUSED: Outcome = Refused(&["ECONNREFUSED"]);
/// The same, or the agent accepts and closes: it does not dial a declared server by another of its addresses.
const CLOSED: Outcome = Refused(&["ECONNREFUSED", "ECONNRESET"]);
/// What a refused protocol says, as if the kernel had none.
pub(crate) const UNKNOWN: Outcome = Refused(&["EPROTONOSUPPORT"]);
/// What a kind of socket says that is not allowed.
const FORBIDDEN: Outcome = Refused(&["EPERM"]);
/// What a port says that is the agent's.
const TAKEN: Outcome = Refused(&["EADDRINUSE"]);

const fn both(name: &'static str, how: &'static str, outcome: Outcome) -> Way {
    each(name, how, outcome, outcome)
}

const fn each(name: &'static str, how: &'static str, declared: Outcome, all: Outcome) -> Way {
    Way { name, how, declared, all, given: Given::Nothing }
}

const fn given(given: Given, name: &'static str, how: &'static str, outcome: Outcome) -> Way {
    Way { name, how, declared: outcome, all: outcome, given }
}

/// All of them. `{port}`: the declared server, at 127.0.0.1; `{open}`: a server that nobody declared; both listen at all
/// addresses. `start=inside`: in the captured cgroup.
pub(crate) const WAYS: &[Way] = &[
    // Addresses.
    both("IPv4", "tcp start=inside to=127.0.0.1:{port}", CAPTURED),
    both("0.0.0.0", "tcp start=inside to=0.0.0.0:{port}", CAPTURED),
    each("127.0.0.2", "tcp start=inside to=127.0.0.2:{port}", REFUSED, CAPTURED),
    each("another local address", "tcp start=inside to={near}:{port}", REFUSED, CAPTURED),
    both("v4-mapped", "tcp start=inside to=[::ffff:127.0.0.1]:{port}", CAPTURED),
    both("v4-mapped 0.0.0.0", "tcp start=inside to=[::ffff:0.0.0.0]:{port}", CAPTURED),
    each("v4-mapped another local address", "tcp start=inside to=[::ffff:{near}]:{port}", REFUSED, CAPTURED),
    both("IPv6 loopback", "tcp start=inside to=[::1]:{port}", REFUSED),
    both("IPv6 unspecified", "tcp start=inside to=[::]:{port}", REFUSED),
    each("IPv6 another local address", "tcp start=inside to=[{near6}]:{port}", REFUSED, CAPTURED),
    each("IPv6 link-local address", "tcp start=inside to=[{link_local}%{index}]:{port}", REFUSED, CAPTURED),
    // Ways to connect.
    both("non-blocking connect", "nonblocking start=inside to=127.0.0.1:{port}", CAPTURED),
    both("TCP fast open by sendto", "fast-open start=inside to=127.0.0.1:{port}", CAPTURED),
    both("TCP fast open by connect", "fast-open-connect start=inside to=127.0.0.1:{port}", CAPTURED),
    both("io_uring", "ring start=inside to=127.0.0.1:{port}", CAPTURED),
    both("io_uring with a kernel poller", "ring poller=1 start=inside to=127.0.0.1:{port}", CAPTURED),
    both(
        "connected elsewhere, dissolved, connected again",
        "again start=inside first=127.0.0.1:{open} to=127.0.0.1:{port}",
        CAPTURED,
    ),
    each(
        "connected elsewhere, connected again without dissolving",
        "twice start=inside first=127.0.0.1:{open} to=127.0.0.1:{port}",
        Reached,
        CAPTURED,
    ),
    both("bound to a source address", "tcp start=inside from=127.0.0.9:0 to=127.0.0.1:{port}", CAPTURED),
    both("bound to loopback's device", "tcp start=inside device=lo to=127.0.0.1:{port}", CAPTURED),
    each("bound to another device", "tcp start=inside device={device} to={near}:{port}", REFUSED, REFUSED),
    each(
        "bound to another device, IPv6",
        "tcp start=inside device={device} to=[{near6}]:{port}",
        REFUSED,
        REFUSED,
    ),
    both("bound to a VRF", "tcp start=inside device={vrf} to={in_vrf}:{port}", REFUSED),
    both(
        "IPv6 destination options, captured",
        "tcp start=inside destination_options=1 to=[::1]:{port}",
        REFUSED,
    ),
    both("as another user", "tcp start=inside as=65534 to=127.0.0.1:{port}", CAPTURED),
    both("port 0", "tcp start=inside to=127.0.0.1:0", REFUSED),
    // Protocols.
    both("MPTCP", "tcp start=inside protocol=262 to=127.0.0.1:{port}", UNKNOWN),
    both("MPTCP over IPv6", "tcp start=inside protocol=262 to=[::1]:{port}", UNKNOWN),
    both("SCTP", "makes start=inside family=4 protocol=132", UNKNOWN),
    both("DCCP", "makes start=inside family=4 kind=dccp protocol=33", UNKNOWN),
    both("raw socket", "raw start=inside to=127.0.0.1:{port}", FORBIDDEN),
    both("raw socket, IPv6", "raw start=inside to=[::1]:{port}", FORBIDDEN),
    both("raw socket for TCP", "makes start=inside family=4 kind=raw protocol=6", FORBIDDEN),
    both("packet socket", "packet start=inside to=[::1]:{port}", Reached),
    both("vsock", "makes start=inside family=vsock", Done("made")),
    both("UDP to the server's port, connected", "udp-connected start=inside to=127.0.0.1:{port}", REFUSED),
    both("UDP to the server's port, by sendto", "udp-sent start=inside to=127.0.0.1:{port}", REFUSED),
    both(
        "UDP to the server's port, without a family",
        "udp-sent-without-family start=inside to=127.0.0.1:{port}",
        REFUSED,
    ),
    both(
        "UDP to the server's port, IPv4 by an IPv6 socket",
        "udp-sent start=inside six=1 to=127.0.0.1:{port}",
        REFUSED,
    ),
    both(
        "UDP to the server's port, IPv4 by a connected IPv6 socket",
        "udp-connected start=inside six=1 to=127.0.0.1:{port}",
        REFUSED,
    ),
    both(
        "UDP to the server's port, v4-mapped",
        "udp-sent start=inside to=[::ffff:127.0.0.1]:{port}",
        REFUSED,
    ),
    each("UDP to the server's port, IPv6", "udp-connected start=inside to=[::1]:{port}", Reached, Reached),
    both("UDP-Lite to the server's port", "udp-sent lite=1 start=inside to=127.0.0.1:{port}", REFUSED),
    each("QUIC, connected", "udp-connected start=inside to=127.0.0.1:443", Reached, REFUSED),
    each("QUIC, by sendto", "udp-sent start=inside to={near}:443", Reached, REFUSED),
    each("QUIC, IPv6, connected", "udp-connected start=inside to=[{near6}]:443", Reached, REFUSED),
    each("QUIC, IPv6, by sendto", "udp-sent start=inside to=[::1]:443", Reached, REFUSED),
    each("QUIC, v4-mapped", "udp-connected start=inside to=[::ffff:{near}]:443", Reached, REFUSED),
    both("UDP connected before joining", "udp-connected-before to=127.0.0.1:{port}", Reached),
    // Processes and cgroups.
    both("a socket made before joining", "joins-late to=127.0.0.1:{port}", CAPTURED),
    both("a socket and a ring made before joining", "joins-late-with-ring to=127.0.0.1:{port}", CAPTURED),
    both(
        "a socket made inside, its process moved out",
        "leaves-with-socket start=inside to=127.0.0.1:{port}",
        Nobody,
    ),
    both("a process that leaves, to the declared server", "leaves start=inside to=127.0.0.1:{port}", REFUSED),
    both("a process that leaves, to another server", "leaves start=inside to=127.0.0.1:{open}", Reached),
    both("a cgroup made below", "below start=inside depth=1 to=127.0.0.1:{port}", CAPTURED),
    both("a cgroup made far below", "below start=inside depth=20 to=127.0.0.1:{port}", CAPTURED),
    both("a descriptor received from outside", "received to=127.0.0.1:{port}", CAPTURED),
    both(
        "a connection received from outside, to the declared server",
        "received-connected to=127.0.0.1:{port}",
        REFUSED,
    ),
    both(
        "a connection received from outside, to another server",
        "received-connected to=127.0.0.1:{open}",
        Reached,
    ),
    both("a connection handed on to a process outside", "handed-on to=127.0.0.1:{port}", CAPTURED),
    both("exec between connect and first byte", "becomes-another start=inside to=127.0.0.1:{port}", CAPTURED),
    both("a reused process id", "reuses-pid to=127.0.0.1:{port}", CAPTURED),
    given(
        Given::FewPids,
        "a process id that comes again by itself",
        "reuses-pid comes-again=1 to=127.0.0.1:{port}",
        CAPTURED,
    ),
    both("a thread whose first thread has ended", "leaderless start=inside to=127.0.0.1:{port}", CAPTURED),
    both("a new user namespace", "unshared namespace=user start=inside to=127.0.0.1:{port}", CAPTURED),
    both("a new cgroup namespace", "unshared namespace=cgroup start=inside to=127.0.0.1:{port}", CAPTURED),
    both("a new PID namespace", "first-of-its-pids start=inside to=127.0.0.1:{port}", CAPTURED),
    both(
        "a socket of here, used in another network namespace",
        "socket-to-elsewhere start=inside namespace={namespace} to=127.0.0.1:{port}",
        CAPTURED,
    ),
    both(
        "a relay outside, to the declared server",
        "relayed to=127.0.0.1:{port}",
        Refused(&["ECONNRESET", "EPIPE"]),
    ),
    both("a relay outside, to another server", "relayed to=127.0.0.1:{open}", Reached),
    // The guard: from outside, straight to the declared server.
    both("outside: IPv4", "tcp to=127.0.0.1:{port}", REFUSED),
    both("outside: 0.0.0.0", "tcp to=0.0.0.0:{port}", REFUSED),
    both("outside: another local address", "tcp to={near}:{port}", REFUSED),
    both("outside: v4-mapped", "tcp to=[::ffff:127.0.0.1]:{port}", REFUSED),
    both("outside: IPv6 loopback", "tcp to=[::1]:{port}", REFUSED),
    both("outside: IPv6 unspecified", "tcp to=[::]:{port}", REFUSED),
    both("outside: IPv6 another local address", "tcp to=[{near6}]:{port}", REFUSED),
    both("outside: IPv6 link-local", "tcp to=[{link_local}%{index}]:{port}", REFUSED),
    both("outside: bound to a device", "tcp device={device} to={near}:{port}", REFUSED),
    both("outside: bound to a VRF", "tcp device={vrf} to={in_vrf}:{port}", REFUSED),
    both("outside: MPTCP", "tcp protocol=262 to=127.0.0.1:{port}", REFUSED),
    both("outside: TCP fast open", "fast-open to=127.0.0.1:{port}", REFUSED),
    both("outside: io_uring", "ring to=[::1]:{port}", REFUSED),
    both("outside: IPv6 extension headers", "tcp destination_options=1 to=[{near6}]:{port}", REFUSED),
    both("outside: from another namespace", "elsewhere namespace={namespace} to={near}:{port}", REFUSED),
    both(
        "outside: from another namespace, IPv6",
        "elsewhere namespace={namespace} to=[{near6}]:{port}",
        REFUSED,
    ),
    both(
        "outside: from another namespace, IPv6 extension headers",
        "elsewhere namespace={namespace} destination_options=1 to=[{near6}]:{port}",
        REFUSED,
    ),
    // The agent's port.
    both("the agent's port: IPv4, captured", "tcp start=inside to=127.0.0.1:{agent}", REFUSED),
    both("the agent's port: IPv6, captured", "tcp start=inside to=[::1]:{agent}", REFUSED),
    both("the agent's port: v4-mapped, captured", "tcp start=inside to=[::ffff:127.0.0.1]:{agent}", REFUSED),
    both("the agent's port: 0.0.0.0, captured", "tcp start=inside to=0.0.0.0:{agent}", REFUSED),
    both("the agent's port: ::, captured", "tcp start=inside to=[::]:{agent}", REFUSED),
    both("the agent's port: another loopback, captured", "tcp start=inside to=127.0.0.2:{agent}", REFUSED),
    both("the agent's port: IPv4", "tcp to=127.0.0.1:{agent}", REFUSED),
    both("the agent's port: 0.0.0.0", "tcp to=0.0.0.0:{agent}", REFUSED),
    both("the agent's port: another local address", "tcp to={near}:{agent}", REFUSED),
    both("the agent's port: v4-mapped", "tcp to=[::ffff:127.0.0.1]:{agent}", REFUSED),
    both("the agent's port: IPv6", "tcp to=[::1]:{agent}", REFUSED),
    both("the agent's port: IPv6 another local address", "tcp to=[{near6}]:{agent}", REFUSED),
    both("the agent's port: TCP fast open", "fast-open to=127.0.0.1:{agent}", REFUSED),
    both(
        "the agent's port: from another namespace",
        "elsewhere namespace={namespace} to={near}:{agent}",
        REFUSED,
    ),
    // Taking the agent's port.
    both("bind the agent's port", "bind at=127.0.0.1:{spare}", TAKEN),
    both("bind the agent's port, shared", "bind shared=1 at=127.0.0.1:{spare}", TAKEN),
    both("bind the agent's port, shared, all addresses", "bind shared=1 at=0.0.0.0:{spare}", TAKEN),
    both("bind the agent's port, shared, IPv6", "bind shared=1 at=[::]:{spare}", TAKEN),
    both("bind the agent's port, another user", "bind shared=1 user=65534 at=127.0.0.1:{spare}", TAKEN),
    both("bind the agent's port, in a container", "bind shared=1 container=1 at=127.0.0.1:{spare}", TAKEN),
    both("bind the agent's port, another address", "bind at={near}:{spare}", TAKEN),
    both("listen at the agent's port without a bind", "bind unbound=1 at=127.0.0.1:{spare}", TAKEN),
    both(
        "listen at the agent's port without a bind, IPv6",
        "bind shared=1 unbound=1 at=[::1]:{spare}",
        TAKEN,
    ),
    given(
        Given::AgentDead,
        "a dead agent's process id, to the declared server",
        "under-pid then=tcp pid={agent_pid} to=127.0.0.1:{port}",
        REFUSED,
    ),
    given(
        Given::AgentDead,
        "a dead agent's process id, its port",
        "under-pid then=bind pid={agent_pid} shared=1 at=127.0.0.1:{spare}",
        TAKEN,
    ),
    given(
        Given::AgentDead,
        "a dead agent's source port, to the declared server",
        "tcp from=127.0.0.1:{source} to=127.0.0.1:{port}",
        Refused(&["ECONNREFUSED", "EADDRNOTAVAIL", "EADDRINUSE"]),
    ),
    given(Given::AgentDead, "bind a dead agent's port", "bind at=127.0.0.1:{spare}", TAKEN),
    given(Given::AgentDead, "bind a dead agent's port, IPv6", "bind shared=1 at=[::]:{spare}", TAKEN),
    given(Given::AgentDead, "a dead agent, captured", "tcp start=inside to=127.0.0.1:{port}", REFUSED),
    given(
        Given::AgentDead,
        "a dead agent, captured, v4-mapped",
        "tcp start=inside to=[::ffff:127.0.0.1]:{port}",
        REFUSED,
    ),
    given(Given::AgentDead, "a dead agent, outside: IPv4", "tcp to=127.0.0.1:{port}", REFUSED),
    given(Given::AgentDead, "a dead agent, outside: IPv6", "tcp to=[{near6}]:{port}", REFUSED),
    given(Given::AgentDead, "a dead agent, its port", "tcp to=127.0.0.1:{agent}", REFUSED),
    // The maps.
    given(
        Given::ConnectionsFull,
        "a full map of connections",
        "tcp start=inside to=127.0.0.1:{port}",
        REFUSED,
    ),
    given(
        Given::ConnectionsFull,
        "a full map of connections, v4-mapped",
        "tcp start=inside to=[::ffff:127.0.0.1]:{port}",
        REFUSED,
    ),
    given(Given::QuotaUsed, "a used-up quota", "tcp start=inside to=127.0.0.1:{port}", REFUSED),
    given(
        Given::QuotaUsed,
        "a used-up quota, of another cgroup",
        "tcp start=inside inside={beside} to=127.0.0.1:{port}",
        Captured(BESIDE),
    ),
    // What refuses, taken away by hand.
    given(Given::GuardGone, "the guard taken away: IPv4", "tcp to=127.0.0.1:{port}", Reached),
    given(Given::GuardGone, "the guard taken away: IPv6", "tcp to=[{near6}]:{port}", Reached),
    given(Given::CaptureGone, "the cgroup taken away", "tcp start=inside to=127.0.0.1:{open}", Reached),
    given(
        Given::CaptureGone,
        "the cgroup taken away, a socket made before",
        "joins-late to=127.0.0.1:{open}",
        Reached,
    ),
    // A namespace that the process may enter: refused until the agent serves it, captured from then on. Not dialled
    // then, as it is the declared server by another of its addresses.
    each(
        "another network namespace",
        "elsewhere namespace={namespace} start=inside to={near}:{port}",
        REFUSED,
        CLOSED,
    ),
    each(
        "a socket made in another network namespace",
        "socket-from-elsewhere namespace={namespace} start=inside to=[{near6}]:{port}",
        REFUSED,
        CLOSED,
    ),
];

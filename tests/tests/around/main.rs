//! Ways around the capture, as a table: each is tried without an agent, where it leads to the server, then with an agent
//! that captures what is declared, then with one that captures everything.
//!
//! What a way is called in SECURITY.md is its name here.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate_ebpf_common::{CONNECTIONS_MAX, CONNECTIONS_PER_CGROUP_MAX, Record};
use toolgate_tests::scene::text;
use toolgate_tests::{
    Agent, Cgroup, Host, Netns, PidMax, Process, Setup, Vrf, Witness, free_address, pinned, port_range,
    refusal, wait,
};

/// Who the attacker is, and who runs beside it.
const ATTACKER: &str = "attacker";
const BESIDE: &str = "beside";
/// QUIC's port.
const HTTPS: u16 = 443;
/// Process ids where there are few: the kernel gives none below 300 twice. The machine goes on with them for a second.
const PIDS: u32 = 1_024;
/// When a record was made that no sweep takes for a left one.
const NEVER_OLD: u64 = u64::MAX;

/// One way around.
struct Way {
    name: &'static str,
    /// The words of the attacker; see `Stage::filled` for the names in braces.
    how: &'static str,
    /// What comes of it where only the declared server is captured, and where everything is.
    declared: Outcome,
    all: Outcome,
    /// What is done before.
    given: Given,
}

/// What comes of a way.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
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
enum Given {
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
const REFUSED: Outcome = Refused(&["ECONNREFUSED"]);
/// The same, or the agent accepts and closes: it does not dial a declared server by another of its addresses.
const CLOSED: Outcome = Refused(&["ECONNREFUSED", "ECONNRESET"]);
/// What a refused protocol says, as if the kernel had none.
const UNKNOWN: Outcome = Refused(&["EPROTONOSUPPORT"]);
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
const WAYS: &[Way] = &[
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

/// Which guards are on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// None: there is no agent, and what leads to the server must lead there.
    Off,
    /// The declared server is captured.
    Declared,
    /// Every destination is.
    All,
}

/// What all ways share.
struct Stage {
    mode: Mode,
    /// The declared server, and one that nobody declared.
    server: Witness,
    open: Witness,
    /// Without an agent: who answers at its port.
    stand_in: Option<Witness>,
    /// The agent's port; without an agent, a free one.
    agent_port: u16,
    spare_port: u16,
    /// The namespace that the attacker may enter, and the host's addresses on the link to it.
    netns: Netns,
    near: IpAddr,
    near6: IpAddr,
    /// `None`: this kernel has none.
    vrf: Option<Vrf>,
    inside: Cgroup,
    beside: Cgroup,
    outside: Cgroup,
    /// Records that mean nothing, in a full map.
    filled_with: u64,
    /// Guarded ports that were taken away, and the flags of the cgroup that was.
    taken: Vec<[u8; 16]>,
    flags: [u8; 4],
    few_pids: Option<PidMax>,
    /// Last: the turn ends with it.
    agent: Option<Agent>,
    /// The agent has it, if there is one.
    _turn: Option<Host>,
}

/// Runs all ways in one mode; all that went wrong is told at once.
fn check_all(mode: Mode) -> Result<()> {
    let mut stage = Stage::set(mode)?;
    let mut wrong = Vec::new();
    for way in WAYS {
        if let Err(error) = stage.check(way) {
            wrong.push(format!("{}: {error:#}", way.name));
        }
    }
    // What was refused has not arrived late.
    for way in WAYS {
        if !matches!(stage.expected(way)?, Reached | Done(_)) && stage.saw(&stage.tool(way)) {
            wrong.push(format!("{}: reached the server in the end", way.name));
        }
    }
    ensure!(wrong.is_empty(), "{mode:?}: {} of {} ways:\n{}", wrong.len(), WAYS.len(), wrong.join("\n"));
    Ok(())
}

impl Stage {
    fn set(mode: Mode) -> Result<Self> {
        let mut turn = Some(Host::turn()?);
        let (server, open) = (Witness::start()?, Witness::start()?);
        server.hear_datagrams(HTTPS)?;
        server.hear_udp_lite()?;
        let netns = Netns::new()?;
        let ([near, _], [near6, _]) = (netns.link()?, netns.link6()?);
        let vrf = Vrf::new()?;
        let inside = Cgroup::new("around-inside")?;
        let beside = Cgroup::new("around-beside")?;
        let outside = Cgroup::new("around-outside")?;
        let destinations = if mode == Mode::All { "all" } else { "declared" };
        let cgroups = format!("\"{}\", \"{}\"", inside.name()?, beside.name()?);
        let capture = format!("{{ destinations: {destinations}, cgroups: [{cgroups}] }}");
        let resources = resources(&server, &inside, &beside)?;
        let setup = Setup { resources: &resources, capture: &capture, ..Setup::default() };
        let (agent, stand_in) = match mode {
            Mode::Off => (None, Some(Witness::start()?)),
            Mode::Declared | Mode::All => {
                (Some(Agent::start_in(turn.take().context("no turn")?, setup)?), None)
            }
        };
        let agent_port = match (&agent, &stand_in) {
            (Some(agent), _) => agent.outbound.port(),
            (None, Some(stand_in)) => stand_in.port,
            (None, None) => bail!("nobody has the agent's port"),
        };
        let spare_port = if agent.is_some() { agent_port } else { free_address()?.port() };
        Ok(Self {
            mode,
            agent,
            server,
            open,
            stand_in,
            agent_port,
            spare_port,
            netns,
            near,
            near6,
            vrf,
            inside,
            beside,
            outside,
            filled_with: 0,
            taken: Vec::new(),
            flags: [0; 4],
            few_pids: None,
            _turn: turn,
        })
    }

    /// What the server has to say of this attempt, and of no other.
    fn tool(&self, way: &Way) -> String {
        format!("{:?} {}", self.mode, way.name).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    }

    fn expected(&self, way: &Way) -> Result<Outcome> {
        if let Some(missing) = self.missing(way.how)? {
            return Ok(missing);
        }
        Ok(match self.mode {
            Mode::Declared => way.declared,
            Mode::All => way.all,
            Mode::Off if way.how.contains("bind ") => Done("bound"),
            Mode::Off if way.how.starts_with("makes ") => Done("made"),
            Mode::Off if way.how.contains("to=127.0.0.1:0") => REFUSED,
            Mode::Off => Reached,
        })
    }

    /// What a kernel says that does not have at all what the words name: nothing is to be shown there.
    fn missing(&self, how: &str) -> Result<Option<Outcome>> {
        let listed = fs::read_to_string("/proc/net/protocols").context("no list of protocols")?;
        let has = |name: &str| listed.lines().any(|line| line.starts_with(&format!("{name} ")));
        let needs: [(&str, bool, Outcome); 5] = [
            ("protocol=132", has("SCTP"), UNKNOWN),
            ("protocol=33", has("DCCP"), Refused(&["ESOCKTNOSUPPORT"])),
            ("protocol=262", has("MPTCP"), UNKNOWN),
            ("{vrf}", self.vrf.is_some(), Refused(&["ENODEV"])),
            ("unbound=1", port_range::is_settable()?, Refused(&["ENOPROTOOPT"])),
        ];
        let missing = needs.iter().find(|(word, there, _)| how.contains(word) && !there);
        Ok(missing.map(|&(_, _, says)| says))
    }

    fn check(&mut self, way: &Way) -> Result<()> {
        // What is done to the agent or its maps needs one.
        let is_given = way.given == Given::FewPids || self.mode != Mode::Off;
        if !is_given || way.given == Given::Nothing {
            return self.try_it(way, self.expected(way)?, &self.tool(way));
        }
        self.give(way.given)?;
        let tried = self.expected(way).and_then(|expected| self.try_it(way, expected, &self.tool(way)));
        self.take_back(way.given)?;
        tried?;
        // The same way with what was given taken away.
        if way.how.starts_with("tcp start=inside") && way.how.ends_with("{port}") {
            let who = if way.how.contains("{beside}") { BESIDE } else { ATTACKER };
            return self.try_it(way, Captured(who), &format!("{}-after", self.tool(way)));
        }
        Ok(())
    }

    fn give(&mut self, given: Given) -> Result<()> {
        if matches!(given, Given::GuardGone | Given::CaptureGone) {
            // It would put back what is taken away, some time.
            self.agent.as_ref().context("no agent")?.process().signal(Signal::SIGSTOP)?;
        }
        match given {
            Given::Nothing => Ok(()),
            Given::ConnectionsFull => {
                let record = Record { connected_ns: NEVER_OLD, ..Record::default() };
                // SAFETY: a record has no padding, and every byte of it is initialised.
                let record = unsafe { std::mem::transmute::<Record, [u8; size_of::<Record>()]>(record) };
                self.filled_with = pinned::fill::<32, 96>("CONNECTIONS", record)?;
                let full = u64::from(CONNECTIONS_MAX);
                ensure!(self.filled_with == full, "{} records fill it", self.filled_with);
                Ok(())
            }
            Given::QuotaUsed => {
                let mut pending = pinned::map::<8, 8>("PENDING")?;
                let used = u64::from(CONNECTIONS_PER_CGROUP_MAX);
                pending.insert(self.inside.id()?.to_ne_bytes(), used.to_ne_bytes(), 0)?;
                Ok(())
            }
            Given::AgentDead => {
                self.dialled()?;
                self.agent.as_mut().context("no agent")?.kill()
            }
            Given::GuardGone => {
                let mut guarded = pinned::map::<16, 4>("GUARDED")?;
                for key in guarded.keys().collect::<Result<Vec<_>, _>>()? {
                    guarded.remove(&key)?;
                    self.taken.push(key);
                }
                ensure!(!self.taken.is_empty(), "nothing is guarded");
                Ok(())
            }
            Given::FewPids => {
                self.few_pids = Some(PidMax::set(PIDS)?);
                Ok(())
            }
            Given::CaptureGone => {
                let (mut captured, id) = (pinned::map::<8, 4>("CAPTURED")?, self.inside.id()?.to_ne_bytes());
                self.flags = captured.get(&id, 0)?;
                Ok(captured.remove(&id)?)
            }
        }
    }

    fn take_back(&mut self, given: Given) -> Result<()> {
        if matches!(given, Given::GuardGone | Given::CaptureGone) {
            self.agent.as_ref().context("no agent")?.process().signal(Signal::SIGCONT)?;
        }
        match given {
            Given::Nothing => Ok(()),
            Given::ConnectionsFull => {
                let left = pinned::empty::<32, 96>("CONNECTIONS", self.filled_with)?;
                ensure!(left == self.filled_with, "{left} of {} records are left", self.filled_with);
                Ok(())
            }
            Given::QuotaUsed => {
                pinned::map::<8, 8>("PENDING")?.remove(&self.inside.id()?.to_ne_bytes())?;
                Ok(())
            }
            Given::AgentDead => self.agent.as_mut().context("no agent")?.start_again(),
            Given::GuardGone => {
                let mut guarded = pinned::map::<16, 4>("GUARDED")?;
                self.taken.drain(..).try_for_each(|key| Ok(guarded.insert(key, 1_u32.to_ne_bytes(), 0)?))
            }
            Given::FewPids => {
                self.few_pids = None;
                Ok(())
            }
            Given::CaptureGone => {
                let mut captured = pinned::map::<8, 4>("CAPTURED")?;
                Ok(captured.insert(self.inside.id()?.to_ne_bytes(), self.flags, 0)?)
            }
        }
    }

    fn saw(&self, tool: &str) -> bool {
        [Some(&self.server), Some(&self.open), self.stand_in.as_ref()]
            .into_iter()
            .flatten()
            .any(|witness| witness.saw(tool))
    }

    /// One attempt, and all that is to be seen of it.
    fn try_it(&self, way: &Way, expected: Outcome, tool: &str) -> Result<()> {
        let said = self.run(way.how, tool)?;
        let answered = [Some(&self.server), Some(&self.open), self.stand_in.as_ref()]
            .into_iter()
            .flatten()
            .any(|witness| said.contains(&format!("{} {tool}.", witness.nonce)));
        let pid = said.rsplit_once(" pid=").and_then(|(_, pid)| pid.parse::<u32>().ok());
        match expected {
            Reached => ensure!(answered && self.saw(tool), "it did not reach a server: {said}"),
            Done(what) => ensure!(said.starts_with(what), "{said}"),
            Refused(errnos) => {
                // A program that refuses cannot choose the errno on every kernel; what sk_lookup refuses has its own.
                let mut words = Vec::new();
                for &errno in errnos {
                    words.extend([errno, refusal(errno)?]);
                }
                let refused = words.iter().any(|errno| said.starts_with(&format!("refused {errno} ")));
                ensure!(refused, "not refused by one of {words:?}: {said}");
                ensure!(!self.saw(tool), "refused, and it reached the server: {said}");
            }
            Captured(_) | Nobody => {
                // As an MCP reply, or where the server is not declared.
                let denied = said.starts_with("answered 200 ") || said.starts_with("answered 403 ");
                ensure!(!answered && denied, "not captured: {said}");
                ensure!(!self.saw(tool), "captured, and it reached the server: {said}");
                let app_id = if let Captured(app_id) = expected { json!(app_id) } else { Value::Null };
                self.check_audit(tool, &app_id, pid.context("who connected?")?, &said)?;
                if way.how.starts_with("reuses-pid") {
                    self.check_audit(&format!("{tool}.own"), &json!(BESIDE), pid.unwrap_or_default(), &said)?;
                }
            }
        }
        Ok(())
    }

    /// The one line of the audit that names the tool tells who called it.
    fn check_audit(&self, tool: &str, app_id: &Value, pid: u32, said: &str) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent")?;
        let is_this = |line: &&Value| text(line, "tool") == tool;
        let lines = agent.audit_until(tool, |lines| lines.iter().any(|line| is_this(&line)))?;
        let lines: Vec<_> = lines.iter().filter(is_this).collect();
        let [line] = lines.as_slice() else { bail!("{} audit lines", lines.len()) };
        let told = (&line["caller"]["app_id"], &line["caller"]["pid"], text(line, "decision"));
        ensure!(told == (app_id, &json!(pid), "deny"), "{said}\n{line}");
        // What it has become by now is not who connected.
        let exe = text(line, "caller/exe");
        ensure!(exe.is_empty() || exe.ends_with("/attacker"), "{line}");
        Ok(())
    }

    /// Runs the attacker and returns what it said.
    fn run(&self, how: &str, tool: &str) -> Result<String> {
        let mut process = Process::start(&mut self.command(how, tool)?)?;
        process.end().with_context(|| format!("it hangs: {}", process.said()))?;
        Ok(process.said().trim_end().to_owned())
    }

    fn command(&self, how: &str, tool: &str) -> Result<Command> {
        let how = self.filled(how)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_attacker"));
        command.args(how.split(' '));
        let path = |cgroup: &Cgroup| cgroup.path().display().to_string();
        for (name, value) in [
            ("tool", tool.to_owned()),
            ("inside", path(&self.inside)),
            ("beside", path(&self.beside)),
            ("outside", path(&self.outside)),
            // What the declared server is called, whichever way leads there.
            ("host", format!("127.0.0.1:{}", self.server.port)),
        ] {
            if !how.contains(&format!(" {name}=")) {
                command.arg(format!("{name}={value}"));
            }
        }
        Ok(command)
    }

    fn filled(&self, how: &str) -> Result<String> {
        let index = nix::net::if_::if_nametoindex(self.netns.device())?;
        let mut how = how.to_owned();
        if how.contains("{agent_pid}") {
            how = how.replace("{agent_pid}", &self.agent_pid()?.to_string());
        }
        if how.contains("{source}") {
            how = how.replace("{source}", &self.source_port()?.to_string());
        }
        Ok(how
            .replace("{port}", &self.server.port.to_string())
            .replace("{open}", &self.open.port.to_string())
            .replace("{agent}", &self.agent_port.to_string())
            .replace("{spare}", &self.spare_port.to_string())
            .replace("{near}", &self.near.to_string())
            .replace("{near6}", &self.near6.to_string())
            .replace("{link_local}", &link_local(self.netns.device())?)
            .replace("{index}", &index.to_string())
            .replace("{device}", self.netns.device())
            .replace("{vrf}", self.vrf.as_ref().map_or("no-vrf", |vrf| &vrf.name))
            .replace("{in_vrf}", Vrf::ADDRESS)
            .replace("{beside}", &self.beside.path().display().to_string())
            .replace("{namespace}", &self.netns.path().display().to_string()))
    }
}

impl Stage {
    /// Of the agent, which is dead where this is asked for; else of a process that has ended.
    fn agent_pid(&self) -> Result<u32> {
        match &self.agent {
            Some(agent) => Ok(agent.process().id()),
            None => {
                let mut ended = Process::start(&mut Command::new("true"))?;
                ended.end()?;
                Ok(ended.id())
            }
        }
    }

    /// The port from which the server was last dialled, by the agent; without an agent, a free one.
    fn source_port(&self) -> Result<u16> {
        match (&self.agent, self.server.arrivals().last()) {
            (Some(_), arrival) => Ok(arrival.context("the agent never dialled")?.peer.port()),
            (None, _) => Ok(free_address()?.port()),
        }
    }

    /// A call that is permitted, so that the agent has dialled the server.
    fn dialled(&self) -> Result<()> {
        let said = self.run("tcp start=inside tool=other to=127.0.0.1:{port}", "other")?;
        ensure!(said.contains(&self.server.nonce), "{said}");
        Ok(())
    }
}

/// The link-local address of a device, once nobody else on the link turned out to have it (`/proc/net/if_inet6`).
fn link_local(device: &str) -> Result<String> {
    /// IFA_F_TENTATIVE: until then the address is not local yet.
    const TENTATIVE: u32 = 0x40;
    wait::until("a link-local address", || {
        let addresses = fs::read_to_string("/proc/net/if_inet6").context("no IPv6")?;
        let found = addresses.lines().find(|line| line.starts_with("fe80") && line.ends_with(device));
        let Some(line) = found else { return Ok(None) };
        let flags = line.split_whitespace().nth(4).context("an address without flags")?;
        let digits = line.get(..32).context("a line without address")?;
        let number = u128::from_str_radix(digits, 16).context("not an address")?;
        let ready = u32::from_str_radix(flags, 16).context("flags that are no number")? & TENTATIVE == 0;
        Ok(ready.then(|| std::net::Ipv6Addr::from(number).to_string()))
    })
}

/// One server, two workloads by their cgroups, and a policy that allows neither what is tried here.
fn resources(server: &Witness, inside: &Cgroup, beside: &Cgroup) -> Result<String> {
    let workload = |name: &str, cgroup: &Cgroup| -> Result<String> {
        Ok(format!(
            "apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: {name} }}
spec: {{ selectors: {{ cgroup: \"/{}\" }} }}
---
",
            cgroup.name()?
        ))
    };
    let server = format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: docs }}
spec:
  local: {{ address: \"127.0.0.1:{}\" }}
  path: /mcp
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: docs }}
spec:
  rules:
  - {{ name: other-tools, effect: allow, callers: [{ATTACKER}, {BESIDE}], servers: [docs], tools: [other] }}
",
        server.port
    );
    Ok([workload(ATTACKER, inside)?, workload(BESIDE, beside)?, server].concat())
}

#[test]
fn every_way_leads_to_the_server_without_an_agent() -> Result<()> {
    check_all(Mode::Off)
}

#[test]
fn no_way_leads_around_the_capture_of_a_declared_server() -> Result<()> {
    check_all(Mode::Declared)
}

#[test]
fn no_way_leads_around_the_capture_of_everything() -> Result<()> {
    check_all(Mode::All)
}

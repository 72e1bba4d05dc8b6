//! Capture alone, without the agent around it: what the kernel turns where, and what it says of whom.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{Domain, Socket, Type};
use toolgate::capture::{
    CaptureError, Captured, CapturedCgroup, Destination, Destinations, Kernel, Plan, Removed, Scope, Taker,
    cgroup,
};
use toolgate_tests::{Cgroup, Host, PATIENCE, Process, cgroup2};

/// Nobody's address (RFC 5737): a connection there gets through only if it is captured.
const NOWHERE: &str = "192.0.2.7 8000";
const NOBODY: u32 = 65_534;

/// Connects as it is told, a line each, and keeps what it made.
const CLIENT: &str = r#"
import ctypes, errno, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def new(kind):
    types = {"tcp": (socket.SOCK_STREAM, 0), "mptcp": (socket.SOCK_STREAM, 262), "udp": (socket.SOCK_DGRAM, 0)}
    family = socket.AF_INET6 if kind.endswith("6") else socket.AF_INET
    made = socket.socket(family, *types[kind.rstrip("6")])
    made.settimeout(5)
    kept.append(made)
    return made
def dissolve(made):
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    if libc.connect(made.fileno(), unspecified, len(unspecified)) != 0:
        raise OSError(ctypes.get_errno(), "connect")
def do(words):
    if words[0] == "drop":
        while kept: kept.pop().close()
        return ""
    if words[0] == "many":
        for _ in range(int(words[3])):
            with socket.create_connection((words[1], int(words[2])), 5): pass
        return ""
    if words[0] == "abort":
        kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        kept.pop().close()
        return ""
    if words[0] == "from":
        made = new("tcp")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", int(words[1])))
        made.connect((words[2], int(words[3])))
        return str(made.getsockname()[1])
    if words[0] == "again": dissolve(kept[-1])
    made = kept[-1] if words[0] == "again" else new(words[0])
    made.connect((words[1], int(words[2])))
    return "%s:%d" % made.getpeername()[:2]
for line in sys.stdin:
    try: answer = "+" + do(line.split())
    except OSError as error: answer = "-" + errno.errorcode.get(error.errno, str(error))
    print(answer, flush=True)
"#;

/// A process that connects as it is told.
struct Client(Process);

impl Client {
    fn start(cgroup: Option<&Cgroup>, user: u32, prefix: &[&str]) -> Result<Self> {
        let words: Vec<&str> = prefix.iter().copied().chain(["/usr/bin/python3", "-c", CLIENT]).collect();
        let mut command = Command::new(words.first().context("no command")?);
        command.args(words.get(1..).unwrap_or_default()).uid(user);
        let process = Process::start(&mut command)?;
        // Before its first socket: a socket keeps the cgroup that it was made in.
        if let Some(cgroup) = cgroup {
            cgroup.add(process.id())?;
        }
        Ok(Self(process))
    }

    fn inside(cgroup: &Cgroup) -> Result<Self> {
        Self::start(Some(cgroup), 0, &[])
    }

    fn outside() -> Result<Self> {
        Self::start(None, 0, &[])
    }

    /// The peer, or the name of the errno.
    fn ask(&mut self, command: &str) -> Result<Result<String, String>> {
        let from = self.0.lines();
        self.0.say(command)?;
        let (_, answer) = self.0.line_from(from, "")?;
        Ok(match (answer.strip_prefix('+'), answer.strip_prefix('-')) {
            (Some(peer), _) => Ok(peer.to_owned()),
            (None, Some(errno)) => Err(errno.to_owned()),
            (None, None) => bail!("{}", self.0.said()),
        })
    }
}

/// Accepts, takes the record, and hands both to the test.
struct Acceptor {
    listener: TcpListener,
    taken: Receiver<(TcpStream, Result<Captured, String>)>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    fn start(listener: &TcpListener, mut taker: Taker) -> Result<Self> {
        let accepting = listener.try_clone().context("cannot share a listener")?;
        let (sender, taken): (Sender<_>, Receiver<_>) = channel();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, peer)) = accepting.accept() {
                let captured = taker.take(&stream, peer).map_err(|error| error.to_string());
                if sender.send((stream, captured)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { listener: listener.try_clone()?, taken, thread: Some(thread) })
    }

    fn next(&self) -> Result<Captured> {
        let (_stream, captured) = self.taken.recv_timeout(PATIENCE).context("nothing was captured")?;
        captured.map_err(anyhow::Error::msg)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // Wakes the accept; the listener is closed with its last descriptor.
        let _not_listening = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _panicked = self.thread.take().map(JoinHandle::join);
    }
}

/// An attached kernel side with one listener, the last to go of what a test makes.
struct Rig {
    acceptors: Vec<Acceptor>,
    kernel: Option<Kernel>,
    plan: Plan,
    /// Kept open where nobody accepts.
    listeners: Vec<TcpListener>,
    _turn: Host,
}

impl Rig {
    fn start(plan: impl FnOnce(&mut Plan)) -> Result<Self> {
        Self::with_listeners(1, plan)
    }

    /// Nobody accepts.
    fn deaf(change: impl FnOnce(&mut Plan)) -> Result<Self> {
        let (mut rig, listeners) = Self::attached(1, change)?;
        rig.listeners = listeners;
        Ok(rig)
    }

    fn with_listeners(count: usize, change: impl FnOnce(&mut Plan)) -> Result<Self> {
        let (mut rig, listeners) = Self::attached(count, change)?;
        for listener in &listeners {
            let taker = rig.kernel()?.taker()?;
            rig.acceptors.push(Acceptor::start(listener, taker)?);
        }
        Ok(rig)
    }

    fn attached(count: usize, change: impl FnOnce(&mut Plan)) -> Result<(Self, Vec<TcpListener>)> {
        let turn = Host::turn()?;
        let first = reuseport_listener(0)?;
        let address = v4(first.local_addr()?)?;
        let mut listeners = vec![first];
        while listeners.len() < count {
            listeners.push(reuseport_listener(address.port())?);
        }
        let mut plan = empty_plan(address);
        change(&mut plan);
        let kernel = Kernel::attach(&plan, &listeners)?;
        Ok((
            Self { acceptors: Vec::new(), kernel: Some(kernel), plan, listeners: Vec::new(), _turn: turn },
            listeners,
        ))
    }

    fn kernel(&self) -> Result<&Kernel> {
        self.kernel.as_ref().context("detached")
    }

    fn next(&self) -> Result<Captured> {
        self.acceptors.first().context("no acceptor")?.next()
    }

    /// Branches that were taken since `before`, named `program/branch`.
    fn counted(&self) -> Result<BTreeMap<String, u64>> {
        let counters = self.kernel()?.counters()?;
        Ok(counters.iter().map(|c| (format!("{}/{}", c.program, c.branch), c.count)).collect())
    }

    fn count(&self, name: &str) -> Result<u64> {
        self.counted()?.get(name).copied().with_context(|| format!("no counter `{name}`"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.kernel.take().map(|kernel| kernel.detach()) {
            eprintln!("{error}");
        }
    }
}

fn empty_plan(listener: SocketAddrV4) -> Plan {
    Plan { listener, cgroups: Vec::new(), capture: Vec::new(), exclude: Vec::new(), refuse: Vec::new() }
}

fn all_of(cgroup: &Cgroup) -> Result<CapturedCgroup> {
    Ok(CapturedCgroup { id: cgroup.id()?, scope: Scope::Subtree, destinations: Destinations::All })
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => bail!("not IPv4"),
    }
}

fn reuseport_listener(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// A listener that accepts and keeps, so that a connect to it succeeds.
fn plain_server() -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, format!("127.0.0.1 {port}")))
}

fn destination(text: &str) -> Result<Destination> {
    let (net, port) = text.split_once(' ').map_or((text, None), |(net, port)| (net, Some(port)));
    Ok(Destination { net: net.parse()?, port: port.map(str::parse).transpose()? })
}

fn pins() -> Result<usize> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let bpffs = mounts.lines().find(|line| line.split(' ').nth(2) == Some("bpf")).context("no bpffs")?;
    let folder = Path::new(bpffs.split(' ').nth(1).context("no mount point")?).join("toolgate");
    Ok(fs::read_dir(folder).map_or(0, Iterator::count))
}

#[test]
fn a_captured_process_arrives_with_its_record() -> Result<()> {
    let cgroup = Cgroup::new("record")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let mut client = Client::start(Some(&cgroup), NOBODY, &[])?;
    assert_eq!(client.ask(&format!("tcp {NOWHERE}"))?, Ok("192.0.2.7:8000".to_owned()), "getpeername");
    let found = rig.next()?;
    assert_eq!(found.original, "192.0.2.7:8000".parse()?);
    let process = found.process;
    let pid = client.0.id();
    let exe = fs::metadata(format!("/proc/{pid}/exe"))?;
    assert_eq!((process.tgid, process.uid), (pid, NOBODY));
    assert_eq!((process.exe.dev, process.exe.ino), (exe.dev(), exe.ino()));
    assert_eq!(process.cgroup_id, cgroup.id()?);
    let path = format!("/{}", cgroup.path().strip_prefix(cgroup2()?)?.display());
    assert_eq!(cgroup::path_of(process.cgroup_id)?, path);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks: u64 =
        stat.rsplit_once(") ").and_then(|(_, f)| f.split(' ').nth(19)).context("stat")?.parse()?;
    assert_eq!(process.start_ns / 10_000_000, ticks, "ticks are hundredths of a second");
    Ok(())
}

#[test]
fn a_process_outside_is_untouched() -> Result<()> {
    let cgroup = Cgroup::new("outside")?;
    let captured = all_of(&cgroup)?;
    let (server, address) = plain_server()?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let mut client = Client::outside()?;
    assert_eq!(client.ask(&format!("tcp {address}"))?, Ok(server.local_addr()?.to_string()));
    server.accept().context("it went elsewhere")?;
    assert_eq!(rig.count("connect4/redirected")?, 0);
    assert!(rig.count("connect4/not_captured")? > 0);
    assert!(rig.count("getpeername4/untouched")? > 0);
    Ok(())
}

#[test]
fn nobody_reaches_the_agent_without_a_record() -> Result<()> {
    let cgroup = Cgroup::new("direct")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let port = rig.plan.listener.port();
    let check = |client: &mut Client, address: &str, counter: &str| -> Result<()> {
        let before = rig.count(counter)?;
        let answer = client.ask(&format!("tcp {address} {port}"))?;
        assert_eq!(answer, Err("ECONNREFUSED".to_owned()), "{address} {counter}");
        assert_eq!(rig.count(counter)?, before + 1, "{address} {counter}");
        Ok(())
    };
    check(&mut Client::outside()?, "127.0.0.1", "sk_lookup/dropped_no_record")?;
    let mut inside = Client::inside(&cgroup)?;
    check(&mut inside, "127.0.0.1", "connect4/refused_listener")?;
    check(&mut inside, "0.0.0.0", "connect4/refused_listener")?;
    check(&mut inside, "127.9.9.9", "connect4/refused_listener")?;
    Ok(())
}

#[test]
fn destinations_are_captured_excluded_or_refused() -> Result<()> {
    let cgroup = Cgroup::new("destinations")?;
    let id = cgroup.id()?;
    let (server, _) = plain_server()?;
    let other = server.local_addr()?.port();
    let mut plan_change = Ok(());
    let rig = Rig::start(|plan| {
        plan_change = (|| -> Result<()> {
            plan.cgroups =
                vec![CapturedCgroup { id, scope: Scope::Subtree, destinations: Destinations::Declared }];
            plan.capture = vec![
                destination("127.0.0.1/32 8000")?,
                destination("192.0.2.0/24")?,
                // Longer prefixes than a refusal for any address has.
                destination("127.0.0.0/8 15021")?,
                destination("127.0.0.1/32 15020")?,
                destination("192.0.2.0/24 15021")?,
            ];
            plan.exclude = vec![destination("192.0.2.9/32 81")?, destination("127.0.0.1/32 8001")?];
            plan.refuse = vec!["127.0.0.1:15020".parse()?, "0.0.0.0:15021".parse()?];
            Ok(())
        })();
    })?;
    plan_change?;
    let mut client = Client::inside(&cgroup)?;
    let mut check = |command: &str, branch: &str| -> Result<()> {
        let before = rig.count(&format!("connect4/{branch}"))?;
        let answer = client.ask(command)?;
        assert_eq!(rig.count(&format!("connect4/{branch}"))?, before + 1, "{command}: {answer:?}");
        if branch == "redirected" {
            let (address, port) = command.rsplit_once(' ').context("no port")?;
            let address = address.rsplit_once(' ').context("no address")?.1.replace("0.0.0.0", "127.0.0.1");
            let expected: SocketAddr = format!("{address}:{port}").parse()?;
            assert_eq!(rig.next()?.original, expected, "{command}");
            assert_eq!(answer, Ok(expected.to_string()), "{command}");
        } else if branch.starts_with("refused") {
            assert_eq!(answer, Err("ECONNREFUSED".to_owned()), "{command}");
        }
        Ok(())
    };
    check("tcp 127.0.0.1 8000", "redirected")?;
    check("tcp 0.0.0.0 8000", "redirected")?;
    check("tcp 192.0.2.200 1", "redirected")?;
    check("tcp 127.0.0.1 8001", "excluded")?;
    check("tcp 127.0.0.1 15020", "refused_destination")?;
    check("tcp 127.3.2.1 15021", "refused_destination")?;
    check("tcp 192.0.2.1 15021", "refused_destination")?;
    check(&format!("tcp 127.0.0.1 {other}"), "other_destination")?;
    check("udp 127.0.0.1 8000", "not_tcp")?;
    Ok(())
}

/// A server for both families at once, as many are.
fn dual_stack_server() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind("[::]:0")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

#[test]
fn a_captured_server_is_not_reached_around_by_ipv6() -> Result<()> {
    let (declared, all) = (Cgroup::new("v6-declared")?, Cgroup::new("v6-all")?);
    let captured = CapturedCgroup { destinations: Destinations::Declared, ..all_of(&declared)? };
    let cgroups = vec![captured, all_of(&all)?];
    let (_named, named) = dual_stack_server()?;
    let (_other, other) = dual_stack_server()?;
    let (_open, open) = dual_stack_server()?;
    let mut plan_change = Ok(());
    let rig = Rig::start(|plan| {
        plan_change = (|| -> Result<()> {
            plan.cgroups = cgroups;
            plan.capture =
                vec![destination(&format!("127.0.0.1/32 {named}"))?, destination("2001:db8::/32 80")?];
            plan.exclude = vec![destination(&format!("127.0.0.0/8 {open}"))?];
            plan.refuse = vec!["127.0.0.1:15020".parse()?, "[::1]:15021".parse()?];
            Ok(())
        })();
    })?;
    plan_change?;
    let listener = rig.plan.listener.port();
    let (mut declared, mut all) = (Client::inside(&declared)?, Client::inside(&all)?);
    let check = |client: &mut Client, command: &str, branch: &str| -> Result<()> {
        let before = rig.count(&format!("connect6/{branch}"))?;
        let answer = client.ask(command)?;
        assert_eq!(rig.count(&format!("connect6/{branch}"))?, before + 1, "{command} {branch}: {answer:?}");
        if branch.starts_with("refused") {
            assert_eq!(answer, Err("ECONNREFUSED".to_owned()), "{command}");
        } else if command.contains("::") && !command.contains("2001:") {
            ensure!(answer.is_ok(), "{command}: {answer:?}");
        }
        Ok(())
    };
    for client in [&mut declared, &mut all] {
        for address in ["::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            check(client, &format!("tcp6 {address} {named}"), "refused_captured")?;
            check(client, &format!("tcp6 {address} {open}"), "excluded")?;
            check(client, &format!("tcp6 {address} {listener}"), "refused_listener")?;
            check(client, &format!("tcp6 {address} 15020"), "refused_destination")?;
        }
        check(client, &format!("mptcp6 ::1 {named}"), "refused_captured")?;
        check(client, "tcp6 ::1 15021", "refused_destination")?;
        check(client, "tcp6 2001:db8::1 80", "refused_captured")?;
        check(client, &format!("udp6 ::1 {named}"), "not_tcp")?;
    }
    for address in ["::1", "::", "::ffff:127.0.0.1"] {
        check(&mut declared, &format!("tcp6 {address} {other}"), "other_destination")?;
        check(&mut all, &format!("tcp6 {address} {other}"), "refused_captured")?;
        check(&mut Client::outside()?, &format!("tcp6 {address} {named}"), "not_captured")?;
    }
    check(&mut declared, "tcp6 2001:db8::1 81", "other_destination")?;
    check(&mut all, "tcp6 2001:db8::1 81", "not_captured_yet")?;
    Ok(())
}

#[test]
fn a_record_that_was_left_is_nobody_elses() -> Result<()> {
    let cgroup = Cgroup::new("left")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::deaf(|plan| plan.cgroups = vec![captured])?;
    let listener = rig.plan.listener.port();
    let mut client = Client::inside(&cgroup)?;
    let port = client.ask(&format!("from 0 {NOWHERE}"))?.map_err(anyhow::Error::msg)?;
    assert_eq!(client.ask("abort")?, Ok(String::new()));
    assert_eq!(rig.kernel()?.waiting()?, 1, "nobody took the record");
    let answer = Client::outside()?.ask(&format!("from {port} 127.0.0.1 {listener}"))?;
    assert_eq!(answer, Err("ECONNREFUSED".to_owned()), "from port {port}");
    assert_eq!((rig.count("sock_ops/removed_stale")?, rig.kernel()?.waiting()?), (1, 0));
    Ok(())
}

/// Its own sender may have sent a request before it left: that must not be taken for the next one's.
#[test]
fn a_record_that_was_left_is_not_replaced_by_the_next() -> Result<()> {
    let cgroup = Cgroup::new("replaced")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::deaf(|plan| plan.cgroups = vec![captured])?;
    let mut first = Client::inside(&cgroup)?;
    let port = first.ask(&format!("from 0 {NOWHERE}"))?.map_err(anyhow::Error::msg)?;
    assert_eq!(first.ask("abort")?, Ok(String::new()));
    let mut second = Client::inside(&cgroup)?;
    let connect = format!("from {port} {NOWHERE}");
    assert_eq!(second.ask(&connect)?, Err("ECONNREFUSED".to_owned()), "from port {port}");
    assert_eq!((rig.count("sock_ops/refused_collision")?, rig.kernel()?.waiting()?), (1, 0));
    assert_eq!(second.ask(&connect)?, Ok(port), "the next is another one");
    // The first one waits before it, and would find its record.
    let listener = rig.listeners.first().context("no listener")?;
    let mut taker = rig.kernel()?.taker()?;
    let mut accept = || -> Result<_> {
        let (stream, peer) = listener.accept()?;
        Ok(taker.take(&stream, peer).map(|captured| captured.process.tgid).map_err(|error| error.to_string()))
    };
    ensure!(
        accept()?.is_err_and(|error| error.contains("ended before")),
        "the first connection took the record"
    );
    assert_eq!(accept()?, Ok(second.0.id()));
    Ok(())
}

#[test]
fn a_plan_can_change() -> Result<()> {
    let cgroup = Cgroup::new("update")?;
    let captured = all_of(&cgroup)?;
    let (_server, address) = plain_server()?;
    let rig = Rig::start(|_plan| ())?;
    let mut client = Client::inside(&cgroup)?;
    let mut check = |plan: &Plan, branch: &str| -> Result<()> {
        rig.kernel()?.update(plan)?;
        let before = rig.count(branch)?;
        let answer = client.ask(&format!("tcp {address}"))?;
        ensure!(answer.is_ok(), "{branch}: {answer:?}");
        assert_eq!(rig.count(branch)?, before + 1, "{plan:?}");
        Ok(())
    };
    check(&rig.plan, "connect4/not_captured")?;
    let mut plan = rig.plan.clone();
    plan.cgroups = vec![captured];
    check(&plan, "connect4/redirected")?;
    plan.exclude = vec![destination("127.0.0.0/8")?];
    check(&plan, "connect4/excluded")?;
    plan.exclude.clear();
    plan.cgroups = vec![CapturedCgroup { destinations: Destinations::Declared, ..captured }];
    check(&plan, "connect4/other_destination")?;
    plan.capture = vec![destination("0.0.0.0/0")?];
    check(&plan, "connect4/redirected")?;
    check(&rig.plan, "connect4/not_captured")?;
    Ok(())
}

#[test]
fn the_deepest_captured_cgroup_decides() -> Result<()> {
    let outer = Cgroup::new("outer")?;
    let middle = outer.below("middle")?;
    let inner = middle.below("inner")?;
    let below_only = |cgroup: &Cgroup, destinations| -> Result<CapturedCgroup> {
        Ok(CapturedCgroup { id: cgroup.id()?, scope: Scope::BelowOnly, destinations })
    };
    let cgroups = vec![
        below_only(&outer, Destinations::All)?,
        CapturedCgroup { destinations: Destinations::Declared, ..all_of(&inner)? },
    ];
    let rig = Rig::start(|plan| plan.cgroups = cgroups)?;
    let (_server, address) = plain_server()?;
    let check = |cgroup: &Cgroup, branch: &str| -> Result<()> {
        let before = rig.count(branch)?;
        let answer = Client::inside(cgroup)?.ask(&format!("tcp {address}"))?;
        ensure!(answer.is_ok(), "{branch}: {answer:?}");
        assert_eq!(rig.count(branch)?, before + 1, "{}", cgroup.path().display());
        Ok(())
    };
    check(&outer, "connect4/not_captured")?;
    check(&middle, "connect4/redirected")?;
    check(&inner, "connect4/other_destination")?;
    // The directories go in the order of their depth.
    drop(inner);
    drop(middle);
    Ok(())
}

#[test]
fn a_socket_that_connects_again_has_its_new_peer() -> Result<()> {
    let cgroup = Cgroup::new("again")?;
    let captured = all_of(&cgroup)?;
    let (_server, address) = plain_server()?;
    let mut plan_change = Ok(());
    let rig = Rig::start(|plan| {
        plan.cgroups = vec![captured];
        plan_change = destination("127.0.0.0/8").map(|excluded| plan.exclude = vec![excluded]);
    })?;
    plan_change?;
    let mut client = Client::inside(&cgroup)?;
    assert_eq!(client.ask("tcp 192.0.2.1 80")?, Ok("192.0.2.1:80".to_owned()));
    assert_eq!(rig.next()?.original, "192.0.2.1:80".parse()?);
    assert_eq!(client.ask("again 192.0.2.2 81")?, Ok("192.0.2.2:81".to_owned()));
    assert_eq!(rig.next()?.original, "192.0.2.2:81".parse()?);
    assert_eq!(client.ask(&format!("again {address}"))?, Ok(address.replace(' ', ":")));
    Ok(())
}

#[test]
fn multipath_tcp_is_captured_too() -> Result<()> {
    let cgroup = Cgroup::new("mptcp")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let mut client = Client::inside(&cgroup)?;
    // Not asked for its peer: the record is on the subflow, getpeername on the socket above it.
    ensure!(client.ask("mptcp 192.0.2.3 82")?.is_ok(), "{}", client.0.said());
    assert_eq!(rig.next()?.original, "192.0.2.3:82".parse()?);
    Ok(())
}

#[test]
fn another_network_namespace_is_refused() -> Result<()> {
    let cgroup = Cgroup::new("netns")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let mut client = Client::start(Some(&cgroup), 0, &["unshare", "--net"])?;
    assert_eq!(client.ask(&format!("tcp {NOWHERE}"))?, Err("ECONNREFUSED".to_owned()));
    assert_eq!(rig.count("connect4/refused_namespace")?, 1);
    Ok(())
}

#[test]
fn the_agents_own_connections_are_never_captured() -> Result<()> {
    /// Brings this process back to where it was.
    struct Back(PathBuf);
    impl Drop for Back {
        fn drop(&mut self) {
            let _stays = fs::write(self.0.join("cgroup.procs"), std::process::id().to_string());
        }
    }
    let cgroup = Cgroup::new("agent")?;
    let captured = all_of(&cgroup)?;
    let (server, _) = plain_server()?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
    let _back = Back(cgroup2()?.join(own));
    cgroup.add(std::process::id())?;
    let stream = TcpStream::connect(server.local_addr()?)?;
    assert_eq!(stream.peer_addr()?, server.local_addr()?);
    assert_eq!((rig.count("connect4/agent")?, rig.count("connect4/redirected")?), (1, 0));
    Ok(())
}

#[test]
fn a_thousand_connections_leave_no_record() -> Result<()> {
    let cgroup = Cgroup::new("thousand")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::with_listeners(3, |plan| plan.cgroups = vec![captured])?;
    let mut client = Client::inside(&cgroup)?;
    // Each is closed as soon as it is connected, often before it is accepted.
    assert_eq!(client.ask(&format!("many {NOWHERE} 999"))?, Ok(String::new()));
    for acceptor in &rig.acceptors {
        for _ in 0..333 {
            acceptor.next().context("the listeners take turns")?;
        }
    }
    assert_eq!(rig.kernel()?.waiting()?, 0);
    assert_eq!((rig.count("connect4/redirected")?, rig.count("sock_ops/recorded")?), (999, 999));
    // One that fails: nobody listens any more.
    let Rig { acceptors, kernel, .. } = &mut { rig };
    acceptors.clear();
    assert_eq!(client.ask(&format!("tcp {NOWHERE}"))?, Err("ECONNREFUSED".to_owned()));
    let kernel = kernel.as_ref().context("detached")?;
    let branches = kernel.counters()?;
    let count = |branch: &str| branches.iter().find(|counter| counter.branch == branch).map(|c| c.count);
    assert_eq!((count("dropped_no_listener"), count("removed")), (Some(1), Some(1)));
    assert_eq!((kernel.waiting()?, kernel.sweep()?), (0, 0));
    Ok(())
}

#[test]
fn a_record_is_taken_once() -> Result<()> {
    let cgroup = Cgroup::new("once")?;
    let captured = all_of(&cgroup)?;
    let rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    let mut client = Client::inside(&cgroup)?;
    assert!(client.ask(&format!("tcp {NOWHERE}"))?.is_ok());
    let acceptor = rig.acceptors.first().context("no acceptor")?;
    let (stream, captured) = acceptor.taken.recv_timeout(PATIENCE)?;
    assert!(captured.is_ok());
    let again = rig.kernel()?.taker()?.take(&stream, stream.peer_addr()?);
    assert!(again.is_err(), "{again:?}");
    Ok(())
}

#[test]
fn a_killed_agent_refuses_and_a_new_one_takes_over() -> Result<()> {
    let turn = Host::turn()?;
    let cgroup = Cgroup::new("killed")?;
    let (_server, address) = plain_server()?;
    let capturer = || -> Result<Process> {
        let started = Process::start(Command::new(env!("CARGO_BIN_EXE_capturer")).arg(cgroup.path()))?;
        started.line("ready ")?;
        Ok(started)
    };
    let mut client = Client::inside(&cgroup)?;
    let mut outside = Client::outside()?;
    let mut killed = capturer()?;
    assert_eq!(client.ask(&format!("tcp {NOWHERE}"))?, Ok("192.0.2.7:8000".to_owned()));
    killed.line("took 192.0.2.7:8000")?;
    killed.signal(Signal::SIGKILL)?;
    killed.end()?;
    assert_eq!(client.ask(&format!("tcp {address}"))?, Err("ECONNREFUSED".to_owned()));
    assert_eq!(outside.ask(&format!("tcp {address}"))?, Ok(address.replace(' ', ":")));

    let mut successor = capturer()?;
    assert_eq!(client.ask("tcp 192.0.2.8 80")?, Ok("192.0.2.8:80".to_owned()));
    successor.line("took 192.0.2.8:80")?;
    successor.signal(Signal::SIGKILL)?;
    successor.end()?;
    assert_eq!(client.ask(&format!("tcp {address}"))?, Err("ECONNREFUSED".to_owned()));

    // By its pins alone; of one agent, as the successor removed those of the first.
    assert_eq!(toolgate::capture::detach()?, Removed { links: 5, maps: 9 });
    assert_eq!(client.ask(&format!("tcp {address}"))?, Ok(address.replace(' ', ":")));
    assert_eq!((pins()?, toolgate::capture::detach()?), (0, Removed::default()));
    drop((client, turn));
    Ok(())
}

#[test]
fn an_orderly_end_leaves_no_pin() -> Result<()> {
    let cgroup = Cgroup::new("detach")?;
    let captured = all_of(&cgroup)?;
    let (_server, address) = plain_server()?;
    let mut rig = Rig::start(|plan| plan.cgroups = vec![captured])?;
    assert_eq!(pins()?, 1);
    let mut client = Client::inside(&cgroup)?;
    assert!(client.ask(&format!("tcp {NOWHERE}"))?.is_ok());
    rig.kernel.take().context("detached")?.detach()?;
    assert_eq!(pins()?, 0);
    let accepted = rig.next()?;
    assert_eq!(accepted.original, "192.0.2.7:8000".parse()?, "what was captured goes on");
    assert_eq!(client.ask(&format!("tcp {address}"))?, Ok(address.replace(' ', ":")));
    Ok(())
}

#[test]
fn an_error_leaves_nothing_behind() -> Result<()> {
    let _turn = Host::turn()?;
    let plan = empty_plan("127.0.0.1:1".parse()?);
    let none = Kernel::attach(&plan, &[]).err().context("it attached without a listener")?;
    assert!(matches!(none, CaptureError::Listeners { count: 0, .. }), "{none}");
    let listener = reuseport_listener(0)?;
    let mut plan = empty_plan(v4(listener.local_addr()?)?);
    plan.exclude =
        (0..=16_384).map(|port| destination(&format!("192.0.2.1/32 {port}"))).collect::<Result<_>>()?;
    let full = Kernel::attach(&plan, &[listener]).err().context("it attached with too many destinations")?;
    assert!(matches!(full, CaptureError::TooMany { .. }), "{full}");
    assert_eq!(pins()?, 0);
    Ok(())
}

#[test]
fn cgroups_by_path_and_id() -> Result<()> {
    let cgroup = Cgroup::new("names")?;
    assert_eq!(cgroup::mount()?, cgroup2()?);
    assert_eq!(cgroup::path_of(cgroup::id(&cgroup2()?)?)?, "/");
    let (id, path) = (cgroup.id()?, cgroup.path().to_owned());
    drop(cgroup);
    let gone = cgroup::id(&path).expect_err("its directory is gone");
    assert!(gone.to_string().contains(&*path.to_string_lossy()), "{gone}");
    let gone = cgroup::path_of(id).expect_err("it is gone");
    assert!(gone.to_string().contains(&id.to_string()), "{gone}");
    Ok(())
}

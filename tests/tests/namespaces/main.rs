//! Captured processes in other network namespaces than the agent's: served inside, dialled from inside.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use toolgate_tests::netns::in_cgroup;
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{
    Agent, Caller, Cgroup, Connected, Connection, Held, Host, Netns, Peer, Process, Scene, Server, Setup,
    cgroup2, pinned, toolgate, wait,
};

/// A name of `localhost`, which every namespace has.
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An agent, and a server of the host's at the host's end of a namespace's link.
struct Stage {
    agent: Agent,
    server: Server,
    netns: Netns,
    inside: IpAddr,
}

impl Stage {
    fn set(capture: &str) -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [outside, inside] = netns.link()?;
        let server = Server::at(SocketAddr::new(outside, 0))?;
        let setup = Setup { resources: &resources(server.address), capture, ..Setup::default() };
        Ok(Self { agent: Agent::start_in(host, setup)?, server, netns, inside })
    }

    /// A captured process inside.
    fn caller(&self, app_id: &str) -> Result<Caller> {
        caller_in(&self.agent, &self.netns, app_id)
    }
}

fn caller_in(agent: &Agent, netns: &Netns, app_id: &str) -> Result<Caller> {
    Caller::start(netns.entered_by(&agent.exec(app_id)))
}

/// The first connect of a namespace that was new to the agent may be refused; one of the next is not.
fn connect(caller: &mut Caller, to: SocketAddr) -> Result<Connected> {
    wait::until(&format!("a connection to {to} to be captured"), || Ok(caller.connect(to).ok()))
}

fn http(caller: &mut Caller, to: SocketAddr) -> Result<Connection> {
    Connection::new(connect(caller, to)?.stream, to)
}

fn may(connection: &mut Connection, tool: &str) -> Result<bool> {
    is_result(&connection.post(&call(1, tool, &json!({})))?)
}

/// Whether what is sent comes to nothing: the connection ends without a word.
fn comes_to_nothing(caller: &mut Caller, to: SocketAddr) -> Result<()> {
    let mut connection = http(caller, to)?;
    // It may have ended before.
    let _too_late = connection.send(b"hello\n");
    let said = connection.rest().unwrap_or_default();
    ensure!(said.is_empty(), "{to} answered: {}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn a_caller_in_another_namespace_reaches_declared_servers_by_policy() -> Result<()> {
    let stage = Stage::set("{}")?;
    let mut caller = stage.caller("reader")?;
    let connected = connect(&mut caller, stage.server.address)?;
    assert_eq!(connected.peer, stage.server.address, "the client sees the server that it asked for");
    let mut connection = Connection::new(connected.stream, stage.server.address)?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    let lines = stage.agent.audit(2)?;
    assert!(lines.iter().all(|line| text(line, "caller/app_id") == "reader"), "{lines:#?}");
    Ok(())
}

#[test]
fn without_a_route_declared_servers_are_reached_and_nothing_else() -> Result<()> {
    let stage = Stage::set("{ unrecognised: pass }")?;
    let undeclared = Peer::at(SocketAddr::new(stage.server.address.ip(), 0))?;
    let far = Netns::new()?;
    let mut caller = caller_in(&stage.agent, &far, "reader")?;
    assert!(may(&mut http(&mut caller, stage.server.address)?, "echo")?);
    comes_to_nothing(&mut caller, undeclared.address)?;
    assert!(undeclared.accept_now()?.is_none(), "the agent opened a way that the caller did not have");
    // The same where there is a route.
    let mut near = stage.caller("reader")?;
    http(&mut near, undeclared.address)?.send(b"hello\n")?;
    let mut accepted = undeclared.accept()?;
    assert_eq!(accepted.exactly(6)?, b"hello\n");
    Ok(())
}

#[test]
fn what_is_not_declared_is_dialled_from_the_callers_namespace() -> Result<()> {
    let stage = Stage::set("{ unrecognised: pass }")?;
    let undeclared = Peer::at(SocketAddr::new(stage.server.address.ip(), 0))?;
    let mut caller = stage.caller("reader")?;
    let mut connection = http(&mut caller, undeclared.address)?;
    connection.send(b"hello\n")?;
    let accepted = undeclared.accept()?;
    assert_eq!(accepted.peer()?.ip(), stage.inside, "dialled from the agent's own namespace");
    Ok(())
}

#[test]
fn loopback_means_the_callers_own() -> Result<()> {
    let host = Host::turn()?;
    let server = Server::start()?;
    let setup = Setup {
        resources: &resources(server.address),
        capture: "{ unrecognised: pass }",
        ..Setup::default()
    };
    let agent = Agent::start_in(host, setup)?;
    let netns = Netns::new()?;
    let mut caller = caller_in(&agent, &netns, "reader")?;
    // Nobody is there yet.
    comes_to_nothing(&mut caller, server.address)?;
    let own = netns.within(|| Peer::at(server.address))?;
    http(&mut caller, server.address)?.send(b"hello\n")?;
    assert_eq!(own.accept()?.exactly(6)?, b"hello\n");
    // Also for MCP that the policy permits at home.
    let reply = http(&mut caller, server.address)?.post(&call(1, "echo", &json!({})))?;
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert!(server.requests_now().is_empty(), "the host's own server was reached by the name of another");
    assert_eq!(server.connections(), 0);
    assert!(may(&mut agent.caller("reader")?.http(server.address)?, "echo")?);
    Ok(())
}

#[test]
fn equal_sources_in_two_namespaces_are_told_apart() -> Result<()> {
    let stage = Stage::set("{}")?;
    let other = Netns::new()?;
    let mut callers = Vec::new();
    for (netns, app_id) in [(&stage.netns, "reader"), (&other, "writer")] {
        // One port for each connection that is open.
        netns.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40003"])?;
        callers.push((caller_in(&stage.agent, netns, app_id)?, app_id));
    }
    let sum = call(1, "add", &json!({ "a": 1, "b": 2 }));
    for round in 0..20 {
        let mut open = Vec::new();
        for (caller, app_id) in &mut callers {
            open.push((http(caller, stage.server.address)?, *app_id));
        }
        for (connection, app_id) in &mut open {
            let permitted = is_result(&connection.post(&sum)?)?;
            assert_eq!(permitted, *app_id == "reader", "round {round}: {app_id}");
        }
    }
    Ok(())
}

#[test]
fn the_first_connection_passes_where_the_agent_finds_the_namespace_before() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("first.slice")?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let mut caller = Caller::start(netns.in_cgroup(&slice))?;
    // It is inside when it answers.
    let nobody = Peer::start()?.address;
    caller.connect(nobody).err().context("nobody listens there")?;
    let capture = format!("{{ cgroups: [\"{}\"] }}", slice.name()?);
    let all = format!("{}{}", resources(server.address), workload(&slice.name()?));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    let mut connection = caller.http(server.address).context("the first connect")?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    drop((caller, agent));
    Ok(())
}

/// What runs in `cgroup` is `reader`.
fn workload(cgroup: &str) -> String {
    format!(
        "---
apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: reader }}
spec:
  selectors: {{ cgroup: \"{cgroup}\" }}
"
    )
}

#[test]
fn a_container_of_unshare_is_served_though_its_loopback_is_down() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("unshare.slice")?;
    let server = Server::start()?;
    let elsewhere = Server::at("127.0.0.77:0".parse()?)?;
    // A declared address that is not loopback, of a device that leads nowhere.
    let dummy = Netns::new()?;
    let [outside, _] = dummy.link()?;
    let declared = Server::at(SocketAddr::new(outside, 0))?;
    let capture = format!("{{ cgroups: [\"{}\"], destinations: all }}", slice.name()?);
    let all = format!("{}{}", resources(declared.address), workload(&slice.name()?));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    let mut unshare = in_cgroup(&slice);
    unshare.args(["unshare", "--net", "--pid", "--fork", "--mount", "--kill-child"]);
    let mut caller = Caller::start(unshare)?;
    let mut connection = http(&mut caller, declared.address)?;
    assert!(may(&mut connection, "echo")? && !may(&mut connection, "delete_everything")?);
    for own in [server.address, elsewhere.address] {
        comes_to_nothing(&mut caller, own)?;
    }
    assert_eq!((server.connections(), elsewhere.connections()), (0, 0));
    drop((caller, agent));
    Ok(())
}

/// What the agent holds, and its links in namespaces.
#[derive(Debug)]
struct Left(Held, usize);

impl Left {
    fn by(agent: &Agent) -> Result<Self> {
        let mut links = 0;
        for version in fs::read_dir("/sys/fs/bpf/toolgate")? {
            for link in fs::read_dir(version?.path().join("links"))? {
                links += usize::from(link?.file_name().to_string_lossy().starts_with("sk_lookup-"));
            }
        }
        Ok(Self(Held::by(agent)?, links))
    }

    fn is_within(&self, before: &Self) -> bool {
        self.0.is_within(before.0) && self.1 == before.1
    }
}

#[test]
fn nothing_is_left_of_namespaces_that_are_gone() -> Result<()> {
    let stage = Stage::set("{}")?;
    let before = Left::by(&stage.agent)?;
    for _ in 0..3 {
        let netns = Netns::new()?;
        netns.link()?;
        let mut caller = caller_in(&stage.agent, &netns, "reader")?;
        let mut connection = http(&mut caller, stage.server.address)?;
        assert!(may(&mut connection, "echo")?);
        let link = netns.unname()?;
        assert!(may(&mut connection, "echo")?, "it lives as long as the caller");
        drop((connection, caller));
        link.is_gone()?;
    }
    // The pool keeps connections to the server for some seconds.
    wait::until("the agent to hold no more than before", || {
        Ok(Left::by(&stage.agent)?.is_within(&before).then_some(()))
    })
    .with_context(|| format!("before {before:?}, now {:?}", Left::by(&stage.agent)))
}

#[test]
fn namespaces_that_vanish_while_they_are_found_leave_nothing() -> Result<()> {
    let host = Host::turn()?;
    let slice = Cgroup::new("vanish.slice")?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let capture = format!("{{ cgroups: [\"{}\"] }}", slice.name()?);
    let all = format!("{}{}", resources(server.address), workload(&slice.name()?));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    let before = Left::by(&agent)?;
    // Each makes a namespace, connects from it, which tells the agent, and is gone.
    let connect = format!("exec 3<>/dev/tcp/{}/{}", server.address.ip(), server.address.port());
    for _ in 0..40 {
        let mut short = in_cgroup(&slice);
        short.args(["unshare", "--net", "bash", "-c", &connect]).stderr(std::process::Stdio::null());
        short.status().context("cannot run unshare")?;
    }
    let mut caller = Caller::start(netns.in_cgroup(&slice))?;
    assert!(may(&mut http(&mut caller, server.address)?, "echo")?, "the agent goes on");
    drop(caller);
    wait::until("the agent to hold no more than before", || {
        Ok(Left::by(&agent)?.is_within(&before).then_some(()))
    })
    .with_context(|| format!("before {before:?}, now {:?}", Left::by(&agent)))?;
    let said = agent.process().said();
    assert!(!said.contains("panicked") && !said.contains("is left in the kernel"), "{said}");
    drop(agent);
    Ok(())
}

#[test]
fn a_namespace_that_is_removed_while_connects_run_in_it_leaves_nothing() -> Result<()> {
    let stage = Stage::set("{}")?;
    let before = Left::by(&stage.agent)?;
    let left = || -> Result<[usize; 3]> {
        Ok([
            pinned::entries::<8, 8>("NAMESPACES")?,
            pinned::entries::<32, 96>("CONNECTIONS")?,
            pinned::entries::<48, 8>("ADMITTED")?,
        ])
    };
    let entries = left()?;
    let to = stage.server.address;
    // Several at once, one after the other, and each is cut wherever it is.
    let connects = format!(
        "echo begun; while :; do for n in 1 2 3 4; do (exec 3<>/dev/tcp/{}/{}) 2>/dev/null & done; wait; done",
        to.ip(),
        to.port()
    );
    let mut at_home = stage.agent.caller("writer")?;
    for _ in 0..6 {
        let netns = Netns::new()?;
        netns.link()?;
        let mut caller = caller_in(&stage.agent, &netns, "reader")?;
        connect(&mut caller, to)?;
        let slice = Cgroup::made_by_another(cgroup_of(caller.id())?);
        let mut many = netns.in_cgroup(&slice);
        let many = Process::start(many.args(["bash", "-c", &connects]))?;
        many.line("begun")?;
        let seen = stage.server.connections();
        connect(&mut caller, to)?;
        wait::until("connects of it", || Ok((stage.server.connections() >= seen).then_some(())))?;
        let link = netns.unname()?;
        // All of them at once, in the middle of what they do.
        fs::write(slice.path().join("cgroup.kill"), "1").context("cannot kill a cgroup")?;
        drop((many, caller));
        link.is_gone()?;
        assert!(may(&mut http(&mut at_home, to)?, "echo")?, "the agent hangs");
    }
    drop(at_home);
    wait::until("the agent to hold no more than before", || {
        Ok((Left::by(&stage.agent)?.is_within(&before) && left()? == entries).then_some(()))
    })
    .with_context(|| {
        format!("before {before:?} {entries:?}, now {:?} {:?}", Left::by(&stage.agent), left())
    })?;
    let said = stage.agent.process().said();
    ensure!(!said.contains("panicked") && !said.contains("is left in the kernel"), "{said}");
    Ok(())
}

/// The directory of the cgroup that a process is in.
fn cgroup_of(process: u32) -> Result<PathBuf> {
    let listed = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let own = listed.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
    Ok(cgroup2()?.join(own))
}

/// A list of reserved ports, of the namespace that the thread is in.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

fn reserved() -> Result<String> {
    Ok(fs::read_to_string(RESERVED).context("cannot read it")?.trim().to_owned())
}

/// Puts the host's list back.
struct Reserved(String);

impl Reserved {
    fn with(list: &str) -> Result<Self> {
        let before = reserved()?;
        fs::write(RESERVED, list).context("cannot set it")?;
        Ok(Self(before))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _told_by_later_tests = fs::write(RESERVED, format!("{}\n", self.0));
    }
}

#[test]
fn the_agents_port_is_reserved_where_it_serves_beside_what_others_reserved() -> Result<()> {
    let host = Host::turn()?;
    let before = Reserved::with("7,9-11")?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    netns.run(&["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=8080"])?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let mut agent =
        Agent::start_in(host, Setup { resources: &resources(server.address), ..Setup::default() })?;
    let port = agent.outbound.port();
    let mut caller = caller_in(&agent, &netns, "reader")?;
    connect(&mut caller, server.address)?;
    let inside = || netns.within(reserved);
    assert_eq!((reserved()?, inside()?), (format!("7,9-11,{port}"), format!("8080,{port}")));
    // Nobody gets it who does not ask for it by name.
    netns.within(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{port} {}", port + 1))?;
        let one = std::net::TcpListener::bind("127.0.0.1:0")?;
        ensure!(one.local_addr()?.port() == port + 1, "it got the agent's port");
        ensure!(std::net::TcpListener::bind("127.0.0.1:0").is_err(), "there was another port");
        Ok(())
    })?;
    // Another's change is left as it is.
    netns.run(&["sysctl", "-qw", &format!("net.ipv4.ip_local_reserved_ports=8081,{port}")])?;
    agent.upgrade(&[])?;
    assert_eq!((reserved()?, inside()?), (format!("7,9-11,{port}"), format!("8081,{port}")));
    agent.stop_successor()?;
    assert_eq!((reserved()?, inside()?), ("7,9-11".to_owned(), "8081".to_owned()));
    agent.stop_after_signal()?;

    // So after a death; and the port of an operator's own list stays in it.
    agent.start_again()?;
    connect(&mut caller_in(&agent, &netns, "reader")?, server.address)?;
    assert_eq!(inside()?, format!("8081,{port}"));
    agent.kill()?;
    assert_eq!(reserved()?, format!("7,9-11,{port}"), "also while the agent is dead");
    let output = toolgate().arg("detach").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((reserved()?, inside()?), ("7,9-11".to_owned(), "8081".to_owned()));
    fs::write(RESERVED, port.to_string())?;
    agent.start_again()?;
    agent.stop()?;
    assert_eq!(reserved()?, port.to_string());
    drop((caller, before));
    Ok(())
}

#[test]
fn where_the_agents_port_cannot_be_reserved_it_says_so_once_and_goes_on() -> Result<()> {
    let host = Host::turn()?;
    let (one, other) = (Netns::new()?, Netns::new()?);
    let [outside, _] = one.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let read_only = "mount --bind -o ro /proc/sys /proc/sys && exec \"$0\" \"$@\"";
    let behind = ["unshare", "--mount", "sh", "-c", read_only];
    let setup = Setup { resources: &resources(server.address), behind: &behind, ..Setup::default() };
    let agent = Agent::start_in(host, setup)?;
    for netns in [&one, &other] {
        let mut caller = caller_in(&agent, netns, "reader")?;
        assert!(may(&mut http(&mut caller, server.address)?, "echo")?);
    }
    let said = agent.process().said();
    assert_eq!(said.matches("cannot reserve the agent's port").count(), 1, "{said}");
    Ok(())
}

#[test]
fn a_link_local_destination_is_refused_at_once_and_the_audit_says_why() -> Result<()> {
    let stage = Stage::set("{ destinations: all, unrecognised: pass }")?;
    // With a route, so that IPv6 is not refused as a whole.
    stage.netns.link6()?;
    let mut caller = stage.caller("reader")?;
    connect(&mut caller, stage.server.address)?;
    comes_to_nothing(&mut caller, "[fe80::7%2]:80".parse()?)?;
    let lines = stage.agent.audit(1)?;
    let told = lines.iter().any(|line| text(line, "detail").contains("link-local"));
    ensure!(told, "{lines:#?}");
    Ok(())
}

#[test]
fn a_namespace_of_a_thread_alone_is_served() -> Result<()> {
    let stage = Stage::set("{}")?;
    let script = format!(
        "
import ctypes, os, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def inside():
    assert libc.setns(os.open('/run/netns/{name}', os.O_RDONLY), 0x40000000) == 0
    while True:
        try:
            socket.create_connection(('{ip}', {port})).close()
            print('connected', flush=True)
            return
        except OSError as error:
            time.sleep(0.05)
thread = threading.Thread(target=inside)
thread.start()
thread.join()
",
        name = stage.netns.name,
        ip = stage.server.address.ip(),
        port = stage.server.address.port(),
    );
    let mut exec = stage.agent.exec("reader");
    exec.args(["python3", "-c", &script]);
    Process::start(&mut exec)?.line("connected").map(drop)
}

#[test]
fn without_ipv6_routes_a_client_of_both_families_goes_on_with_ipv4_at_once() -> Result<()> {
    let stage = Stage::set("{ unrecognised: pass }")?;
    let undeclared = Peer::at(SocketAddr::new(stage.server.address.ip(), 0))?;
    // As getaddrinfo orders a name of both families, and as clients try them. No time is measured: a connect that is
    // refused has an error, one that hangs has none.
    let script = format!(
        "
import errno, socket, sys
port = {port}
for line in sys.stdin:
    tries = [(socket.AF_INET6, '2001:db8::7'), (socket.AF_INET, '{ip}')]
    said = []
    for family, address in tries:
        one = socket.socket(family, socket.SOCK_STREAM)
        one.settimeout(5)
        try:
            one.connect((address, port))
            said.append('connected')
            break
        except TimeoutError:
            said.append('timeout')
        except OSError as error:
            said.append(errno.errorcode[error.errno])
    print('tried', *said, flush=True)
",
        ip = undeclared.address.ip(),
        port = undeclared.address.port(),
    );
    let mut exec = stage.agent.exec("reader");
    exec.args(["python3", "-c", &script]);
    let mut client = Process::start(&mut stage.netns.entered_by(&exec))?;
    let mut tried = || -> Result<String> {
        let before = client.lines();
        client.say("again")?;
        Ok(client.line_from(before, "tried")?.1)
    };
    let said = wait::until("the namespace to be served", || {
        let said = tried()?;
        Ok(said.ends_with("connected").then_some(said))
    })?;
    assert!(["tried ENETUNREACH connected", "tried EPERM connected"].contains(&said.as_str()), "{said}");
    // With a route the agent takes it, and the routes' change is noticed.
    stage.netns.run(&["ip", "address", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"])?;
    stage.netns.run(&["ip", "route", "add", "default", "via", "2001:db8:1::1", "dev", "eth0"])?;
    wait::until("the new route to be noticed", || Ok((tried()? == "tried connected").then_some(())))
}

#[test]
fn the_canary_answers_and_is_no_message() -> Result<()> {
    let stage = Stage::set("{}")?;
    let canary = toolgate::netns::CANARY;
    let mut at_home = stage.agent.caller("reader")?;
    let mut inside = stage.caller("reader")?;
    for caller in [&mut at_home, &mut inside] {
        let mut said = String::new();
        connect(caller, canary)?.stream.read_to_string(&mut said)?;
        assert_eq!(said, "toolgate\n");
    }
    assert!(Caller::outside()?.connect(canary).is_err(), "who is not captured finds nobody there");
    assert!(may(&mut at_home.http(stage.server.address)?, "echo")?);
    assert_eq!(stage.agent.audit(1)?.len(), 1);
    Ok(())
}

#[test]
fn a_declared_server_is_not_reached_by_another_of_its_addresses() -> Result<()> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    let everywhere = Server::at((Ipv4Addr::UNSPECIFIED, 0).into())?;
    let port = everywhere.address.port();
    let declared = SocketAddr::new(LOCALHOST, port);
    let setup =
        Setup { resources: &resources(declared), capture: "{ unrecognised: pass }", ..Setup::default() };
    let agent = Agent::start_in(host, setup)?;
    let mut at_home = agent.caller("reader")?;
    assert!(may(&mut at_home.http(declared)?, "echo")?);
    let before = everywhere.connections();
    let other = SocketAddr::new(outside, port);
    let mut inside = caller_in(&agent, &netns, "reader")?;
    for caller in [&mut at_home, &mut inside] {
        comes_to_nothing(caller, other)?;
        let reply = http(caller, other).and_then(|mut http| http.post(b"{\"not\": \"mcp\"}"));
        assert!(reply.is_err() || reply.is_ok_and(|reply| reply.status == 403));
    }
    assert!(Caller::outside()?.connect(other).is_err(), "nor by who is not captured");
    assert_eq!(everywhere.connections(), before);
    Ok(())
}

#[test]
fn a_server_in_a_served_namespace_accepts_the_agent_alone() -> Result<()> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let [_, inside] = netns.link()?;
    let server = netns.within(|| Server::at(SocketAddr::new(inside, 0)))?;
    let agent = Agent::start_in(host, Setup { resources: &resources(server.address), ..Setup::default() })?;
    let mut outside = Caller::outside()?;
    assert!(outside.connect(server.address).is_ok(), "the agent does not listen in there yet");
    let mut neighbour = caller_in(&agent, &netns, "reader")?;
    assert!(may(&mut http(&mut neighbour, server.address)?, "echo")?);
    wait::until("its port to be guarded", || Ok(outside.connect(server.address).is_err().then_some(())))?;
    assert!(may(&mut agent.caller("reader")?.http(server.address)?, "echo")?);
    Ok(())
}

#[test]
fn a_process_that_holds_the_agents_port_gets_nothing() -> Result<()> {
    let stage = Stage::set("{}")?;
    let squatter =
        stage.netns.within(|| Peer::at(SocketAddr::new(LOCALHOST, stage.agent.outbound.port())))?;
    let mut caller = stage.caller("reader")?;
    assert!(may(&mut http(&mut caller, stage.server.address)?, "echo")?);
    assert!(squatter.accept_now()?.is_none());
    Ok(())
}

/// The key of an admission, as the kernel has it.
fn admission(cookie: u64, from: SocketAddrV4, to: SocketAddrV4) -> Result<[u8; 48]> {
    let mapped = |address: SocketAddrV4| address.ip().to_ipv6_mapped().octets();
    let ports = [from.port().to_ne_bytes(), to.port().to_ne_bytes()].concat();
    let key = [&cookie.to_ne_bytes()[..], &mapped(from), &mapped(to), &ports, &[0; 4]].concat();
    <[u8; 48]>::try_from(key.as_slice()).context("another layout")
}

#[test]
fn what_is_admitted_in_one_namespace_opens_nothing_in_another() -> Result<()> {
    let scene = Scene::set()?;
    let SocketAddr::V4(server) = scene.server.address else { bail!("no IPv4") };
    let served = pinned::map::<8, 8>("NAMESPACES")?.keys().collect::<Result<Vec<_>, _>>()?;
    let [home] = served.as_slice() else { bail!("{} namespaces are served", served.len()) };
    let home = u64::from_ne_bytes(*home);
    // An agent's dial in another namespace has the same addresses and ports there.
    for (cookie, reached) in [(home ^ 1, false), (home, true)] {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let from = socket.local_addr()?.as_socket_ipv4().context("no IPv4")?;
        let key = admission(cookie, from, server)?;
        pinned::map::<48, 8>("ADMITTED")?.insert(key, [0; 8], 0)?;
        assert_eq!(socket.connect(&scene.server.address.into()).is_ok(), reached, "{cookie} of {home}");
        pinned::map::<48, 8>("ADMITTED")?.remove(&key)?;
    }
    Ok(())
}

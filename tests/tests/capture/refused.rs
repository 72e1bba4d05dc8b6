//! What is refused: in a captured cgroup what no other hook would see, and to everybody the agent's port.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use toolgate::capture::Plan;
use toolgate_tests::{Cgroup, kernel, refusal};

use crate::client::Client;
use crate::rig::{NOWHERE, NOWHERE6, Rig, Wanted, all_of, declared_of, destination};

/// A device of this host that is not loopback, up and with an address.
fn device() -> Result<String> {
    let devices = std::fs::read_to_string("/proc/net/route")?;
    let device = devices.lines().nth(1).and_then(|line| line.split('\t').next());
    Ok(device.context("no route, so no device to try")?.to_owned())
}

#[test]
fn nobody_reaches_the_agent_directly() -> Result<()> {
    let cgroup = Cgroup::new("direct")?;
    let rig = Rig::capturing(&cgroup)?;
    let port = rig.port;
    let (mut inside, mut outside) = (Client::inside(&cgroup)?, Client::outside()?);
    for client in [&mut inside, &mut outside] {
        for address in
            ["tcp 127.0.0.1", "tcp 0.0.0.0", "tcp 127.9.9.9", "tcp6 ::1", "tcp6 ::", "tcp6 ::ffff:127.0.0.1"]
        {
            let before = rig.count("connect/refused_listener")?;
            client.must_be_refused(&format!("{address} {port}"), "ECONNREFUSED")?;
            assert_eq!(rig.count("connect/refused_listener")?, before + 1, "{address}");
        }
    }
    // By another address of this host connect does not know it, but sk_lookup does.
    let other = std::net::UdpSocket::bind("0.0.0.0:0")?;
    other.connect("192.0.2.77:9")?;
    let other = other.local_addr()?.ip();
    outside.must_fail(&format!("tcp {other} {port}"), "ECONNREFUSED")?;
    assert_eq!(rig.count("sk_lookup/dropped_no_record")?, 1);
    // To the agent itself it is no server either.
    ensure!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(rig.count("sk_lookup/dropped_no_record")?, 2);
    Ok(())
}

#[test]
fn the_port_is_bound_by_the_agent_alone() -> Result<()> {
    let rig = Rig::start(Plan::default())?;
    let (port, mut outside) = (rig.port, Client::outside()?);
    // Addresses where no socket is in the way.
    for (number, listen) in (1..).zip(["tcp 127.0.0.2", "tcp 0.0.0.0", "tcp6 ::"]) {
        outside.must_be_refused(&format!("listen {listen} {port}"), "EADDRINUSE")?;
        assert_eq!(rig.count("bind/refused")?, number, "{listen}");
    }
    TcpListener::bind(("127.0.0.2", port)).context("the agent may")?;
    outside.must(&format!("listen udp 127.0.0.1 {port}")).context("UDP is another protocol's port")?;
    outside.must("listen tcp 127.0.0.1 0").context("another port")?;
    Ok(())
}

/// What a socket of another protocol is refused with: by the hook, or by a kernel that does not know the protocol.
fn refused_protocol(by_hook: bool) -> Result<&'static str> {
    if by_hook { refusal("EPROTONOSUPPORT") } else { Ok("EPROTONOSUPPORT") }
}

#[test]
fn sockets_that_no_hook_sees_are_not_made() -> Result<()> {
    let cgroup = Cgroup::new("kinds")?;
    let rig = Rig::capturing(&cgroup)?;
    let (mut inside, mut outside) = (Client::inside(&cgroup)?, Client::outside()?);
    for kind in ["raw", "raw6"] {
        inside.must_fail(&format!("make {kind}"), "EPERM")?;
        outside.must(&format!("make {kind}"))?;
    }
    // Of Debian's kernels, 5.10 is built without it, and says so before any hook.
    let has_mptcp = std::path::Path::new("/proc/sys/net/mptcp").exists();
    ensure!(has_mptcp || kernel()? < (6, 1), "this kernel has MPTCP");
    for kind in ["mptcp", "mptcp6"] {
        inside.must_fail(&format!("make {kind}"), refused_protocol(has_mptcp)?)?;
        if has_mptcp {
            outside.must(&format!("make {kind}"))?;
        }
    }
    let refused = (rig.count("sock_create/refused_raw")?, rig.count("sock_create/refused_protocol")?);
    assert_eq!(refused, (2, if has_mptcp { 2 } else { 0 }));
    // This kernel need not have them; where it does, the hook refuses with the same errno where it can.
    let by_hook = refused_protocol(true)?;
    for kind in ["sctp", "dccp"] {
        let answer = inside.ask(&format!("make {kind}"))?;
        let refused = answer.as_ref().is_err_and(|errno| errno.ends_with("NOSUPPORT") || errno == by_hook);
        ensure!(refused, "{kind}: {answer:?}");
    }
    for kind in ["tcp", "tcp6", "udp", "udp6"] {
        inside.must(&format!("make {kind}"))?;
    }
    if has_mptcp {
        // One that was made before it came in is captured by its subflow; getpeername asks the socket above that.
        outside.must("keep mptcp")?;
        cgroup.add(outside.0.id())?;
        outside.must(&format!("now {NOWHERE}"))?;
        assert_eq!(rig.next()?.original, "192.0.2.7:8000".parse()?);
    }
    drop(outside);
    Ok(())
}

#[test]
fn datagrams_do_not_go_where_connections_are_captured() -> Result<()> {
    let (all, declared) = (Cgroup::new("udp-all")?, Cgroup::new("udp-declared")?);
    let rig = Rig::start(Plan {
        cgroups: vec![all_of(&all)?, declared_of(&declared)?],
        capture: vec![
            destination("192.0.2.0/24 8000")?,
            destination("2001:db8::/32 8000")?,
            destination("198.51.100.0/24")?,
        ],
        exclude: vec![destination("127.0.0.1/32 443")?],
        ..Plan::default()
    })?;
    let (mut all, mut declared) = (Client::inside(&all)?, Client::inside(&declared)?);
    let errno = refusal("ECONNREFUSED")?;
    let check = |client: &mut Client, to: &str, refused: bool| -> Result<()> {
        let (branch, other) =
            if refused { ("refused_udp", "other_udp") } else { ("other_udp", "refused_udp") };
        let (branch, other) = (format!("connect/{branch}"), format!("connect/{other}"));
        let family = if to.contains(':') { "udp6" } else { "udp" };
        for command in [format!("{family} {to}"), format!("send {family} {to}")] {
            let before = (rig.count(&branch)?, rig.count(&other)?);
            let answer = client.ask(&command)?;
            assert_eq!(
                (rig.count(&branch)?, rig.count(&other)?),
                (before.0 + 1, before.1),
                "{command}: {answer:?}"
            );
            ensure!(!refused || answer == Err(errno.to_owned()), "{command}: {answer:?}");
        }
        Ok(())
    };
    for client in [&mut all, &mut declared] {
        check(client, NOWHERE, true)?;
        check(client, NOWHERE6, true)?;
        check(client, "::ffff:192.0.2.7 8000", true)?;
        // Whole networks are asked for names and time, and for QUIC in vain.
        check(client, "198.51.100.7 53", false)?;
        check(client, "198.51.100.7 443", true)?;
        check(client, "127.0.0.1 53", false)?;
        check(client, "127.0.0.1 443", false)?;
    }
    // QUIC, to where nobody declared anything.
    for to in ["192.0.2.7 443", "::1 443"] {
        check(&mut all, to, true)?;
        check(&mut declared, to, false)?;
    }
    Client::outside()?.must("udp 192.0.2.7 443")?;
    Ok(())
}

#[test]
fn a_socket_bound_to_a_device_does_not_wait_in_vain() -> Result<()> {
    let cgroup = Cgroup::new("device")?;
    let rig = Rig::capturing(&cgroup)?;
    let mut client = Client::inside(&cgroup)?;
    client.must_be_refused(&format!("device {} {NOWHERE}", device()?), "ECONNREFUSED")?;
    assert_eq!(rig.count("connect/refused_device")?, 1);
    client.must(&format!("device lo {NOWHERE}"))?;
    assert_eq!(rig.next()?.original, "192.0.2.7:8000".parse()?);
    Ok(())
}

/// A client that tries both families goes on with IPv4 at once.
#[test]
fn without_a_route_ipv6_is_refused_but_what_is_declared() -> Result<()> {
    let cgroup = Cgroup::new("no-route")?;
    let plan = Plan {
        cgroups: vec![all_of(&cgroup)?],
        capture: vec![destination("2001:db8:1::/48")?],
        ..Plan::default()
    };
    let rig = Rig::with(Wanted { plan, ipv6_routes: false, ..Wanted::default() })?;
    let mut client = Client::inside(&cgroup)?;
    client.must_be_refused(&format!("tcp6 {NOWHERE6}"), "ENETUNREACH")?;
    assert_eq!(rig.count("connect/refused_no_route")?, 1);
    client.must("tcp6 2001:db8:1::1 80")?;
    assert_eq!(rig.next6()?.original, "[2001:db8:1::1]:80".parse()?);
    client.must("tcp6 ::1 80")?;
    assert_eq!(rig.next6()?.original, "[::1]:80".parse()?);
    client.must("tcp6 ::ffff:192.0.2.7 80")?;
    assert_eq!(rig.next()?.original, "192.0.2.7:80".parse()?);
    rig.kernel()?.set_routes(rig.home, true)?;
    client.must(&format!("tcp6 {NOWHERE6}"))?;
    assert_eq!(rig.next6()?.original, "[2001:db8::7]:8000".parse()?);
    rig.kernel()?.set_routes(rig.home, false)?;
    client.must_be_refused(&format!("tcp6 {NOWHERE6}"), "ENETUNREACH")?;
    Ok(())
}

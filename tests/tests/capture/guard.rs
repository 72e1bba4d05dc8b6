//! Ports of servers that only the agent may connect to.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};
use toolgate::capture::Plan;
use toolgate_tests::{Cgroup, wait};

use crate::bpf::Pinned;
use crate::client::Client;
use crate::rig::{Rig, dual_stack_server};

/// By whichever address a server of this host is reached: how clients are asked, and how this process dials.
const ADDRESSES: [(&str, &str); 4] = [
    ("tcp 127.0.0.1", "127.0.0.1"),
    ("tcp 127.9.9.9", "127.9.9.9"),
    ("tcp6 ::1", "[::1]"),
    ("tcp6 ::ffff:127.0.0.1", "[::ffff:127.0.0.1]"),
];

#[test]
fn only_the_agent_reaches_a_guarded_port() -> Result<()> {
    let (server, port) = dual_stack_server()?;
    let mut rig = Rig::start(Plan::default())?;
    let mut outside = Client::outside()?;
    for (ask, _) in ADDRESSES {
        outside.must(&format!("{ask} {port}"))?;
        server.accept()?;
    }
    let home = rig.home;
    rig.update(|plan| plan.guarded = vec![(home, port)])?;
    for (number, (ask, dial)) in (1..).zip(ADDRESSES) {
        outside.must_fail(&format!("{ask} {port}"), "ECONNREFUSED")?;
        assert_eq!(rig.count("sk_lookup/dropped_guarded")?, number, "{ask}");
        let dialled = TcpStream::connect(format!("{dial}:{port}"))?;
        let (_accepted, peer) = server.accept()?;
        assert_eq!(peer.port(), dialled.local_addr()?.port(), "{dial}");
        assert_eq!(rig.count("sk_lookup/admitted")?, number, "{dial}");
    }
    // Another port of the same server's host stays open, and this one again when it is no longer guarded.
    let (other, other_port) = dual_stack_server()?;
    outside.must(&format!("tcp 127.0.0.1 {other_port}"))?;
    other.accept()?;
    rig.update(|plan| plan.guarded.clear())?;
    outside.must(&format!("tcp 127.0.0.1 {port}"))?;
    server.accept()?;
    Ok(())
}

#[test]
fn a_server_that_starts_later_is_guarded_on_every_address() -> Result<()> {
    let port = dual_stack_server()?.1;
    let mut rig = Rig::start(Plan::default())?;
    let home = rig.home;
    rig.update(|plan| plan.guarded = vec![(home, port)])?;
    let mut outside = Client::outside()?;
    for (listen, dial, ask) in [
        ("0.0.0.0", "127.0.0.1", "tcp 127.0.0.1"),
        ("[::]", "[::1]", "tcp6 ::1"),
        ("127.0.0.1", "127.0.0.1", "tcp 127.0.0.1"),
    ] {
        let server = TcpListener::bind(format!("{listen}:{port}"))?;
        outside.must_fail(&format!("{ask} {port}"), "ECONNREFUSED")?;
        let dialled = TcpStream::connect(format!("{dial}:{port}"))?;
        assert_eq!(server.accept()?.1.port(), dialled.local_addr()?.port(), "{listen}");
        // The server closes last: nothing of it is left at the port.
        dialled.shutdown(std::net::Shutdown::Both)?;
    }
    assert_eq!(rig.count("sk_lookup/dropped_guarded")?, 3);
    Ok(())
}

/// The addresses of the agent's own dial are no door for others once it is closed.
/// Connects from a port that no connection has, and none has had a moment ago: what connects without a bind may share
/// its port with one to elsewhere, and the port is then in use for longer than the connection.
fn from_a_free_port(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[test]
fn an_admission_ends_with_its_connection() -> Result<()> {
    const ADMITTED_BYTES: usize = 48;
    let (server, port) = dual_stack_server()?;
    let mut rig = Rig::start(Plan::default())?;
    let home = rig.home;
    rig.update(|plan| plan.guarded = vec![(home, port)])?;
    let mut dialled = from_a_free_port((Ipv4Addr::LOCALHOST, port).into())?;
    let (accepted, _) = server.accept()?;
    let source = dialled.local_addr()?.port();
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    let mut key = Vec::with_capacity(ADMITTED_BYTES);
    key.extend(home.to_string().parse::<u64>()?.to_ne_bytes());
    key.extend(mapped.into_iter().chain(mapped));
    key.extend(source.to_ne_bytes().into_iter().chain(port.to_ne_bytes()).chain([0; 4]));
    let (admitted, mut cookie) = (Pinned::map("ADMITTED")?, [0; 8]);
    assert!(admitted.get(&key, &mut cookie), "it is there as long as the connection is");
    // The server closes first, and its client has seen that, so that it is the one to wait for what is late: else both may
    // have closed at once, and the client's port is in use.
    drop(accepted);
    assert_eq!(dialled.read(&mut [0])?, 0);
    drop(dialled);
    wait::until("the end of an admission", || Ok((!admitted.get(&key, &mut cookie)).then_some(())))?;
    Client::outside()?.must_fail(&format!("from {source} 127.0.0.1 {port}"), "ECONNREFUSED")?;
    Ok(())
}

#[test]
fn a_bypass_opens_guarded_ports_to_its_cgroup() -> Result<()> {
    let cgroup = Cgroup::new("guarded")?;
    let (server, port) = dual_stack_server()?;
    let mut rig = Rig::capturing(&cgroup)?;
    let home = rig.home;
    rig.update(|plan| plan.guarded = vec![(home, port)])?;
    rig.kernel()?.bypass(cgroup.id()?, Some(u64::MAX))?;
    let mut client = Client::inside(&cgroup)?;
    client.must(&format!("tcp 127.0.0.1 {port}")).context("with a bypass")?;
    server.accept()?;
    Client::outside()?.must_fail(&format!("tcp 127.0.0.1 {port}"), "ECONNREFUSED")?;
    // Captured, it reaches the agent, which dials for it.
    rig.kernel()?.bypass(cgroup.id()?, None)?;
    client.must(&format!("tcp 127.0.0.1 {port}"))?;
    assert_eq!(rig.next()?.original.port(), port);
    Ok(())
}

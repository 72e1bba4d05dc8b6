//! Whose record a connection has, and that none is left.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toolgate::capture::Plan;
use toolgate_tests::Cgroup;

use crate::bpf::Pinned;
use crate::client::Client;
use crate::rig::{NOWHERE, Rig, Wanted, all_of};

#[test]
fn a_thousand_connections_leave_no_record() -> Result<()> {
    let cgroup = Cgroup::new("thousand")?;
    let plan = Plan { cgroups: vec![all_of(&cgroup)?], ..Plan::default() };
    let mut rig = Rig::with(Wanted { listeners: 3, plan, ..Wanted::default() })?;
    let mut client = Client::inside(&cgroup)?;
    // Each is closed as soon as it is connected, often before it is accepted.
    client.must(&format!("many {NOWHERE} 999"))?;
    client.must("many 2001:db8::7 80 999")?;
    for acceptor in rig.acceptors.iter().chain(&rig.acceptors6) {
        for _ in 0..333 {
            acceptor.next().context("the listeners take turns")?;
        }
    }
    assert_eq!(rig.kernel()?.waiting()?, 0);
    assert_eq!((rig.count("connect/redirected")?, rig.count("sock_ops/accepted")?), (1998, 1998));
    // One that fails: nobody listens any more.
    rig.acceptors.clear();
    rig.acceptors6.clear();
    client.must_fail(&format!("tcp {NOWHERE}"), "ECONNREFUSED")?;
    client.must_fail("tcp6 2001:db8::7 80", "ECONNREFUSED")?;
    assert_eq!(rig.count("sk_lookup/dropped_no_listener")?, 2);
    assert_eq!((rig.kernel()?.waiting()?, rig.kernel()?.sweep()?), (0, 0));
    Ok(())
}

/// Reset before it was accepted, with the same addresses used again: each accepted socket has its own record.
#[test]
fn the_record_belongs_to_the_socket() -> Result<()> {
    let cgroup = Cgroup::new("belongs")?;
    let rig = Rig::deaf(&cgroup)?;
    let mut first = Client::inside(&cgroup)?;
    let port = first.must(&format!("from 0 {NOWHERE}"))?;
    first.must("abort")?;
    let mut second = Client::inside(&cgroup)?;
    assert_eq!(second.must(&format!("from {port} 192.0.2.8 80"))?, port);
    assert_eq!(rig.kernel()?.waiting()?, 0, "the records lie at the sockets");
    let listener = rig.listeners.first().context("no listener")?;
    let mut taker = rig.kernel()?.taker()?;
    for (client, original) in [(&first, "192.0.2.7:8000"), (&second, "192.0.2.8:80")] {
        let (stream, peer) = listener.accept()?;
        assert_eq!(peer.port().to_string(), port);
        let taken = taker.take(&stream, peer)?;
        assert_eq!((taken.process.tgid, taken.original), (client.0.id(), original.parse()?));
    }
    Ok(())
}

/// What no hook of ours has seen has no record, whatever socket it is.
#[test]
fn a_connection_that_was_not_captured_has_none() -> Result<()> {
    let rig = Rig::start(Plan::default())?;
    let mut taker = rig.kernel()?.taker()?;
    let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    let _client = std::net::TcpStream::connect(server.local_addr()?)?;
    let (stream, peer) = server.accept()?;
    let none = taker.take(&stream, peer).expect_err("a record");
    assert!(none.to_string().contains("no kernel record"), "{none}");
    // As those have that a listener of the agent accepts without one.
    let (listeners, _, _) = crate::rig::listeners(1)?;
    rig.kernel()?.serve(rig.home, true, &listeners, &[])?;
    let listener = listeners.first().context("no listener")?;
    let none = taker.take(listener, listener.local_addr()?).expect_err("a record");
    assert!(none.to_string().contains("no kernel record"), "{none}");
    Ok(())
}

/// A host that has just started has no record that is old enough: the test runs in a time namespace, a day later.
#[test]
fn what_nobody_takes_is_swept_and_counts_are_put_right() -> Result<()> {
    const LATER: &str = "TOOLGATE_TEST_A_DAY_LATER";
    if std::env::var_os(LATER).is_some() {
        return swept();
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--time", "--fork", "--monotonic", "86400"]).arg(std::env::current_exe()?).env(LATER, "");
    unshare.args(["--exact", "records::what_nobody_takes_is_swept_and_counts_are_put_right", "--nocapture"]);
    let output = unshare.output().context("cannot start `unshare`")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("1 passed"), "{said}{errors}");
    Ok(())
}

fn swept() -> Result<()> {
    const RECORD_BYTES: usize = 96;
    let rig = Rig::start(Plan::default())?;
    let kernel = rig.kernel()?;
    // Connected when the host was started, a day ago.
    Pinned::map("CONNECTIONS")?.set(&[1; 32], &[0; RECORD_BYTES])?;
    let pending = Pinned::map("PENDING")?;
    let (cgroup, mut count) = (4711_u64.to_ne_bytes(), [0; 8]);
    pending.set(&cgroup, &8192_u64.to_ne_bytes())?;
    assert_eq!((kernel.waiting()?, kernel.sweep()?, kernel.waiting()?), (1, 1, 0));
    ensure!(
        pending.get(&cgroup, &mut count) && count == 8192_u64.to_ne_bytes(),
        "it may have changed meanwhile"
    );
    kernel.sweep()?;
    ensure!(pending.get(&cgroup, &mut count) && count == [0; 8], "off by as much as before");
    kernel.sweep()?;
    ensure!(!pending.get(&cgroup, &mut count), "nothing waits");
    Ok(())
}

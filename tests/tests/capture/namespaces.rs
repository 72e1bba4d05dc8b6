//! Other network namespaces: learned, seen, served, left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use toolgate::capture::{Cookie, Kernel, Plan, Seen, SeenReader};
use toolgate::netns::{Keeper, Namespaces, ORDERS_MAX, Order, Root};
use toolgate_tests::{Cgroup, kernel, wait};

use crate::bpf::pinned_ids;
use crate::client::Client;
use crate::rig::{Acceptor, NOWHERE, Rig, here};

/// A namespace of its own, with loopback up or not.
const WITH_LOOPBACK: [&str; 5] = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$@\""];

fn client_elsewhere(cgroup: &Cgroup) -> Result<Client> {
    let words: Vec<&str> = WITH_LOOPBACK.into_iter().chain(["sh"]).collect();
    let mut client = Client::start(Some(cgroup), 0, &words)?;
    // It answers when it is where it should be.
    client.must("drop")?;
    Ok(client)
}

/// Runs in the network namespace of a process, on a thread of its own.
fn within<T: Send>(process: u32, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            act()
        });
        entered.join().map_err(|_| anyhow!("it panicked"))?
    })
}

/// The kernel's own word, which it gives from 5.14 on.
fn told(socket: &UdpSocket) -> Result<Option<String>> {
    if kernel()? < (5, 14) {
        return Ok(None);
    }
    let (mut cookie, mut bytes) = (0_u64, 8);
    // SAFETY: the pointers are to 8 bytes and their length, as the option wants.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    ensure!(done == 0, "{}", std::io::Error::last_os_error());
    Ok(Some(cookie.to_string()))
}

fn next(reader: &mut SeenReader) -> Result<Vec<Seen>> {
    let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut ready, PollTimeout::from(10_000_u16))? == 1, "nothing was seen");
    let mut all = Vec::new();
    reader.drain(|seen| all.push(seen));
    Ok(all)
}

#[test]
fn cookies_are_learned_on_every_kernel_with_and_without_loopback() -> Result<()> {
    let rig = Rig::start(Plan::default())?;
    let kernel = rig.kernel()?;
    let check = |kernel: &Kernel| -> Result<Cookie> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let learned = kernel.namespace_of(&socket)?;
        if let Some(told) = told(&socket)? {
            assert_eq!(learned.to_string(), told);
        }
        let socket6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        assert_eq!(kernel.namespace_of(&socket6)?, learned, "by IPv6");
        Ok(learned)
    };
    assert_eq!(check(kernel)?, rig.home);
    let mut bare = Client::start(None, 0, &["unshare", "--net"])?;
    bare.must("drop")?;
    bare.must_fail("tcp 127.0.0.1 9", "ENETUNREACH")?;
    let cookie = within(bare.0.id(), || check(kernel))?;
    assert_ne!(cookie, rig.home);
    // A socket that no hook sees says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    ensure!(kernel.namespace_of(&listener).is_err_and(|error| error.to_string().contains("UDP")));
    Ok(())
}

#[test]
fn a_namespace_is_refused_and_seen_until_it_is_served() -> Result<()> {
    let cgroup = Cgroup::new("netns")?;
    let rig = Rig::capturing(&cgroup)?;
    let kernel = rig.kernel()?;
    let mut reader = kernel.seen().context("no reader")?;
    ensure!(kernel.seen().is_none(), "one reads");
    let mut client = client_elsewhere(&cgroup)?;
    client.must_be_refused(&format!("tcp {NOWHERE}"), "ECONNREFUSED")?;
    assert_eq!(rig.count("connect/refused_namespace")?, 1);
    let seen = next(&mut reader)?;
    let (cookie, acceptor, acceptor6) = within(client.0.id(), || {
        let cookie = here(kernel)?;
        let (v4, v6) = at(rig.port)?;
        kernel.serve(cookie, true, &[v4.try_clone()?], &[v6.try_clone()?])?;
        Ok((cookie, Acceptor::start(&v4, kernel.taker()?)?, Acceptor::start(&v6, kernel.taker()?)?))
    })?;
    assert_eq!(seen, [Seen { namespace: cookie, cgroup_id: cgroup.id()?, tgid: client.0.id() }]);
    // Nothing of it has a route, and loopback is its own.
    for (to, seen) in [("192.0.2.7 8000", "192.0.2.7:8000"), ("127.0.0.1 80", "127.0.0.1:80")] {
        client.must(&format!("tcp {to}"))?;
        let taken = acceptor.next()?;
        assert_eq!((taken.original, taken.process.tgid), (seen.parse()?, client.0.id()));
        assert_eq!(taken.process.netns_cookie.to_string(), cookie.to_string());
    }
    client.must("tcp6 2001:db8::7 80")?;
    assert_eq!(acceptor6.next()?.original, "[2001:db8::7]:80".parse()?);
    // At home nothing has changed.
    Client::inside(&cgroup)?.must(&format!("tcp {NOWHERE}"))?;
    rig.next()?;
    ensure!(pinned_ids()?.contains_key(&format!("links/sk_lookup-{cookie}")));
    kernel.leave(cookie)?;
    ensure!(!pinned_ids()?.contains_key(&format!("links/sk_lookup-{cookie}")));
    client.must_be_refused(&format!("tcp {NOWHERE}"), "ECONNREFUSED")?;
    assert_eq!(next(&mut reader)?.len(), 1);
    Ok(())
}

/// Detaches, whatever became of the test.
struct Attached(Arc<Kernel>);

impl Drop for Attached {
    fn drop(&mut self) {
        let _said_by_the_next_test = self.0.detach();
    }
}

/// One that tells no worker, and serves two namespaces of each cgroup.
fn keeper(kernel: &Arc<Kernel>, cgroups: &[&Cgroup], port: u16) -> Result<Keeper> {
    let root = |cgroup: &&Cgroup| Root { directory: cgroup.path().to_owned(), below_only: false };
    Ok(Keeper {
        namespaces: Arc::new(Namespaces::at_home(kernel)?),
        kernel: Arc::clone(kernel),
        roots: cgroups.iter().map(root).collect(),
        port,
        per_cgroup_max: 2,
        metrics: Arc::default(),
        workers: Vec::new(),
        heritage: BTreeMap::new(),
    })
}

#[test]
fn a_namespace_that_another_agent_took_and_let_fall_is_served_again() -> Result<()> {
    let cgroup = Cgroup::new("taken")?;
    let mut rig = Rig::capturing(&cgroup)?;
    let kernel = Attached(Arc::new(rig.kernel.take().context("no kernel")?));
    let mut client = client_elsewhere(&cgroup)?;
    let (orders, mut given) = tokio::sync::mpsc::channel(ORDERS_MAX);
    let keeper = Keeper { workers: vec![orders], ..keeper(&kernel.0, &[&cgroup], rig.port)? };
    let keeping = keeper.start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let checked = (|| {
        let order = given.try_recv().context("no order")?;
        let Order::Serve { namespace, listeners } = order else { bail!("{order:?}") };
        let listener = listeners.first().context("no listener")?;
        listener.set_nonblocking(false)?;
        let acceptor = Acceptor::start(listener, kernel.0.taker()?)?;
        client.must(&format!("tcp {NOWHERE}"))?;
        acceptor.next()?;

        let handed_over = runtime.block_on(keeping.rest())?;
        assert_eq!(handed_over.len(), listeners.len());
        within(client.0.id(), || {
            let (v4, v6) = at(0)?;
            Ok(kernel.0.serve(namespace, true, &[v4], &[v6])?)
        })?;
        client.must_fail(&format!("tcp {NOWHERE}"), "ECONNREFUSED")?;
        runtime.block_on(keeping.go_on());
        let again = || Ok(client.ask(&format!("tcp {NOWHERE}"))?.ok());
        wait::until("the namespace to be served", again)?;
        acceptor.next().map(drop)
    })();
    keeping.stop(true);
    checked
}

#[test]
fn one_cgroup_cannot_use_up_the_namespaces_of_the_others() -> Result<()> {
    let mut rig = Rig::start(Plan::default())?;
    let kernel = Attached(Arc::new(rig.kernel.take().context("no kernel")?));
    let (greedy, other) = (Cgroup::new("greedy")?, Cgroup::new("modest")?);
    let mut clients = Vec::new();
    for cgroup in [&greedy, &greedy, &greedy, &other] {
        clients.push(client_elsewhere(cgroup)?);
    }
    let keeper = keeper(&kernel.0, &[&greedy, &other], rig.port)?;
    let (namespaces, metrics) = (Arc::clone(&keeper.namespaces), Arc::clone(&keeper.metrics));
    let keeping = keeper.start()?;
    let inode = |process: u32| -> Result<u64> {
        Ok(fs::metadata(format!("/proc/{process}/ns/net")).context("it has ended")?.ino())
    };
    let served = |client: &Client| -> Result<bool> {
        let inode = inode(client.0.id())?;
        Ok(namespaces.all().iter().any(|namespace| namespace.inode() == inode))
    };
    let of_greedy = |clients: &[Client]| -> Result<usize> {
        clients.iter().try_fold(0, |count, client| Ok(count + usize::from(served(client)?)))
    };
    let checked = (|| {
        ensure!(served(&clients[3])?, "the other one is not served");
        ensure!(of_greedy(&clients[..3])? == 2, "{} of the greedy one are served", of_greedy(&clients[..3])?);
        let counted = "toolgate_limit_refusals_total{limit=\"namespaces_per_cgroup_max\"} 1\n";
        ensure!(metrics.text("").contains(counted), "{}", metrics.text(""));
        // One that goes makes room.
        let at = clients.iter().position(|client| served(client).unwrap_or_default()).context("none")?;
        drop(clients.remove(at));
        wait::until("the third one to be served", || Ok((of_greedy(&clients[..2])? == 2).then_some(())))
    })();
    keeping.stop(true);
    checked
}

#[test]
fn a_guarded_port_is_guarded_in_its_namespace_alone() -> Result<()> {
    let mut rig = Rig::start(Plan::default())?;
    let cgroup = Cgroup::new("guarded-netns")?;
    let (mut server, mut client) = (client_elsewhere(&cgroup)?, Client::outside()?);
    let port: u16 = server.must("listen tcp 0.0.0.0 0")?.parse()?;
    let home_server = std::net::TcpListener::bind(("127.0.0.1", port)).context("the port is taken here")?;
    let kernel = rig.kernel()?;
    let cookie = within(server.0.id(), || {
        let cookie = here(kernel)?;
        let (v4, v6) = at(rig.port)?;
        kernel.serve(cookie, true, &[v4], &[v6])?;
        Ok(cookie)
    })?;
    rig.update(|plan| plan.guarded = vec![(cookie, port)])?;
    client.must(&format!("tcp 127.0.0.1 {port}"))?;
    home_server.accept()?;
    server.must_fail(&format!("tcp 127.0.0.1 {port}"), "ECONNREFUSED")?;
    within(server.0.id(), || Ok(std::net::TcpStream::connect(("127.0.0.1", port))?))?;
    Ok(())
}

/// Listeners of both families at one port of this thread's namespace.
fn at(port: u16) -> Result<(std::net::TcpListener, std::net::TcpListener)> {
    Ok((std::net::TcpListener::bind(("127.0.0.1", port))?, std::net::TcpListener::bind(("::1", port))?))
}

//! What is turned to the agent, and what the record says of it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use toolgate::capture::{CapturedCgroup, Destinations, Plan, Scope, cgroup};
use toolgate_tests::{Cgroup, cgroup2, refusal};

use crate::client::Client;
use crate::rig::{
    NOBODY, NOWHERE, NOWHERE6, Rig, all_of, declared_of, destination, dual_stack_server, plain_server,
};

#[test]
fn a_captured_process_arrives_with_its_record() -> Result<()> {
    let cgroup = Cgroup::new("record")?;
    let rig = Rig::capturing(&cgroup)?;
    let mut client = Client::start(Some(&cgroup), NOBODY, &[])?;
    assert_eq!(client.must(&format!("tcp {NOWHERE}"))?, "192.0.2.7:8000", "getpeername");
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
fn ipv6_is_captured_and_v4_mapped_is_ipv4() -> Result<()> {
    let cgroup = Cgroup::new("v6")?;
    let rig = Rig::capturing(&cgroup)?;
    let mut client = Client::inside(&cgroup)?;
    assert_eq!(client.must(&format!("tcp6 {NOWHERE6}"))?, "[2001:db8::7]:8000", "getpeername");
    let found = rig.next6()?;
    assert_eq!((found.original, found.process.tgid), ("[2001:db8::7]:8000".parse()?, client.0.id()));
    for (asked, seen) in [("::1", "[::1]:80"), ("::", "[::1]:80")] {
        assert_eq!(client.must(&format!("tcp6 {asked} 80"))?, seen);
        assert_eq!(rig.next6()?.original, seen.parse()?);
    }
    // Its listener is the one at 127.0.0.1, though the socket is IPv6.
    for (asked, seen, original) in [
        ("::ffff:192.0.2.7", "[::ffff:192.0.2.7]:80", "192.0.2.7:80"),
        ("::ffff:0.0.0.0", "[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
    ] {
        assert_eq!(client.must(&format!("tcp6 {asked} 80"))?, seen);
        assert_eq!(rig.next()?.original, original.parse()?);
    }
    assert_eq!((rig.count("connect/redirected")?, rig.count("getpeername6/original")?), (5, 5));
    assert_eq!(rig.kernel()?.waiting()?, 0);
    Ok(())
}

#[test]
fn connects_that_do_not_wait_are_captured_too() -> Result<()> {
    let cgroup = Cgroup::new("begin")?;
    let rig = Rig::capturing(&cgroup)?;
    let mut client = Client::inside(&cgroup)?;
    client.must(&format!("begin {NOWHERE}"))?;
    assert_eq!(rig.next()?.original, "192.0.2.7:8000".parse()?, "non-blocking");
    assert_eq!(client.must("fast 192.0.2.8 80")?, "192.0.2.8:80");
    assert_eq!(rig.next()?.original, "192.0.2.8:80".parse()?, "TCP fast open");
    Ok(())
}

#[test]
fn a_process_outside_is_untouched() -> Result<()> {
    let cgroup = Cgroup::new("outside")?;
    let (server, address) = plain_server()?;
    let rig = Rig::capturing(&cgroup)?;
    let mut client = Client::outside()?;
    assert_eq!(client.must(&format!("tcp {address}"))?, server.local_addr()?.to_string());
    server.accept().context("it went elsewhere")?;
    let (server, port) = dual_stack_server()?;
    assert_eq!(client.must(&format!("tcp6 ::1 {port}"))?, format!("[::1]:{port}"));
    server.accept().context("it went elsewhere")?;
    assert_eq!(rig.count("connect/redirected")?, 0);
    assert!(rig.count("connect/not_captured")? > 1);
    assert!(rig.count("getpeername4/untouched")? > 0);
    assert!(rig.count("getpeername6/untouched")? > 0);
    Ok(())
}

#[test]
fn destinations_are_captured_excluded_or_refused() -> Result<()> {
    let cgroup = Cgroup::new("destinations")?;
    let (server, _) = plain_server()?;
    let other = server.local_addr()?.port();
    let rig = Rig::start(Plan {
        cgroups: vec![declared_of(&cgroup)?],
        names: Vec::new(),
        capture: vec![
            destination("127.0.0.1/32 8000")?,
            destination("192.0.2.0/24")?,
            destination("2001:db8::/32 80")?,
            // Longer prefixes than a refusal for any address has.
            destination("127.0.0.0/8 15021")?,
            destination("127.0.0.1/32 15020")?,
            destination("192.0.2.0/24 15021")?,
        ],
        exclude: vec![destination("192.0.2.9/32 81")?, destination("127.0.0.1/32 8001")?],
        refuse: vec!["127.0.0.1:15020".parse()?, "0.0.0.0:15021".parse()?, "[::1]:15022".parse()?],
        guarded: Vec::new(),
    })?;
    let mut client = Client::inside(&cgroup)?;
    let mut check = |command: &str, branch: &str| -> Result<()> {
        let before = rig.count(&format!("connect/{branch}"))?;
        let answer = client.ask(command)?;
        assert_eq!(rig.count(&format!("connect/{branch}"))?, before + 1, "{command}: {answer:?}");
        if branch == "redirected" {
            let (address, port) = command.rsplit_once(' ').context("no port")?;
            let address = address.rsplit_once(' ').context("no address")?.1.replace("0.0.0.0", "127.0.0.1");
            let expected = SocketAddr::new(address.parse()?, port.parse()?);
            let found = if expected.is_ipv6() { rig.next6()? } else { rig.next()? };
            assert_eq!(found.original, expected, "{command}");
            assert_eq!(answer, Ok(expected.to_string()), "{command}");
        } else if branch.starts_with("refused") {
            assert_eq!(answer, Err(refusal("ECONNREFUSED")?.to_owned()), "{command}");
        }
        Ok(())
    };
    check("tcp 127.0.0.1 8000", "redirected")?;
    check("tcp 0.0.0.0 8000", "redirected")?;
    check("tcp 192.0.2.200 1", "redirected")?;
    check("tcp6 2001:db8::1 80", "redirected")?;
    check("tcp 127.0.0.1 8001", "excluded")?;
    check("tcp 127.0.0.1 15020", "refused_destination")?;
    check("tcp6 ::ffff:127.0.0.1 15020", "refused_destination")?;
    check("tcp 127.3.2.1 15021", "refused_destination")?;
    check("tcp 192.0.2.1 15021", "refused_destination")?;
    check("tcp6 ::1 15022", "refused_destination")?;
    check("tcp6 2001:db8::1 15021", "refused_destination")?;
    check(&format!("tcp 127.0.0.1 {other}"), "other_destination")?;
    check("tcp6 2001:db8::1 81", "other_destination")?;
    Ok(())
}

#[test]
fn a_plan_can_change() -> Result<()> {
    let cgroup = Cgroup::new("update")?;
    let captured = all_of(&cgroup)?;
    let (_server, address) = plain_server()?;
    let mut rig = Rig::start(Plan::default())?;
    let mut client = Client::inside(&cgroup)?;
    let mut check = |rig: &mut Rig, plan: Plan, branch: &str| -> Result<()> {
        rig.update(|old| *old = plan)?;
        let before = rig.count(branch)?;
        client.must(&format!("tcp {address}"))?;
        let now = rig.count(branch)?;
        // Others on this host are not captured, too.
        ensure!(now == before + 1 || branch.ends_with("not_captured") && now > before, "{:?}", rig.plan);
        Ok(())
    };
    check(&mut rig, Plan::default(), "connect/not_captured")?;
    let mut plan = Plan { cgroups: vec![captured], ..Plan::default() };
    check(&mut rig, plan.clone(), "connect/redirected")?;
    plan.exclude = vec![destination("127.0.0.0/8")?];
    check(&mut rig, plan.clone(), "connect/excluded")?;
    plan.exclude.clear();
    plan.cgroups = vec![CapturedCgroup { destinations: Destinations::Declared, ..captured }];
    check(&mut rig, plan.clone(), "connect/other_destination")?;
    plan.capture = vec![destination("0.0.0.0/0")?];
    check(&mut rig, plan, "connect/redirected")?;
    check(&mut rig, Plan::default(), "connect/not_captured")?;
    Ok(())
}

#[test]
fn the_deepest_captured_cgroup_decides() -> Result<()> {
    let outer = Cgroup::new("outer")?;
    let middle = outer.below("middle")?;
    let inner = middle.below("inner")?;
    let below_only = CapturedCgroup { scope: Scope::BelowOnly, ..all_of(&outer)? };
    let rig = Rig::start(Plan { cgroups: vec![below_only, declared_of(&inner)?], ..Plan::default() })?;
    let (_server, address) = plain_server()?;
    let check = |cgroup: &Cgroup, branch: &str| -> Result<()> {
        let before = rig.count(branch)?;
        Client::inside(cgroup)?.must(&format!("tcp {address}"))?;
        ensure!(rig.count(branch)? > before, "{}", cgroup.path().display());
        Ok(())
    };
    check(&outer, "connect/not_captured")?;
    check(&middle, "connect/redirected")?;
    check(&inner, "connect/other_destination")?;
    // The directories go in the order of their depth.
    drop(inner);
    drop(middle);
    Ok(())
}

#[test]
fn a_socket_that_connects_again_has_its_new_peer() -> Result<()> {
    let cgroup = Cgroup::new("again")?;
    let (_server, address) = plain_server()?;
    let rig = Rig::start(Plan {
        cgroups: vec![all_of(&cgroup)?],
        exclude: vec![destination("127.0.0.0/8")?],
        ..Plan::default()
    })?;
    let mut client = Client::inside(&cgroup)?;
    assert_eq!(client.must("tcp 192.0.2.1 80")?, "192.0.2.1:80");
    assert_eq!(rig.next()?.original, "192.0.2.1:80".parse()?);
    assert_eq!(client.must("again 192.0.2.2 81")?, "192.0.2.2:81");
    assert_eq!(rig.next()?.original, "192.0.2.2:81".parse()?);
    assert_eq!(client.must(&format!("again {address}"))?, address.replace(' ', ":"));
    Ok(())
}

/// Neither a process that leaves its cgroup nor one that is handed the socket gets around.
#[test]
fn a_socket_is_captured_where_it_was_made() -> Result<()> {
    let cgroup = Cgroup::new("made")?;
    let elsewhere = Cgroup::new("elsewhere")?;
    let rig = Rig::capturing(&cgroup)?;
    let mut client = Client::inside(&cgroup)?;
    client.must("keep tcp")?;
    elsewhere.add(client.0.id())?;
    assert_eq!(client.must(&format!("now {NOWHERE}"))?, "192.0.2.7:8000");
    let found = rig.next()?;
    assert_eq!((found.original, found.process.cgroup_id), ("192.0.2.7:8000".parse()?, elsewhere.id()?));
    // One that was made before it came in is captured by where the process is.
    client.must("keep tcp")?;
    cgroup.add(client.0.id())?;
    assert_eq!(client.must("now 192.0.2.8 80")?, "192.0.2.8:80");
    assert_eq!(rig.next()?.original, "192.0.2.8:80".parse()?);
    drop(client);
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
    let (server, _) = plain_server()?;
    let rig = Rig::capturing(&cgroup)?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
    let _back = Back(cgroup2()?.join(own));
    cgroup.add(std::process::id())?;
    let before = rig.count("connect/agent")?;
    let stream = TcpStream::connect(server.local_addr()?)?;
    assert_eq!(stream.peer_addr()?, server.local_addr()?);
    assert_eq!((rig.count("connect/agent")?, rig.count("connect/redirected")?), (before + 1, 0));
    Ok(())
}

#[test]
fn cgroups_by_path_and_id() -> Result<()> {
    let cgroup = Cgroup::new("names")?;
    ensure!(cgroup::mount()? == cgroup2()?);
    assert_eq!(cgroup::path_of(cgroup::id(&cgroup2()?)?)?, "/");
    let (id, path) = (cgroup.id()?, cgroup.path().to_owned());
    drop(cgroup);
    let gone = cgroup::id(&path).expect_err("its directory is gone");
    assert!(gone.to_string().contains(&*path.to_string_lossy()), "{gone}");
    let gone = cgroup::path_of(id).expect_err("it is gone");
    assert!(gone.to_string().contains(&id.to_string()), "{gone}");
    Ok(())
}

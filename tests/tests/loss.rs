//! The agent is lost: stopped, stuck in one thread, ended in order with `--stay-attached`. What a service manager hears.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Agent, Caller, PATIENCE, Peer, Scene, Setup, Stopped, get, pinned, toolgate, wait};

/// Whether the agent decides on what `caller` sends: an unchecked server would answer.
fn is_governed(scene: &Scene, caller: &mut Caller) -> Result<bool> {
    let mut connection = caller.http(scene.server.address)?;
    let permitted = is_result(&connection.post(&call(1, "echo", &json!({})))?)?;
    let denied = !is_result(&connection.post(&call(2, "delete_everything", &json!({})))?)?;
    Ok(permitted && denied)
}

fn is_refused(scene: &Scene, caller: &mut Caller) -> Result<bool> {
    match caller.connect(scene.server.address) {
        Ok(_waits_in_the_backlog) => Ok(false),
        Err(refused) => {
            ensure!(format!("{refused:#}").contains("refused"), "{refused:#}");
            Ok(true)
        }
    }
}

#[test]
fn a_stopped_agent_is_lost_and_captured_connects_are_refused_until_it_goes_on() -> Result<()> {
    let (scene, elsewhere) = (Scene::set()?, Peer::start()?);
    let (mut captured, mut outside) = (scene.caller("reader")?, Caller::outside()?);
    assert!(is_governed(&scene, &mut captured)?);
    scene.agent.process().signal(Signal::SIGSTOP)?;
    wait::until("captured connects to be refused", || Ok(is_refused(&scene, &mut captured)?.then_some(())))?;
    assert!(outside.connect(elsewhere.address).is_ok(), "others notice nothing");
    scene.agent.process().signal(Signal::SIGCONT)?;
    wait::until(
        "captured connects to be served",
        || Ok((!is_refused(&scene, &mut captured)?).then_some(())),
    )?;
    assert!(is_governed(&scene, &mut captured)?);
    Ok(())
}

/// A listener on exactly `port` that was never bound: the kernel chooses among one. By IPv6, where the agent's last
/// connections do not hold the port.
fn listen_without_bind(port: u16) -> Result<Socket> {
    /// ip(7), kernel 6.3.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    let range = u32::from(port) << 16 | u32::from(port);
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).context("no socket")?;
    socket.set_only_v6(true).context("cannot set an option")?;
    // SAFETY: the pointer is to the four bytes that the option takes.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, IP_LOCAL_PORT_RANGE, (&raw const range).cast(), 4)
    };
    ensure!(set == 0, "IP_LOCAL_PORT_RANGE: {}", std::io::Error::last_os_error());
    socket.listen(16).context("cannot listen")?;
    let found = socket.local_addr()?.as_socket().context("no address")?;
    ensure!(found.port() == port, "{found}");
    Ok(socket)
}

#[test]
fn who_got_the_port_of_a_dead_agent_gets_nothing_and_keeps_none_from_coming_back() -> Result<()> {
    let mut scene = Scene::set()?;
    let mut captured = scene.caller("reader")?;
    assert!(is_governed(&scene, &mut captured)?);
    scene.agent.kill()?;
    let port = scene.agent.outbound.port();
    assert!(listen_without_bind(port).is_err(), "it is reserved");
    // Somebody writes a list of their own.
    fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "\n")?;
    let impostor = listen_without_bind(port)?;
    impostor.set_nonblocking(true).context("cannot set a flag")?;
    assert!(is_refused(&scene, &mut captured)?);
    scene.agent.start_again()?;
    scene.agent.process().line("another process got the agent's port meanwhile")?;
    assert!(is_governed(&scene, &mut captured)?);
    let nothing = impostor.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock));
    Ok(())
}

/// More destinations than a map of the programs has room for: all is attached before that shows.
const TOO_MANY: u32 = 16_385;

#[test]
fn programs_of_another_layout_refuse_until_the_new_ones_capture() -> Result<()> {
    let mut scene = Scene::set()?;
    let mut captured = scene.caller("reader")?;
    assert!(is_governed(&scene, &mut captured)?);
    scene.agent.kill()?;
    let own = pinned::directory()?;
    let other = own.with_file_name("v0-00000000");
    fs::rename(&own, &other)?;
    let address = |number: u32| format!("\"{}:1\"", Ipv4Addr::from(0x0a00_0000 + number));
    let exclude = (0..TOO_MANY).map(address).collect::<Vec<_>>().join(", ");
    let folder = tempfile::tempdir()?;
    let settings = format!("{}capture: {{ exclude: [{exclude}] }}\n", Agent::other_settings(folder.path())?);
    let ended = Agent::refused(&settings, "")?;
    ensure!(ended.said.contains("EXCLUDED"), "{}", ended.said);
    assert!(is_refused(&scene, &mut captured)?);

    scene.agent.start_again()?;
    assert!(is_governed(&scene, &mut captured)?);
    assert!(!other.exists(), "the others are gone");
    Ok(())
}

#[test]
fn the_audit_says_after_a_death_and_only_then_that_lines_may_be_missing() -> Result<()> {
    let mut scene = Scene::set()?;
    let served = |scene: &Scene| is_governed(scene, &mut scene.caller("reader")?);
    assert!(served(&scene)?);
    let gaps = |lines: &[Value]| lines.iter().filter(|line| text(line, "event") == "audit_gap").count();
    scene.agent.upgrade(&[])?;
    assert!(scene.agent.stop_after_signal()?.success());
    scene.agent.stop_successor()?;
    scene.agent.start_again()?;
    assert!(served(&scene)?);
    assert_eq!(gaps(&scene.agent.audit(4)?), 0, "each has ended in order");

    scene.agent.kill()?;
    scene.agent.start_again()?;
    assert!(served(&scene)?);
    let lines = scene.agent.audit_until("a gap and two more calls", |lines| lines.len() == 7)?;
    assert_eq!(gaps(&lines), 1);
    let gap = &lines[4];
    assert_eq!(text(gap, "event"), "audit_gap", "the first line of the next agent");
    ensure!(text(gap, "missing_since") < text(gap, "time"), "{gap}");
    Ok(())
}

#[test]
fn a_stopped_agent_lets_pass_where_it_is_set_so_and_says_that_at_the_start() -> Result<()> {
    let scene = Scene::with("{ agent_loss: dangerous_open }", false)?;
    scene.agent.process().line("dangerous: capture.agent_loss")?;
    let mut captured = scene.caller("reader")?;
    assert!(is_governed(&scene, &mut captured)?);
    let before = scene.server.connections();
    scene.agent.process().signal(Signal::SIGSTOP)?;
    wait::until("a captured connect to reach the server itself", || {
        let _some_wait_in_the_backlog = captured.connect(scene.server.address);
        Ok((scene.server.connections() > before).then_some(()))
    })?;
    scene.agent.process().signal(Signal::SIGCONT)?;
    wait::until("the agent to decide again", || Ok(is_governed(&scene, &mut captured)?.then_some(())))
}

#[test]
fn an_agent_of_which_one_thread_hangs_is_lost_and_not_ready() -> Result<()> {
    let scene = Scene::set()?;
    let mut captured = scene.caller("reader")?;
    assert!(is_governed(&scene, &mut captured)?);
    let worker = Stopped::threads(scene.agent.process().id(), |name| name == "toolgate-0")?;
    wait::until("captured connects to be refused", || Ok(is_refused(&scene, &mut captured)?.then_some(())))?;
    wait::until("the agent to say that it is not ready", || {
        let answer = get(scene.agent.ready, "/")?;
        Ok((answer.starts_with("HTTP/1.1 503") && answer.contains("worker thread")).then_some(()))
    })?;
    drop(worker);
    wait::until("the agent to be ready", || {
        Ok(get(scene.agent.ready, "/")?.starts_with("HTTP/1.1 200").then_some(()))
    })?;
    assert!(is_governed(&scene, &mut captured)?);
    Ok(())
}

#[test]
fn an_agent_that_stays_attached_leaves_no_gap_between_two_runs() -> Result<()> {
    let mut scene = Scene::with_setup(Setup { stay_attached: true, ..Setup::default() })?;
    let mut captured = scene.caller("reader")?;
    assert!(is_governed(&scene, &mut captured)?);
    assert!(scene.agent.stop()?.success());
    assert!(is_refused(&scene, &mut captured)?);
    scene.agent.start_again()?;
    assert!(is_governed(&scene, &mut captured)?);

    assert!(scene.agent.stop()?.success());
    assert!(is_refused(&scene, &mut captured)?);
    let detached = toolgate().arg("detach").output()?;
    assert!(detached.status.success(), "{}", String::from_utf8_lossy(&detached.stderr));
    assert!(!fs::exists("/sys/fs/bpf/toolgate")?, "pins are left");
    let before = scene.server.connections();
    captured.connect(scene.server.address)?;
    wait::until("the connection to reach the server itself", || {
        Ok((scene.server.connections() > before).then_some(()))
    })
}

#[test]
fn the_service_manager_hears_of_readiness_life_and_the_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let hear = |word: &str| -> Result<()> {
        let mut text = [0; 1024];
        loop {
            let bytes = manager.recv(&mut text).with_context(|| format!("no `{word}`"))?;
            let told = String::from_utf8_lossy(text.get(..bytes).unwrap_or_default()).into_owned();
            if told.lines().any(|line| line == word) {
                return Ok(());
            }
        }
    };
    let path = path.display().to_string();
    let environment = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "1000000")];
    let mut scene = Scene::with_setup(Setup { environment: &environment, ..Setup::default() })?;
    hear("READY=1")?;
    hear("WATCHDOG=1")?;
    scene.agent.process().signal(Signal::SIGTERM)?;
    hear("STOPPING=1")?;
    assert!(scene.agent.stop_after_signal()?.success());
    Ok(())
}

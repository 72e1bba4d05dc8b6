//! One agent hands over to the next: nobody is refused, nothing is lost, and a next one that fails changes nothing.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate::netns::CANARY;
use toolgate_ebpf_common::CONNECTIONS_PER_CGROUP_MAX;
use toolgate_tests::scene::{call, initialize, is_result, resources, text};
use toolgate_tests::{
    Agent, Caller, Host, Netns, PATIENCE, Scene, Server, Setup, Stopped, pinned, toolgate, wait,
};

/// Connections that are made while agents come and go.
const CONNECTIONS: usize = 600;
/// Agents that take over meanwhile.
const UPGRADES: usize = 3;
/// New connections a second of each of the two places, in the test with a rate.
const RATE: u32 = 110;
/// Of both together, at least.
const RATE_MIN: f64 = 200.0;

/// One connection with one request, which must be permitted.
fn ask(caller: &mut Caller, server: SocketAddr, id: u64) -> Result<()> {
    let reply = caller.http(server)?.post(&call(id, "echo", &json!({})))?;
    ensure!(is_result(&reply)?, "{}", reply.text());
    Ok(())
}

fn may(caller: &mut Caller, server: SocketAddr, tool: &str) -> Result<bool> {
    is_result(&caller.http(server)?.post(&call(1, tool, &json!({})))?)
}

fn status(scene: &Scene) -> Result<Value> {
    let output = scene.agent.toolgate("status").arg("--json").output()?;
    serde_json::from_slice(&output.stdout).context("no status")
}

#[test]
fn a_hand_over_under_load_refuses_nobody() -> Result<()> {
    let mut scene = Scene::set()?;
    let address = scene.server.address;
    let mut callers = [scene.caller("reader")?, scene.caller("writer")?];
    let (asked, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut agents = HashSet::from([scene.agent.process().id()]);
    let loaded = std::thread::scope(|scope| -> Result<()> {
        let load = callers.each_mut().map(|caller| {
            let (asked, is_over) = (&asked, &is_over);
            scope.spawn(move || -> Result<()> {
                while !is_over.load(Ordering::SeqCst) || asked.load(Ordering::SeqCst) < CONNECTIONS {
                    let number = asked.fetch_add(1, Ordering::SeqCst);
                    ask(caller, address, number as u64).with_context(|| format!("connection {number}"))?;
                }
                Ok(())
            })
        });
        let upgraded = (1..=UPGRADES).try_for_each(|number| {
            // Spread over the load: each begins when its share has come and gone.
            let share = number * CONNECTIONS / (UPGRADES + 1);
            wait::until("the load", || Ok((asked.load(Ordering::SeqCst) >= share).then_some(())))?;
            agents.insert(scene.agent.upgrade(&[])?);
            Ok(())
        });
        is_over.store(true, Ordering::SeqCst);
        for thread in load {
            thread.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))??;
        }
        upgraded
    });
    loaded.with_context(|| scene.agent.process().said())?;
    assert_eq!(agents.len(), 1 + UPGRADES, "{agents:?}");
    let count = asked.load(Ordering::SeqCst);
    let lines = scene.agent.audit(count)?;
    let permitted = lines.iter().filter(|line| text(line, "decision") == "permit").count();
    assert_eq!(
        (lines.len(), permitted),
        (count, count),
        "both agents wrote whole lines, one for each request"
    );

    scene.agent.stop_successor()?;
    assert!(!fs::exists("/sys/fs/bpf/toolgate")?, "the last one detaches");
    Ok(())
}

/// An agent whose one server is reached from home and from another namespace, and a caller in each.
struct Places {
    agent: Agent,
    server: Server,
    home: Caller,
    inside: Caller,
    _netns: Netns,
}

impl Places {
    fn set() -> Result<Self> {
        let host = Host::turn()?;
        let netns = Netns::new()?;
        let [outside, _] = netns.link()?;
        let server = Server::at(SocketAddr::new(outside, 0))?;
        let setup = Setup { resources: &resources(server.address), ..Setup::default() };
        let agent = Agent::start_in(host, setup)?;
        let home = agent.caller("reader")?;
        let mut inside = Caller::start(netns.entered_by(&agent.exec("reader")))?;
        // Its first connects may be earlier than the agent.
        wait::until("the namespace to be served", || Ok(inside.connect(CANARY).ok()))?;
        Ok(Self { agent, server, home, inside, _netns: netns })
    }

    /// Whether both are served, by policy.
    fn are_served(&mut self) -> Result<()> {
        for caller in [&mut self.home, &mut self.inside] {
            ensure!(may(caller, self.server.address, "echo")?);
            ensure!(!may(caller, self.server.address, "delete_everything")?);
        }
        Ok(())
    }
}

/// Connects to the canary at `RATE`, by the clock, until `is_over` hangs up: when each connection was made. Each must be
/// answered by an agent; who waits for an answer does not hold up the next connect.
fn paced(caller: &mut Caller, is_over: &mpsc::Receiver<()>) -> Result<Vec<Instant>> {
    let (made, to_answer) = mpsc::channel::<TcpStream>();
    std::thread::scope(|scope| {
        let answers = scope.spawn(move || -> Result<()> {
            for mut stream in to_answer {
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut said = String::new();
                stream.read_to_string(&mut said).context("no answer")?;
                ensure!(said == "toolgate\n", "`{said}`");
            }
            Ok(())
        });
        let (begun, mut times) = (Instant::now(), Vec::new());
        for number in 0.. {
            let due = begun + Duration::from_secs(1) * number / RATE;
            let until = due.saturating_duration_since(Instant::now());
            if is_over.recv_timeout(until) != Err(mpsc::RecvTimeoutError::Timeout) {
                break;
            }
            let connected = caller.connect(CANARY).with_context(|| format!("connection {number}"))?;
            times.push(Instant::now());
            // No receiver: an answer was wrong, which its thread says.
            let _ = made.send(connected.stream);
        }
        drop(made);
        answers.join().map_err(|_panic| anyhow::anyhow!("the reader panicked"))??;
        Ok(times)
    })
}

#[test]
fn a_hand_over_at_a_set_rate_refuses_nobody_at_home_or_in_another_namespace() -> Result<()> {
    let mut places = Places::set()?;
    let mut hand_overs = Vec::new();
    let (agent, callers) = (&mut places.agent, [&mut places.home, &mut places.inside]);
    let times = std::thread::scope(|scope| -> Result<Vec<Vec<Instant>>> {
        let load = callers.map(|caller| {
            let (goes_on, is_over) = mpsc::channel();
            (goes_on, scope.spawn(move || paced(caller, &is_over)))
        });
        let upgraded = (0..UPGRADES).try_for_each(|_| {
            let begun = Instant::now();
            agent.upgrade(&[])?;
            hand_overs.push((begun, Instant::now()));
            Ok(())
        });
        let threads = load.map(|(goes_on, thread)| {
            drop(goes_on);
            thread
        });
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Instant>>>| {
            thread.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))?
        };
        let times = threads.into_iter().map(join).collect();
        upgraded.and(times)
    });
    let times = times.with_context(|| places.agent.process().said())?;
    for (begun, ended) in hand_overs {
        let counts: Vec<usize> =
            times.iter().map(|made| made.iter().filter(|at| (begun..=ended).contains(at)).count()).collect();
        let (took, all) = ((ended - begun).as_secs_f64(), counts.iter().sum::<usize>());
        println!(
            "a hand-over of {took:.2} s: {} connections from home, {} from another namespace, 0 refused",
            counts[0], counts[1]
        );
        ensure!(all as f64 / took >= RATE_MIN, "{all} in {took:.2} s are too few");
    }
    Ok(())
}

/// Connections that the agent has not accepted: its threads that accept stand still, and all others go on.
struct Waiting {
    stopped: Option<Stopped>,
    streams: Vec<TcpStream>,
}

impl Waiting {
    /// From both places, at every listener.
    fn at(places: &mut Places) -> Result<Self> {
        let process = places.agent.process();
        let from = process.lines();
        let stopped = Stopped::threads(process.id(), |name| {
            name.strip_prefix("toolgate-").is_some_and(|number| number.parse::<u8>().is_ok())
        })?;
        // It beats no more, and would be lost: its connections are to wait, however long that takes.
        process.line_from(from, "makes no progress")?;
        pinned::beat_for_ever()?;
        let mut streams = Vec::new();
        for caller in [&mut places.home, &mut places.inside] {
            // Listeners take turns.
            for _ in 0..2 * stopped.count() {
                let stream = caller.connect(CANARY)?.stream;
                stream.set_read_timeout(Some(PATIENCE))?;
                streams.push(stream);
            }
        }
        Ok(Self { stopped: Some(stopped), streams })
    }

    /// Neither answered nor broken off.
    fn are_unanswered(&self) -> Result<()> {
        for (number, stream) in self.streams.iter().enumerate() {
            stream.set_nonblocking(true)?;
            let found = stream.peek(&mut [0]).map_err(|error| error.kind());
            ensure!(found == Err(ErrorKind::WouldBlock), "connection {number}: {found:?}");
            stream.set_nonblocking(false)?;
        }
        Ok(())
    }

    fn are_answered(&mut self) -> Result<()> {
        for (number, stream) in self.streams.iter_mut().enumerate() {
            let mut said = String::new();
            stream.read_to_string(&mut said).with_context(|| format!("connection {number}"))?;
            ensure!(said == "toolgate\n", "connection {number}: `{said}`");
        }
        Ok(())
    }
}

#[test]
fn connections_that_wait_for_one_agent_are_served_by_the_next() -> Result<()> {
    let mut places = Places::set()?;
    let mut waiting = Waiting::at(&mut places)?;
    waiting.are_unanswered()?;
    places.agent.upgrade(&[])?;
    // The one before still stands still.
    waiting.are_answered()?;
    waiting.stopped = None;
    assert!(places.agent.stop_after_signal()?.success(), "it ends by itself");
    places.are_served()
}

#[test]
fn a_next_agent_that_fails_takes_no_connection_that_waits() -> Result<()> {
    let mut places = Places::set()?;
    let unsigned = agent_after(&places, "trap '' XFSZ\nulimit -f 0")?;
    for (name, is_starved, words) in [
        ("before it says that it is attached", true, "max_user_instances"),
        ("with the word", false, "agent.lock"),
    ] {
        let mut waiting = Waiting::at(&mut places)?;
        let used = if is_starved { inotify_instances() } else { Vec::new() };
        let failed = places.agent.upgrade(&["--binary", &unsigned]).err().context("it took over")?;
        drop(used);
        ensure!(format!("{failed:#}").contains(words), "{name}: {failed:#}");
        // It has ended.
        waiting.are_unanswered().context(name)?;
        waiting.stopped = None;
        waiting.are_answered().context(name)?;
        wait::until("captured connects not to be refused", || Ok(places.home.connect(CANARY).ok()))?;
        places.are_served().context(name)?;
    }
    Ok(())
}

/// All that are left.
fn inotify_instances() -> Vec<Inotify> {
    std::iter::from_fn(|| Inotify::init(InitFlags::IN_CLOEXEC).ok()).collect()
}

/// A program that is the agent, but for what `before` does first.
fn agent_after(places: &Places, before: &str) -> Result<String> {
    let path = places.agent.config().join("next");
    let program = toolgate().get_program().to_owned();
    fs::write(&path, format!("#!/bin/sh\n{before}\nexec {} \"$@\"\n", program.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

#[test]
fn a_next_agent_that_fails_late_changes_nothing() -> Result<()> {
    let mut places = Places::set()?;
    let pid = places.agent.process().id();
    let goes_on = |places: &mut Places, name: &str| -> Result<()> {
        let output = places.agent.toolgate("status").arg("--json").output()?;
        let status: Value = serde_json::from_slice(&output.stdout).context("no status")?;
        ensure!(status["pid"] == json!(pid), "{name}: {status}");
        ensure!(fs::read_to_string("/run/toolgate/agent.lock")?.trim() == pid.to_string(), "{name}");
        // For as long as the agent looks for namespaces again, and longer.
        places.are_served().with_context(|| format!("{name}: {}", places.agent.process().said()))
    };
    // It has attached, and serves all namespaces: then there is no inotify instance for it.
    let used = inotify_instances();
    let failed = places.agent.upgrade(&[]).err().context("it started without inotify")?;
    drop(used);
    ensure!(format!("{failed:#}").contains("fs.inotify.max_user_instances"), "{failed:#}");
    goes_on(&mut places, "no inotify instance")?;

    // It has got the word, and cannot write its process id: it says so, or is killed by the kernel.
    for (before, words) in [("trap '' XFSZ", "agent.lock"), ("", "ended before it was ready")] {
        let next = agent_after(&places, &format!("{before}\nulimit -f 0"))?;
        let failed = places.agent.upgrade(&["--binary", &next]).err().context("it took over unsigned")?;
        ensure!(format!("{failed:#}").contains(words), "{failed:#}");
        goes_on(&mut places, words)?;
    }

    // Nor is it taken for an agent that died.
    assert!(places.agent.stop()?.success());
    let before = places.agent.audit(0)?.len();
    places.agent.start_again()?;
    ensure!(may(&mut places.home, places.server.address, "echo")?);
    let lines = places.agent.audit(before + 1)?;
    ensure!(lines.iter().all(|line| text(line, "event") != "audit_gap"), "{lines:#?}");
    places.agent.upgrade(&[])?;
    places.are_served()
}

#[test]
fn what_a_next_agent_changed_before_it_failed_is_put_back() -> Result<()> {
    let mut places = Places::set()?;
    let pid = places.agent.process().id();
    // What is put back is not what is read again.
    places.agent.write_resources("no resource")?;
    places.agent.process().line("configuration not reloaded")?;
    let heir = env!("CARGO_BIN_EXE_heir");
    let failed = places.agent.upgrade(&["--binary", heir]).err().context("it took over")?;
    ensure!(format!("{failed:#}").contains("it fails late"), "{failed:#}");

    ensure!(may(&mut places.home, places.server.address, "echo")?, "programs, listeners and plan");
    ensure!(!may(&mut places.home, places.server.address, "delete_everything")?);
    wait::until("the other namespace to be served", || Ok(places.inside.connect(CANARY).ok()))?;
    places.are_served()?;
    ensure!(fs::read_to_string("/run/toolgate/agent.lock")?.trim() == pid.to_string(), "the lock");
    assert_eq!(pinned::entries::<4, 16>("AGENTS")?, 1, "the next one is no agent");
    assert_eq!(pinned::entries::<8, 8>("NAMESPACES")?, 2, "what it served is not served");

    // The programs are this agent's own: it reads what they say.
    let [captured] = pinned::map::<8, 4>("CAPTURED")?.keys().collect::<Result<Vec<_>, _>>()?[..] else {
        anyhow::bail!("captured is not what `exec` starts alone");
    };
    let full = u64::from(CONNECTIONS_PER_CGROUP_MAX).to_ne_bytes();
    let mut pending = pinned::map::<8, 8>("PENDING")?;
    // The agent corrects it, some time.
    wait::until("a connect too many to be refused", || {
        pending.insert(captured, full, 0)?;
        Ok(places.home.connect(CANARY).is_err().then_some(()))
    })?;
    pending.remove(&captured)?;
    places.agent.process().line("its cgroup has too many that wait").map(drop)
}

#[test]
fn what_runs_is_finished_by_the_agent_that_began_it() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut caller, mut kept) = scene.reader()?;
    assert!(is_result(&kept.post(&call(1, "echo", &json!({})))?)?);
    scene.server.request()?;
    let mut running = caller.http(scene.server.address)?;
    running.request("POST", "", &call(2, "stream", &json!({})))?;
    scene.server.request()?;
    assert_eq!(running.head()?.status, 200);
    scene.agent.upgrade(&[])?;

    let reply = kept.post(&call(3, "echo", &json!({})))?;
    assert!(
        is_result(&reply)?,
        "a connection that was kept alive has its last request served: {}",
        reply.text()
    );
    assert_eq!(kept.rest()?, b"", "and is closed after it");
    let result = json!({ "jsonrpc": "2.0", "id": 2, "result": { "content": [] } });
    scene.server.send_event(&result)?;
    assert_eq!(running.event()?, Some(format!("event: message\ndata: {result}\n\n")));
    scene.server.end_stream()?;
    assert_eq!(running.event()?, None, "the running one is whole");
    assert!(scene.agent.stop_after_signal()?.success(), "the first one ends by itself");
    ask(&mut caller, scene.server.address, 4)
}

#[test]
fn sessions_go_on_with_the_next_agent() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut reader, mut connection) = scene.reader()?;
    let opened = connection.post(&initialize())?;
    let session = format!("Mcp-Session-Id: {}\r\n", opened.header("mcp-session-id").context("no session")?);
    scene.agent.upgrade(&[])?;
    let with_session = |caller: &mut Caller| -> Result<u16> {
        let mut connection = caller.http(scene.server.address)?;
        connection.request("POST", &session, &call(1, "echo", &json!({})))?;
        Ok(connection.reply()?.status)
    };
    assert_eq!(with_session(&mut reader)?, 200);
    let mut writer = scene.caller("writer")?;
    assert_eq!(with_session(&mut writer)?, 404, "and are still only their caller's");
    Ok(())
}

#[test]
fn a_next_agent_that_does_not_start_changes_nothing_and_says_why() -> Result<()> {
    let mut scene = Scene::set()?;
    let mut caller = scene.caller("reader")?;
    // Started, before there is anything wrong with the configuration that it reads.
    assert!(may(&mut caller, scene.server.address, "echo")?);
    let file = scene.agent.config().join("toolgate.yaml");
    let good = fs::read_to_string(&file)?;
    let outbound = scene.agent.outbound.port();
    let cases: [(&str, String, &[&str], &str); 4] = [
        ("an unknown key", format!("{good}captures: {{}}\n"), &[], "toolgate.yaml:"),
        (
            "another port",
            good.replace(&format!("outbound: {outbound}"), "outbound: 15999"),
            &[],
            "listen.outbound",
        ),
        ("no agent", good.clone(), &["--binary", "/bin/false"], "before it was ready"),
        ("no program", good.clone(), &["--binary", "/dev/null"], "cannot start"),
    ];
    for (name, settings, arguments, words) in cases {
        fs::write(&file, settings)?;
        let failed = scene.agent.upgrade(arguments).err().with_context(|| format!("{name}: it started"))?;
        assert!(format!("{failed:#}").contains(words), "{name}: {failed:#}");
        fs::write(&file, &good)?;
        assert_eq!(status(&scene)?["pid"], json!(scene.agent.process().id()), "{name}");
        let mut fresh = scene.caller("writer")?;
        for caller in [&mut caller, &mut fresh] {
            assert!(may(caller, scene.server.address, "echo")?, "{name}");
            assert!(!may(caller, scene.server.address, "delete_everything")?, "{name}");
        }
    }
    scene.agent.upgrade(&[])?;
    assert!(may(&mut caller, scene.server.address, "echo")?);
    Ok(())
}

#[test]
fn the_next_agent_is_an_agent_like_any_other() -> Result<()> {
    let mut scene = Scene::with_setup(Setup::default())?;
    let address = scene.server.address;
    let mut caller = scene.caller("reader")?;
    scene.agent.upgrade(&[])?;
    assert!(scene.agent.stop_after_signal()?.success());
    let holder = toolgate().arg("detach").output()?;
    assert!(!holder.status.success(), "the lock is held");
    assert!(String::from_utf8_lossy(&holder.stderr).contains("runs"), "and says by whom");
    let mut another = scene.caller("writer")?;
    assert!(may(&mut another, address, "echo")?, "exec works");
    let changed = resources(address).replace("[echo, stream, slow_count]", "[add]");
    scene.agent.write_resources(&changed)?;
    wait::until("the new policy", || Ok((!may(&mut caller, address, "echo")?).then_some(())))?;
    let pid = status(&scene)?["pid"].as_i64().context("no pid")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    wait::until("captured connects to be refused", || Ok(caller.connect(address).is_err().then_some(())))
}

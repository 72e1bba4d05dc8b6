//! One agent hands over to the next: nobody is refused, nothing is lost, and a next one that fails changes nothing.
//!
//! - `places`: an agent that is used from home and from another network namespace
//! - `waiting`: connections that are not accepted yet; `rate`: many that are made meanwhile
//! - `failing`: what a next agent leaves behind that fails late

mod failing;
mod places;
mod rate;
mod waiting;

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate_tests::scene::{call, initialize, is_result, resources, text};
use toolgate_tests::{Caller, Scene, Setup, toolgate, wait};

/// Connections that are made while agents come and go.
const CONNECTIONS: usize = 600;
/// Agents that take over meanwhile.
const UPGRADES: usize = 3;

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

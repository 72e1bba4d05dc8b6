//! What a next agent leaves behind that fails late.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate::netns::CANARY;
use toolgate_ebpf_common::CONNECTIONS_PER_CGROUP_MAX;
use toolgate_tests::scene::text;
use toolgate_tests::{pinned, wait};

use crate::may;
use crate::places::{Places, agent_after, inotify_instances};

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

//! The command line: `exec` is the command it starts, `check` says where, `status` says what, `detach` cleans up.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, resources};
use toolgate_tests::{Agent, Process, Scene, Server, Setup, cgroup2, free_address, toolgate};

#[test]
fn exec_is_the_command_it_starts() -> Result<()> {
    let agent = Agent::start(Setup::default())?;
    let run = |script: &str| agent.exec("tester").args(["sh", "-c", script]).output().context("cannot start");

    assert_eq!(run("exit 7")?.status.code(), Some(7));
    let said = run("echo out; echo err >&2")?;
    assert_eq!((said.stdout.as_slice(), said.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

    let mut process = Process::start(agent.exec("tester").args(["sh", "-c", "echo $$; exec cat"]))?;
    let pid = process.id().to_string();
    assert_eq!(process.line(&pid)?, pid, "the command has the pid of `toolgate exec`");
    process.say("its input is ours")?;
    process.line("its input is ours")?;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    assert!(cgroup.contains("/toolgate.exec/tester."), "{cgroup}");
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.end()?.signal(), Some(Signal::SIGTERM as i32));
    Ok(())
}

#[test]
fn exec_says_what_is_wrong() -> Result<()> {
    let agent = Agent::start(Setup::default())?;
    let missing = agent.exec("tester").arg("no-such-command").output()?;
    assert_eq!(missing.status.code(), Some(127), "as a shell says it");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("`no-such-command`"));
    let name = agent.exec("not/a name").arg("true").output()?;
    assert!(!name.status.success() && String::from_utf8_lossy(&name.stderr).contains("`not/a name`"));
    let config = agent.config().to_owned();
    let mut agent = agent;
    agent.stop()?;
    let nobody =
        toolgate().args(["exec", "--app-id", "a", "--config"]).arg(config).args(["--", "true"]).output()?;
    assert!(!nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("toolgate run"));
    Ok(())
}

#[test]
fn exec_is_refused_for_an_app_id_whose_workload_does_not_fit() -> Result<()> {
    let workload = |name: &str, selectors: &str| {
        format!(
            "apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: {name} }}\nspec:\n  selectors: {selectors}\n---\n"
        )
    };
    let server = Server::start()?;
    let text = [
        workload("reader", "{ unit: research-agent.service }"),
        workload("writer", "{ cgroup: \"/toolgate.exec/writer.*\" }"),
        resources(server.address),
    ];
    let agent = Agent::start(Setup { resources: &text.concat(), ..Setup::default() })?;

    let refused = agent.exec("reader").arg("true").output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("`reader`"), "{said}");
    // The twin whose selectors fit.
    let reply = agent.caller("writer")?.http(server.address)?.post(&call(1, "echo", &json!({})))?;
    assert!(is_result(&reply)?, "{}", reply.text());
    Ok(())
}

#[test]
fn check_says_what_would_happen_or_where_it_is_wrong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("resources"))?;
    let settings = Agent::other_settings(folder.path())?;
    let good = resources(free_address()?);
    let check = |settings: &str, resources: &str| -> Result<(bool, String)> {
        fs::write(folder.path().join("toolgate.yaml"), settings)?;
        fs::write(folder.path().join("resources/all.yaml"), resources)?;
        let output = toolgate().arg("check").arg("--config").arg(folder.path()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };

    let (fine, said) = check(&settings, &good)?;
    assert!(fine, "{said}");
    for word in ["docs", "reader", "echo", "plain-tools", "at most 100"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    let cases = [
        (format!("{settings}unknown: 1\n"), good.clone(), "toolgate.yaml:4:1", "unknown"),
        (settings.clone(), good.replace("effect: allow", "effekt: allow"), "all.yaml:14:5", "effekt"),
        (settings.clone(), good.replace("kind: Policy", "kind: MCPServer"), "all.yaml:9:7", "MCPServer"),
        (settings, good.replace("max: 100", "maximum: 100"), "all.yaml:23:", "maximum"),
    ];
    for (settings, resources, place, word) in cases {
        let (fine, said) = check(&settings, &resources)?;
        assert!(!fine && said.contains(place) && said.contains(word), "{place}: {said}");
        assert!(said.contains('^'), "no excerpt: {said}");
    }
    Ok(())
}

#[test]
fn status_says_what_the_agent_did() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    connection.post(&call(1, "echo", &json!({})))?;
    connection.post(&call(1, "delete_everything", &json!({})))?;
    let output = scene.agent.toolgate("status").arg("--json").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: Value = serde_json::from_slice(&output.stdout).context("status is no JSON")?;
    assert!(status.is_object(), "{status}");
    let output = scene.agent.toolgate("status").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["reader", "docs"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    Ok(())
}

#[test]
fn detach_removes_what_a_killed_agent_left_and_may_be_run_twice() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut captured, _connection) = scene.reader()?;
    scene.agent.kill()?;
    assert!(captured.connect(scene.server.address).is_err());
    for _twice in 0..2 {
        let output = toolgate().arg("detach").output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(captured.connect(scene.server.address)?.peer, scene.server.address, "captured no more");
    drop(captured);
    let output = toolgate().arg("detach").output()?;
    assert!(output.status.success());
    assert!(!cgroup2()?.join("toolgate.exec").exists(), "the empty cgroup is left");
    Ok(())
}

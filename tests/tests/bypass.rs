//! Break-glass: a bypass lets a cgroup through, is told of, and ends by itself.

use std::process::Output;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Caller, Scene, wait};

/// Whether what policy denies reaches the server.
fn goes_unchecked(scene: &Scene, caller: &mut Caller) -> Result<bool> {
    let mut connection = caller.http(scene.server.address)?;
    is_result(&connection.post(&call(1, "delete_everything", &json!({})))?)
}

fn bypass(scene: &Scene, arguments: &[&str]) -> Result<Output> {
    scene.agent.toolgate("bypass").args(arguments).output().context("cannot start it")
}

fn begin(scene: &Scene, length: &str, whom: [&str; 2]) -> Result<()> {
    let done = bypass(scene, &["--for", length, "--reason", "a test", whom[0], whom[1]])?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn bypasses(scene: &Scene) -> Result<Vec<Value>> {
    let output = scene.agent.toolgate("status").arg("--json").output()?;
    let status: Value = serde_json::from_slice(&output.stdout).context("no status")?;
    Ok(status["bypasses"].as_array().cloned().unwrap_or_default())
}

/// Waits for the line of that event, whose cgroup it tells.
fn event(scene: &Scene, name: &str) -> Result<Value> {
    let is = |line: &&Value| text(line, "event") == name;
    let lines = scene.agent.audit_until(name, |lines| lines.iter().any(|line| is(&line)))?;
    lines.iter().find(is).cloned().context("no such line")
}

#[test]
fn a_bypass_lets_one_app_through_is_told_of_and_ends_when_it_is_told_to() -> Result<()> {
    let scene = Scene::set()?;
    let (mut reader, mut writer) = (scene.caller("reader")?, scene.caller("writer")?);
    assert!(!goes_unchecked(&scene, &mut reader)?);
    begin(&scene, "10m", ["--app-id", "reader"])?;
    assert!(goes_unchecked(&scene, &mut reader)?);
    assert!(!goes_unchecked(&scene, &mut writer)?, "nobody else");

    let began = event(&scene, "bypass_began")?;
    let cgroup = format!("toolgate.exec/reader.{}", reader.id());
    assert_eq!((text(&began, "cgroup"), text(&began, "reason")), (cgroup.as_str(), "a test"), "{began}");
    assert!(text(&began, "by").contains("uid 0"), "{began}");
    let listed = bypasses(&scene)?;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(text(&listed[0], "cgroup"), cgroup);
    let shown = scene.agent.toolgate("status").output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("BYPASS") && shown.contains("a test"), "{shown}");
    assert_eq!(scene.agent.metric("toolgate_bypasses", &[])?, 1.0);

    let ended = bypass(&scene, &["--end", "--cgroup", &cgroup, "--json"])?;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let said: Value = serde_json::from_slice(&ended.stdout).context("no JSON")?;
    assert_eq!(said.pointer("/bypasses/0/cgroup"), Some(&cgroup.as_str().into()), "{said}");
    assert!(!goes_unchecked(&scene, &mut reader)?);
    assert!(bypasses(&scene)?.is_empty());
    assert!(text(&event(&scene, "bypass_ended")?, "ended_by").contains("uid 0"));
    Ok(())
}

#[test]
fn a_bypass_goes_on_and_ends_in_the_kernel_whatever_becomes_of_the_agent() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut reader, mut writer) = (scene.caller("reader")?, scene.caller("writer")?);
    assert!(!goes_unchecked(&scene, &mut reader)? && !goes_unchecked(&scene, &mut writer)?);
    begin(&scene, "10m", ["--app-id", "reader"])?;
    begin(&scene, "2s", ["--app-id", "writer"])?;
    scene.agent.kill()?;
    assert!(goes_unchecked(&scene, &mut reader)?, "without an agent");
    wait::until("the short bypass to end", || {
        Ok(writer.connect(scene.server.address).is_err().then_some(()))
    })?;
    assert!(goes_unchecked(&scene, &mut reader)?);

    scene.agent.start_again()?;
    assert!(goes_unchecked(&scene, &mut reader)?, "with the next one");
    assert_eq!(bypasses(&scene)?.len(), 1);
    let ended = event(&scene, "bypass_ended")?;
    let cgroup = format!("toolgate.exec/writer.{}", writer.id());
    assert_eq!((text(&ended, "cgroup"), text(&ended, "ended_by")), (cgroup.as_str(), "its time"), "{ended}");
    assert!(!goes_unchecked(&scene, &mut writer)?);
    Ok(())
}

#[test]
fn a_bypass_that_is_over_is_told_of_while_the_agent_runs() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    assert!(!goes_unchecked(&scene, &mut reader)?);
    begin(&scene, "1s", ["--app-id", "reader"])?;
    event(&scene, "bypass_ended")?;
    assert!(!goes_unchecked(&scene, &mut reader)?);
    assert!(bypasses(&scene)?.is_empty());
    Ok(())
}

#[test]
fn the_whole_host_can_be_let_through_by_its_root() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    assert!(!goes_unchecked(&scene, &mut reader)?);
    begin(&scene, "10m", ["--cgroup", "/"])?;
    assert!(goes_unchecked(&scene, &mut reader)?);
    assert!(bypass(&scene, &["--end", "--cgroup", "/"])?.status.success());
    assert!(!goes_unchecked(&scene, &mut reader)?);
    Ok(())
}

#[test]
fn what_is_no_bypass_is_refused_in_words() -> Result<()> {
    let scene = Scene::set()?;
    let mut reader = scene.caller("reader")?;
    let cases: [(&[&str], &str); 8] = [
        (&["--for", "10m", "--app-id", "reader"], "--reason"),
        (&["--for", "10m", "--reason", " ", "--app-id", "reader"], "reason"),
        (&["--reason", "r", "--app-id", "reader"], "--for"),
        (&["--for", "25h", "--reason", "r", "--app-id", "reader"], "24h"),
        (&["--for", "10m", "--reason", "r"], "--cgroup"),
        (&["--for", "10m", "--reason", "r", "--cgroup", "no.slice"], "no.slice"),
        (&["--for", "10m", "--reason", "r", "--app-id", "nobody"], "nobody"),
        (&["--end", "--app-id", "reader"], "no bypass"),
    ];
    for (arguments, words) in cases {
        let refused = bypass(&scene, arguments)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(words), "{arguments:?}: {said}");
    }
    let captured = scene.agent.toolgate("bypass");
    let mut inside = scene.agent.exec("reader");
    inside.arg(captured.get_program()).args(captured.get_args());
    let tried = inside.args(["--for", "10m", "--reason", "r", "--app-id", "reader"]).output()?;
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(!tried.status.success() && said.contains("captured processes may not"), "{said}");
    assert!(!goes_unchecked(&scene, &mut reader)?);
    assert!(bypasses(&scene)?.is_empty());
    Ok(())
}

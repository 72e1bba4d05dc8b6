//! Steps of the wall clock, which the agent does not count by, and a suspend, in which its clock stands still. In a
//! virtual machine alone, where they harm nobody.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::json;
use toolgate_tests::host::in_guest;
use toolgate_tests::scene::{call, initialize, is_result};
use toolgate_tests::{Caller, Connection, Scene, get, wait};

const HOUR: i64 = 3600;
/// Longer than an agent may give no sign of life.
const LONGER_THAN_A_HEARTBEAT: Duration = Duration::from_secs(3);
/// Between two connections.
const PAUSE: Duration = Duration::from_millis(200);

fn step(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::seconds(seconds)).context("cannot set the clock")
}

/// To memory (ACPI S3), until the real-time clock's alarm: that is what also wakes a kernel without a console.
fn suspend(time: Duration) -> Result<()> {
    let put = |path: &str, text: &str| fs::write(path, text).with_context(|| format!("`{text}` > {path}"));
    let suspended = || -> Result<TimeSpec> {
        Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)? - clock_gettime(ClockId::CLOCK_MONOTONIC)?)
    };
    let before = suspended()?;
    put("/sys/power/mem_sleep", "deep")?;
    put("/sys/class/rtc/rtc0/wakealarm", "0")?;
    put("/sys/class/rtc/rtc0/wakealarm", &format!("+{}", time.as_secs()))?;
    put("/sys/power/state", "mem")?;
    let slept = suspended()? - before;
    // The alarm counts whole seconds.
    ensure!(Duration::from(slept) + Duration::from_secs(2) > time, "it slept for {slept} alone");
    Ok(())
}

/// A permitted call is answered, with headers beside those of the connection, and another is denied.
fn is_governed(connection: &mut Connection, headers: &str) -> Result<bool> {
    let mut asks = |tool: &str| -> Result<bool> {
        connection.request("POST", headers, &call(1, tool, &json!({})))?;
        is_result(&connection.reply()?)
    };
    Ok(asks("echo")? && !asks("delete_everything")?)
}

/// Whether what policy denies reaches the server.
fn goes_unchecked(scene: &Scene, caller: &mut Caller) -> Result<bool> {
    let mut connection = caller.http(scene.server.address)?;
    is_result(&connection.post(&call(1, "delete_everything", &json!({})))?)
}

/// New connections are served for that long, and the agent says that it is ready.
fn is_served_for(scene: &Scene, caller: &mut Caller, time: Duration) -> Result<()> {
    let since = Instant::now();
    while since.elapsed() < time {
        ensure!(is_governed(&mut caller.http(scene.server.address)?, "")?, "after {:?}", since.elapsed());
        // Time is what it is about, and a busy second of an emulated machine takes ten.
        let next = Instant::now() + PAUSE;
        wait::until("the next connection", || Ok((Instant::now() >= next).then_some(())))?;
    }
    let ready = get(scene.agent.ready, "/")?;
    ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    Ok(())
}

#[test]
fn calls_sessions_and_heartbeat_take_no_notice_of_a_stepped_clock() -> Result<()> {
    in_guest()?;
    let scene = Scene::set()?;
    let (mut caller, mut connection) = scene.reader()?;
    let opened = connection.post(&initialize())?;
    let session = format!("Mcp-Session-Id: {}\r\n", opened.header("mcp-session-id").context("no session")?);
    // A day and more: a session may be idle for one.
    for by in [HOUR, -2 * HOUR, 26 * HOUR, -25 * HOUR] {
        step(by)?;
        let mut connection = caller.http(scene.server.address)?;
        ensure!(is_governed(&mut connection, &session)?, "stepped by {by} s");
        is_served_for(&scene, &mut caller, LONGER_THAN_A_HEARTBEAT).with_context(|| format!("by {by} s"))?;
    }
    Ok(())
}

#[test]
fn a_bypass_ends_after_its_time_whatever_the_clock_is_set_to() -> Result<()> {
    in_guest()?;
    let scene = Scene::set()?;
    let mut caller = scene.caller("reader")?;
    ensure!(!goes_unchecked(&scene, &mut caller)?);
    for by in [HOUR, -HOUR] {
        let begun = Instant::now();
        let mut bypass = scene.agent.toolgate("bypass");
        bypass.args(["--for", "4s", "--reason", "a test", "--app-id", "reader"]);
        let done = bypass.output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        step(by)?;
        ensure!(goes_unchecked(&scene, &mut caller)?, "stepped by {by} s, and it has ended");
        wait::until("the end of the bypass", || Ok((!goes_unchecked(&scene, &mut caller)?).then_some(())))
            .with_context(|| format!("stepped by {by} s"))?;
        ensure!(begun.elapsed() >= Duration::from_secs(4), "it ended after {:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn calls_and_sessions_outlive_a_suspend_and_a_bypass_is_longer_by_it() -> Result<()> {
    in_guest()?;
    let scene = Scene::set()?;
    let (_caller, mut before) = scene.reader()?;
    let opened = before.post(&initialize())?;
    let session = format!("Mcp-Session-Id: {}\r\n", opened.header("mcp-session-id").context("no session")?);
    let mut bypassed = scene.caller("writer")?;
    ensure!(!goes_unchecked(&scene, &mut bypassed)?);
    let mut bypass = scene.agent.toolgate("bypass");
    bypass.args(["--for", "6s", "--reason", "a test", "--app-id", "writer"]);
    let done = bypass.output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    suspend(Duration::from_secs(7))?;

    ensure!(goes_unchecked(&scene, &mut bypassed)?, "the bypass was shorter by the suspend");
    ensure!(is_governed(&mut before, &session)?, "a connection and a session of before");
    let mut caller = scene.caller("reader")?;
    is_served_for(&scene, &mut caller, LONGER_THAN_A_HEARTBEAT)?;
    let ended = || Ok((!goes_unchecked(&scene, &mut bypassed)?).then_some(()));
    wait::until("the end of the bypass", ended)
}

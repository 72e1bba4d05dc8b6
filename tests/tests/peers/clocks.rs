//! Two hosts whose clocks are an hour apart. Hosts of one kernel have one clock: libfaketime shows the callers' agent another.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::wait;

use crate::hosts::{Hosts, Wishes};

/// Lives that are over within the hour.
const HALF_AN_HOUR: &str = "identity: { svid_ttl: 30m }\n";

/// The wall clock that an agent sees; CLOCK_MONOTONIC is the kernel's.
struct Clock {
    folder: TempDir,
    library: PathBuf,
}

impl Clock {
    fn showing(offset: &str) -> Result<Self> {
        let folders = fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path()));
        let library =
            folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|file| file.exists());
        let library =
            library.context("libfaketime is missing: run `cargo xtask test`, or install faketime")?;
        let clock = Self { folder: tempfile::tempdir()?, library };
        clock.shows(offset)?;
        Ok(clock)
    }

    /// From now on, e.g. `+1h`.
    fn shows(&self, offset: &str) -> Result<()> {
        let fresh = self.folder.path().join("fresh");
        fs::write(&fresh, offset)?;
        fs::rename(&fresh, self.file())?;
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Does `work` with hosts whose callers' agent sees it.
    fn with(&self, lives: &str) -> Result<Hosts> {
        let (library, file) = (self.library.display().to_string(), self.file().display().to_string());
        let environment = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            // Times of files are the kernel's, too.
            ("NO_FAKE_STAT", "1"),
        ];
        Hosts::wished(Wishes { lives, environment: &environment, ..Wishes::default() })
    }
}

/// Whether a call on a connection of its own is answered with a result.
fn calls(hosts: &Hosts, app_id: &str) -> Result<bool> {
    let (_caller, mut connection) = hosts.caller(app_id)?;
    is_result(&connection.post(&call(1, "echo", &json!({})))?)
}

/// The call that failed last says why in the audit, and the log of its agent names the clock.
fn is_told(hosts: &Hosts, why: &str) -> Result<()> {
    let agent = &hosts.callers.agent;
    let failed = |line: &Value| text(line, "reason") != "permitted";
    let lines = agent.audit_until("the call that failed", |lines| lines.iter().any(failed))?;
    let line = lines.iter().rfind(|line| failed(line)).context("no such line")?;
    let detail = text(line, "detail");
    ensure!(text(line, "reason") == "peer_unproven", "{line:#}");
    ensure!(detail.contains(why) && detail.contains("this clock says"), "{why}: {detail}");
    agent.process().line("a clock is wrong").map(drop)
}

/// A clock that is off from the start, and why the call fails; `None`: it does not. Set right, all goes on by itself.
fn off_from_the_start(offset: &str, lives: &str, why: Option<&str>) -> Result<()> {
    let clock = Clock::showing(offset)?;
    let hosts = clock.with(lives)?;
    ensure!(calls(&hosts, "reader")? == why.is_none(), "{offset}: {:#?}", hosts.callers.agent.audit(1)?);
    if let Some(why) = why {
        is_told(&hosts, why)?;
    }
    clock.shows("+0")?;
    wait::until("a call that is answered", || Ok(calls(&hosts, "reader")?.then_some(())))
}

#[test]
fn an_hour_ahead_nothing_fails_that_lives_longer() -> Result<()> {
    off_from_the_start("+1h", "", None)
}

#[test]
fn an_hour_ahead_of_what_is_over_by_then_the_clock_is_named() -> Result<()> {
    off_from_the_start("+1h", HALF_AN_HOUR, Some("ended"))
}

#[test]
fn an_hour_behind_the_clock_is_named() -> Result<()> {
    off_from_the_start("-1h", "", Some("begins"))
}

#[test]
fn stepped_ahead_by_an_hour_under_way_nothing_fails() -> Result<()> {
    let clock = Clock::showing("+0")?;
    let hosts = clock.with("")?;
    ensure!(calls(&hosts, "reader")?);
    clock.shows("+1h")?;
    // One has a connection between the agents, the other is new.
    ensure!(calls(&hosts, "reader")? && calls(&hosts, "writer")?, "{:#?}", hosts.callers.agent.audit(1)?);
    clock.shows("+0")?;
    ensure!(calls(&hosts, "reader")? && calls(&hosts, "writer")?, "{:#?}", hosts.callers.agent.audit(1)?);
    Ok(())
}

#[test]
fn stepped_back_by_an_hour_under_way_what_is_open_goes_on_and_what_is_new_says_why() -> Result<()> {
    let clock = Clock::showing("+0")?;
    let hosts = clock.with("")?;
    let (_reader, mut open) = hosts.caller("reader")?;
    let mut goes_on = |id| is_result(&open.post(&call(id, "echo", &json!({})))?);
    ensure!(goes_on(1)?);
    clock.shows("-1h")?;
    ensure!(!calls(&hosts, "writer")?, "{:#?}", hosts.callers.agent.audit(1)?);
    is_told(&hosts, "begins")?;
    ensure!(goes_on(2)?, "{:#?}", hosts.callers.agent.audit(1)?);
    clock.shows("+0")?;
    wait::until("a call that is answered", || Ok(calls(&hosts, "writer")?.then_some(())))?;
    ensure!(goes_on(3)?, "{:#?}", hosts.callers.agent.audit(1)?);
    Ok(())
}

//! The log in systemd's journal: each line has its priority, and no time of its own.

use std::io::{Read as _, pipe};
use std::os::fd::AsFd as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::fstat;
use toolgate_tests::scene::resources;
use toolgate_tests::{Host, toolgate};

/// What an agent logs that cannot start, its standard error being the stream that `JOURNAL_STREAM` names, or another.
fn logged(is_journal: bool) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let below = folder.path().join("resources");
    std::fs::create_dir(&below)?;
    // It warns of callers that no Workload is, in several lines; then its audit is a directory.
    std::fs::write(below.join("all.yaml"), resources(([127, 0, 0, 1], 9).into()))?;
    let (place, store) = (folder.path().display(), folder.path().join("store"));
    let settings = format!("audit: {{ file: {place} }}\nstore: {{ embedded: {} }}\n", store.display());
    std::fs::write(folder.path().join("toolgate.yaml"), settings)?;
    let (mut ours, its) = pipe()?;
    let stat = fstat(its.as_fd())?;
    let inode = stat.st_ino + u64::from(!is_journal);
    let mut command = toolgate();
    command.arg("run").arg("--config").arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("JOURNAL_STREAM", format!("{}:{inode}", stat.st_dev)).stderr(its);
    let mut process = command.spawn().context("cannot start it")?;
    drop(command);
    let mut said = String::new();
    ours.read_to_string(&mut said)?;
    ensure!(!process.wait()?.success(), "it started: {said}");
    Ok(said)
}

#[test]
fn each_line_has_its_priority_where_the_journal_reads() -> Result<()> {
    let _turn = Host::turn()?;
    let said = logged(true)?;
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("toolgate: ")).collect();
    ensure!(
        lines.iter().any(|line| line.starts_with("<4>toolgate::app: warning: no Workload is called")),
        "{said}"
    );
    ensure!(lines.iter().any(|line| line.starts_with("<4>") && line.contains("^^^^^^")), "{said}");
    for line in lines {
        let text = line.strip_prefix('<').and_then(|rest| rest.get(1..)?.strip_prefix('>'));
        let text = text.with_context(|| format!("no priority: {line}"))?;
        ensure!(!(text.starts_with("20") && text.contains("Z ")), "a time of its own: {line}");
    }
    let said = logged(false)?;
    ensure!(said.contains("Z  WARN toolgate::app: warning: no Workload") && !said.contains("<4>"), "{said}");
    Ok(())
}

//! `cargo xtask test`: every test of the workspace; those that need root get it, none is skipped.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::debian::{self, Packaged};
use crate::sudo::{self, Root};
use crate::workspace::{cargo, say};
use crate::{build, packages};

/// The crate whose tests attach BPF programs, make cgroups and start agents.
const PRIVILEGED: &str = "toolgate-tests";

/// What those start beside the agent.
const PROGRAMS: [Packaged; 6] = [
    ("curl", "curl"),
    ("faketime", "faketime"),
    ("ip", "iproute2"),
    ("systemd-nspawn", "systemd-container"),
    ("podman", "podman"),
    ("runc", "runc"),
];

/// Builds everything, runs all tests and ends with one line: `N passed, N failed`.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    let root = sudo::root()?;
    build::build(false)?;
    packages::install()?;
    packages::install_clients()?;
    debian::need("the tests of clients, clocks, network namespaces and containers", &PROGRAMS)?;
    let mut total = Counts::default();
    say("running the tests");
    let mut unprivileged = cargo(["test", "--workspace", "--no-fail-fast", "--exclude", PRIVILEGED]);
    total.add(&counted(unprivileged.args(filter))?);
    let mut privileged = cargo(["test", "--package", PRIVILEGED, "--no-fail-fast"]);
    if root == Root::Sudo {
        let words = sudo::prefix(root).join(&OsString::from(" "));
        privileged.env(format!("CARGO_TARGET_{}_RUNNER", host()?), words);
    }
    total.add(&counted(privileged.args(filter))?);

    if !total.broken.is_empty() {
        let broken: Vec<_> = total.broken.iter().map(String::as_str).collect();
        eprintln!("error: some tests could not be counted: {}", broken.join("; "));
    }
    // What could not be counted did not pass.
    let failed = total.failed + total.broken.len() as u64;
    println!("{} passed, {failed} failed", total.passed);
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// What the `test result:` lines of a run add up to, doctests included.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    /// Why a run's numbers are not the whole truth.
    broken: BTreeSet<String>,
}

impl Counts {
    /// Takes in one line of a test run, e.g. `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn line(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let counts = result.split_once(". ").map_or("", |(_verdict, counts)| counts);
        for part in counts.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" if number > 0 => {
                    self.broken.insert(format!("{number} ignored, and no test may be"));
                }
                _other => {}
            }
        }
    }

    fn add(&mut self, other: &Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.broken.extend(other.broken.iter().cloned());
    }
}

/// Runs one `cargo test`, shows its output as it comes and counts.
fn counted(command: &mut Command) -> Result<Counts> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        let mut shown = std::io::stdout().lock();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("cannot read what cargo says")?;
            counts.line(&String::from_utf8_lossy(&line));
            shown
                .write_all(&line)
                .and_then(|()| shown.write_all(b"\n"))
                .context("cannot write the output")?;
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && counts.failed == 0 {
        counts.broken.insert(format!("cargo test ended with {status} before all of them had run"));
    }
    Ok(counts)
}

/// The host's triple as cargo's variables spell it: `X86_64_UNKNOWN_LINUX_GNU`.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(host) => Ok(host.to_uppercase().replace('-', "_")),
        None => bail!("`rustc -vV` names no host"),
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn result_lines_add_up() {
        let check = |lines: &[&str], passed: u64, failed: u64, broken: usize| {
            let mut counts = Counts::default();
            lines.iter().for_each(|line| counts.line(line));
            assert_eq!(
                (counts.passed, counts.failed, counts.broken.len()),
                (passed, failed, broken),
                "{lines:?}"
            );
        };
        let ok =
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let bad = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.2s";
        let ignored =
            "test result: ok. 1 passed; 0 failed; 4 ignored; 0 measured; 9 filtered out; finished in 0s";
        check(&[], 0, 0, 0);
        check(&[ok], 3, 0, 0);
        check(&[ok, "running 3 tests", bad, "test a::b ... FAILED"], 4, 2, 0);
        check(&[ignored], 1, 0, 1);
    }
}

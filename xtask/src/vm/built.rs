//! What runs in the virtual machine, built outside: the guest's processor is slow.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::build;
use crate::workspace::{cargo, say};

/// Files of tests/tests that are for the inside of a virtual machine alone (`test = false` in tests/Cargo.toml).
const GUESTS_ONLY: [&str; 2] = ["clock", "hosts"];

/// Programs that were built.
pub(super) struct Built {
    pub(super) agent: PathBuf,
    /// This very program, which is the guest's first process.
    pub(super) xtask: PathBuf,
    /// Test executables by name.
    tests: Vec<(String, PathBuf)>,
    /// Programs that tests start.
    helpers: Vec<PathBuf>,
}

/// A line of `cargo --message-format=json`, as far as it matters.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Built {
    /// Builds the agent and the privileged tests.
    pub(super) fn build() -> Result<Self> {
        let agent = build::build(false)?;
        say("building the privileged tests");
        // Those that `cargo test` leaves out are named.
        let guests_only: Vec<_> = GUESTS_ONLY.iter().flat_map(|name| ["--test", name]).collect();
        let lines = [tests(&[])?, tests(&guests_only)?].concat();
        let xtask = std::env::current_exe().context("cannot tell where this program is")?;
        let mut built = Self { agent, xtask, tests: Vec::new(), helpers: Vec::new() };
        for line in lines.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
            let message: Message =
                serde_json::from_slice(line).context("cargo says what is not understood")?;
            built.take(message);
        }
        Ok(built)
    }

    fn take(&mut self, message: Message) {
        let Message { reason, executable: Some(file), target: Some(target) } = message else { return };
        if reason != "compiler-artifact" {
            return;
        }
        if target.kind.iter().any(|kind| kind == "test") {
            self.tests.push((target.name, file));
        } else if target.kind.iter().any(|kind| kind == "bin") && !self.helpers.contains(&file) {
            self.helpers.push(file);
        }
    }

    /// Names of all tests.
    pub(super) fn tests(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().map(|(name, _)| name.as_str())
    }

    /// The executable of the test of that name.
    pub(super) fn test(&self, name: &str) -> Result<&Path> {
        match self.tests.iter().find(|(test, _)| test == name) {
            Some((_, file)) => Ok(file),
            None => {
                let names: Vec<_> = self.tests().collect();
                bail!("there is no test `{name}` in tests/tests; there are {}", names.join(", "))
            }
        }
    }

    /// All of them.
    pub(super) fn programs(&self) -> impl Iterator<Item = &Path> {
        let tests = self.tests.iter().map(|(_, file)| file.as_path());
        [self.agent.as_path(), &self.xtask]
            .into_iter()
            .chain(tests)
            .chain(self.helpers.iter().map(PathBuf::as_path))
    }
}

/// What cargo says when it builds the privileged tests, all or those that are named.
fn tests(named: &[&str]) -> Result<Vec<u8>> {
    let mut command = cargo(["test", "--package", "toolgate-tests", "--no-run", "--message-format=json"]);
    command.args(named).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build: run `cargo test --package toolgate-tests --no-run`");
    }
    Ok(output.stdout)
}

//! `cargo xtask ci`: what CI runs, and what a person runs before a commit.

use anyhow::{Context as _, Result};

use crate::workspace::{cargo, run, say};
use crate::{ebpf, test, tidy, vm};

/// Of all kernels the one that differs most from those that Toolgate is developed on.
const KERNEL: &str = "5.10";
/// What depends on the kernel most; `cargo xtask vm` runs the rest, on all kernels.
const STEPS: [&str; 3] = ["fires", "demo", "capture"];

/// Formatting, clippy, tidy, one kernel in a virtual machine, then all tests; the first that fails ends it.
pub(crate) fn ci() -> Result<()> {
    say("formatting");
    run(&mut cargo(["fmt", "--all", "--check"])).context("not formatted: run `cargo fmt --all`")?;
    run(&mut cargo(["fmt", "--all", "--check", "--manifest-path", "ebpf/Cargo.toml"]))
        .context("not formatted: run `cargo fmt --all --manifest-path ebpf/Cargo.toml`")?;
    say("clippy");
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    ebpf::clippy()?;
    say("tidy");
    tidy::tidy()?;
    say(format_args!("kernel {KERNEL}"));
    vm::vm(&vm::Wanted::steps(KERNEL, &STEPS))?;
    test::test(None)
}

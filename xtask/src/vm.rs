//! `cargo xtask vm`: the agent on Debian's stock kernels, from the oldest that it runs on, each in a virtual machine.
//!
//! - `kernel`, `apt`: Debian's kernels, fetched by a private apt configuration
//! - `built`, `tree`, `disk`: what is built outside and what it needs of this machine, as a disk
//! - `initrd`, `cpio`: what the kernel starts with
//! - `qemu`: the machine around it
//! - `guest`, `report`: what runs inside, and what it tells the outside
//! - `sbin`: programs by name
//! - `matrix`: what all of them came to, as a table

pub(crate) mod apt;
mod built;
mod cpio;
mod disk;
mod guest;
mod initrd;
mod kernel;
mod matrix;
mod qemu;
mod report;
pub(crate) mod sbin;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::packages::{self, Packages};
use crate::workspace::{root, say, target};
use built::Built;
use guest::{Goal, Kind, Plan, Step};
pub(crate) use guest::{first, host, steps, wait_as_first};
use kernel::{Kernel, SERIES};
use matrix::{DEMO, FIRED, Matrix, Row};
pub(crate) use qemu::CMDLINE;
use qemu::{Accelerator, Machine};
use report::Report;

/// Files of tests/tests, or `FILE::TEST`, that are not run on every kernel, and why; all others are.
const LEFT_OUT: [(&str, &str); 14] = [
    ("attribution", "tens of thousands of connections take too long where instructions are translated"),
    ("clients", REQUESTS),
    ("command_line", REQUESTS),
    ("containers", "it needs systemd-nspawn and podman, which the guest does not have"),
    ("ending", REQUESTS),
    ("faults", REQUESTS),
    ("framing", REQUESTS),
    ("harness", "it tests the tests"),
    ("identity::an_image_is_told_by_podmans_own_state", "it needs podman, which the guest does not have"),
    ("lifecycle", REQUESTS),
    ("passage", REQUESTS),
    ("path", REQUESTS),
    ("siege", "hundreds of restarts take too long where instructions are translated"),
    ("streams", REQUESTS),
];
const REQUESTS: &str = "what happens to a request once it is captured does not depend on the kernel";

/// What is to be run.
#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// A series of kernels (5.10, 6.1, 6.12, 6.18), or `all`
    #[arg(long, default_value = "all")]
    kernel: String,
    /// Only these, and nothing else: `demo`, or a file of tests/tests; may be repeated
    #[arg(long)]
    test: Vec<String>,
}

impl Wanted {
    /// These steps, on one series.
    pub(crate) fn steps(series: &str, steps: &[&str]) -> Self {
        Self { kernel: series.to_owned(), test: steps.iter().map(|&step| step.to_owned()).collect() }
    }
}

/// Runs it and prints the matrix. An error if anything in it is red.
pub(crate) fn vm(wanted: &Wanted) -> Result<()> {
    let series: Vec<_> =
        SERIES.iter().filter(|series| wanted.kernel == "all" || wanted.kernel == series.name).collect();
    if series.is_empty() {
        let names = SERIES.map(|series| series.name).join(", ");
        bail!("no kernel `{}`: there are {names}, and `all`", wanted.kernel);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the virtual machines are of x86-64, and run what is built here: not on {}",
            std::env::consts::ARCH
        );
    }
    let vm = target()?.join("vm");
    fs::create_dir_all(&vm).with_context(|| format!("cannot create `{}`", vm.display()))?;
    let qemu = qemu::find(&vm)?;
    let packages = packages::install()?;
    let built = Built::build()?;
    let plan = plan(&built, &packages, &wanted.test)?;
    for (name, why) in LEFT_OUT.iter().filter(|(name, _)| leaves_out(wanted, &built, name)) {
        say(format_args!("without tests/tests/{name}: {why}"));
    }
    let disk = disk::make(&vm, &built, &packages)?;
    let mut matrix = Matrix::default();
    let mut accelerator = None;
    for series in series {
        let kernel = Kernel::get(&vm, series)?;
        let accelerator = match accelerator {
            Some(known) => known,
            None => *accelerator.insert(qemu::accelerator(&qemu, &kernel, &vm)?),
        };
        matrix.add(boot(&vm, &qemu, &kernel, accelerator, &plan, &disk)?);
    }
    println!("{matrix}");
    matrix.verdict()
}

/// Whether what is wanted, but for this entry of [`LEFT_OUT`], would have it.
fn leaves_out(wanted: &Wanted, built: &Built, name: &str) -> bool {
    match name.split_once("::") {
        _ if wanted.test.is_empty() => built.tests().any(|test| name.split("::").next() == Some(test)),
        Some((file, _)) => wanted.test.iter().any(|test| test == file),
        None => false,
    }
}

/// Writes what a kernel of that series starts with to find the system on its first disk. Returns the kernel's image.
pub(crate) fn write_host_initrd(vm: &Path, series: &str, initrd: &Path) -> Result<PathBuf> {
    let known = SERIES.iter().find(|known| known.name == series);
    let kernel = Kernel::get(vm, known.with_context(|| format!("no kernel `{series}`"))?)?;
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let goal = Goal::Start { init: PathBuf::from("/sbin/init") };
    initrd::write(&kernel, &this, &goal, initrd)?;
    Ok(kernel.image)
}

fn plan(built: &Built, packages: &Packages, tests: &[String]) -> Result<Plan> {
    let test = |name: &str, kind: Kind| -> Result<Step> {
        let mut arguments = vec!["--test-threads=1".to_owned()];
        let left_out = LEFT_OUT.iter().filter_map(|(test, _)| test.split_once("::"));
        for (_, test) in left_out.filter(|(file, _)| *file == name) {
            arguments.extend(["--skip", test].map(str::to_owned));
        }
        arguments.extend((kind == Kind::Programs).then(|| "--nocapture".to_owned()));
        Ok(Step { name: name.to_owned(), kind, program: built.test(name)?.to_owned(), arguments })
    };
    let text = |path: &Path| path.display().to_string();
    let demo = Step {
        name: DEMO.to_owned(),
        kind: Kind::Demo,
        program: built.xtask.clone(),
        arguments: vec![
            "demo-as-root".to_owned(),
            "--agent".to_owned(),
            text(&built.agent),
            "--python".to_owned(),
            text(&packages.python),
            "--server-everything".to_owned(),
            text(&packages.server_everything),
        ],
    };
    let others =
        built.tests().filter(|name| *name != FIRED && !LEFT_OUT.iter().any(|(left_out, _)| left_out == name));
    let wanted: Vec<_> = match tests {
        [] => [FIRED, DEMO].into_iter().chain(others).collect(),
        some => some.iter().map(String::as_str).collect(),
    };
    let mut steps = Vec::new();
    for name in wanted {
        steps.push(match name {
            FIRED => test(name, Kind::Programs)?,
            DEMO => demo.clone(),
            _ => test(name, Kind::Tests)?,
        });
    }
    Ok(Plan {
        xtask: built.xtask.clone(),
        path: std::env::var("PATH").context("no PATH")? + ":/usr/sbin:/sbin",
        folder: root().join("tests"),
        steps,
    })
}

/// Runs all steps on one kernel.
fn boot(
    vm: &Path,
    qemu: &Path,
    kernel: &Kernel,
    accelerator: Accelerator,
    plan: &Plan,
    disk: &Path,
) -> Result<Row> {
    let name = |what: &str| vm.join(format!("{}.{what}", kernel.series));
    let [initrd, console, reports]: [PathBuf; 3] =
        [name("initrd"), name("console.log"), name("reports.jsonl")];
    initrd::write(kernel, &plan.xtask, &Goal::Run(plan.clone()), &initrd)?;
    let machine =
        Machine { kernel, initrd: &initrd, disk, console: &console, reports: &reports, accelerator };
    say(format_args!("starting kernel {}; its console is {}", kernel.release, console.display()));
    let mut row = Row::new(&kernel.release);
    let mut since = Instant::now();
    let mut seen = 0;
    let ran = machine.run(qemu, || {
        let text = fs::read_to_string(&reports).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().skip(seen) {
            let report: Report =
                serde_json::from_str(line).with_context(|| format!("not a report: `{line}`"))?;
            say(row.take(report, since.elapsed()));
            since = Instant::now();
            seen += 1;
        }
        Ok(())
    });
    match ran {
        Ok(()) if row.ended => {}
        Ok(()) => row.broke(&format!("the virtual machine ended before its steps\n{}", machine.last_lines())),
        Err(error) => row.broke(&format!("{error:#}")),
    }
    Ok(row)
}

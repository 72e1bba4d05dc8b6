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
use guest::{Goal, Kind, Mounts, Plan, Step};
pub(crate) use guest::{first, host, steps, wait_as_first};
use kernel::{Kernel, SERIES};
use matrix::{AROUND, CAPTURE, CLOCK, DEMO, FIRED, HOSTS, LOCKDOWN, Matrix, PREFLIGHT, Row};
pub(crate) use qemu::CMDLINE;
use qemu::{Accelerator, Machine};
use report::Report;

/// What begins the test of tests/tests/hosts.rs that has a start of its own.
const LOCKED_DOWN: &str = "locked_down";
/// What is run where nothing else is asked for.
const STEPS: [&str; 8] = [FIRED, DEMO, CAPTURE, AROUND, PREFLIGHT, CLOCK, HOSTS, LOCKDOWN];
/// Files of tests/tests, or `FILE::TEST`, that `--all` does not run either, and why.
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
    /// Only these, and nothing else: `demo`, `lockdown`, or a file of tests/tests; may be repeated
    #[arg(long)]
    test: Vec<String>,
    /// Also the files of tests/tests that depend less on the kernel
    #[arg(long, conflicts_with = "test")]
    all: bool,
}

impl Wanted {
    /// These steps, on one series.
    pub(crate) fn steps(series: &str, steps: &[&str]) -> Self {
        let test = steps.iter().map(|&step| step.to_owned()).collect();
        Self { kernel: series.to_owned(), test, all: false }
    }
}

/// In what state a step finds the machine: each is a start of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// As a host is.
    Whole,
    /// Neither cgroups nor a bpf file system are mounted.
    Bare,
    /// Locked down for confidentiality.
    LockedDown,
}

impl State {
    const ALL: [Self; 3] = [Self::Whole, Self::Bare, Self::LockedDown];

    fn of(step: &str) -> Self {
        match step {
            HOSTS => Self::Bare,
            LOCKDOWN => Self::LockedDown,
            _other => Self::Whole,
        }
    }

    fn mounts(self) -> Mounts {
        match self {
            Self::Whole | Self::LockedDown => Mounts::All,
            Self::Bare => Mounts::Bare,
        }
    }

    /// What tells its files from those of the other states.
    fn suffix(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::Bare => "-bare",
            Self::LockedDown => "-locked-down",
        }
    }

    /// What the kernel is told.
    fn told(self) -> &'static str {
        match self {
            Self::Whole | Self::Bare => "",
            Self::LockedDown => qemu::LOCKED_DOWN,
        }
    }
}

/// What the machines of all kernels share.
struct Workshop {
    vm: PathBuf,
    qemu: PathBuf,
    disk: PathBuf,
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
    let steps = steps_of(wanted, &built);
    let mut plans = Vec::new();
    for state in State::ALL {
        plans.push((state, plan(&built, &packages, state, &steps)?));
    }
    let disk = disk::make(&vm, &built, &packages)?;
    let workshop = Workshop { vm, qemu, disk };
    let mut matrix = Matrix::default();
    let mut accelerator = None;
    for series in series {
        let kernel = Kernel::get(&workshop.vm, series)?;
        let accelerator = match accelerator {
            Some(known) => known,
            None => *accelerator.insert(qemu::accelerator(&workshop.qemu, &kernel, &workshop.vm)?),
        };
        let (mut row, began) = (Row::new(&kernel.release), Instant::now());
        for (state, plan) in &plans {
            if !plan.steps.is_empty() && !row.is_broken() {
                workshop.boot(&kernel, accelerator, *state, plan, &mut row)?;
            }
        }
        row.took(began.elapsed());
        matrix.add(row);
    }
    println!("{matrix}");
    matrix.verdict()
}

/// Names of what is to be run.
fn steps_of(wanted: &Wanted, built: &Built) -> Vec<String> {
    if !wanted.test.is_empty() {
        return wanted.test.clone();
    }
    let mut steps = STEPS.map(str::to_owned).to_vec();
    if wanted.all {
        for (name, why) in LEFT_OUT {
            say(format_args!("without tests/tests/{name}: {why}"));
        }
        let left_out = |name: &str| LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
        let others = built.tests().filter(|name| !STEPS.contains(name) && !left_out(name));
        steps.extend(others.map(str::to_owned));
    }
    steps
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

/// What is run of these steps on a machine in that state.
fn plan(built: &Built, packages: &Packages, state: State, steps: &[String]) -> Result<Plan> {
    let mut planned = Vec::new();
    for name in steps.iter().map(String::as_str).filter(|name| State::of(name) == state) {
        planned.push(if name == DEMO { demo(built, packages) } else { test(built, name)? });
    }
    Ok(Plan {
        mounts: state.mounts(),
        xtask: built.xtask.clone(),
        path: std::env::var("PATH").context("no PATH")? + ":/usr/sbin:/sbin",
        folder: root().join("tests"),
        steps: planned,
    })
}

fn test(built: &Built, name: &str) -> Result<Step> {
    let mut arguments = vec!["--test-threads=1".to_owned()];
    let left_out = LEFT_OUT.iter().filter_map(|(test, _)| test.split_once("::"));
    for (_, test) in left_out.filter(|(file, _)| *file == name) {
        arguments.extend(["--skip", test].map(str::to_owned));
    }
    let (file, kind, more): (_, _, &[&str]) = match name {
        FIRED => (name, Kind::Programs, &["--nocapture"]),
        HOSTS => (name, Kind::Tests, &["--skip", LOCKED_DOWN]),
        LOCKDOWN => (HOSTS, Kind::Tests, &[LOCKED_DOWN]),
        _other => (name, Kind::Tests, &[]),
    };
    arguments.extend(more.iter().map(|&word| word.to_owned()));
    Ok(Step { name: name.to_owned(), kind, program: built.test(file)?.to_owned(), arguments })
}

fn demo(built: &Built, packages: &Packages) -> Step {
    let text = |path: &Path| path.display().to_string();
    let arguments = vec![
        "demo-as-root".to_owned(),
        "--agent".to_owned(),
        text(&built.agent),
        "--python".to_owned(),
        text(&packages.python),
        "--server-everything".to_owned(),
        text(&packages.server_everything),
    ];
    Step { name: DEMO.to_owned(), kind: Kind::Demo, program: built.xtask.clone(), arguments }
}

impl Workshop {
    /// Runs a plan on one kernel, and adds what came of it to the kernel's row.
    fn boot(
        &self,
        kernel: &Kernel,
        accelerator: Accelerator,
        state: State,
        plan: &Plan,
        row: &mut Row,
    ) -> Result<()> {
        let name = |what: &str| self.vm.join(format!("{}{}.{what}", kernel.series, state.suffix()));
        let [initrd, console, reports]: [PathBuf; 3] =
            [name("initrd"), name("console.log"), name("reports.jsonl")];
        initrd::write(kernel, &plan.xtask, &Goal::Run(plan.clone()), &initrd)?;
        let machine = Machine {
            kernel,
            initrd: &initrd,
            disk: &self.disk,
            console: &console,
            reports: &reports,
            accelerator,
            told: state.told(),
        };
        say(format_args!("starting kernel {}; its console is {}", kernel.release, console.display()));
        row.starts();
        let mut since = Instant::now();
        let mut seen = 0;
        let ran = machine.run(&self.qemu, || {
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
            Ok(()) if row.has_ended() => {}
            Ok(()) => {
                row.broke(&format!("the virtual machine ended before its steps\n{}", machine.last_lines()));
            }
            Err(error) => row.broke(&format!("{error:#}")),
        }
        Ok(())
    }
}

//! Toolgate's tasks, one file each: what a person types, CI runs too.
//!
//! - `workspace`: where things are, how commands are run and what is printed meanwhile
//! - `sudo`: how the privileged part of a task gets root
//! - `packages`: the official client and server packages, in a private folder under `target/`
//! - `toolchain`, `ebpf`: what compiles BPF programs, found or made, and the object that the agent embeds
//! - `build`: the agent with its BPF object
//! - `process`, `ports`, `leftovers`: what a task starts, and proof that nothing of it is left
//! - `demo`, `run`, `test`, `bench`, `vm`, `vagrant`, `ci`, `tidy`: the tasks

mod bench;
mod build;
mod ci;
mod debian;
mod demo;
mod ebpf;
mod leftovers;
mod packages;
mod ports;
mod process;
mod run;
mod sudo;
mod test;
mod tidy;
mod toolchain;
mod vagrant;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Toolgate's tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF object, with a toolchain that is found or made
    Ebpf,
    /// Build the agent with its BPF object
    Build {
        /// Optimised, as it would be installed
        #[arg(long)]
        release: bool,
    },
    /// Show what Toolgate does, on a real client and a real server
    Demo,
    /// The part of `demo` that runs as root
    #[command(hide = true)]
    DemoAsRoot(demo::Prepared),
    /// Run the agent; what follows `--` goes to `toolgate run`, e.g. `-- --config DIR`
    Run {
        /// Optimised, as it would be installed
        #[arg(long)]
        release: bool,
        /// Arguments of `toolgate run`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Install the official MCP client and server packages under target/ and print where they are
    Packages,
    /// Run all tests, the privileged ones included
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Measure the agent beside nginx, haproxy and Envoy
    Bench(bench::Wanted),
    /// The part of `bench` that runs as root
    #[command(hide = true)]
    BenchAsRoot(bench::Prepared),
    /// The server behind all that `bench` measures
    #[command(hide = true)]
    BenchUpstream { addresses: Vec<String> },
    /// Its load generator
    #[command(hide = true)]
    BenchGenerate,
    /// Run the agent and its tests on Debian's stock kernels, each in a virtual machine
    Vm(vm::Wanted),
    /// The virtual machine's first process, in its initial archive
    #[command(hide = true)]
    VmGuest,
    /// The same on its disk
    #[command(hide = true)]
    VmGuestHost { plan: String },
    /// What runs the steps there
    #[command(hide = true)]
    VmGuestSteps { plan: String },
    /// Run the acceptance test of vagrant/Vagrantfile where there is neither KVM nor a box
    Vagrant,
    /// The part of `vagrant` that runs in namespaces of its own
    #[command(hide = true)]
    VagrantInside(vagrant::Prepared),
    /// What CI runs: formatting, clippy, tidy, one kernel in a virtual machine, then all tests
    Ci,
    /// Check the rules of the house that a machine can check
    Tidy,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Ebpf => ebpf::build().map(|object| println!("{}", object.display())),
        Task::Build { release } => build::build(release).map(|_agent| ()),
        Task::Demo => demo::demo(),
        Task::DemoAsRoot(prepared) => demo::show(&prepared),
        Task::Run { release, arguments } => run::run(release, &arguments),
        Task::Packages => packages::install().and_then(|packages| {
            let clients = packages::install_clients()?;
            for installed in [packages.python, packages.server_everything].iter().chain(&clients) {
                println!("{}", installed.display());
            }
            Ok(())
        }),
        Task::Test { filter } => test::test(filter.as_deref()),
        Task::Bench(wanted) => bench::bench(wanted),
        Task::BenchAsRoot(prepared) => bench::measure(&prepared),
        Task::BenchUpstream { addresses } => bench::serve(&addresses),
        Task::BenchGenerate => bench::generate(),
        Task::Vm(wanted) => vm::vm(&wanted),
        Task::VmGuest => vm::first(),
        Task::VmGuestHost { plan } => vm::host(&plan),
        Task::VmGuestSteps { plan } => vm::steps(&plan),
        Task::Vagrant => vagrant::vagrant(),
        Task::VagrantInside(prepared) => vagrant::inside(&prepared),
        Task::Ci => ci::ci(),
        Task::Tidy => tidy::tidy(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

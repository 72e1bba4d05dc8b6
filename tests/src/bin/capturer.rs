//! An agent that does nothing but capture a cgroup, to be killed: `capturer CGROUP_DIRECTORY`.
//!
//! It captures all destinations, says `ready PORT`, then `took ORIGINAL` for each connection, and
//! leaves in order at the end of its input.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use toolgate::capture::{CapturedCgroup, Destinations, Kernel, Plan, Scope, cgroup};

fn main() -> Result<()> {
    let cgroup = std::env::args_os().nth(1).context("which cgroup?")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    let SocketAddr::V4(address) = listener.local_addr().context("no address")? else {
        bail!("not IPv4");
    };
    let kernel = Kernel::attach(&plan(address, Path::new(&cgroup))?, &[listener.try_clone()?])?;
    let mut taker = kernel.taker()?;
    println!("ready {}", address.port());
    std::thread::spawn(move || {
        while let Ok((stream, peer)) = listener.accept() {
            match taker.take(&stream, peer) {
                Ok(captured) => println!("took {}", captured.original),
                Err(error) => println!("broken: {error}"),
            }
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("cannot wait for the end")?;
    kernel.detach()?;
    Ok(())
}

fn plan(listener: SocketAddrV4, cgroup: &Path) -> Result<Plan> {
    let captured =
        CapturedCgroup { id: cgroup::id(cgroup)?, scope: Scope::Subtree, destinations: Destinations::All };
    Ok(Plan {
        listener,
        cgroups: vec![captured],
        capture: Vec::new(),
        exclude: Vec::new(),
        refuse: Vec::new(),
    })
}

//! An agent that does nothing but capture a cgroup, to be killed: `capturer CGROUP_DIRECTORY [PORT]`.
//!
//! It captures all destinations, says `capturing at PORT`, then `took ORIGINAL` for each connection, and
//! leaves in order at the end of its input.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use toolgate::capture::{CapturedCgroup, Destinations, Kernel, Loss, Plan, Scope, Settings, cgroup};

/// It does not beat: whoever kills it does not wait for so long.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(3600);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let cgroup = arguments.next().context("which cgroup?")?;
    let port = match arguments.next() {
        Some(port) => port.parse().context("not a port")?,
        None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(),
    };
    let settings = Settings { port, agent_loss: Loss::Closed, heartbeat_age_max: HEARTBEAT_AGE_MAX };
    let kernel = Kernel::attach(&settings)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("cannot listen")?;
    let home = kernel.namespace_of(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)?;
    kernel.serve(home, false, &[listener.try_clone()?], &[])?;
    kernel.update(&plan(Path::new(&cgroup))?)?;
    kernel.lead()?;
    let mut taker = kernel.taker()?;
    println!("capturing at {port}");
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

fn plan(cgroup: &Path) -> Result<Plan> {
    let captured =
        CapturedCgroup { id: cgroup::id(cgroup)?, scope: Scope::Subtree, destinations: Destinations::All };
    Ok(Plan { cgroups: vec![captured], ..Plan::default() })
}

//! Ports for what a task starts.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

/// Addresses on loopback that nobody uses now.
pub(crate) fn free_addresses<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let any = |_| TcpListener::bind(("127.0.0.1", 0)).context("no free port on 127.0.0.1");
    // All at once, so that they differ.
    let listeners = (0..COUNT).map(any).collect::<Result<Vec<_>>>()?;
    let address = |listener: &TcpListener| listener.local_addr().context("a listener without address");
    let addresses = listeners.iter().map(address).collect::<Result<Vec<_>>>()?;
    addresses.try_into().ok().context("as many as were asked for")
}

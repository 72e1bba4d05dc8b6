//! The way to an external server: an address that its name leads to, checked, and that very address dialled.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use toolgate_core::address::{Special, special};
use toolgate_core::decision::External;

use super::{ForwardError, Upstream, Ways, connect};
use crate::deadline::timeout;
use crate::io::Io;
use crate::limits::Limits;
use crate::netns::Namespaces;

/// Why an address is none for an external server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is no public one.
    Special(Special),
    /// It leads to this host.
    Own,
    /// The guard lets the agent pass to the server that is there: what is not decided as for that one must not.
    Guarded,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Special(special) => special.fmt(f),
            Self::Own => f.write_str("of this host"),
            Self::Guarded => f.write_str("the port of a declared server"),
        }
    }
}

/// Why an address may not be dialled for an external server; `None`: it may. A name's owner says where it leads, and must
/// not lead to what only this host reaches (DNS rebinding).
#[must_use]
pub fn refusal(external: &External, address: SocketAddr, namespaces: &Namespaces) -> Option<Refusal> {
    if namespaces.guards(namespaces.home().cookie, address) {
        return Some(Refusal::Guarded);
    }
    if external.allow_private {
        return None;
    }
    let of_host = || namespaces.all().iter().any(|namespace| namespace.has(address.ip()));
    special(address.ip()).map(Refusal::Special).or_else(|| of_host().then_some(Refusal::Own))
}

/// Dials an address of a server, if it may have that.
pub(super) async fn dial(
    external: &External,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<TcpStream, ForwardError> {
    match refusal(external, address, ways.namespaces) {
        Some(why) => Err(ForwardError::Refused { server: external.to_string().into(), address, why }),
        None => connect(address, ways.namespaces.home(), limits).await,
    }
}

/// The same within TLS, where its URL says so.
pub(super) async fn connect_external(
    external: &Arc<External>,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let plain = dial(external, address, ways, limits).await?;
    let Some(proof) = &external.tls else { return Ok(Upstream::new(Io::Plain(plain), address)) };
    let limit = limits.handshake_time_max;
    let shaken = timeout(limit, ways.connectors.connect(plain, external, proof)).await;
    let server = || external.to_string().into();
    let tls = shaken
        .map_err(|_| ForwardError::HandshakeTimeout { address, limit })?
        .map_err(|cause| ForwardError::Tls { server: server(), address, cause: Box::new(cause) })?;
    Ok(Upstream::new(Io::Tls(Box::new(tls)), address))
}

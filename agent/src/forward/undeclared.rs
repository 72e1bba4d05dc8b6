//! The way to what no Server declares, from its caller's own network namespace.

use std::net::SocketAddr;

use rustls::pki_types::ServerName;
use toolgate_core::decision::{Passage, Permitted};
use toolgate_core::http1::Changes;

use super::{Connectors, ForwardError, Upstream, connect, pool};
use crate::capture::Cookie;
use crate::io::Io;
use crate::limits::Limits;
use crate::netns::Namespaces;
use crate::parse::Request;

/// What no Server declares, as seen from the network namespace that it is dialled from: the caller's own.
#[derive(Clone, Copy)]
pub struct Undeclared<'n> {
    /// Where the client wanted to go.
    pub address: SocketAddr,
    /// Where it is.
    pub namespace: Cookie,
    /// Those that the agent can dial from.
    pub namespaces: &'n Namespaces,
    /// It was reached by a tunnel through a proxy: there is no other connection to it.
    pub is_tunnel: bool,
    /// The name by which it must prove itself: its client speaks TLS, which is read here, and so is it spoken to.
    pub tls: Option<&'n ServerName<'static>>,
    /// TLS in clients' place.
    pub connectors: &'n Connectors,
}

impl Undeclared<'_> {
    /// The same, through a tunnel where there is one.
    #[must_use]
    pub fn by(self, tunnel_to: Option<&str>) -> Self {
        Self { is_tunnel: tunnel_to.is_some(), ..self }
    }

    async fn connect(self, limits: &Limits) -> Result<Upstream, ForwardError> {
        let Self { address, namespace, namespaces, is_tunnel, .. } = self;
        if is_tunnel {
            return Err(ForwardError::TunnelEnded { address });
        }
        // The guard lets the agent pass: what is not decided as for that server must not.
        if namespaces.guards(namespace, address) {
            return Err(ForwardError::Guarded { address });
        }
        if matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local()) {
            return Err(ForwardError::LinkLocal { address });
        }
        let from = namespaces.get(namespace).map_err(|source| ForwardError::Namespace { address, source })?;
        Ok(Upstream::new(Io::Plain(connect(address, &from, limits).await?), address))
    }

    /// The same connection within TLS, where its client speaks that and it is not yet.
    pub(super) async fn secured(self, upstream: Upstream, limits: &Limits) -> Result<Upstream, ForwardError> {
        let (Some(name), Io::Plain(_)) = (self.tls, &upstream.io) else { return Ok(upstream) };
        upstream.secured(name, self.connectors, limits).await
    }
}

/// Sends permitted MCP to an address that no Server declares, over a connection of this client alone.
///
/// # Errors
/// As [`send`].
pub async fn send_undeclared(
    permitted: Permitted<&Request<'_>>,
    own: Option<Upstream>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let mut upstream = still_open(own, to, limits).await?;
    upstream.write_request(permitted.into_inner(), Changes::default(), limits).await?;
    Ok(upstream)
}

/// Dials where the client of a permitted passage wanted to go.
///
/// # Errors
/// [`ForwardError`] when nothing answers there.
pub async fn dial(
    _permitted: &Permitted<Passage>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    to.connect(limits).await
}

pub(super) async fn still_open(
    own: Option<Upstream>,
    to: Undeclared<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    if let Some(mut upstream) = own
        && matches!(pool::silence(&mut upstream), pool::Silence::Kept)
    {
        return to.secured(upstream, limits).await;
    }
    to.secured(to.connect(limits).await?, limits).await
}

//! What is called: a declared server, and how a call names it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::External;
use crate::http1::Addressed;
use crate::identity::Identity;
use crate::pin::Pinning;
use crate::policy::Ends;

/// How a server's messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Streamable HTTP (MCP 2025-03-26 and later).
    Streamable,
    /// HTTP with SSE (MCP 2024-11-05): the client opens a stream, and sends to the endpoint that is named there.
    Sse,
}

/// Whether policy counts for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// It does.
    Enforce,
    /// What policy would deny passes, and is recorded.
    DangerousObserve,
}

/// Where the process of a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Behind this agent.
    Local {
        /// Where callers connect to, and where its process listens.
        address: SocketAddr,
    },
    /// Behind another one.
    Peer {
        /// Where callers connect to.
        address: SocketAddr,
        /// Where that agent is; of several, each has a replica of the server.
        endpoints: Arc<[Endpoint]>,
    },
    /// Behind none: it is known by its URL.
    External(Arc<External>),
}

/// Where a server, or the agent in front of it, may be: one replica, or as many as the name has addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// There.
    Address(SocketAddr),
    /// At the addresses of a name.
    Name {
        /// In lower case, without a dot at its end.
        name: Arc<str>,
        /// At this port.
        port: u16,
    },
    /// Where the SRV records of a name say (RFC 2782).
    Service(Arc<str>),
}

impl Endpoint {
    /// Its port; `None`: a service's records say it.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Address(address) => Some(address.port()),
            Self::Name { port, .. } => Some(*port),
            Self::Service(_) => None,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { name, port } => write!(f, "{name}:{port}"),
            Self::Service(name) => write!(f, "srv:{name}"),
        }
    }
}

/// What becomes of TLS to a server, whose content nobody reads here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// It is denied.
    Deny,
    /// It passes for callers that may anything on the server: which tool they call is not seen.
    Allow,
}

/// A declared server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Who it is.
    pub identity: Identity,
    /// Where its process is.
    pub place: Place,
    /// The names it answers to, with or without port, in lower case; empty = its address and, on loopback,
    /// `localhost`. One that is external has that of its URL alone.
    pub hosts: Vec<String>,
    /// Its MCP path.
    pub path: String,
    /// Whether policy counts.
    pub enforcement: Enforcement,
    /// How its messages travel.
    pub transport: Transport,
    /// How what it offers is pinned.
    pub pinning: Pinning,
    /// What becomes of TLS to it.
    pub opaque: Opaque,
}

/// Whom a call is for, as seen from here.
#[derive(Debug, Clone, Copy)]
pub struct Target<'s> {
    /// Whom.
    pub server: &'s Server,
    /// Which ends of the call are here.
    pub ends: Ends,
}

impl Server {
    /// The target of a call that was captured here.
    #[must_use]
    pub fn captured(&self) -> Target<'_> {
        let ends = match self.place {
            Place::Local { .. } | Place::External(_) => Ends::Both,
            Place::Peer { .. } => Ends::Caller,
        };
        Target { server: self, ends }
    }

    /// Where callers connect to; `None`: wherever its name leads them.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Local { address } | Place::Peer { address, .. } => Some(*address),
            Place::External(_) => None,
        }
    }

    /// Where it may be, but for the one address of a local one.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        match &self.place {
            Place::Local { .. } => &[],
            Place::Peer { endpoints, .. } => endpoints,
            Place::External(external) => &external.endpoints,
        }
    }

    /// The URL, where that is how it is known.
    #[must_use]
    pub fn external(&self) -> Option<&Arc<External>> {
        match &self.place {
            Place::External(external) => Some(external),
            Place::Local { .. } | Place::Peer { .. } => None,
        }
    }

    /// What stands before the path of a request that came this way.
    #[must_use]
    pub fn base(&self, addressed: Option<Addressed>) -> &str {
        let external = self.external().filter(|_| addressed.is_some_and(Addressed::by_app_id));
        external.map_or("", |external| &external.base)
    }

    /// Whether a Host header names this server. A web page that had its own name resolve to this address is told
    /// apart by it (DNS rebinding).
    #[must_use]
    pub fn accepts_host(&self, host: &str) -> bool {
        let address = match &self.place {
            Place::External(external) => return external.accepts_host(host),
            Place::Local { address } | Place::Peer { address, .. } => *address,
        };
        let (name, port) = split_port(host);
        if !port.is_none_or(|port| port.parse() == Ok(address.port())) || name.is_empty() {
            return self.hosts.iter().any(|one| one.eq_ignore_ascii_case(host));
        }
        // HTTP leaves out port 80, or 443 within TLS (RFC 9110 sections 4.2.1 and 4.2.2); names without port are taken with
        // any of both.
        let port_fits = port.is_some() || matches!(address.port(), 80 | 443);
        if self.hosts.is_empty() {
            return port_fits && is_own_name(address, name);
        }
        self.hosts.iter().any(|one| one.eq_ignore_ascii_case(host) || one.eq_ignore_ascii_case(name))
    }

    /// Whether the name in a client's TLS (SNI) is one of its own.
    #[must_use]
    pub fn goes_by(&self, name: &str) -> bool {
        match &self.place {
            Place::Local { address } | Place::Peer { address, .. } => {
                self.accepts_host(&format!("{name}:{}", address.port()))
            }
            Place::External(external) => external.has_name(name),
        }
    }

    /// Whether a proxy that is asked for this host and port is asked for this server. Any name that it goes by counts.
    #[must_use]
    pub fn is_named(&self, host: &str, port: u16) -> bool {
        let own = match &self.place {
            Place::External(external) => return external.is_named(host, port),
            Place::Local { address } | Place::Peer { address, .. } => *address,
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        let is_default = port == 80 && self.accepts_host(name);
        let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let is_address = literal.parse::<IpAddr>().is_ok_and(|address| {
            let (address, own) = (address.to_canonical(), own.ip().to_canonical());
            address == own || (own.is_loopback() && (address.is_loopback() || address.is_unspecified()))
        });
        is_default || self.accepts_host(&format!("{name}:{port}")) || (is_address && port == own.port())
    }
}

/// Whether a name is this address, or on loopback any of those and `localhost`.
pub(super) fn is_own_name(own: SocketAddr, name: &str) -> bool {
    let loopback = own.ip().is_loopback();
    match literal(name) {
        Some(address) => address == own.ip() || (loopback && address.is_loopback()),
        None => loopback && name.eq_ignore_ascii_case("localhost"),
    }
}

/// The address that a host of a URL or a Host header is, IPv6 in brackets. `None`: it is a name.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// Host and port of a Host header; an IPv6 literal keeps its brackets.
pub(super) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn server(address: &str, hosts: &[&str]) -> Server {
        Server {
            identity: Identity::new("example.org", "default", "docs").unwrap(),
            place: Place::Local { address: address.parse().unwrap() },
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            path: "/mcp".to_owned(),
            enforcement: Enforcement::Enforce,
            transport: Transport::Streamable,
            pinning: Pinning::OFF,
            opaque: Opaque::Deny,
        }
    }

    #[test]
    fn hosts_name_the_server() {
        let table: &[(&str, &[&str], &str, bool)] = &[
            ("127.0.0.1:8000", &[], "127.0.0.1:8000", true),
            ("127.0.0.1:8000", &[], "localhost:8000", true),
            ("127.0.0.1:8000", &[], "LOCALHOST:8000", true),
            ("127.0.0.1:8000", &[], "[::1]:8000", true),
            ("127.0.0.1:8000", &[], "localhost", false),
            ("127.0.0.1:8000", &[], "localhost:8001", false),
            ("127.0.0.1:8000", &[], "evil.example:8000", false),
            ("127.0.0.1:8000", &[], "", false),
            ("127.0.0.1:8000", &[], ":8000", false),
            ("127.0.0.1:80", &[], "localhost", true),
            ("10.0.0.5:8000", &[], "10.0.0.5:8000", true),
            ("10.0.0.5:8000", &[], "localhost:8000", false),
            ("[fd00::1]:8000", &[], "[fd00::1]:8000", true),
            ("[fd00::1]:80", &[], "[fd00::1]", true),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal:8000", true),
            ("127.0.0.1:8000", &["docs.internal"], "Docs.Internal", true),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal:9", false),
            ("127.0.0.1:8000", &["docs.internal"], "localhost:8000", false),
            ("127.0.0.1:8000", &["docs.internal:9"], "docs.internal:9", true),
            ("127.0.0.1:8000", &["docs.internal:9"], "docs.internal:8000", false),
        ];
        for (address, hosts, host, expected) in table {
            assert_eq!(
                server(address, hosts).accepts_host(host),
                *expected,
                "{host:?} of {address} {hosts:?}"
            );
        }
    }

    #[test]
    fn what_a_proxy_is_asked_for_is_a_server_by_any_of_its_names() {
        let table: &[(&str, &[&str], &str, u16, bool)] = &[
            ("127.0.0.1:8000", &[], "127.0.0.1", 8000, true),
            ("127.0.0.1:8000", &[], "127.0.0.2", 8000, true),
            ("127.0.0.1:8000", &[], "[::ffff:127.0.0.1]", 8000, true),
            ("127.0.0.1:8000", &[], "0.0.0.0", 8000, true),
            ("127.0.0.1:8000", &[], "LocalHost.", 8000, true),
            ("127.0.0.1:8000", &[], "localhost", 8001, false),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal", 8000, true),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal", 80, true),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal", 443, false),
            ("127.0.0.1:8000", &["docs.internal"], "127.0.0.1", 8000, true),
            ("10.0.0.5:8000", &[], "10.0.0.5", 8000, true),
            ("10.0.0.5:8000", &[], "example.org", 8000, false),
            ("[fd00::1]:8000", &[], "[fd00:0::1]", 8000, true),
        ];
        for (address, hosts, host, port, expected) in table {
            assert_eq!(
                server(address, hosts).is_named(host, *port),
                *expected,
                "{host}:{port} of {address} {hosts:?}"
            );
        }
    }
}

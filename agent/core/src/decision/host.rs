//! What a Host header says, and what it should.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Server;

impl Server {
    /// The Host of a request that comes to it by another name.
    #[must_use]
    pub fn host(&self) -> String {
        match self.hosts.first() {
            None => self.address.to_string(),
            Some(host) if split_port(host).1.is_some() => host.clone(),
            Some(name) => format!("{name}:{}", self.address.port()),
        }
    }
}

/// Whether a Host header says this address: its literal, or on loopback any of those and `localhost`.
#[must_use]
pub fn is_named_by(address: SocketAddr, host: &str) -> bool {
    let (name, port) = split_port(host);
    // HTTP leaves out port 80 (RFC 9110 section 4.2.1).
    let port_fits = port.map_or(address.port() == 80, |port| port.parse() == Ok(address.port()));
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let named: Option<IpAddr> = match literal {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    let loopback = address.ip().is_loopback();
    let name_fits = match named {
        Some(named) => named == address.ip() || (loopback && named.is_loopback()),
        None => loopback && name.eq_ignore_ascii_case("localhost"),
    };
    port_fits && name_fits
}

/// Host and port of a Host header; an IPv6 literal keeps its brackets.
pub(super) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::server;

    #[test]
    fn what_is_written_for_a_server_is_a_host_of_its_own() {
        let table: &[(&str, &[&str], &str)] = &[
            ("127.0.0.1:8000", &[], "127.0.0.1:8000"),
            ("[fd00::1]:80", &[], "[fd00::1]:80"),
            ("127.0.0.1:8000", &["docs.internal", "other"], "docs.internal:8000"),
            ("127.0.0.1:8000", &["docs.internal:9"], "docs.internal:9"),
            ("127.0.0.1:8000", &["[::1]"], "[::1]:8000"),
        ];
        for (address, hosts, expected) in table {
            let server = server(address, hosts);
            assert_eq!(server.host(), *expected);
            assert!(server.accepts_host(expected), "{expected}");
        }
    }
}

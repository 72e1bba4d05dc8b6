//! What a Host header says, and what it should.

use std::net::SocketAddr;

use super::server::{is_own_name, split_port};
use super::{Place, Server};

impl Server {
    /// The Host of a request that comes to it by another name.
    #[must_use]
    pub fn host(&self) -> String {
        let address = match &self.place {
            Place::Local { address } | Place::Peer { address, .. } => address,
            Place::External(external) => return external.authority.to_string(),
        };
        match self.hosts.first() {
            None => address.to_string(),
            Some(host) if split_port(host).1.is_some() => host.clone(),
            Some(name) => format!("{name}:{}", address.port()),
        }
    }
}

/// Whether a Host header says this address: its literal, or on loopback any of those and `localhost`.
#[must_use]
pub fn is_named_by(address: SocketAddr, host: &str) -> bool {
    let (name, port) = split_port(host);
    // HTTP leaves out port 80 (RFC 9110 section 4.2.1).
    let port_fits = port.map_or(address.port() == 80, |port| port.parse() == Ok(address.port()));
    port_fits && is_own_name(address, name)
}

#[cfg(test)]
mod tests {
    use super::super::server::tests::server;

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

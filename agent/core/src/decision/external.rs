//! A server that no agent stands in front of, as its URL names it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Endpoint;
use super::server::{literal, split_port};
use crate::http1::OwnHeader;
use crate::secret::Secret;
use crate::workload::Sha256;

/// Of `http` (RFC 9110 section 4.2.1), and of `https` (4.2.2).
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Who a URL names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// In lower case, without a dot at its end.
    Name(Arc<str>),
    /// Canonical: IPv4 is IPv4.
    Address(IpAddr),
}

impl Host {
    /// Reads what stands in a URL: a name, or an address, of IPv6 in brackets. `None`: neither.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if let Some(address) = literal(text) {
            return Some(Self::Address(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        // What ends in digits alone is an address to some readers, in forms such as `127.1` and `0x7f.1`.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number =
            last.bytes().all(|b| b.is_ascii_digit()) || last.to_ascii_lowercase().starts_with("0x");
        let is_name = name.len() <= 253 && name.split('.').all(is_label) && !is_number;
        is_name.then(|| Self::Name(name.to_ascii_lowercase().into()))
    }

    /// Where it is.
    fn at(&self, port: u16) -> Endpoint {
        match self {
            Self::Name(name) => Endpoint::Name { name: name.clone(), port },
            Self::Address(address) => Endpoint::Address(SocketAddr::new(*address, port)),
        }
    }

    /// Whether a text names the same: a header's host without port, or a name in TLS.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::Name(name) => text.strip_suffix('.').unwrap_or(text).eq_ignore_ascii_case(name),
            Self::Address(address) => literal(text).is_some_and(|text| text.to_canonical() == *address),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// How a server proves by TLS that it is the one of the URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// The certificates (DER) that lead to its own; `None`: those that the system believes.
    pub roots: Option<Arc<[Box<[u8]>]>>,
    /// SHA-256 of the public keys (SubjectPublicKeyInfo) of which its certificate must have one; empty: any.
    pub pins: Arc<[Sha256]>,
    /// What the agent shows to a server that asks who it is; `None`: nothing.
    pub shown: Option<Arc<ClientCertificate>>,
}

/// A certificate by which the agent is known to a server, and what proves that it is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// It, and those that lead to whom the server believes (DER).
    pub chain: Box<[Box<[u8]>]>,
    /// Its key (DER: PKCS #8, PKCS #1 or SEC1).
    pub key: Secret,
}

/// Where such a server is, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Who.
    pub host: Host,
    /// At which port.
    pub port: u16,
    /// How it proves itself; `None`: its URL is `http`.
    pub tls: Option<Proof>,
    /// The port at which its clients speak plain HTTP, whatever is spoken to it. Of an `http` URL that of the URL.
    pub http_port: Option<u16>,
    /// What `Host` says to it.
    pub authority: Box<str>,
    /// Where it is dialled.
    pub endpoints: Arc<[Endpoint]>,
    /// It may be at addresses that are no public ones.
    pub allow_private: bool,
    /// What stands before the path of a call by App ID: that of Dapr's `baseUrl`, without a slash at its end.
    pub base: Box<str>,
    /// What it gets with every request.
    pub own_headers: Arc<[OwnHeader]>,
}

impl External {
    /// One of a URL's parts, which is where its host is.
    #[must_use]
    pub fn new(
        host: Host,
        port: u16,
        tls: Option<Proof>,
        http_port: Option<u16>,
        allow_private: bool,
    ) -> Self {
        let endpoint = host.at(port);
        let default = if tls.is_some() { HTTPS_PORT } else { HTTP_PORT };
        let authority = if port == default { host.to_string() } else { format!("{host}:{port}") };
        let http_port = if tls.is_some() { http_port } else { Some(port) };
        Self {
            host,
            port,
            tls,
            http_port,
            authority: authority.into(),
            endpoints: [endpoint].into(),
            allow_private,
            base: Box::default(),
            own_headers: Arc::default(),
        }
    }

    /// The same that is elsewhere.
    #[must_use]
    pub fn at(self, endpoints: Arc<[Endpoint]>) -> Self {
        Self { endpoints, ..self }
    }

    /// Whether it is dialled elsewhere than at its own host and port.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        *self.endpoints != [self.host.at(self.port)]
    }

    /// The ports that its clients connect to.
    pub fn client_ports(&self) -> impl Iterator<Item = u16> {
        [Some(self.port), self.http_port.filter(|port| *port != self.port)].into_iter().flatten()
    }

    /// Whether it is whom a request names in its Host header. `is_tls`: its client speaks TLS, which was read.
    #[must_use]
    pub fn is_meant(&self, host: &str, is_tls: bool) -> bool {
        let (name, port) = split_port(host);
        let (of_server, default) = if is_tls {
            (self.tls.as_ref().map(|_| self.port), HTTPS_PORT)
        } else {
            (self.http_port, HTTP_PORT)
        };
        let port = port.map_or(Some(default), |port| port.parse().ok());
        port.is_some() && port == of_server && self.host.is(name)
    }

    /// Whether a Host header may name it, however its client speaks.
    #[must_use]
    pub fn accepts_host(&self, host: &str) -> bool {
        self.is_meant(host, false) || self.is_meant(host, true)
    }

    /// Whether it goes by this name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        self.host.is(name)
    }

    /// Whether a proxy that is asked for this host and port is asked for it.
    #[must_use]
    pub fn is_named(&self, host: &str, port: u16) -> bool {
        self.client_ports().any(|own| own == port) && self.host.is(host)
    }
}

/// As its URL begins.
impl std::fmt::Display for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn external(host: &str, port: u16, is_https: bool, http_port: Option<u16>) -> External {
        External::new(Host::read(host).unwrap(), port, is_https.then(Proof::default), http_port, false)
    }

    #[test]
    fn hosts_of_urls_are_names_or_addresses_in_one_form() {
        let table = [
            ("Docs.Example.COM.", Some("docs.example.com")),
            ("docs", Some("docs")),
            ("192.0.2.1", Some("192.0.2.1")),
            ("[2001:DB8::1]", Some("[2001:db8::1]")),
            ("[::ffff:192.0.2.1]", Some("192.0.2.1")),
            ("127.1", None),
            ("0x7f.1", None),
            ("2130706433", None),
            ("0x7f000001", None),
            ("a..b", None),
            ("a b", None),
            ("", None),
            (".", None),
            ("user@host", None),
        ];
        for (text, expected) in table {
            assert_eq!(Host::read(text).map(|host| host.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_request_means_the_server_whose_host_and_port_it_names() {
        let (plain, tls) = (false, true);
        let docs = || external("docs.example.com", 443, true, Some(80));
        let table = [
            (docs(), "docs.example.com", plain, true),
            (docs(), "DOCS.example.com.:80", plain, true),
            (docs(), "docs.example.com:8080", plain, false),
            (docs(), "docs.example.com:443", plain, false),
            (docs(), "docs.example.com", tls, true),
            (docs(), "docs.example.com:443", tls, true),
            (docs(), "docs.example.com:80", tls, false),
            (docs(), "docs.example.com.evil.org", plain, false),
            (docs(), "", plain, false),
            (external("docs.example.com", 443, true, None), "docs.example.com", plain, false),
            (external("docs.example.com", 8080, false, None), "docs.example.com:8080", plain, true),
            (external("docs.example.com", 8080, false, None), "docs.example.com:8080", tls, false),
            (external("docs.example.com", 8080, false, None), "docs.example.com", plain, false),
            (external("192.0.2.1", 80, false, None), "192.0.2.1", plain, true),
            (external("[2001:db8::1]", 80, false, None), "[2001:db8:0::1]:80", plain, true),
        ];
        for (server, host, is_tls, expected) in table {
            assert_eq!(server.is_meant(host, is_tls), expected, "{host} {is_tls} of {server}");
        }
    }

    #[test]
    fn what_it_is_asked_by_is_its_url() {
        for (port, is_https, expected) in [
            (443, true, "https://docs.example.com"),
            (80, true, "https://docs.example.com:80"),
            (80, false, "http://docs.example.com"),
            (8443, true, "https://docs.example.com:8443"),
        ] {
            assert_eq!(external("docs.example.com", port, is_https, None).to_string(), expected);
        }
    }
}

//! Where a Server is: behind this agent, behind another one, or behind none.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_saphyr::Spanned;
use toolgate_core::address;
use toolgate_core::decision::{Endpoint, External, Host, Opaque, Place, Proof, Server, Transport};

use super::certificates::{read_certificate_files, read_pin, read_roots};
use super::diagnostic::Diagnostic;
use super::endpoint;
use super::schema::{ExternalSpec, Metadata, Outside, PeerSpec, ServerSpec};
use super::source::Source;
use super::words::{self, Findings};

/// Where an agent listens for others unless something else is said.
const PEER_PORT: u16 = 15008;
/// The most endpoints of one server.
const ENDPOINTS_MAX: usize = 64;

/// Where a Server is.
pub(super) struct Found {
    pub(super) place: Place,
    /// Its MCP path, where its URL has it.
    pub(super) path: Option<String>,
}

/// Where callers connect to, and where its process is.
pub(super) fn read_place(
    source: &Source,
    metadata: &Metadata,
    spec: &ServerSpec,
    findings: &mut Findings,
) -> Option<Found> {
    let places = [
        spec.local.as_ref().map(|local| local.referenced),
        spec.peer.as_ref().map(|peer| peer.referenced),
        spec.external.as_ref().map(|external| external.referenced),
    ];
    if let Some(second) = places.iter().flatten().nth(1) {
        let fault = source.error_at(*second, "a Server is `local`, `peer` or `external`: one of them");
        findings.push(fault.help(
            "`local` where its process is on this node, `peer` on the callers' nodes, `external` where no agent is",
        ));
        return None;
    }
    match spec.external.as_ref().map(|external| (external, &external.value)) {
        None => {}
        Some((at, Outside::Ours(external))) => return read_external(source, spec, (at, external), findings),
        Some((_, Outside::Daprs(endpoint))) => return endpoint::read(source, metadata, endpoint, findings),
    }
    let (given, address) = match (&spec.local, &spec.peer) {
        (Some(local), _) => {
            findings.refuse_later(source, &[("unix", &local.value.unix)]);
            (source.error(local, "`address` is missing"), &local.value.address)
        }
        (None, Some(peer)) => (source.error(peer, "`address` is missing"), &peer.value.address),
        (None, None) => {
            let fault = source.error(&metadata.name, "`local` is missing: where the server listens");
            findings.push(fault.help(
                "add `local: { address: \"127.0.0.1:8000\" }`, `peer` if it is on another node, or `external: { url: .. }`",
            ));
            return None;
        }
    };
    let Some(address) = address else {
        findings.push(given.help("add `address: \"127.0.0.1:8000\"`, as callers connect to it"));
        return None;
    };
    let address = findings.keep(words::address(source, address))?;
    let place = match &spec.peer {
        None => Place::Local { address },
        Some(peer) => read_peer(source, spec, &peer.value, address, findings),
    };
    Some(Found { place, path: None })
}

fn read_peer(
    source: &Source,
    spec: &ServerSpec,
    peer: &PeerSpec,
    address: SocketAddr,
    findings: &mut Findings,
) -> Place {
    if let Some(word) = spec.transport.as_ref().filter(|word| word.value == "sse") {
        let fault = source.error(word, "`transport: sse` of a server on another node is not built yet");
        findings.push(fault.help("let its clients run on the server's node, or use streamable HTTP"));
    }
    if let Some(word) = spec.pins.as_ref().or(spec.hidden_characters.as_ref()) {
        let fault = source.error(word, "what a server offers is pinned at its own end");
        findings.push(fault.help("write it into the Server of the node where it is `local`"));
    }
    let endpoints = match &peer.endpoints {
        None => [Endpoint::Address(SocketAddr::new(address.ip(), PEER_PORT))].into(),
        Some(list) => read_endpoints(source, list, "leave it out for port 15008 of `address`", findings),
    };
    Place::Peer { address, endpoints }
}

fn read_endpoints(
    source: &Source,
    list: &Spanned<Vec<Spanned<String>>>,
    or: &str,
    findings: &mut Findings,
) -> Arc<[Endpoint]> {
    if list.value.is_empty() {
        let fault = source.error(list, "`endpoints` is empty, so the server is nowhere");
        findings.push(fault.help(format!("name at least one, or {or}")));
    }
    if list.value.len() > ENDPOINTS_MAX {
        let message = format!("{} endpoints are more than {ENDPOINTS_MAX}", list.value.len());
        findings.push(source.error(list, message).help("give them one name in DNS"));
    }
    let mut all: Vec<Endpoint> = Vec::new();
    for word in &list.value {
        let Some(endpoint) = findings.keep(read_endpoint(source, word)) else { continue };
        if all.contains(&endpoint) {
            findings.push(source.error(word, "this is named twice").help("keep one of them"));
        }
        all.push(endpoint);
    }
    all.into()
}

/// `192.0.2.1:443`, `[2001:db8::1]:443`, `a.example.com:443`, `srv:_mcp._tcp.example.com`.
fn read_endpoint(source: &Source, word: &Spanned<String>) -> Result<Endpoint, Diagnostic> {
    let text = &word.value;
    if let Some(service) = text.strip_prefix("srv:") {
        let name =
            Host::read(service).and_then(|host| if let Host::Name(name) = host { Some(name) } else { None });
        return name.map(Endpoint::Service).ok_or_else(|| {
            let fault = source.error(word, format!("`{service}` is no name of a service"));
            fault.help("write it as DNS has it: `srv:_mcp._tcp.example.com`")
        });
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    match (Host::read(host), port.parse().ok().filter(|port| *port != 0)) {
        (Some(Host::Name(name)), Some(port)) => Ok(Endpoint::Name { name, port }),
        _ => words::address(source, word).map(Endpoint::Address),
    }
}

fn read_external(
    source: &Source,
    spec: &ServerSpec,
    (at, external): (&Spanned<Outside>, &ExternalSpec),
    findings: &mut Findings,
) -> Option<Found> {
    if let Some(word) = &spec.path {
        let fault = source.error(word, "the path of an external server is in its `url`");
        findings.push(fault.help("leave `path` out"));
    }
    if let Some(word) = spec.hosts.iter().flatten().next() {
        let fault = source.error(word, "an external server has the name in its `url` alone");
        findings.push(fault.help("leave `hosts` out"));
    }
    let Some(word) = &external.url else {
        let fault = source.error(at, "`url` is missing");
        findings.push(fault.help("add `url: https://docs.example.com/mcp`, as its owner says it"));
        return None;
    };
    let url = findings.keep(Url::read(source, word))?;
    let ExternalSpec { http_port, allow_private, ca_file, pins, endpoints, .. } = external;
    let ExternalSpec { certificate_file, key_file, .. } = external;
    let allow_private = allow_private.as_ref().is_some_and(|allow| allow.value);
    let public = |at: &Spanned<String>, literal: IpAddr| {
        let special = address::special(literal).filter(|_| !allow_private)?;
        let fault = source.error(at, format!("`{literal}` is no public address ({special})"));
        Some(fault.help("write `allow_private: true` if the server is meant to be there"))
    };
    if let Host::Address(literal) = url.host {
        public(word, literal).into_iter().for_each(|fault| findings.push(fault));
    }
    if let Some(port) = http_port.as_ref().filter(|port| port.value == 0) {
        let fault = source.error(port, "nobody can connect to port 0");
        findings.push(fault.help("write the port at which clients speak plain HTTP: `http_port: 80`"));
    }
    let tls = if url.is_https {
        let roots = ca_file.as_ref().and_then(|word| findings.keep(read_roots(source, word)));
        let pins = pins.iter().flat_map(|list| &list.value);
        let pins = pins.filter_map(|word| findings.keep(read_pin(source, word))).collect();
        let shown = read_certificate_files(source, certificate_file, key_file, findings);
        Some(Proof { roots, pins, shown })
    } else {
        let of_tls = [
            ("http_port", http_port.as_ref().map(|word| word.referenced)),
            ("ca_file", ca_file.as_ref().map(|word| word.referenced)),
            ("pins", pins.as_ref().map(|word| word.referenced)),
            ("certificate_file", certificate_file.as_ref().map(|word| word.referenced)),
            ("key_file", key_file.as_ref().map(|word| word.referenced)),
            ("opaque", spec.opaque.as_ref().map(|word| word.referenced)),
        ];
        for (name, at) in of_tls.into_iter().filter_map(|(name, at)| Some((name, at?))) {
            let fault = source.error_at(at, format!("`{name}` says nothing where the `url` is `http`"));
            findings.push(fault.help("leave it out, or write an `https` URL"));
        }
        findings.push(in_the_clear(source, word));
        None
    };
    let http_port = http_port.as_ref().map(|port| port.value);
    let mut place = External::new(url.host, url.port, tls, http_port, allow_private);
    if let Some(list) = endpoints {
        let endpoints = read_endpoints(source, list, "leave it out for the host of `url`", findings);
        for word in &list.value {
            let literal = word.value.parse().ok().map(|address: SocketAddr| address.ip());
            literal.and_then(|ip| public(word, ip)).into_iter().for_each(|fault| findings.push(fault));
        }
        place = place.at(endpoints);
    }
    Some(Found { place: Place::External(Arc::new(place)), path: Some(url.path) })
}

/// A warning of an `http` URL.
pub(super) fn in_the_clear(source: &Source, word: &Spanned<String>) -> Diagnostic {
    let warning = source.error(word, "what is said to this server can be read and changed on its way");
    warning.warning().help("write an `https` URL if the server has one")
}

/// What a server's URL says.
pub(super) struct Url {
    pub(super) is_https: bool,
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) path: String,
}

impl Url {
    pub(super) fn read(source: &Source, word: &Spanned<String>) -> Result<Self, Diagnostic> {
        let text = &word.value;
        let fault =
            |message: &str, help: &str| Err(source.error(word, format!("`{text}` {message}")).help(help));
        let (is_https, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return fault("is no URL of a server", "begin with `https://`"),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return fault("has a user in it", "leave it out: its clients say who they are");
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port != 0)),
            Some(_) | None => (authority, Some(if is_https { 443 } else { 80 })),
        };
        let Some(port) = port else {
            return fault("has no port that one can connect to", "write a number from 1 to 65535");
        };
        let Some(host) = Host::read(host) else {
            return fault(
                "names no host",
                "write a name, or an address as it is usual: `192.0.2.1`, `[2001:db8::1]`",
            );
        };
        let path = if path.is_empty() { "/" } else { path };
        let path = Spanned { value: path.to_owned(), ..word.clone() };
        Ok(Self { is_https, host, port, path: http_path(source, &path)? })
    }
}

/// Two servers of one host and port are told apart by their paths: every message must have one.
pub(super) fn told_apart(
    source: &Source,
    spec: &Spanned<Outside>,
    server: &Server,
    others: &[Arc<Server>],
) -> Result<(), Diagnostic> {
    let Some(own) = server.external() else { return Ok(()) };
    let is_twin = |other: &&Arc<Server>| {
        other.external().is_some_and(|one| {
            one.host == own.host && one.client_ports().any(|port| own.client_ports().any(|own| own == port))
        })
    };
    let is_by_path = |one: &Server| one.transport == Transport::Streamable && one.opaque == Opaque::Deny;
    let twin = others.iter().filter(is_twin);
    for other in twin {
        let fault = |message: String, help: &str| Err(source.error(spec, message).help(help));
        if other.path == server.path {
            return fault(
                format!("Server `{}` has this host, port and path too", other.identity),
                "one URL is one server: which one is meant could not be told",
            );
        }
        if !is_by_path(server) || !is_by_path(other) {
            return fault(
                format!(
                    "Server `{}` has this host and port too, and not all there is told by paths",
                    other.identity
                ),
                "of such Servers none can have `transport: sse` or `opaque: allow`",
            );
        }
    }
    Ok(())
}

/// The MCP path: compared byte by byte, so it must be in the form that requests have.
pub(super) fn http_path(source: &Source, word: &Spanned<String>) -> Result<String, Diagnostic> {
    let path = word.value.as_str();
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'\\'));
    let dotted = path.split('/').any(|part| part == "." || part == "..");
    if path.starts_with('/') && plain && !dotted && !path.contains("//") {
        return Ok(path.to_owned());
    }
    let fault = source.error(word, format!("`{path}` is no path as requests have it"));
    Err(fault.help("begin with `/`, without query, `.`, `..`, `//` and percent signs: `/mcp`"))
}

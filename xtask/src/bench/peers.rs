//! The other proxies, each as one hop to the upstream or as one of two with mutual TLS between them, and as good as we know
//! to set it up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::certificates::{CIPHER, Certificates, Pair, SERVER};
use super::hosts::Host;
use crate::workspace::find_program;

/// A proxy that is started by a command and reads one configuration.
pub(super) struct Peer<'h> {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) command: Command,
    /// Where it is started; `None`: on this host.
    pub(super) host: Option<&'h Host>,
}

/// From where to where a proxy passes on.
pub(super) struct Way<'w> {
    /// For its files.
    pub(super) folder: PathBuf,
    pub(super) at: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) end: End<'w>,
}

/// Which ends of the calls a proxy is at.
#[derive(Clone, Copy)]
pub(super) enum End<'w> {
    Both,
    /// Mutual TLS is what it passes on.
    Caller(&'w Host, &'w Certificates),
    /// Mutual TLS is what comes.
    Server(&'w Host, &'w Certificates),
}

impl<'w> Way<'w> {
    fn host(&self) -> Option<&'w Host> {
        match self.end {
            End::Both => None,
            End::Caller(host, _) | End::Server(host, _) => Some(host),
        }
    }
}

/// nginx: a worker for each core, kept upstream connections, bodies in memory, no log.
pub(super) fn nginx<'w>(way: &Way<'w>) -> Result<Peer<'w>> {
    let folder = way.folder.join("nginx");
    let shown = folder.display();
    let (at, to) = (way.at, way.to);
    let (tls, scheme) = match way.end {
        End::Both => (String::new(), "http"),
        End::Caller(_, certificates) => {
            let (ca, Pair { certificate, key, .. }) = (certificates.ca.display(), &certificates.caller);
            let tls = format!(
                "proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites {CIPHER};
    proxy_ssl_certificate {}; proxy_ssl_certificate_key {};
    proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca};
    proxy_ssl_name {SERVER}; proxy_ssl_server_name on;",
                certificate.display(),
                key.display()
            );
            (tls, "https")
        }
        End::Server(_, certificates) => {
            let (ca, Pair { certificate, key, .. }) = (certificates.ca.display(), &certificates.server);
            let tls = format!(
                "ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites {CIPHER};
    ssl_certificate {}; ssl_certificate_key {};
    ssl_verify_client on; ssl_client_certificate {ca};",
                certificate.display(),
                key.display()
            );
            (tls, "http")
        }
    };
    let ssl = if matches!(way.end, End::Server(..)) { " ssl" } else { "" };
    let file = write(
        &folder,
        "nginx.conf",
        &format!(
            "worker_processes auto;
pid {shown}/pid;
error_log {shown}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {shown}/body;
  proxy_temp_path {shown}/proxy;
  fastcgi_temp_path {shown}/fastcgi;
  uwsgi_temp_path {shown}/uwsgi;
  scgi_temp_path {shown}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  client_body_buffer_size 128k;
  upstream server {{ server {to}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen {at} reuseport backlog=4096{ssl};
    {tls}
    location / {{
      proxy_pass {scheme}://server;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffer_size 16k;
      proxy_buffers 8 32k;
      proxy_busy_buffers_size 64k;
    }}
  }}
}}
"
        ),
    )?;
    let mut command = program("nginx")?;
    command.arg("-c").arg(file).args(["-g", "daemon off;"]);
    Ok(Peer { name: "nginx", address: at, command, host: way.host() })
}

/// haproxy: a thread for each core, connections shared.
pub(super) fn haproxy<'w>(way: &Way<'w>) -> Result<Peer<'w>> {
    let (at, to) = (way.at, way.to);
    let tls = |certificates: &Certificates, pair: &Pair| {
        let (both, ca) = (pair.both.display(), certificates.ca.display());
        format!(" ssl crt {both} ca-file {ca} verify required ssl-min-ver TLSv1.3 ciphersuites {CIPHER}")
    };
    let (bind, server) = match way.end {
        End::Both => (String::new(), String::new()),
        End::Caller(_, certificates) => {
            let tls = tls(certificates, &certificates.caller);
            (String::new(), format!("{tls} sni str({SERVER}) verifyhost {SERVER}"))
        }
        End::Server(_, certificates) => (tls(certificates, &certificates.server), String::new()),
    };
    let file = write(
        &way.folder.join("haproxy"),
        "haproxy.cfg",
        &format!(
            "global
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend hop
  bind {at} backlog 4096{bind}
  default_backend server
backend server
  server upstream {to}{server}
"
        ),
    )?;
    let mut command = program("haproxy")?;
    command.arg("-db").arg("-f").arg(file);
    Ok(Peer { name: "haproxy", address: at, command, host: way.host() })
}

/// Envoy with its MCP filter, and RBAC on the tool that the filter found: what comes nearest to a decision by tool. Of two
/// the server's end decides, and the other passes on.
pub(super) fn envoy<'w>(binary: &Path, way: &Way<'w>) -> Result<Peer<'w>> {
    let socket = |address: SocketAddr| {
        format!("socket_address: {{ address: {}, port_value: {} }}", address.ip(), address.port())
    };
    let context = |certificates: &Certificates, pair: &Pair, names: &str| {
        format!(
            "common_tls_context: {{ \
             tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}, \
             tls_certificates: [ {{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }} ], \
             validation_context: {{ trusted_ca: {{ filename: {} }}{names} }} }}",
            pair.certificate.display(),
            pair.key.display(),
            certificates.ca.display()
        )
    };
    let transport = |kind: &str, more: &str, context: &str| {
        format!(
            ", transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext, \
             {more}, {context} }} }}"
        )
    };
    let (comes, goes, filters) = match way.end {
        End::Both => (String::new(), String::new(), envoy_filters()),
        End::Caller(_, certificates) => {
            let names = format!(
                ", match_typed_subject_alt_names: [ {{ san_type: DNS, matcher: {{ exact: {SERVER} }} }} ]"
            );
            let context = context(certificates, &certificates.caller, &names);
            (String::new(), transport("Upstream", &format!("sni: {SERVER}"), &context), String::new())
        }
        End::Server(_, certificates) => {
            let context = context(certificates, &certificates.server, "");
            let must = "require_client_certificate: true";
            (transport("Downstream", must, &context), String::new(), envoy_filters())
        }
    };
    let file = write(
        &way.folder.join("envoy"),
        "envoy.yaml",
        &format!(
            "static_resources:
  listeners:
  - address: {{ {listen} }}
    filter_chains:
    - {{ filters: [ {{ name: envoy.filters.network.http_connection_manager, typed_config: {{
        \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: hop,
        route_config: {{ virtual_hosts: [ {{ name: all, domains: [\"*\"],
          routes: [ {{ match: {{ path: /mcp }}, route: {{ cluster: server, timeout: 0s }} }} ] }} ] }},
        http_filters: [ {filters} {{ name: envoy.filters.http.router, typed_config: {{
          \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }} ] }} }} ]{comes} }}
  clusters:
  - {{ name: server, type: STATIC, connect_timeout: 5s,
      load_assignment: {{ cluster_name: server, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ {to} }} }} }} ] }} ] }}{goes} }}
",
            listen = socket(way.at),
            to = socket(way.to),
        ),
    )?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(file).args(["--log-level", "error", "--disable-hot-restart"]);
    Ok(Peer { name: "envoy", address: way.at, command, host: way.host() })
}

/// The decision by tool.
fn envoy_filters() -> String {
    let metadata = |path: &str, value: &str| {
        format!(
            "sourced_metadata: {{ metadata_matcher: {{ filter: envoy.filters.http.mcp, path: [ {path} ], \
             value: {{ string_match: {{ exact: {value} }} }} }} }}"
        )
    };
    format!(
        "{{ name: envoy.filters.http.mcp, typed_config: {{
          \"@type\": type.googleapis.com/envoy.extensions.filters.http.mcp.v3.Mcp,
          traffic_mode: REJECT_NO_MCP, max_request_body_size: 4194304 }} }},
        {{ name: envoy.filters.http.rbac, typed_config: {{
          \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC,
          rules: {{ action: ALLOW, policies: {{ tools: {{
            permissions: [ {{ and_rules: {{ rules: [ {{ {method} }}, {{ or_rules: {{ rules: [ {{ {echo} }}, {{ {store} }} ] }} }} ] }} }} ],
            principals: [ {{ any: true }} ] }} }} }} }} }},",
        method = metadata("{ key: method }", "tools/call"),
        echo = metadata("{ key: params }, { key: name }", "echo"),
        store = metadata("{ key: params }, { key: name }", "store"),
    )
}

fn program(name: &str) -> Result<Command> {
    find_program(name).map(Command::new).with_context(|| format!("`{name}` is missing"))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let file = folder.join(name);
    std::fs::write(&file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
    Ok(file)
}

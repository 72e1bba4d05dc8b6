//! The other proxies, each as one hop to the upstream, and as good as we know to set it up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::find_program;

/// A proxy that is started by a command and reads one configuration.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pub(super) command: Command,
}

/// nginx: a worker for each core, kept upstream connections, bodies in memory, no log.
pub(super) fn nginx(folder: &Path, at: SocketAddr, upstream: SocketAddr) -> Result<Peer> {
    let folder = folder.join("nginx");
    let shown = folder.display();
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
  upstream server {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen {at} reuseport backlog=4096;
    location / {{
      proxy_pass http://server;
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
    Ok(Peer { name: "nginx", address: at, command })
}

/// haproxy: a thread for each core, connections shared.
pub(super) fn haproxy(folder: &Path, at: SocketAddr, upstream: SocketAddr) -> Result<Peer> {
    let file = write(
        &folder.join("haproxy"),
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
  bind {at} backlog 4096
  default_backend server
backend server
  server upstream {upstream}
"
        ),
    )?;
    let mut command = program("haproxy")?;
    command.arg("-db").arg("-f").arg(file);
    Ok(Peer { name: "haproxy", address: at, command })
}

/// Envoy with its MCP filter, and RBAC on the tool that the filter found: what comes nearest to a decision by tool.
pub(super) fn envoy(binary: &Path, folder: &Path, at: SocketAddr, upstream: SocketAddr) -> Result<Peer> {
    let socket = |address: SocketAddr| {
        format!("socket_address: {{ address: {}, port_value: {} }}", address.ip(), address.port())
    };
    let metadata = |path: &str, value: &str| {
        format!(
            "sourced_metadata: {{ metadata_matcher: {{ filter: envoy.filters.http.mcp, path: [ {path} ], \
             value: {{ string_match: {{ exact: {value} }} }} }} }}"
        )
    };
    let file = write(
        &folder.join("envoy"),
        "envoy.yaml",
        &format!(
            "static_resources:
  listeners:
  - address: {{ {listen} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hop
          route_config:
            virtual_hosts:
            - {{ name: all, domains: [\"*\"], routes: [ {{ match: {{ path: /mcp }}, route: {{ cluster: server, timeout: 0s }} }} ] }}
          http_filters:
          - name: envoy.filters.http.mcp
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.mcp.v3.Mcp
              traffic_mode: REJECT_NO_MCP
              max_request_body_size: 4194304
          - name: envoy.filters.http.rbac
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  tools:
                    permissions:
                    - and_rules:
                        rules:
                        - {method}
                        - or_rules: {{ rules: [ {{ {echo} }}, {{ {store} }} ] }}
                    principals: [ {{ any: true }} ]
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: server
    type: STATIC
    connect_timeout: 5s
    load_assignment: {{ cluster_name: server, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ {to} }} }} }} ] }} ] }}
",
            listen = socket(at),
            to = socket(upstream),
            method = metadata("{ key: method }", "tools/call"),
            echo = metadata("{ key: params }, { key: name }", "echo"),
            store = metadata("{ key: params }, { key: name }", "store"),
        ),
    )?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(file).args(["--log-level", "error", "--disable-hot-restart"]);
    Ok(Peer { name: "envoy", address: at, command })
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

//! Every limit of the data path, with its unit last in its name.

use std::time::Duration;

use toolgate_core::http1::HeadLimits;
use toolgate_core::mcp::json::JsonLimits;

/// What one connection, message or wait may take before it is refused.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of a request's or reply's head.
    pub head: HeadLimits,
    /// Of a JSON-RPC message: nesting and members.
    pub json: JsonLimits,
    /// The most bytes of a request's body (4 MiB, as the official SDK servers have it).
    pub body_bytes_max: usize,
    /// The most bytes of a reply that must be read whole, as a list that is filtered.
    pub reply_bytes_max: usize,
    /// The most bytes of one server-sent event.
    pub event_bytes_max: usize,
    /// From the first byte of a request to its last.
    pub request_time_max: Duration,
    /// Until a client says its first word where only HTTP may pass: it may wait for a server that nobody dials.
    pub silence_time_max: Duration,
    /// Between two requests of a client.
    pub client_idle_max: Duration,
    /// Until a client takes what is written to it.
    pub client_write_max: Duration,
    /// After the last answer of a connection that is closed: until the client closes too.
    pub linger_time_max: Duration,
    /// Until a server accepts a connection.
    pub connect_time_max: Duration,
    /// From the last byte of a request to the first of its reply: a tool may work for minutes.
    pub first_byte_max: Duration,
    /// How long an upstream connection waits in the pool. Uvicorn and Node close idle ones after 5 s.
    pub upstream_idle_max: Duration,
    /// Idle upstream connections kept for each (caller, server) on a thread.
    pub upstream_idle_count_max: usize,
    /// Client connections served at once on a thread.
    pub connections_max: usize,
    /// The same of one captured cgroup: none can use up the others' share.
    pub connections_per_cgroup_max: usize,
    /// Network namespaces of one captured cgroup that are served: none can use up the others' share.
    pub namespaces_per_cgroup_max: usize,
    /// Sessions bound at once on the node.
    pub sessions_max: usize,
    /// How long a session lasts without a request.
    pub session_idle_max: Duration,
    /// Audit entries open or waiting for the writer at once.
    pub audit_entries_max: usize,
    /// The most bytes of an executable that `exe_sha256` is asked of.
    pub executable_bytes_max: u64,
    /// Until an executable is read for `exe_sha256`.
    pub identify_time_max: Duration,
    /// From SIGTERM to the end of the last request.
    pub drain_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: HeadLimits::default(),
            json: JsonLimits::default(),
            body_bytes_max: 4 << 20,
            reply_bytes_max: 16 << 20,
            event_bytes_max: 4 << 20,
            request_time_max: Duration::from_secs(30),
            silence_time_max: Duration::from_secs(5),
            client_idle_max: Duration::from_secs(300),
            client_write_max: Duration::from_secs(60),
            linger_time_max: Duration::from_secs(1),
            connect_time_max: Duration::from_secs(5),
            first_byte_max: Duration::from_secs(600),
            upstream_idle_max: Duration::from_millis(3_500),
            upstream_idle_count_max: 64,
            connections_max: 16_384,
            connections_per_cgroup_max: 8_192,
            namespaces_per_cgroup_max: 1_024,
            sessions_max: 65_536,
            session_idle_max: Duration::from_secs(24 * 3600),
            audit_entries_max: 16_384,
            executable_bytes_max: 1 << 30,
            identify_time_max: Duration::from_secs(10),
            drain_time_max: Duration::from_secs(5),
        }
    }
}

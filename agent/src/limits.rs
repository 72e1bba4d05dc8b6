//! Every limit of the data path, with its unit last in its name: the field, the key below `limits:` in `toolgate.yaml`,
//! the label of its metric and the name in errors are one word.

use std::fmt;
use std::time::Duration;

use toolgate_core::http1::HeadLimits;
use toolgate_core::mcp::json::JsonLimits;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a limit is, in the unit that it is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A length of time.
    Time(Duration),
    /// Bytes.
    Size(usize),
    /// Things.
    Count(usize),
}

/// As the configuration has it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "{time:?}"),
            Self::Size(bytes) if bytes % MIB == 0 => write!(f, "{}MiB", bytes / MIB),
            Self::Size(bytes) if bytes % KIB == 0 => write!(f, "{}KiB", bytes / KIB),
            Self::Size(count) | Self::Count(count) => write!(f, "{count}"),
        }
    }
}

/// Where a value of one limit is put.
pub enum Slot<'l> {
    /// A length of time.
    Time(&'l mut Duration),
    /// Bytes.
    Size(&'l mut usize),
    /// Things.
    Count(&'l mut usize),
}

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $field:ident, $variant:ident: $kind:ident($type:ty) = $default:expr;)+) => {
        /// What one connection, message, caller or wait may take before it is refused.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits { $($(#[doc = $doc])+ pub $field: $type,)+ }

        /// The name of a limit that has refused something.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Limit {
            $($(#[doc = $doc])+ $variant,)+
            /// Headers of one head: 100, which no setting changes.
            Headers,
            /// Bytes of chunk extensions and trailers, which no setting changes.
            ChunkOverhead,
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Limits {
            /// The value of a limit; `None`: no setting changes it.
            #[must_use]
            pub fn get(&self, limit: Limit) -> Option<Value> {
                match limit {
                    $(Limit::$variant => Some(Value::$kind(self.$field)),)+
                    Limit::Headers | Limit::ChunkOverhead => None,
                }
            }

            /// Where its value is put.
            pub fn slot(&mut self, limit: Limit) -> Option<Slot<'_>> {
                match limit {
                    $(Limit::$variant => Some(Slot::$kind(&mut self.$field)),)+
                    Limit::Headers | Limit::ChunkOverhead => None,
                }
            }
        }

        impl Limit {
            /// Every limit that can be set.
            pub const SETTABLE: &'static [Self] = &[$(Self::$variant,)+];
            /// Every limit.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+ Self::Headers, Self::ChunkOverhead];

            /// Its name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($field),)+
                    Self::Headers => "headers_max",
                    Self::ChunkOverhead => "chunk_overhead_bytes_max",
                }
            }
        }
    };
}

limits! {
    /// The most bytes of a request's or a reply's head.
    head_bytes_max, HeadBytes: Size(usize) = 32 * KIB;
    /// The most bytes of a request's target.
    target_bytes_max, TargetBytes: Size(usize) = 8 * KIB;
    /// The most bytes of a request's body (4 MiB, as the official SDK servers have it).
    body_bytes_max, BodyBytes: Size(usize) = 4 * MIB;
    /// The most bytes of a reply that is no event stream: it is read whole before it goes on.
    reply_bytes_max, ReplyBytes: Size(usize) = 16 * MIB;
    /// The most bytes of one server-sent event.
    event_bytes_max, EventBytes: Size(usize) = 4 * MIB;
    /// Arrays and objects within each other; 128 at the most.
    json_depth_max, JsonDepth: Count(usize) = 64;
    /// Members of one object.
    json_members_max, JsonMembers: Count(usize) = 16_384;
    /// Until a client says its first word where only HTTP may pass: it may wait for a server that nobody dials.
    silence_time_max, SilenceTime: Time(Duration) = seconds(5);
    /// From the first byte of a request's head to its last.
    head_time_max, HeadTime: Time(Duration) = seconds(10);
    /// From there to the last byte of its body.
    body_time_max, BodyTime: Time(Duration) = seconds(30);
    /// Between two requests of a client.
    client_idle_max, ClientIdle: Time(Duration) = seconds(300);
    /// Until a client takes what is written to it: a read block, an event or a list.
    client_write_max, ClientWrite: Time(Duration) = seconds(60);
    /// After the last answer of a connection that is closed: until the client closes too.
    linger_time_max, LingerTime: Time(Duration) = seconds(1);
    /// Until a server accepts a connection.
    connect_time_max, ConnectTime: Time(Duration) = seconds(5);
    /// Until a name of a Server is resolved.
    resolve_time_max, ResolveTime: Time(Duration) = seconds(5);
    /// For how long an answer about a name counts at least, whatever it says itself; as long as that it counts that there was none.
    name_ttl_min, NameTtlMin: Time(Duration) = seconds(5);
    /// The same at most.
    name_ttl_max, NameTtlMax: Time(Duration) = seconds(300);
    /// How long addresses are used, and captured, after the last answer that had them: when a name is resolved no more.
    name_stale_max, NameStale: Time(Duration) = seconds(3600);
    /// Addresses that are used of one name.
    addresses_per_name_max, AddressesPerName: Count(usize) = 64;
    /// Until TLS stands: between two agents, at either end, or with an external server.
    handshake_time_max, HandshakeTime: Time(Duration) = seconds(5);
    /// Connections of other agents on a thread that have not proven yet whose they are; beyond it newcomers are closed.
    handshakes_max, Handshakes: Count(usize) = 256;
    /// Until a server takes a request, or a run of a streamed one.
    send_time_max, SendTime: Time(Duration) = seconds(30);
    /// From the last byte of a request to the first of its reply: a tool may work for minutes.
    first_byte_max, FirstByte: Time(Duration) = seconds(600);
    /// Between two bytes of a reply that is no event stream.
    reply_idle_max, ReplyIdle: Time(Duration) = seconds(300);
    /// From the head to the end of a list, or of what holds instructions that are pinned.
    list_time_max, ListTime: Time(Duration) = seconds(60);
    /// Pages of a list that are asked for in a caller's place, because those before hold nothing for it: more are taken for
    /// a list without end.
    list_pages_max, ListPages: Count(usize) = 512;
    /// The most bytes of such pages together.
    list_bytes_max, ListBytes: Size(usize) = 64 * MIB;
    /// For how long such pages are asked for; then the caller gets an empty one with its cursor, and may go on itself.
    list_pages_time_max, ListPagesTime: Time(Duration) = seconds(20);
    /// How long an upstream connection waits in the pool. Uvicorn and Node close idle ones after 5 s.
    upstream_idle_max, UpstreamIdle: Time(Duration) = Duration::from_millis(3_500);
    /// The same of one to another agent, which does not close it before.
    peer_idle_max, PeerIdle: Time(Duration) = seconds(60);
    /// Idle upstream connections kept for each (caller, server) on a thread.
    upstream_idle_count_max, UpstreamIdleCount: Count(usize) = 64;
    /// Client connections served at once.
    connections_max, Connections: Count(usize) = 16_384;
    /// The same of one captured cgroup: none can use up the others' share.
    connections_per_cgroup_max, ConnectionsPerCgroup: Count(usize) = 8_192;
    /// Event streams that clients hold open by GET at once.
    streams_max, Streams: Count(usize) = 8_192;
    /// The same of one captured cgroup.
    streams_per_cgroup_max, StreamsPerCgroup: Count(usize) = 1_024;
    /// Requests that wait on one stream for their answers there, denied ones until they are told (`transport: sse`).
    pending_per_stream_max, PendingPerStream: Count(usize) = 1_024;
    /// Bytes that messages hold while they wait: for the rest of a body or a list, or for who does not read.
    memory_bytes_max, MemoryBytes: Size(usize) = 256 * MIB;
    /// The same of one captured cgroup.
    memory_per_cgroup_bytes_max, MemoryPerCgroupBytes: Size(usize) = 64 * MIB;
    /// Network namespaces of one captured cgroup that are served: none can use up the others' share.
    namespaces_per_cgroup_max, NamespacesPerCgroup: Count(usize) = 1_024;
    /// Sessions bound at once on the node; beyond it the ones that were used least lately are forgotten.
    sessions_max, Sessions: Count(usize) = 65_536;
    /// How long a session lasts without a request.
    session_idle_max, SessionIdle: Time(Duration) = seconds(24 * 3600);
    /// Tasks bound at once on the node; beyond it the ones that were used least lately are forgotten.
    tasks_max, Tasks: Count(usize) = 65_536;
    /// How long a task is known without a request about it.
    task_idle_max, TaskIdle: Time(Duration) = seconds(24 * 3600);
    /// Event streams of which the last ids are known on the node, so that they can be resumed; beyond it the oldest are forgotten.
    event_streams_max, EventStreams: Count(usize) = 16_384;
    /// Ids that are known of one stream: a client that resumes names one of the last that it got.
    events_per_stream_max, EventsPerStream: Count(usize) = 256;
    /// How long a stream that broke can be resumed.
    event_idle_max, EventIdle: Time(Duration) = seconds(3600);
    /// What servers gave to callers to come back with, at once on the node: requests to answer and states to go on with.
    /// Beyond it the oldest are forgotten, a caller's own first.
    given_max, Given: Count(usize) = 65_536;
    /// How long a caller may take to come back with it: a user may be asked.
    given_time_max, GivenTime: Time(Duration) = seconds(24 * 3600);
    /// Undeclared servers, each with who used it, that `toolgate discover` knows; beyond it the oldest are forgotten.
    discovered_max, Discovered: Count(usize) = 1_024;
    /// Tools that are known of one of them.
    discovered_tools_max, DiscoveredTools: Count(usize) = 128;
    /// Hosts whose certificates are kept that stand in for theirs (`capture.tls: inspect`); beyond it those that were used
    /// least lately are made again.
    inspected_names_max, InspectedNames: Count(usize) = 1_024;
    /// Audit entries open or waiting for the writer at once: one for each running request.
    audit_entries_max, AuditEntries: Count(usize) = 32_768;
    /// The same of one captured cgroup.
    audit_entries_per_cgroup_max, AuditEntriesPerCgroup: Count(usize) = 16_384;
    /// Definitions (tools, prompts, resource templates, instructions) that are kept of one server; one more is not approved.
    definitions_per_server_max, DefinitionsPerServer: Count(usize) = 4_096;
    /// The same of one name: those that differ per caller, and those that changed.
    definitions_per_name_max, DefinitionsPerName: Count(usize) = 32;
    /// The most bytes of a definition that is kept; a larger one is not approved.
    definition_bytes_max, DefinitionBytes: Size(usize) = 64 * KIB;
    /// Bytes of all definitions that are kept of one server.
    definitions_per_server_bytes_max, DefinitionsPerServerBytes: Size(usize) = 16 * MIB;
    /// Callers of one server of whom it is known which definitions they were given.
    definition_callers_max, DefinitionCallers: Count(usize) = 1_024;
    /// Until a pipe that is the audit's file takes more; a file takes it or fails at once.
    audit_write_max, AuditWrite: Time(Duration) = seconds(1);
    /// The most bytes of an executable that `exe_sha256` is asked of.
    executable_bytes_max, ExecutableBytes: Size(usize) = GIB;
    /// Until an executable is read for `exe_sha256`.
    identify_time_max, IdentifyTime: Time(Duration) = seconds(10);
    /// Connections to `listen.workload_api` at once; one more is closed.
    workload_api_connections_max, WorkloadApiConnections: Count(usize) = 1_024;
    /// The same of one cgroup: none can use up the others' share.
    workload_api_connections_per_cgroup_max, WorkloadApiConnectionsPerCgroup: Count(usize) = 64;
    /// Calls and streams at once on one such connection.
    workload_api_streams_max, WorkloadApiStreams: Count(usize) = 16;
    /// From SIGTERM to the end of the last request.
    drain_time_max, DrainTime: Time(Duration) = seconds(5);
}

/// In backticks, as errors and the audit name it.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.as_str())
    }
}

impl Limit {
    /// The settable one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::SETTABLE.iter().copied().find(|limit| limit.as_str() == name)
    }
}

impl Limits {
    /// Of a request's or reply's head.
    #[must_use]
    pub fn head(&self) -> HeadLimits {
        HeadLimits { head_bytes_max: self.head_bytes_max, target_bytes_max: self.target_bytes_max }
    }

    /// Of a JSON-RPC message.
    #[must_use]
    pub fn json(&self) -> JsonLimits {
        JsonLimits { depth_max: self.json_depth_max, members_max: self.json_members_max }
    }

    /// The most bytes that one message may hold of `memory`: the last quarter is for what fits in a read block, so that
    /// small messages go on when large ones are refused.
    #[must_use]
    pub fn large(memory: usize) -> usize {
        memory / 4 * 3
    }
}

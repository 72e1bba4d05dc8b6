//! One counter for every way through every program.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $program:literal $branch:literal,)+) => {
        /// Slot of the per-CPU counter array. A branch without a counter here cannot be written:
        /// each program returns through `count`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            /// All, in the order of their slots.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The program it belongs to.
            pub const fn program(self) -> &'static str {
                match self { $(Self::$variant => $program,)+ }
            }

            /// The branch, as a metric label.
            pub const fn branch(self) -> &'static str {
                match self { $(Self::$variant => $branch,)+ }
            }
        }
    };
}

counters! {
    /// An IPv4 connect, of any socket.
    Connect4Entered = "connect4" "entered",
    /// The same by IPv6, v4-mapped addresses included.
    Connect6Entered = "connect6" "entered",
    /// Redirected to the agent, record in the socket's storage.
    ConnectRedirected = "connect" "redirected",
    /// Neither TCP nor UDP.
    ConnectOtherProtocol = "connect" "other_protocol",
    /// The agent's own connection.
    ConnectAgent = "connect" "agent",
    /// Of no captured cgroup.
    ConnectNotCaptured = "connect" "not_captured",
    /// Captured, with a bypass that has not ended.
    ConnectBypassed = "connect" "bypassed",
    /// Captured, to a destination that is excluded.
    ConnectExcluded = "connect" "excluded",
    /// Captured, to a destination that is not declared.
    ConnectOther = "connect" "other_destination",
    /// Straight to the agent's listener, by whomever: refused.
    ConnectListener = "connect" "refused_listener",
    /// Captured, to a port that captured processes must not reach: refused.
    ConnectRefused = "connect" "refused_destination",
    /// Captured, UDP to where only TCP is captured: refused.
    ConnectUdp = "connect" "refused_udp",
    /// Captured, UDP to elsewhere.
    ConnectUdpOther = "connect" "other_udp",
    /// Captured, by Multipath TCP, whose subflows no hook sees: refused.
    ConnectMptcp = "connect" "refused_mptcp",
    /// Captured, of a socket bound to a device that leads past the listener: refused.
    ConnectDevice = "connect" "refused_device",
    /// Captured, from a network namespace that the agent does not serve yet: refused, and the agent told.
    ConnectNamespace = "connect" "refused_namespace",
    /// Captured, to an IPv6 destination that nobody declared, in a namespace without IPv6 routes: refused.
    ConnectNoRoute = "connect" "refused_no_route",
    /// Captured, to `::1` where a server is declared at 127.0.0.1: refused, so that clients try that.
    ConnectSibling = "connect" "refused_sibling",
    /// Captured, while the agent gives no sign of life: refused.
    ConnectLost = "connect" "refused_agent_lost",
    /// The same where that is configured to pass.
    ConnectLostOpen = "connect" "passed_agent_lost",
    /// The kernel did not say which executable: refused.
    ConnectNoProcess = "connect" "refused_no_process",
    /// No socket storage could be had: refused.
    ConnectNoStorage = "connect" "refused_no_storage",
    /// The configuration could not be read, which the kernel excludes: refused.
    ConnectNoConfig = "connect" "refused_no_config",
    /// A cgroup was made that has a captured name: it is captured from its first process on.
    MkdirCaptured = "cgroup_mkdir" "captured",
    /// Another cgroup was made.
    MkdirOther = "cgroup_mkdir" "other_name",
    /// A cgroup has a captured name, and the map of captured ones is full.
    MkdirFull = "cgroup_mkdir" "full",
    /// A datagram to an address of its own, IPv4.
    Sendmsg4Entered = "sendmsg4" "entered",
    /// The same by IPv6.
    Sendmsg6Entered = "sendmsg6" "entered",
    /// A bind, IPv4.
    Bind4Entered = "bind4" "entered",
    /// A bind, IPv6.
    Bind6Entered = "bind6" "entered",
    /// A TCP port that is not the agent's, or UDP.
    BindOther = "bind" "other_port",
    /// The agent's own listener.
    BindAgent = "bind" "agent",
    /// The agent's port in a namespace that it does not serve.
    BindNotServed = "bind" "not_served",
    /// The agent's port, by another process: refused.
    BindRefused = "bind" "refused",
    /// A socket of no captured cgroup, or one that is seen at connect.
    CreateAllowed = "sock_create" "allowed",
    /// A socket of a captured cgroup, with a note of where it was made.
    CreateNoted = "sock_create" "noted",
    /// A raw socket in a captured cgroup: refused.
    CreateRaw = "sock_create" "refused_raw",
    /// SCTP, DCCP or Multipath TCP in a captured cgroup: refused.
    CreateProtocol = "sock_create" "refused_protocol",
    /// No socket storage for the note: refused.
    CreateNoStorage = "sock_create" "refused_no_storage",
    /// Record published under the connection's addresses, before its SYN.
    SockOpsRecorded = "sock_ops" "recorded",
    /// A connection that was not redirected.
    SockOpsNotOurs = "sock_ops" "not_ours",
    /// A redirected socket that connects elsewhere after all.
    SockOpsElsewhere = "sock_ops" "elsewhere",
    /// The map of connections is full: the SYN will be dropped.
    SockOpsFull = "sock_ops" "refused_full",
    /// The cgroup has too many connections between SYN and accept: the SYN will be dropped.
    SockOpsQuota = "sock_ops" "refused_quota",
    /// Refused: a record of the same addresses is still there.
    SockOpsCollision = "sock_ops" "refused_collision",
    /// A connection of the agent's, or with a bypass: admitted to guarded ports.
    SockOpsAdmitted = "sock_ops" "admitted",
    /// No room for it: a guarded port will drop the SYN.
    SockOpsAdmittedFull = "sock_ops" "refused_admitted_full",
    /// The record lies at the accepted socket now.
    SockOpsAccepted = "sock_ops" "accepted",
    /// A connection to the listener whose record is gone: the agent will refuse it.
    SockOpsAcceptedNoRecord = "sock_ops" "accepted_no_record",
    /// A connect that failed, or an admitted connection that ended: its entry is removed.
    SockOpsRemoved = "sock_ops" "removed",
    /// A state change that changes nothing here.
    SockOpsKept = "sock_ops" "kept",
    /// The configuration could not be read, which the kernel excludes: the SYN will be dropped.
    SockOpsNoConfig = "sock_ops" "refused_no_config",
    /// Another operation.
    SockOpsOther = "sock_ops" "other_operation",
    /// The client sees the peer that it asked for, IPv4.
    Peer4Original = "getpeername4" "original",
    /// Not redirected, IPv4.
    Peer4Untouched = "getpeername4" "untouched",
    /// The client sees the peer that it asked for, IPv6.
    Peer6Original = "getpeername6" "original",
    /// Not redirected, IPv6.
    Peer6Untouched = "getpeername6" "untouched",
    /// Given to a listener of the agent.
    LookupAssigned = "sk_lookup" "assigned",
    /// Neither the agent's nor a guarded port.
    LookupOther = "sk_lookup" "other_port",
    /// To a guarded port, by the agent or with a bypass.
    LookupAdmitted = "sk_lookup" "admitted",
    /// To a guarded port, by somebody else: dropped.
    LookupGuarded = "sk_lookup" "dropped_guarded",
    /// The configuration could not be read, which the kernel excludes: dropped.
    LookupNoConfig = "sk_lookup" "dropped_no_config",
    /// To the agent without a record: dropped.
    LookupNoRecord = "sk_lookup" "dropped_no_record",
    /// No agent listens: dropped.
    LookupNoListener = "sk_lookup" "dropped_no_listener",
}

// `ALL` is indexed by slot: the discriminants must be 0, 1, 2 ...
const _: () = {
    let mut slot = 0;
    while slot < Counter::ALL.len() {
        assert!(Counter::ALL[slot] as usize == slot);
        slot += 1;
    }
};

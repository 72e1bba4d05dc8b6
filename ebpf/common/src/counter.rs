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
    /// Redirected to the agent, record in the socket's storage.
    ConnectRedirected = "connect4" "redirected",
    /// Not TCP.
    ConnectNotTcp = "connect4" "not_tcp",
    /// The agent's own connection.
    ConnectAgent = "connect4" "agent",
    /// Of no captured cgroup.
    ConnectNotCaptured = "connect4" "not_captured",
    /// Captured, to a destination that is excluded.
    ConnectExcluded = "connect4" "excluded",
    /// Captured, to a destination that is not declared.
    ConnectOther = "connect4" "other_destination",
    /// Captured, straight to the agent's listener: refused.
    ConnectListener = "connect4" "refused_listener",
    /// Captured, to a port that captured processes must not reach: refused.
    ConnectRefused = "connect4" "refused_destination",
    /// Captured, from another network namespace than the agent's: refused.
    ConnectNamespace = "connect4" "refused_namespace",
    /// The kernel did not say which executable: refused.
    ConnectNoProcess = "connect4" "refused_no_process",
    /// No socket storage could be had: refused.
    ConnectNoStorage = "connect4" "refused_no_storage",
    /// The configuration could not be read, which the kernel excludes: refused.
    ConnectNoConfig = "connect4" "refused_no_config",
    /// IPv6: not TCP.
    Connect6NotTcp = "connect6" "not_tcp",
    /// IPv6: the agent's own connection.
    Connect6Agent = "connect6" "agent",
    /// IPv6: of no captured cgroup.
    Connect6NotCaptured = "connect6" "not_captured",
    /// IPv6, captured cgroup: to a destination that is excluded.
    Connect6Excluded = "connect6" "excluded",
    /// IPv6, captured cgroup: to a destination that is not declared.
    Connect6Other = "connect6" "other_destination",
    /// IPv6, cgroup whose every destination is captured: let through, as IPv6 is not captured yet.
    Connect6NotYet = "connect6" "not_captured_yet",
    /// IPv6, to what would be captured by IPv4: refused.
    Connect6Captured = "connect6" "refused_captured",
    /// IPv6, straight to the agent's listener: refused.
    Connect6Listener = "connect6" "refused_listener",
    /// IPv6, to a port that captured processes must not reach: refused.
    Connect6Refused = "connect6" "refused_destination",
    /// IPv6: the kernel did not say which process: refused.
    Connect6NoProcess = "connect6" "refused_no_process",
    /// IPv6: the configuration could not be read, which the kernel excludes: refused.
    Connect6NoConfig = "connect6" "refused_no_config",
    /// Record published under the connection's addresses, before its SYN.
    SockOpsRecorded = "sock_ops" "recorded",
    /// A connection that was not redirected.
    SockOpsNotOurs = "sock_ops" "not_ours",
    /// Straight to the listener, with an earlier connection's record under its addresses: removed, the SYN will be dropped.
    SockOpsStale = "sock_ops" "removed_stale",
    /// A redirected socket that connects elsewhere after all.
    SockOpsElsewhere = "sock_ops" "elsewhere",
    /// The map of connections is full: the SYN will be dropped.
    SockOpsFull = "sock_ops" "refused_full",
    /// Refused: a record of the same addresses was never taken.
    SockOpsCollision = "sock_ops" "refused_collision",
    /// A connect that failed: its record is removed.
    SockOpsRemoved = "sock_ops" "removed",
    /// A state change that leaves the record to the agent.
    SockOpsKept = "sock_ops" "kept",
    /// The configuration could not be read, which the kernel excludes: the SYN will be dropped.
    SockOpsNoConfig = "sock_ops" "refused_no_config",
    /// Another operation.
    SockOpsOther = "sock_ops" "other_operation",
    /// The client sees the peer that it asked for.
    PeerOriginal = "getpeername4" "original",
    /// Not redirected.
    PeerUntouched = "getpeername4" "untouched",
    /// Given to a listener of the agent.
    LookupAssigned = "sk_lookup" "assigned",
    /// Not for the agent's listener.
    LookupOther = "sk_lookup" "other_port",
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

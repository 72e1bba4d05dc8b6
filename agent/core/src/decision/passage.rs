//! What is not decided message by message: undeclared servers, proxies, and traffic that is not read.

use super::{Decision, Denied, Mode, Opaque, Place, Server, Target, permitted, weighed};
use crate::denial::Reason;
use crate::identity::Identity;
use crate::policy::Policies;
use crate::tls::ClientHello;
use crate::workload::Unidentified;

/// A connection passed on without being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage;

/// What becomes of MCP to undeclared servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeclared {
    /// Denied.
    Deny,
    /// Passed on and recorded.
    DangerousAllow,
}

/// What becomes of connections that are not MCP and go to no declared server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrecognised {
    /// Passed on.
    Pass,
    /// Denied.
    Deny,
}

/// Decides on MCP, `what`, to a server that is not declared ("shadow MCP").
#[must_use]
pub fn undeclared<T>(
    caller: Result<&Identity, &Unidentified>,
    what: T,
    rule: Undeclared,
    mode: Mode,
) -> Decision<T> {
    match (caller, rule, mode.observe) {
        (Err(unidentified), _, _) => Decision::Denied(unidentified.into()),
        (Ok(_), Undeclared::DangerousAllow, _) => permitted(what, None),
        (Ok(_), Undeclared::Deny, true) => permitted(what, Some(Denied::because(Reason::Undeclared))),
        (Ok(_), Undeclared::Deny, false) => Decision::Denied(Denied::because(Reason::Undeclared)),
    }
}

/// Decides on a connection that is not MCP and goes to no declared server, whoever makes it: a captured cgroup
/// may hold processes that no Workload names. `--observe` does not relax it.
#[must_use]
pub fn unrecognised(rule: Unrecognised) -> Decision<Passage> {
    match rule {
        Unrecognised::Pass => permitted(Passage, None),
        Unrecognised::Deny => Decision::Denied(Denied::because(Reason::Unrecognised)),
    }
}

/// Decides on HTTP/2 without TLS to no declared server: it could be MCP, and is not read here.
#[must_use]
pub fn unread_http2(
    caller: Result<&Identity, &Unidentified>,
    rule: Undeclared,
    mode: Mode,
) -> Decision<Passage> {
    const WHY: &str = "HTTP/2 without TLS is not read here, so that it may be MCP";
    match undeclared(caller, Passage, rule, mode) {
        Decision::Denied(denied) => Decision::Denied(denied.with_detail(WHY)),
        permitted @ Decision::Permitted(_) => permitted,
    }
}

/// Decides on a request to a proxy for what is a declared server: it must be seen, and a proxy is none.
#[must_use]
pub fn proxied(server: &Server) -> Denied {
    let detail =
        format!("a proxy was asked for `{}`, which is declared: connect to it directly", server.identity);
    Denied::because(Reason::Proxied).with_detail(detail)
}

/// Decides on TLS without a readable name to an address where a declared server is: it may be for that one.
#[must_use]
pub fn unnamed() -> Denied {
    Denied::because(Reason::Opaque)
        .with_detail("a declared server is at this address: whom TLS is for must be readable there (SNI)")
}

/// What the first bytes of a connection to a declared server are that is not plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread<'h> {
    /// TLS, as far as it can be read.
    Tls(&'h ClientHello),
    /// Anything else.
    Other,
}

/// Decides on traffic to a declared server that cannot be read: denied, unless it is TLS that names the server and
/// `opaque: allow` says so. Then it is decided on the caller alone. `--observe` relaxes nothing but that last step.
#[must_use]
pub fn opaque(
    caller: Result<&Identity, &Unidentified>,
    target: Target<'_>,
    what: Unread<'_>,
    policies: &Policies,
    mode: Mode,
) -> Decision<Passage> {
    let Target { server, ends } = target;
    let refused = |reason, why: String| {
        Decision::Denied(
            Denied::because(reason).with_detail(format!("`{}` is declared: {why}", server.identity)),
        )
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(unidentified) => return Decision::Denied(unidentified.into()),
    };
    // Between two agents nothing passes unread.
    let rule = match server.place {
        Place::Local { .. } | Place::External(_) => server.opaque,
        Place::Peer { .. } => Opaque::Deny,
    };
    match (rule, what) {
        (Opaque::Deny, _) | (Opaque::Allow, Unread::Other) => {
            refused(Reason::Opaque, "its tools cannot be seen in this traffic".to_owned())
        }
        (Opaque::Allow, Unread::Tls(ClientHello { server_name: None, .. })) => {
            refused(Reason::Opaque, "its name must be readable in TLS (SNI)".to_owned())
        }
        (Opaque::Allow, Unread::Tls(ClientHello { may_hide_name: true, .. })) => refused(
            Reason::Opaque,
            "the name that counts may be another, which is encrypted (ECH)".to_owned(),
        ),
        (Opaque::Allow, Unread::Tls(ClientHello { server_name: Some(name), .. })) => {
            if !server.goes_by(name) {
                return refused(
                    Reason::HostMismatch,
                    format!("TLS to `{name}`, which is none of its `hosts`"),
                );
            }
            let (verdict, shadow) = policies.judge_may(caller, &server.identity, ends);
            weighed(Passage, verdict, shadow, mode.relaxes(server))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::tests::server;
    use super::*;

    #[test]
    fn observe_relaxes_undeclared_and_nothing_of_the_caller() {
        let caller = Identity::new("example.org", "default", "a").unwrap();
        let (known, unknown) = (Ok(&caller), Err(&Unidentified::Unknown));
        let (strict, observe) = (Mode::default(), Mode { observe: true });
        let table = [
            (known, Undeclared::Deny, strict, Err(Reason::Undeclared)),
            (known, Undeclared::Deny, observe, Ok(Some(Reason::Undeclared))),
            (known, Undeclared::DangerousAllow, strict, Ok(None)),
            (unknown, Undeclared::DangerousAllow, observe, Err(Reason::UnidentifiedCaller)),
            (unknown, Undeclared::Deny, observe, Err(Reason::UnidentifiedCaller)),
        ];
        for (caller, rule, mode, expected) in table {
            let got = match undeclared(caller, (), rule, mode) {
                Decision::Permitted(permitted) => Ok(permitted.observed().map(|denied| denied.reason)),
                Decision::Denied(denied) => Err(denied.reason),
            };
            assert_eq!(got, expected, "{caller:?} {rule:?} {mode:?}");
        }
        assert!(matches!(unrecognised(Unrecognised::Pass), Decision::Permitted(_)));
        assert!(
            matches!(unrecognised(Unrecognised::Deny), Decision::Denied(d) if d.reason == Reason::Unrecognised)
        );
    }

    #[test]
    fn what_cannot_be_read_is_decided_by_name_and_caller_where_the_server_says_so() {
        let caller = Identity::new("example.org", "default", "a").unwrap();
        let (known, unknown) = (Ok(&caller), Err(&Unidentified::Unknown));
        let hello = |name: Option<&str>, may_hide_name| {
            let server_name = name.map(str::to_owned);
            ClientHello { server_name, may_hide_name, offers_http1: true }
        };
        let named = ["docs.internal", "other.internal", "DOCS.internal"].map(|name| hello(Some(name), false));
        let (nameless, hidden) = (hello(None, false), hello(Some("docs.internal"), true));
        let [docs, other, shouted] = named.each_ref().map(Unread::Tls);
        let (deny, allow) = (Opaque::Deny, Opaque::Allow);
        let (strict, observe) = (Mode::default(), Mode { observe: true });
        let table = [
            (known, deny, docs, observe, Some(Reason::Opaque)),
            (known, allow, Unread::Other, observe, Some(Reason::Opaque)),
            (known, allow, Unread::Tls(&nameless), observe, Some(Reason::Opaque)),
            (known, allow, Unread::Tls(&hidden), observe, Some(Reason::Opaque)),
            (known, allow, other, observe, Some(Reason::HostMismatch)),
            (unknown, allow, docs, observe, Some(Reason::UnidentifiedCaller)),
            (known, allow, docs, strict, Some(Reason::NoRule)),
            (known, allow, shouted, observe, None),
        ];
        for (caller, rule, what, mode, expected) in table {
            let docs = Server { opaque: rule, ..server("127.0.0.1:1", &["docs.internal"]) };
            let got = match opaque(caller, docs.captured(), what, &Policies::default(), mode) {
                Decision::Permitted(_) => None,
                Decision::Denied(denied) => Some(denied.reason),
            };
            assert_eq!(got, expected, "{caller:?} {rule:?} {what:?} {mode:?}");
        }
    }
}

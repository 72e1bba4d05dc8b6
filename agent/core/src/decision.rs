//! Permit or deny: a pure function of who asks, for what, of which server, under which policies.
//!
//! [`Permitted`] can be made here alone, and `forward` takes nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use smallvec::smallvec;

use crate::denial::Reason;
use crate::identity::Identity;
use crate::mcp::{Message, Method, Revision};
use crate::pin::Pinning;
use crate::policy::{Ends, Policies, Refused, Rules, Verdict};
use crate::workload::Unidentified;

/// How a server's messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Streamable HTTP (MCP 2025-03-26 and later).
    Streamable,
    /// HTTP with SSE (MCP 2024-11-05): the client opens a stream, and sends to the endpoint that is named there.
    Sse,
}

/// Whether policy counts for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// It does.
    Enforce,
    /// What policy would deny passes, and is recorded.
    DangerousObserve,
}

/// Where the process of a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Behind this agent.
    Local,
    /// Behind another one, which is at one of these addresses.
    Peer(Arc<[SocketAddr]>),
}

/// A declared server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Who it is.
    pub identity: Identity,
    /// Where callers connect to, and where its process listens if it is local.
    pub address: SocketAddr,
    /// Where its process is.
    pub place: Place,
    /// The names it answers to, with or without port, in lower case; empty = its address and, on loopback,
    /// `localhost`.
    pub hosts: Vec<String>,
    /// Its MCP path.
    pub path: String,
    /// Whether policy counts.
    pub enforcement: Enforcement,
    /// How its messages travel.
    pub transport: Transport,
    /// How what it offers is pinned.
    pub pinning: Pinning,
}

/// Whom a call is for, as seen from here.
#[derive(Debug, Clone, Copy)]
pub struct Target<'s> {
    /// Whom.
    pub server: &'s Server,
    /// Which ends of the call are here.
    pub ends: Ends,
}

impl Server {
    /// The target of a call that was captured here.
    #[must_use]
    pub fn captured(&self) -> Target<'_> {
        let ends = match self.place {
            Place::Local => Ends::Both,
            Place::Peer(_) => Ends::Caller,
        };
        Target { server: self, ends }
    }

    /// Whether a Host header names this server. A web page that had its own name resolve to this address is told
    /// apart by it (DNS rebinding).
    #[must_use]
    pub fn accepts_host(&self, host: &str) -> bool {
        let (name, port) = split_port(host);
        if !port.is_none_or(|port| port.parse() == Ok(self.address.port())) || name.is_empty() {
            return self.hosts.iter().any(|one| one.eq_ignore_ascii_case(host));
        }
        // HTTP leaves out port 80 (RFC 9110 section 4.2.1); names without port are taken with any of both.
        let port_fits = port.is_some() || self.address.port() == 80;
        if self.hosts.is_empty() {
            return port_fits && self.is_own_name(name);
        }
        self.hosts.iter().any(|one| one.eq_ignore_ascii_case(host) || one.eq_ignore_ascii_case(name))
    }

    fn is_own_name(&self, name: &str) -> bool {
        let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let address: Option<IpAddr> = match literal {
            Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        let loopback = self.address.ip().is_loopback();
        match address {
            Some(address) => address == self.address.ip() || (loopback && address.is_loopback()),
            None => loopback && name.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// Host and port of a Host header; an IPv6 literal keeps its brackets.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    }
}

/// What the shadow policies would have said had they counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowVerdict {
    /// `None`: permitted.
    pub reason: Option<Reason>,
    /// The rules behind it.
    pub rules: Rules,
}

/// Proof that something may be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permitted<T> {
    what: T,
    rules: Rules,
    observed: Option<Box<Denied>>,
    shadow: Option<ShadowVerdict>,
}

impl<T> Permitted<T> {
    /// What is permitted.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.what
    }

    /// What is permitted, the proof spent.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.what
    }

    /// The rules that permit it, `policy/rule`.
    #[must_use]
    pub fn rules(&self) -> &[Arc<str>] {
        &self.rules
    }

    /// Why it would have been denied, had `--observe` or `dangerous_observe` not let it pass.
    #[must_use]
    pub fn observed(&self) -> Option<&Denied> {
        self.observed.as_deref()
    }

    /// What the shadow policies say; `None` without any for this server.
    #[must_use]
    pub fn shadow(&self) -> Option<&ShadowVerdict> {
        self.shadow.as_ref()
    }
}

/// A refusal, as audit records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Why.
    pub reason: Reason,
    /// The rules behind it: the deny rule, or the allow rules whose arguments did not match.
    pub rules: Rules,
    /// More for audit, never for the client.
    pub detail: Option<String>,
    /// What the shadow policies say; `None` without any for this server.
    pub shadow: Option<ShadowVerdict>,
}

impl Denied {
    /// A refusal that no rule is behind.
    #[must_use]
    pub fn because(reason: Reason) -> Self {
        Self { reason, rules: smallvec![], detail: None, shadow: None }
    }

    /// The same, with more for audit.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl From<&Unidentified> for Denied {
    fn from(unidentified: &Unidentified) -> Self {
        Self::because(unidentified.reason()).with_detail(unidentified.to_string())
    }
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<T> {
    /// It may be forwarded.
    Permitted(Permitted<T>),
    /// It may not.
    Denied(Denied),
}

/// What an id that a request names is to its caller and server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Use {
    /// None is named.
    #[default]
    None,
    /// This caller got it from this server.
    Own,
    /// Another caller got it.
    Foreign,
    /// Nobody got it, or it has expired.
    Unknown,
}

/// The ids that a request names, looked up for its caller and server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids<'t> {
    /// Its session.
    pub session: Use,
    /// The task that it is about.
    pub task: Use,
    /// The tool whose call made that task, where it is the caller's own.
    pub tool: Option<&'t str>,
    /// The last event of the stream that it resumes.
    pub event: Use,
    /// The endpoint that it is sent to, where streams have one.
    pub endpoint: Use,
    /// Of an answer: the method of the server's request that this caller was given and has not answered.
    pub question: Option<Method>,
    /// It goes on with a request state that this caller did not get from this server.
    pub is_state_unknown: bool,
}

impl Ids<'_> {
    /// Why none of this caller's requests may name them; a foreign one looks like an unknown one to its caller.
    fn refused(self) -> Option<Reason> {
        let session = match self.session {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignSession),
            Use::Unknown => Some(Reason::UnknownSession),
        };
        let task = || match self.task {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignTask),
            Use::Unknown => Some(Reason::UnknownTask),
        };
        let event = || match self.event {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignEvent),
            Use::Unknown => Some(Reason::UnknownEvent),
        };
        let endpoint = || match self.endpoint {
            Use::None | Use::Own => None,
            Use::Foreign => Some(Reason::ForeignEndpoint),
            Use::Unknown => Some(Reason::UnknownEndpoint),
        };
        session.or_else(task).or_else(event).or_else(endpoint)
    }
}

/// What a request wants.
#[derive(Debug, Clone, Copy)]
pub enum Action<'m> {
    /// POST: to send this message.
    Message(&'m Message<'m>),
    /// GET: to open the server's stream.
    OpenStream,
    /// DELETE: to end its session.
    EndSession,
    /// Another path than the server's MCP path.
    OtherPath,
}

/// Something that was parsed and asks for an [`Action`]: what is permitted is that very thing, its bytes included.
pub trait Asks {
    /// What it asks for.
    fn action(&self) -> Action<'_>;

    /// The revision that it says it is of, where that is known here.
    fn revision(&self) -> Option<Revision>;
}

impl<T: Asks> Asks for &T {
    fn action(&self) -> Action<'_> {
        T::action(self)
    }

    fn revision(&self) -> Option<Revision> {
        T::revision(self)
    }
}

impl Asks for Action<'_> {
    fn action(&self) -> Action<'_> {
        *self
    }

    fn revision(&self) -> Option<Revision> {
        None
    }
}

/// What relaxes policy for a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode {
    /// `--observe`: what policy or `undeclared` would deny passes, and is recorded. Wire rules, caller identity and
    /// session binding stay.
    pub observe: bool,
}

impl Mode {
    /// Whether policy is relaxed for this server: then lists are shown whole, too.
    #[must_use]
    pub fn relaxes(self, server: &Server) -> bool {
        self.observe || server.enforcement == Enforcement::DangerousObserve
    }
}

/// Decides on a request to a declared server: the ids, then the caller, then the target, then policies of the ends of it
/// that are here.
#[must_use]
pub fn decide<T: Asks>(
    caller: Result<&Identity, &Unidentified>,
    target: Target<'_>,
    asked: T,
    ids: Ids<'_>,
    policies: &Policies,
    mode: Mode,
) -> Decision<T> {
    if let Some(reason) = ids.refused() {
        return Decision::Denied(Denied::because(reason));
    }
    let caller = match caller {
        Ok(caller) => caller,
        Err(unidentified) => return Decision::Denied(unidentified.into()),
    };
    if ids.is_state_unknown {
        return Decision::Denied(Denied::because(Reason::UnknownState));
    }
    if let (Action::Message(message), Some(revision)) = (asked.action(), asked.revision())
        && let Some(denied) = outside(message, revision)
    {
        return Decision::Denied(denied);
    }
    let Target { server, ends } = target;
    let (verdict, shadow) = match asked.action() {
        Action::Message(Message::Request(call) | Message::Notification(call)) => {
            policies.judge(caller, &server.identity, call, ids.tool, ends)
        }
        Action::OpenStream | Action::EndSession => policies.judge_may(caller, &server.identity, ends),
        Action::Message(Message::Response(_)) => match ids.question {
            Some(question) => judge_server(caller, target, question, policies),
            // Nobody asked: not a matter of policy.
            None => return Decision::Denied(Denied::because(Reason::UnexpectedResponse)),
        },
        Action::OtherPath => return Decision::Denied(Denied::because(Reason::PathNotServed)),
    };
    weighed(asked, verdict, shadow, mode.relaxes(server))
}

/// A message that the revision does not have which it says it is of. `initialize` is how another one is agreed on; what is
/// no method of MCP is a matter of policy.
fn outside(message: &Message<'_>, revision: Revision) -> Option<Denied> {
    let (Message::Request(call) | Message::Notification(call)) = message else { return None };
    let is_free = matches!(call.method, Method::Other | Method::Initialize);
    (!is_free && !call.method.clients().contains(&revision)).then(|| no_method_of(revision, "clients"))
}

fn no_method_of(revision: Revision, senders: &str) -> Denied {
    let revision = revision.as_str();
    Denied::because(Reason::MethodUnknown).with_detail(format!("no method of {senders} in MCP {revision}"))
}

/// Decides on a request of the server's to the caller, in the revision of the request on whose stream it comes.
#[must_use]
pub fn server_request(
    caller: &Identity,
    target: Target<'_>,
    (method, revision): (Method, Option<Revision>),
    policies: &Policies,
    mode: Mode,
) -> Decision<Method> {
    if let Some(revision) = revision.filter(|revision| !method.servers().contains(revision))
        && method != Method::Other
    {
        return Decision::Denied(no_method_of(revision, "servers"));
    }
    let (verdict, shadow) = judge_server(caller, target, method, policies);
    weighed(method, verdict, shadow, mode.relaxes(target.server))
}

/// `ping` asks for nothing but a sign of life.
fn judge_server(
    caller: &Identity,
    Target { server, ends }: Target<'_>,
    method: Method,
    policies: &Policies,
) -> (Verdict, Option<Verdict>) {
    if method == Method::Ping {
        return policies.judge_may(caller, &server.identity, ends);
    }
    policies.judge_server(caller, &server.identity, method, ends)
}

fn weighed<T>(what: T, verdict: Verdict, shadow: Option<Verdict>, relaxed: bool) -> Decision<T> {
    let shadow = shadow.map(ShadowVerdict::from);
    match verdict {
        Ok(rules) => Decision::Permitted(Permitted { what, rules, observed: None, shadow }),
        Err(Refused { reason, rules }) => {
            let denied = Denied { reason, rules, detail: None, shadow: shadow.clone() };
            if !relaxed {
                return Decision::Denied(denied);
            }
            let observed = Some(Box::new(denied));
            Decision::Permitted(Permitted { what, rules: smallvec![], observed, shadow })
        }
    }
}

impl From<Verdict> for ShadowVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Ok(rules) => Self { reason: None, rules },
            Err(Refused { reason, rules }) => Self { reason: Some(reason), rules },
        }
    }
}

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

/// Decides on traffic to a declared server that cannot be read: denied, whoever sends it.
#[must_use]
pub fn opaque(caller: Result<&Identity, &Unidentified>, server: &Server) -> Decision<Passage> {
    Decision::Denied(match caller {
        Ok(_) => Denied::because(Reason::Opaque).with_detail(format!(
            "`{}` is declared: its tools cannot be seen in this traffic",
            server.identity
        )),
        Err(unidentified) => unidentified.into(),
    })
}

fn permitted<T>(what: T, observed: Option<Denied>) -> Decision<T> {
    let observed = observed.map(Box::new);
    Decision::Permitted(Permitted { what, rules: smallvec![], observed, shadow: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str, hosts: &[&str]) -> Server {
        Server {
            identity: Identity::new("example.org", "default", "docs").unwrap(),
            address: address.parse().unwrap(),
            place: Place::Local,
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            path: "/mcp".to_owned(),
            enforcement: Enforcement::Enforce,
            transport: Transport::Streamable,
            pinning: Pinning::OFF,
        }
    }

    #[test]
    fn hosts_name_the_server() {
        let table: &[(&str, &[&str], &str, bool)] = &[
            ("127.0.0.1:8000", &[], "127.0.0.1:8000", true),
            ("127.0.0.1:8000", &[], "localhost:8000", true),
            ("127.0.0.1:8000", &[], "LOCALHOST:8000", true),
            ("127.0.0.1:8000", &[], "[::1]:8000", true),
            ("127.0.0.1:8000", &[], "localhost", false),
            ("127.0.0.1:8000", &[], "localhost:8001", false),
            ("127.0.0.1:8000", &[], "evil.example:8000", false),
            ("127.0.0.1:8000", &[], "", false),
            ("127.0.0.1:8000", &[], ":8000", false),
            ("127.0.0.1:80", &[], "localhost", true),
            ("10.0.0.5:8000", &[], "10.0.0.5:8000", true),
            ("10.0.0.5:8000", &[], "localhost:8000", false),
            ("[fd00::1]:8000", &[], "[fd00::1]:8000", true),
            ("[fd00::1]:80", &[], "[fd00::1]", true),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal:8000", true),
            ("127.0.0.1:8000", &["docs.internal"], "Docs.Internal", true),
            ("127.0.0.1:8000", &["docs.internal"], "docs.internal:9", false),
            ("127.0.0.1:8000", &["docs.internal"], "localhost:8000", false),
            ("127.0.0.1:8000", &["docs.internal:9"], "docs.internal:9", true),
            ("127.0.0.1:8000", &["docs.internal:9"], "docs.internal:8000", false),
        ];
        for (address, hosts, host, expected) in table {
            assert_eq!(
                server(address, hosts).accepts_host(host),
                *expected,
                "{host:?} of {address} {hosts:?}"
            );
        }
    }

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
        let docs = server("127.0.0.1:1", &[]);
        assert!(matches!(opaque(known, &docs), Decision::Denied(d) if d.reason == Reason::Opaque));
        assert!(
            matches!(opaque(unknown, &docs), Decision::Denied(d) if d.reason == Reason::UnidentifiedCaller)
        );
    }
}

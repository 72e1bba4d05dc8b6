//! Permit or deny: a pure function of who asks, for what, of which server, under which policies.
//!
//! [`Permitted`] can be made here alone, and `forward` takes nothing else.

mod external;
mod host;
mod ids;
mod passage;
mod server;
mod tls;

pub use self::external::{ClientCertificate, External, Host, Proof};
pub use self::host::is_named_by;
pub use self::ids::{Ids, Use};
pub use self::passage::{
    Passage, Undeclared, Unread, Unrecognised, opaque, proxied, undeclared, unnamed, unread_http2,
    unrecognised,
};
pub use self::server::{Endpoint, Enforcement, Opaque, Place, Server, Target, Transport};
pub use self::tls::{Excluded, Handling, TlsRule, inspected, nameless, tls};

use std::sync::Arc;

use smallvec::smallvec;

use crate::denial::Reason;
use crate::identity::Identity;
use crate::mcp::{Class, Message, Method, Revision};
use crate::policy::{Policies, Refused, Rules, Verdict};
use crate::workload::Unidentified;

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

    /// Whether it says of which revision it is.
    fn names_revision(&self) -> bool;
}

impl<T: Asks> Asks for &T {
    fn action(&self) -> Action<'_> {
        T::action(self)
    }

    fn revision(&self) -> Option<Revision> {
        T::revision(self)
    }

    fn names_revision(&self) -> bool {
        T::names_revision(self)
    }
}

impl Asks for Action<'_> {
    fn action(&self) -> Action<'_> {
        *self
    }

    fn revision(&self) -> Option<Revision> {
        None
    }

    fn names_revision(&self) -> bool {
        false
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
    if let Some(reason) = ids.session_refused() {
        return Decision::Denied(Denied::because(reason));
    }
    let caller = match caller {
        Ok(caller) => caller,
        Err(unidentified) => return Decision::Denied(unidentified.into()),
    };
    // What a method that is not there names is of no interest.
    if let Some(denied) = misfit(&asked, ids.revision) {
        return Decision::Denied(denied);
    }
    if let Some(Revision::July2026) = asked.revision()
        && let Action::Message(Message::Request(call)) = asked.action()
        && call.method.class() == Class::Task
        && !call.knows_tasks()
    {
        return Decision::Denied(Denied::because(Reason::MissingCapability));
    }
    if let Some(reason) = ids.refused() {
        return Decision::Denied(Denied::because(reason));
    }
    let Target { server, ends } = target;
    let (verdict, shadow) = match asked.action() {
        // It must be permitted, and so must be that its caller answers anything.
        Action::Message(Message::Request(call) | Message::Notification(call)) if call.has_responses => {
            let (verdict, shadow) = policies.judge(caller, &server.identity, call, ids.tool, ends);
            let answers = policies.judge_answers(caller, &server.identity, ends);
            (verdict.and_then(|rules| answers.map(|_| rules)), shadow)
        }
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

/// What its session's revision does not have, or contradicts.
fn misfit(asked: &impl Asks, of_session: Option<Revision>) -> Option<Denied> {
    let Action::Message(message) = asked.action() else { return contradiction(asked, of_session) };
    let is_opening = matches!(message, Message::Request(call) if call.method == Method::Initialize);
    let contradicts = || if is_opening { None } else { contradiction(asked, of_session) };
    let revision = asked.revision().or(of_session);
    contradicts().or_else(|| outside(message, revision?))
}

fn contradiction(asked: &impl Asks, of_session: Option<Revision>) -> Option<Denied> {
    let revision = of_session.filter(|_| asked.names_revision() && asked.revision() != of_session)?;
    let detail = format!("the session was opened in MCP {}", revision.as_str());
    Some(Denied::because(Reason::RevisionMismatch).with_detail(detail))
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

fn permitted<T>(what: T, observed: Option<Denied>) -> Decision<T> {
    let observed = observed.map(Box::new);
    Decision::Permitted(Permitted { what, rules: smallvec![], observed, shadow: None })
}

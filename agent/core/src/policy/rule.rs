//! One rule: who, where, what, under which conditions.

use std::sync::Arc;

use super::arguments::Arguments;
use super::asked::{Arguable, Asked};
use super::glob::Glob;
use super::pattern::IdentityPattern;
use super::predicate::any_path_fits;
use super::truth::{Budget, Truth};
use crate::identity::Identity;
use crate::mcp::{ListKind, ServerAsks};

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Permits, unless a deny rule matches too.
    Allow,
    /// Denies, whatever else matches.
    Deny,
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// All there is; deny rules only.
    Everything,
    /// Tools by name: `tools/call`.
    Tools(Vec<Glob>),
    /// JSON-RPC methods by name. In allow rules never those that tools, resources or prompts decide.
    Methods(Vec<Glob>),
    /// Resources by URI: `resources/read`, `resources/subscribe`, `resources/unsubscribe`.
    Resources(Vec<Glob>),
    /// Prompts by name: `prompts/get`.
    Prompts(Vec<Glob>),
    /// What the server may ask of the caller.
    ServerRequests(Vec<ServerAsks>),
}

/// One rule of a policy.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `policy/rule`, as audit shows it.
    pub name: Arc<str>,
    /// What a match does.
    pub effect: Effect,
    /// Whose calls.
    pub callers: Vec<IdentityPattern>,
    /// To which servers.
    pub servers: Vec<IdentityPattern>,
    /// Which calls.
    pub what: What,
    /// Whether what it allows is shown in lists; `None` = yes.
    pub list: Option<bool>,
    /// Under which conditions; `None` = any.
    pub arguments: Option<Arguments>,
}

/// How far a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// In everything.
    Whole,
    /// In everything but its arguments.
    ArgumentsFail,
    No,
}

impl Rule {
    /// Whether caller and server are meant.
    pub(super) fn concerns(&self, caller: &Identity) -> bool {
        self.callers.iter().any(|pattern| pattern.matches(caller))
    }

    /// Whether the server is meant.
    pub(super) fn names_server(&self, server: &Identity) -> bool {
        self.servers.iter().any(|pattern| pattern.matches(server))
    }

    /// Whether it shows what it allows in lists.
    #[must_use]
    pub fn lists(&self) -> bool {
        self.effect == Effect::Allow && self.list.unwrap_or(true)
    }

    /// Matches the request; caller and server are known to fit. What cannot be told counts as a match in a deny
    /// rule and as none in an allow rule.
    pub(super) fn matches(&self, method: &str, asked: &Asked<'_>, budget: &mut Budget) -> Match {
        let holds = |truth| match (truth, self.effect) {
            (Truth::True, _) | (Truth::Unknown, Effect::Deny) => true,
            (Truth::False, _) | (Truth::Unknown, Effect::Allow) => false,
        };
        if !holds(self.covers(method, asked)) {
            return Match::No;
        }
        let Some(conditions) = &self.arguments else { return Match::Whole };
        let truth = match asked {
            Asked::Tool(_, arguments) | Asked::Prompt(_, Arguable::Known(arguments)) => {
                conditions.hold(*arguments, budget)
            }
            Asked::Prompt(_, Arguable::NotYet)
            | Asked::Resource(_)
            | Asked::Task(_)
            | Asked::Handshake
            | Asked::Method
            | Asked::ByServer(_) => Truth::Unknown,
        };
        if holds(truth) { Match::Whole } else { Match::ArgumentsFail }
    }

    fn covers(&self, method: &str, asked: &Asked<'_>) -> Truth {
        match (&self.what, asked) {
            (What::Everything, _) => Truth::True,
            (What::ServerRequests(asks), Asked::ByServer(one)) => Truth::from(asks.contains(one)),
            // What a caller may send, its server may not for that.
            (What::Methods(_), Asked::ByServer(_)) if self.effect == Effect::Allow => Truth::False,
            (What::Methods(globs), _) => Truth::from(any_fits(globs, method)),
            (What::Tools(globs), Asked::Tool(name, _)) | (What::Prompts(globs), Asked::Prompt(name, _)) => {
                Truth::from(any_fits(globs, name))
            }
            (What::Resources(globs), Asked::Resource(uri)) => any_path_fits(globs, uri),
            (What::Tools(_) | What::Prompts(_) | What::Resources(_) | What::ServerRequests(_), _) => {
                Truth::False
            }
        }
    }

    /// Whether it speaks of an entry of a list.
    pub(super) fn covers_entry(&self, kind: ListKind, name: &str) -> Truth {
        match (&self.what, kind) {
            (What::Everything, _) => Truth::True,
            (What::Tools(globs), ListKind::Tools) | (What::Prompts(globs), ListKind::Prompts) => {
                Truth::from(any_fits(globs, name))
            }
            (What::Resources(globs), ListKind::Resources | ListKind::ResourceTemplates) => {
                any_path_fits(globs, name)
            }
            (What::Methods(globs), _) => Truth::from(any_fits(globs, calling_method(kind))),
            (What::Tools(_) | What::Prompts(_) | What::Resources(_) | What::ServerRequests(_), _) => {
                Truth::False
            }
        }
    }

    /// Whether this deny rule provably denies all that the allow rule allows, for a caller and a server that fit
    /// both.
    pub(super) fn shadows(&self, allow: &Self) -> bool {
        if self.effect != Effect::Deny || self.arguments.is_some() {
            return false;
        }
        let all_covered = |denied: &[Glob], allowed: &[Glob]| {
            allowed.iter().all(|allowed| denied.iter().any(|denied| denied.covers(allowed)))
        };
        match (&self.what, &allow.what) {
            (What::Everything, _) => true,
            (What::Tools(denied), What::Tools(allowed))
            | (What::Prompts(denied), What::Prompts(allowed))
            | (What::Resources(denied), What::Resources(allowed))
            | (What::Methods(denied), What::Methods(allowed)) => all_covered(denied, allowed),
            (What::Methods(denied), What::Tools(_)) => any_fits(denied, "tools/call"),
            (What::Methods(denied), What::Prompts(_)) => any_fits(denied, "prompts/get"),
            (What::Methods(denied), What::Resources(_)) => any_fits(denied, "resources/read"),
            (What::ServerRequests(denied), What::ServerRequests(allowed)) => {
                allowed.iter().all(|allowed| denied.contains(allowed))
            }
            (
                What::Tools(_)
                | What::Prompts(_)
                | What::Resources(_)
                | What::Methods(_)
                | What::ServerRequests(_),
                _,
            ) => false,
        }
    }
}

fn any_fits(globs: &[Glob], name: &str) -> bool {
    globs.iter().any(|glob| glob.matches(name))
}

/// What an entry of a list is there for.
pub(super) fn calling_method(kind: ListKind) -> &'static str {
    match kind {
        ListKind::Tools => "tools/call",
        ListKind::Prompts => "prompts/get",
        ListKind::Resources | ListKind::ResourceTemplates => "resources/read",
    }
}

/// The methods that an allow rule may not name, because `tools`, `resources` and `prompts` say which.
pub const DECIDED_BY_NAME: [(&str, &str); 5] = [
    ("tools/call", "tools"),
    ("resources/read", "resources"),
    ("resources/subscribe", "resources"),
    ("resources/unsubscribe", "resources"),
    ("prompts/get", "prompts"),
];

//! Rules and predicates, compiled: which call of which caller to which server is permitted.
//!
//! A server is governed by the policies that name it. At the server's end none means denied; at the caller's end
//! none means that the caller's end has no say. Each end that has one must allow. Within an end a matching deny
//! rule wins, else a matching allow rule permits, else the call is denied; order does not matter.

mod arguments;
mod asked;
mod directory;
mod glob;
mod index;
mod pattern;
mod predicate;
mod rule;
mod served;
mod spelling;
mod truth;
mod view;

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

pub use self::arguments::{Arguments, InvalidKey, Key, Others};
pub use self::directory::Directory;
pub use self::glob::{Glob, InvalidGlob};
pub use self::pattern::{IdentityPattern, InvalidPattern};
pub use self::predicate::{InvalidPredicate, JsonType, Literal, NUMBER_MAX, Predicate};
pub use self::rule::{DECIDED_BY_NAME, Effect, Rule, What};
pub use self::truth::{ARGUMENT_BYTES_READ_MAX, Truth};

use self::asked::{Asked, each_asked};
use self::index::{Indexed, Named};
use self::rule::Match;
use self::served::ByServer;
use self::truth::Budget;
use crate::denial::Reason;
use crate::identity::Identity;
use crate::mcp::{Call, Class, ListKind, Method, ServerAsks};
use crate::words::ByWords;

/// Names of rules, `policy/rule`.
pub type Rules = SmallVec<[Arc<str>; 2]>;

/// Whether a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMode {
    /// It does.
    Enforce,
    /// Its verdict is recorded beside the real one and changes nothing.
    Shadow,
}

/// Which end of a call applies a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The agent in front of the server.
    Server,
    /// The agent that captured the call.
    Caller,
}

/// Which ends of a call this agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ends {
    /// It captured the call, and is in front of the server.
    #[default]
    Both,
    /// It captured the call; another agent is in front of the server.
    Caller,
    /// It is in front of the server; another agent captured the call.
    Server,
}

/// One Policy resource.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name, with the namespace where that is not `default`.
    pub name: Arc<str>,
    /// Whether it counts.
    pub mode: PolicyMode,
    /// Which end applies it.
    pub at: At,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Why policies refuse, and by which rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One of the reasons of policy.
    pub reason: Reason,
    /// The deny rule that matched, or the allow rules whose arguments did not.
    pub rules: Rules,
}

/// What policies say: the rules that permit, or why not.
pub type Verdict = Result<Rules, Refused>;

/// All policies of one generation, compiled per server. Servers that are not among those given are not governed,
/// and so denied.
#[derive(Debug, Default)]
pub struct Policies {
    sources: Vec<Policy>,
    governed: HashMap<Identity, Governed, ByWords>,
}

/// The rules about one server.
#[derive(Debug, Default)]
struct Governed {
    enforced: Layers,
    /// What would count if the shadow policies did; `None` without any.
    preview: Option<Layers>,
}

#[derive(Debug, Default)]
struct Layers {
    server: Layer,
    /// `None`: no policy of the caller's end names the server.
    caller: Option<Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    allow: Indexed,
    deny: Indexed,
}

impl Policies {
    /// Compiles the policies for these servers.
    #[must_use]
    pub fn new(policies: Vec<Policy>, servers: &[Identity]) -> Self {
        let rules = ByServer::new(&policies);
        let governed = |server: &Identity| (server.clone(), Governed::new(&rules.of(server)));
        let governed = servers.iter().map(governed).collect();
        Self { sources: policies, governed }
    }

    /// The policies as they were given.
    #[must_use]
    pub fn sources(&self) -> &[Policy] {
        &self.sources
    }

    /// Whether any enforced policy of the server's end names the server.
    #[must_use]
    pub fn govern(&self, server: &Identity) -> bool {
        self.governed.get(server).is_some_and(|governed| !governed.enforced.server.is_empty())
    }

    /// Whether some rule lets the caller do something on the server, its conditions aside, that no unconditional
    /// deny takes away: what the handshake hangs on.
    #[must_use]
    pub fn may_anything(&self, caller: &Identity, server: &Identity, ends: Ends) -> bool {
        self.governed.get(server).is_some_and(|governed| governed.enforced.may(caller, ends).is_ok())
    }

    /// Whether a list shows this entry (a name, a URI or a URI template) to the caller.
    #[must_use]
    pub fn lists(
        &self,
        (caller, ends): (&Identity, Ends),
        server: &Identity,
        kind: ListKind,
        name: &str,
    ) -> bool {
        let governed = self.governed.get(server);
        governed.is_some_and(|it| it.enforced.of(ends).all(|layer| layer.lists(caller, kind, name)))
    }

    /// The verdict on a call, and that of the shadow policies. `tool`: whose call made the task that it is about.
    pub(crate) fn judge(
        &self,
        caller: &Identity,
        server: &Identity,
        call: &Call<'_>,
        tool: Option<&str>,
        ends: Ends,
    ) -> (Verdict, Option<Verdict>) {
        self.both(server, |layers| layers.judge(caller, call, tool, ends))
    }

    /// The verdict on what the server asks of the caller.
    pub(crate) fn judge_server(
        &self,
        caller: &Identity,
        server: &Identity,
        method: Method,
        ends: Ends,
    ) -> (Verdict, Option<Verdict>) {
        self.both(server, |layers| layers.judge_server(caller, method, ends))
    }

    /// The verdict on answers whose questions are not known one by one: the server may ask the caller for something.
    pub(crate) fn judge_answers(&self, caller: &Identity, server: &Identity, ends: Ends) -> Verdict {
        let all = [Method::ElicitationCreate, Method::SamplingCreate, Method::RootsList];
        let refused = Err(Refused::without_rule(Reason::ServerRequest));
        all.into_iter().fold(refused, |refused: Verdict, method| {
            refused.or_else(|_| self.judge_server(caller, server, method, ends).0)
        })
    }

    /// The verdict on what needs no more than that the caller may anything.
    pub(crate) fn judge_may(
        &self,
        caller: &Identity,
        server: &Identity,
        ends: Ends,
    ) -> (Verdict, Option<Verdict>) {
        self.both(server, |layers| layers.may(caller, ends))
    }

    fn both(&self, server: &Identity, judge: impl Fn(&Layers) -> Verdict) -> (Verdict, Option<Verdict>) {
        match self.governed.get(server) {
            Some(governed) => (judge(&governed.enforced), governed.preview.as_ref().map(judge)),
            None => (Err(Refused::without_rule(Reason::NoRule)), None),
        }
    }
}

impl Governed {
    fn new(rules: &[(&Policy, Arc<Rule>)]) -> Self {
        let enforced = rules.iter().filter(|(policy, _)| policy.mode == PolicyMode::Enforce);
        let shadowed = rules.iter().any(|(policy, _)| policy.mode == PolicyMode::Shadow);
        Self { enforced: Layers::new(enforced), preview: shadowed.then(|| Layers::new(rules.iter())) }
    }
}

impl Layers {
    fn new<'p>(rules: impl Iterator<Item = &'p (&'p Policy, Arc<Rule>)>) -> Self {
        let mut layers = Self::default();
        for (policy, rule) in rules {
            let layer = match policy.at {
                At::Server => &mut layers.server,
                At::Caller => layers.caller.get_or_insert_default(),
            };
            match rule.effect {
                Effect::Allow => layer.allow.push(Arc::clone(rule)),
                Effect::Deny => layer.deny.push(Arc::clone(rule)),
            }
        }
        layers
    }

    /// Those that have a say here. None at all: this end leaves it to the other.
    fn of(&self, ends: Ends) -> impl Iterator<Item = &Layer> {
        let caller = self.caller.iter().filter(move |_| ends != Ends::Server);
        caller.chain((ends != Ends::Caller).then_some(&self.server))
    }

    fn may(&self, caller: &Identity, ends: Ends) -> Verdict {
        self.of(ends).map(|layer| layer.may(caller)).collect()
    }

    fn judge(&self, caller: &Identity, call: &Call<'_>, tool: Option<&str>, ends: Ends) -> Verdict {
        let mut budget = Budget::new(ARGUMENT_BYTES_READ_MAX);
        let mut rules: Rules = smallvec![];
        each_asked(call, tool, |asked| {
            for layer in self.of(ends) {
                let rule = if let Asked::Task(tool) = asked {
                    layer.judge_task(caller, call, tool, &mut budget)?
                } else {
                    layer.judge(caller, (&call.method_name, call.method), asked, &mut budget)?
                };
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
            Ok(())
        })?;
        Ok(rules)
    }

    /// One of what it asks for must be permitted, by each end.
    fn judge_server(&self, caller: &Identity, method: Method, ends: Ends) -> Verdict {
        let mut refused = Refused::without_rule(Reason::ServerRequest);
        for &asks in method.server_asks() {
            let judged: Verdict =
                self.of(ends).map(|layer| layer.judge_server(caller, method, asks)).collect();
            match judged {
                Ok(rules) => return Ok(rules),
                Err(why) if why.rules.is_empty() => {}
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }
}

impl Layer {
    fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// The rule that permits this.
    fn judge(
        &self,
        caller: &Identity,
        (name, method): (&str, Method),
        asked: &Asked<'_>,
        budget: &mut Budget,
    ) -> Result<Arc<str>, Refused> {
        let named = asked.named();
        let denying = (!self.deny.is_empty()).then(|| self.deny.about(caller, name, named));
        for rule in denying.into_iter().flatten() {
            if rule.matches(name, asked, budget) == Match::Whole {
                return Err(Refused { reason: Reason::DeniedByRule, rules: smallvec![rule.name.clone()] });
            }
        }
        let mut arguments_fail: Rules = smallvec![];
        for rule in self.allow.about(caller, name, named) {
            match rule.matches(name, asked, budget) {
                Match::Whole => return Ok(rule.name.clone()),
                Match::ArgumentsFail => arguments_fail.push(rule.name.clone()),
                Match::No => {}
            }
        }
        match (asked, method.class()) {
            (Asked::Handshake, _) => self.may(caller),
            (Asked::ByServer(_), _) => Err(Refused::without_rule(Reason::ServerRequest)),
            _ if !arguments_fail.is_empty() => {
                Err(Refused { reason: Reason::ArgumentsRefused, rules: arguments_fail })
            }
            (_, Class::ServerToClient | Class::Unknown) => Err(Refused::without_rule(Reason::MethodUnknown)),
            _ => Err(Refused::without_rule(Reason::NoRule)),
        }
    }

    /// The rule that permits this for the caller's own task: one that names the method, or that still lets the caller
    /// call the tool, its conditions aside: they held when the task was made.
    fn judge_task(
        &self,
        caller: &Identity,
        call: &Call<'_>,
        tool: &str,
        budget: &mut Budget,
    ) -> Result<Arc<str>, Refused> {
        let by_method = self.judge(caller, (&call.method_name, call.method), &Asked::Method, budget);
        match (by_method, self.may_call(caller, tool)) {
            (Err(denied), _) | (_, Err(denied)) if denied.reason == Reason::DeniedByRule => Err(denied),
            (Ok(rule), _) | (Err(_), Ok(rule)) => Ok(rule),
            (Err(_), Err(refused)) => Err(refused),
        }
    }

    fn may_call(&self, caller: &Identity, tool: &str) -> Result<Arc<str>, Refused> {
        let (method, named) = (rule::calling_method(ListKind::Tools), Named::Tool(tool));
        let covers = |rule: &Rule| rule.covers_entry(ListKind::Tools, tool);
        let denies = |rule: &&Arc<Rule>| rule.arguments.is_none() && covers(rule) != Truth::False;
        if let Some(deny) = self.deny.about(caller, method, named).find(denies) {
            return Err(Refused { reason: Reason::DeniedByRule, rules: smallvec![deny.name.clone()] });
        }
        let allow = self.allow.about(caller, method, named).find(|rule| covers(rule) == Truth::True);
        allow.map(|rule| rule.name.clone()).ok_or(Refused::without_rule(Reason::NoRule))
    }

    fn judge_server(&self, caller: &Identity, method: Method, asks: ServerAsks) -> Result<Arc<str>, Refused> {
        // It has no arguments that rules speak of.
        self.judge(caller, (method.as_str(), method), &Asked::ByServer(asks), &mut Budget::new(0))
    }

    /// The first rule that lets the caller do something; else the deny rule that takes away the last.
    fn may(&self, caller: &Identity) -> Result<Arc<str>, Refused> {
        let mut refused = Refused::without_rule(Reason::NoRule);
        for allow in self.allow.of(caller) {
            let deny = self.deny.of(caller).find(|deny| deny.shadows(allow));
            match deny {
                None => return Ok(allow.name.clone()),
                Some(deny) => {
                    refused = Refused { reason: Reason::DeniedByRule, rules: smallvec![deny.name.clone()] };
                }
            }
        }
        Err(refused)
    }

    fn lists(&self, caller: &Identity, kind: ListKind, name: &str) -> bool {
        let named = match kind {
            ListKind::Tools => Named::Tool(name),
            ListKind::Prompts => Named::Prompt(name),
            ListKind::Resources | ListKind::ResourceTemplates => Named::Nothing,
        };
        let method = rule::calling_method(kind);
        let hides =
            |rule: &Arc<Rule>| rule.arguments.is_none() && rule.covers_entry(kind, name) != Truth::False;
        let shows = |rule: &Arc<Rule>| rule.lists() && rule.covers_entry(kind, name) == Truth::True;
        !self.deny.about(caller, method, named).any(hides)
            && self.allow.about(caller, method, named).any(shows)
    }
}

impl Refused {
    fn without_rule(reason: Reason) -> Self {
        Self { reason, rules: smallvec![] }
    }
}

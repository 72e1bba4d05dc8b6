//! `rules:` of a Policy, compiled, with what they refer to checked.

use std::sync::Arc;

use serde_saphyr::Spanned;
use toolgate_core::identity::{Identity, check_name};
use toolgate_core::mcp::ServerAsks;
use toolgate_core::policy::{
    Arguments, At, DECIDED_BY_NAME, Effect, Glob, IdentityPattern, JsonType, Key, Literal, Others, Policy,
    PolicyMode, Predicate, Rule, What,
};

use super::diagnostic::Diagnostic;
use super::resources::Known;
use super::schema::{Given, Pairs, PolicySpec, PredicateSpec, RuleSpec, Scalar};
use super::source::{Source, did_you_mean};
use super::words::{Findings, choice};

/// The policy, or `None` when it has no valid name or misses what cannot be guessed. `identity` has its name and
/// namespace.
pub(super) fn read_policy(
    source: &Source,
    identity: Option<&Identity>,
    spec: &PolicySpec,
    known: &Known<'_>,
    findings: &mut Findings,
) -> Option<Policy> {
    let modes = [("enforce", PolicyMode::Enforce), ("shadow", PolicyMode::Shadow)];
    let mode = findings.keep(choice(source, &spec.mode, ("mode", PolicyMode::Enforce), &modes, &[]));
    let ends = [("server", At::Server), ("caller", At::Caller)];
    let at = findings.keep(choice(source, &spec.at, ("at", At::Server), &ends, &[]));
    let identity = identity?;
    let Some(specs) = spec.rules.as_ref().filter(|rules| !rules.value.is_empty()) else {
        let message = format!("policy `{identity}` has no rules");
        let fault = match &spec.rules {
            Some(rules) => source.error(rules, message),
            None => Diagnostic::of_file(&source.file, message),
        };
        findings.push(fault.help("add at least one under `rules`, or remove the policy"));
        return None;
    };
    let name: Arc<str> = identity.to_string().into();
    let mut rules: Vec<Rule> = Vec::new();
    for spec in &specs.value {
        let mut reader = Reader { source, namespace: identity.namespace(), policy: &name, known, findings };
        let Some(rule) = reader.rule(spec) else { continue };
        if let Some(word) =
            spec.value.name.as_ref().filter(|_| rules.iter().any(|other| other.name == rule.name))
        {
            let fault = source.error(word, format!("another rule of this policy is called `{}`", word.value));
            findings.push(fault.help("audit names rules: give each its own name"));
        }
        rules.push(rule);
    }
    Some(Policy { name, mode: mode?, at: at?, rules })
}

/// What the reading of one rule needs.
struct Reader<'r> {
    source: &'r Source,
    namespace: &'r str,
    policy: &'r str,
    known: &'r Known<'r>,
    findings: &'r mut Findings,
}

impl Reader<'_> {
    fn rule(&mut self, placed: &Spanned<RuleSpec>) -> Option<Rule> {
        let spec = &placed.value;
        self.findings.refuse_later(self.source, &[("token", &spec.token), ("when", &spec.when)]);
        let name = self.required(placed, &spec.name, "name")?;
        if let Err(error) = check_name(&name.value) {
            self.findings.push(self.source.error(name, error.to_string()));
        }
        let effect = self.required(placed, &spec.effect, "effect")?;
        let effects = [("allow", Effect::Allow), ("deny", Effect::Deny)];
        let effect = Some(Spanned::new(effect.value.clone(), effect.referenced, effect.defined));
        let effect =
            self.findings.keep(choice(self.source, &effect, ("effect", Effect::Deny), &effects, &[]))?;
        let callers = self.patterns(placed, &spec.callers, "callers")?;
        let servers = self.patterns(placed, &spec.servers, "servers")?;
        self.check_callers(&callers);
        self.check_servers(&servers);
        let what = self.what(placed, effect)?;
        if let Some(list) = spec.list.as_ref().filter(|_| effect == Effect::Deny) {
            let fault = self.source.error(list, "a deny rule lists nothing");
            self.findings.push(fault.help("remove `list`: what is denied is hidden"));
        } else if let (Some(list), What::ServerRequests(_)) = (&spec.list, &what) {
            let fault = self.source.error(list, "what servers ask is in no list");
            self.findings.push(fault.help("remove `list`"));
        }
        let arguments = self.arguments(spec, effect, &what);
        let unplaced = |patterns: Vec<(IdentityPattern, &Spanned<String>)>| {
            patterns.into_iter().map(|(p, _)| p).collect()
        };
        Some(Rule {
            name: format!("{}/{}", self.policy, name.value).into(),
            effect,
            callers: unplaced(callers),
            servers: unplaced(servers),
            what,
            list: spec.list.as_ref().map(|list| list.value),
            arguments: arguments?,
        })
    }

    fn required<'s, T>(
        &mut self,
        rule: &Spanned<RuleSpec>,
        given: &'s Given<T>,
        key: &str,
    ) -> Option<&'s Spanned<T>> {
        if given.is_none() {
            let fault = self.source.error(rule, format!("`{key}` is missing"));
            self.findings.push(fault.help(format!("add `{key}: ..` to this rule")));
        }
        given.as_ref()
    }

    fn patterns<'s>(
        &mut self,
        rule: &Spanned<RuleSpec>,
        given: &'s Given<Vec<Spanned<String>>>,
        key: &str,
    ) -> Option<Vec<(IdentityPattern, &'s Spanned<String>)>> {
        let list = self.required(rule, given, key)?;
        self.refuse_empty(list, key);
        let mut patterns = Vec::new();
        for word in &list.value {
            match IdentityPattern::new(&word.value, self.known.trust_domain, self.namespace) {
                Ok(pattern) => patterns.push((pattern, word)),
                Err(error) => self.findings.push(self.source.error(word, error.to_string())),
            }
        }
        Some(patterns)
    }

    fn refuse_empty(&mut self, list: &Spanned<Vec<Spanned<String>>>, key: &str) {
        if list.value.is_empty() {
            let fault = self.source.error(list, format!("`{key}` is empty, so the rule never matches"));
            self.findings.push(fault.help("name at least one, or remove the rule; `\"*\"` is any"));
        }
    }

    /// A warning only: `toolgate exec` gives App IDs that no Workload names.
    fn check_callers(&mut self, callers: &[(IdentityPattern, &Spanned<String>)]) {
        for (pattern, word) in callers {
            let ours = pattern.trust_domain() == self.known.trust_domain;
            let found = self.known.workloads.iter().any(|workload| pattern.matches(&workload.identity));
            if pattern.is_literal() && ours && !found {
                let names: Vec<String> =
                    self.known.workloads.iter().map(|w| w.identity.to_string()).collect();
                let warning =
                    self.source.error(*word, format!("no Workload is called `{}`", word.value)).warning();
                let help = if names.is_empty() {
                    String::new()
                } else {
                    format!("; {}", did_you_mean(&word.value, &names))
                };
                let help = format!("only `toolgate exec --app-id {}` will be this caller{help}", word.value);
                self.findings.push(warning.help(help));
            }
        }
    }

    fn check_servers(&mut self, servers: &[(IdentityPattern, &Spanned<String>)]) {
        for (pattern, word) in servers {
            if self.known.servers.iter().any(|server| pattern.matches(server)) {
                continue;
            }
            let names: Vec<String> = self.known.servers.iter().map(Identity::to_string).collect();
            let fault = self.source.error(*word, format!("no Server has the App ID `{}`", word.value));
            let fault = if pattern.is_literal() { fault } else { fault.warning() };
            let help = if names.is_empty() {
                "no Server is declared yet".to_owned()
            } else {
                did_you_mean(&word.value, &names)
            };
            self.findings.push(fault.help(help));
        }
    }

    fn what(&mut self, placed: &Spanned<RuleSpec>, effect: Effect) -> Option<What> {
        let spec = &placed.value;
        type Kind<'s> = (&'s str, &'s Given<Vec<Spanned<String>>>, Option<fn(Vec<Glob>) -> What>);
        let kinds: [Kind<'_>; 5] = [
            ("tools", &spec.tools, Some(What::Tools)),
            ("methods", &spec.methods, Some(What::Methods)),
            ("resources", &spec.resources, Some(What::Resources)),
            ("prompts", &spec.prompts, Some(What::Prompts)),
            ("server_requests", &spec.server_requests, None),
        ];
        let given: Vec<_> =
            kinds.iter().filter_map(|(key, list, what)| Some((*key, list.as_ref()?, what))).collect();
        let (key, list, what) = match given.as_slice() {
            [one] => *one,
            [] if effect == Effect::Deny => return Some(What::Everything),
            [] => {
                let fault = self.source.error(placed, "the rule does not say what it allows");
                let help = "add `tools`, `methods`, `resources`, `prompts` or `server_requests`; `tools: [\"*\"]` is \
                            every tool";
                self.findings.push(fault.help(help));
                return None;
            }
            [_, (key, list, _), ..] => {
                let fault = self.source.error(*list, format!("`{key}` beside another kind in one rule"));
                self.findings.push(fault.help("write one rule for tools, another for prompts and so on"));
                return None;
            }
        };
        self.refuse_empty(list, key);
        let Some(what) = what else {
            let asks = list.value.iter().filter_map(|word| self.server_asks(word)).collect();
            return Some(What::ServerRequests(asks));
        };
        let globs = list.value.iter().filter_map(|word| self.glob(key, word, effect)).collect();
        Some(what(globs))
    }

    fn server_asks(&mut self, word: &Spanned<String>) -> Option<ServerAsks> {
        let found = ServerAsks::ALL.into_iter().find(|asks| asks.as_str() == word.value);
        if found.is_none() {
            let names = ServerAsks::ALL.map(ServerAsks::as_str);
            let fault = self.source.error(word, format!("servers ask for nothing called `{}`", word.value));
            self.findings.push(fault.help(did_you_mean(&word.value, &names)));
        }
        found
    }

    fn glob(&mut self, key: &str, word: &Spanned<String>, effect: Effect) -> Option<Glob> {
        let glob = if key == "resources" { Glob::new(&word.value) } else { Glob::name(&word.value) };
        let glob = glob.map_err(|error| self.source.error(word, error.to_string()));
        let glob = self.findings.keep(glob)?;
        let by_name = DECIDED_BY_NAME.iter().find(|(method, _)| glob.matches(method));
        if let Some((method, better)) = by_name.filter(|_| key == "methods" && effect == Effect::Allow) {
            let fault =
                self.source.error(word, format!("`{}` allows `{method}` whatever it names", word.value));
            self.findings
                .push(fault.help(format!("say which with `{better}`; `{better}: [\"*\"]` is every one")));
        }
        Some(glob)
    }

    /// `Some(None)`: the rule has no conditions.
    fn arguments(&mut self, spec: &RuleSpec, effect: Effect, what: &What) -> Option<Option<Arguments>> {
        let words = [("deny", Others::Deny), ("allow", Others::Allow)];
        let default = match effect {
            Effect::Allow => Others::Deny,
            Effect::Deny => Others::Allow,
        };
        let others = self.findings.keep(choice(
            self.source,
            &spec.other_arguments,
            ("other_arguments", default),
            &words,
            &[],
        ));
        if let Some(word) = &spec.other_arguments {
            let misplaced = match (effect, &spec.arguments) {
                (Effect::Deny, _) => Some("a deny rule matches on its predicates alone"),
                (Effect::Allow, None) => Some("without `arguments` any argument is allowed"),
                (Effect::Allow, Some(_)) => None,
            };
            if let Some(why) = misplaced {
                self.findings.push(self.source.error(word, why).help("remove `other_arguments`"));
            }
        }
        let Some(given) = &spec.arguments else { return Some(None) };
        let takes_arguments = match what {
            What::Tools(_) | What::Prompts(_) => true,
            What::Everything | What::Methods(_) | What::Resources(_) | What::ServerRequests(_) => false,
        };
        if !takes_arguments {
            let fault = self.source.error(given, "only tools and prompts have arguments");
            self.findings.push(fault.help("add `tools` or `prompts`, or remove `arguments`"));
        }
        if effect == Effect::Deny && given.value.0.is_empty() {
            let fault = self.source.error(given, "a deny rule without predicates denies every call");
            self.findings.push(fault.help("remove `arguments` if that is meant"));
        }
        let Pairs(pairs) = &given.value;
        let before = self.findings.all.len();
        let predicates =
            pairs.iter().filter_map(|(key, spec)| Some((self.key(key)?, self.predicates(spec)))).collect();
        // A condition that could not be read must not be missing from the rule.
        (self.findings.all.len() == before).then_some(())?;
        Some(Some(Arguments::new(predicates, others?)))
    }

    fn key(&mut self, word: &Spanned<String>) -> Option<Key> {
        let key = Key::new(&word.value).map_err(|error| self.source.error(word, error.to_string()));
        self.findings.keep(key)
    }

    fn predicates(&mut self, spec: &PredicateSpec) -> Vec<Predicate> {
        let PredicateSpec { equals, r#in, prefix, suffix, glob, regex, within, min, max, max_length, .. } =
            spec;
        let PredicateSpec { r#type, absent, any, every, .. } = spec;
        let literal = |reader: &mut Self, word: &Spanned<Scalar>| reader.literal(word);
        let mut all = Vec::new();
        all.extend(equals.as_ref().and_then(|word| literal(self, word)).map(Predicate::Equals));
        if let Some(list) = r#in {
            if list.value.is_empty() {
                let fault = self.source.error(list, "`in` is empty, so nothing is in it");
                self.findings.push(fault.help("name at least one value"));
            }
            all.push(Predicate::In(list.value.iter().filter_map(|word| literal(self, word)).collect()));
        }
        all.extend(prefix.as_ref().map(|word| Predicate::Prefix(word.value.clone())));
        all.extend(suffix.as_ref().map(|word| Predicate::Suffix(word.value.clone())));
        all.extend(
            glob.as_ref().and_then(|word| self.fallible(word, Glob::new(&word.value))).map(Predicate::Glob),
        );
        all.extend(regex.as_ref().and_then(|word| self.fallible(word, Predicate::regex(&word.value))));
        all.extend(within.as_ref().and_then(|word| self.fallible(word, Predicate::within(&word.value))));
        all.extend(
            min.as_ref()
                .and_then(|word| self.fallible(word, Predicate::number(word.value)))
                .map(Predicate::Min),
        );
        all.extend(
            max.as_ref()
                .and_then(|word| self.fallible(word, Predicate::number(word.value)))
                .map(Predicate::Max),
        );
        all.extend(max_length.as_ref().map(|word| Predicate::MaxLength(word.value)));
        all.extend(r#type.as_ref().and_then(|word| self.json_type(word)).map(Predicate::Type));
        all.extend(absent.as_ref().map(|word| Predicate::Absent(word.value)));
        all.extend(any.as_ref().map(|spec| Predicate::Any(self.predicates(spec))));
        all.extend(every.as_ref().map(|spec| Predicate::Every(self.predicates(spec))));
        if let (Some(low), Some(high)) = (min, max)
            && low.value > high.value
        {
            let fault = self.source.error(low, "`min` is above `max`, so no number fits");
            self.findings.push(fault.help("swap them"));
        }
        all
    }

    fn fallible<T, V>(&mut self, word: &Spanned<V>, read: Result<T, impl std::error::Error>) -> Option<T> {
        let read = read.map_err(|error| self.source.error(word, error.to_string()));
        self.findings.keep(read)
    }

    fn literal(&mut self, word: &Spanned<Scalar>) -> Option<Literal> {
        let Scalar(literal) = &word.value;
        if let Literal::Number(number) = literal {
            self.fallible(word, Predicate::number(*number))?;
        }
        Some(literal.clone())
    }

    fn json_type(&mut self, word: &Spanned<String>) -> Option<JsonType> {
        if let Some((_, kind)) = JsonType::ALL.iter().find(|(name, _)| *name == word.value) {
            return Some(*kind);
        }
        let names = JsonType::ALL.map(|(name, _)| name);
        let fault = self.source.error(word, format!("`{}` is no JSON type", word.value));
        self.findings.push(fault.help(did_you_mean(&word.value, &names)));
        None
    }
}

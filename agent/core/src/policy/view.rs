//! What decides which entries of a list a caller is shown, as a digest: two generations that give the same one show the
//! caller the same.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::glob::Glob;
use super::rule::{Effect, Rule, What, calling_method};
use super::{Ends, Layer, Policies};
use crate::identity::Identity;
use crate::mcp::ListKind;

/// An end, whether it shows or hides, and the pattern of what; an empty one is all.
type Part<'p> = (u8, Effect, &'p str);

const SERVER: u8 = 0;
const CALLER: u8 = 1;
const ALL: &[&str] = &[""];

impl Policies {
    /// Of all that decides what of such a list is shown. Which rule says it, and in which order, makes no difference.
    #[must_use]
    pub fn view(&self, (caller, ends): (&Identity, Ends), server: &Identity, kind: ListKind) -> u64 {
        let mut parts = BTreeSet::new();
        if let Some(governed) = self.governed.get(server) {
            let layers = &governed.enforced;
            if ends != Ends::Caller {
                layers.server.parts(SERVER, caller, kind, &mut parts);
            }
            if let Some(layer) = layers.caller.as_ref().filter(|_| ends != Ends::Server) {
                // It is there: what it does not show is hidden.
                parts.insert((CALLER, Effect::Allow, "/"));
                layer.parts(CALLER, caller, kind, &mut parts);
            }
        }
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        hasher.finish()
    }
}

impl Layer {
    fn parts<'p>(&'p self, end: u8, caller: &'p Identity, kind: ListKind, parts: &mut BTreeSet<Part<'p>>) {
        let hiding = self.deny.of(caller).filter(|rule| rule.arguments.is_none());
        let showing = self.allow.of(caller).filter(|rule| rule.lists());
        for rule in hiding.chain(showing) {
            parts.extend(rule.about_entries(kind).map(|pattern| (end, rule.effect, pattern)));
        }
    }
}

impl Rule {
    /// The patterns of the entries of a list that it covers.
    fn about_entries(&self, kind: ListKind) -> impl Iterator<Item = &str> {
        let (globs, all): (&[Glob], &[&str]) = match (&self.what, kind) {
            (What::Everything, _) => (&[], ALL),
            (What::Methods(globs), _) if globs.iter().any(|glob| glob.matches(calling_method(kind))) => {
                (&[], ALL)
            }
            (What::Tools(globs), ListKind::Tools)
            | (What::Prompts(globs), ListKind::Prompts)
            | (What::Resources(globs), ListKind::Resources | ListKind::ResourceTemplates) => (globs, &[]),
            (
                What::Methods(_)
                | What::Tools(_)
                | What::Prompts(_)
                | What::Resources(_)
                | What::ServerRequests(_),
                _,
            ) => (&[], &[]),
        };
        globs.iter().map(Glob::as_str).chain(all.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{At, IdentityPattern, Policy, PolicyMode};
    use super::*;

    fn glob(text: &str) -> Vec<Glob> {
        text.split(' ').map(|one| Glob::new(one).unwrap()).collect()
    }

    fn rule(effect: Effect, callers: &str, what: What) -> Rule {
        let identity = |text: &str| IdentityPattern::new(text, "one.org", "default").unwrap();
        Rule {
            name: "p/r".into(),
            effect,
            callers: vec![identity(callers)],
            servers: vec![identity("docs")],
            what,
            list: None,
            arguments: None,
        }
    }

    fn policies(all: &[(At, Vec<Rule>)]) -> Policies {
        let policy = |(at, rules): &(At, Vec<Rule>)| Policy {
            name: "p".into(),
            mode: PolicyMode::Enforce,
            at: *at,
            rules: rules.clone(),
        };
        let docs = Identity::new("one.org", "default", "docs").unwrap();
        Policies::new(all.iter().map(policy).collect(), &[docs])
    }

    #[test]
    fn a_view_is_the_same_as_long_as_the_same_is_shown() {
        use Effect::{Allow, Deny};
        let tools = |effect, callers, names| rule(effect, callers, What::Tools(glob(names)));
        let before = policies(&[(At::Server, vec![tools(Allow, "a", "x y"), tools(Deny, "*", "y")])]);
        let views = |policies: &Policies, caller: &str| {
            let (caller, docs) = (
                Identity::new("one.org", "default", caller).unwrap(),
                Identity::new("one.org", "default", "docs").unwrap(),
            );
            [ListKind::Tools, ListKind::Resources, ListKind::Prompts]
                .map(|kind| policies.view((&caller, Ends::Both), &docs, kind))
        };
        /// What else there is, and whether the lists of tools, resources and prompts are others for `a` and `b`.
        type Row = (&'static str, Vec<(At, Vec<Rule>)>, [bool; 3], [bool; 3]);
        let (same, all) = ([false; 3], [true; 3]);
        let hidden = Rule { list: Some(false), ..tools(Allow, "a", "z") };
        let others =
            |more: Rule| vec![(At::Server, vec![tools(Deny, "*", "y"), tools(Allow, "a", "y x"), more])];
        let table: [Row; 9] = [
            ("in other words", others(tools(Allow, "a", "x")), same, same),
            ("one tool more", others(tools(Allow, "a", "z")), [true, false, false], same),
            ("for another", others(tools(Allow, "b", "z")), same, [true, false, false]),
            ("for all", others(tools(Deny, "*", "x")), [true, false, false], [true, false, false]),
            ("not shown", others(hidden), same, same),
            (
                "prompts",
                others(rule(Allow, "*", What::Prompts(glob("x")))),
                [false, false, true],
                [false, false, true],
            ),
            ("resources", others(rule(Allow, "a", What::Resources(glob("x")))), [false, true, false], same),
            ("nothing at all", others(rule(Deny, "*", What::Everything)), all, all),
            ("what the server asks", others(rule(Allow, "*", What::ServerRequests(vec![]))), same, same),
        ];
        for (name, after, a, b) in table {
            let after = policies(&after);
            for (caller, expected) in [("a", a), ("b", b)] {
                let (before, after) = (views(&before, caller), views(&after, caller));
                let changed = [0, 1, 2].map(|kind| before[kind] != after[kind]);
                assert_eq!(changed, expected, "{name}, {caller}");
            }
        }
        let with_caller = [
            (At::Server, vec![tools(Allow, "a", "x y"), tools(Deny, "*", "y")]),
            (At::Caller, vec![tools(Allow, "c", "x")]),
        ];
        assert_ne!(views(&before, "a"), views(&policies(&with_caller), "a"), "the caller's end hides all");
    }
}

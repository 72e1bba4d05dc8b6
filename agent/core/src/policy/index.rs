//! Finds the rules that may match without asking all of them: by caller, and by what a call names.
//!
//! What is found is still matched whole, so that a hash shared by two names costs a comparison and changes nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::glob::Glob;
use super::rule::{Rule, What};
use crate::identity::Identity;

/// A rule with more pairs of callers and names than that is found by its callers alone.
const PAIRS_MAX: usize = 1024;

/// Stands where a pattern is none that one name alone fits.
const ANY: u64 = 0;

/// A fast hash without a key: its keys are what an administrator declared, and what a call names is only looked up.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Words(u64);

impl Hasher for Words {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let last = rest.iter().fold(rest.len() as u64, |last, &byte| last << 8 | u64::from(byte));
        self.write_u64(last);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Hashes by [`Words`].
pub(super) type ByWords = BuildHasherDefault<Words>;

/// Places of rules, in order.
type Table = HashMap<u64, Vec<u32>, ByWords>;

/// What a call, or an entry of a list, names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Named<'n> {
    Tool(&'n str),
    Prompt(&'n str),
    /// By the method alone.
    Nothing,
}

/// The rules of one effect about one server.
#[derive(Debug, Default)]
pub(super) struct Indexed {
    rules: Vec<Arc<Rule>>,
    by_name: Table,
    by_caller: Table,
}

impl Indexed {
    pub(super) fn push(&mut self, rule: Arc<Rule>) {
        // Beyond that a set of policies does not fit in memory.
        let place = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        let callers: Vec<u64> =
            rule.callers.iter().map(|pattern| pattern.literal().map_or(ANY, caller)).collect();
        let mut names = subjects(&rule.what);
        if callers.len().saturating_mul(names.len()) > PAIRS_MAX {
            names = vec![ANY];
        }
        for &caller in &callers {
            put(&mut self.by_caller, caller, place);
            for &name in &names {
                put(&mut self.by_name, pair(caller, name), place);
            }
        }
        self.rules.push(rule);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// All rules, in order, that concern the caller and may cover a call of this method that names this.
    pub(super) fn about<'i>(
        &'i self,
        identity: &'i Identity,
        method: &str,
        named: Named<'_>,
    ) -> impl Iterator<Item = &'i Arc<Rule>> {
        let method = subject(METHOD, method);
        let name = match named {
            Named::Tool(name) => subject(TOOL, name),
            Named::Prompt(name) => subject(PROMPT, name),
            Named::Nothing => method,
        };
        let own = caller(identity.parts());
        let found = |caller, name| self.by_name.get(&pair(caller, name)).map_or(&[][..], Vec::as_slice);
        let other = |caller| if name == method { &[][..] } else { found(caller, name) };
        let lists = if self.rules.is_empty() {
            [&[][..]; 6]
        } else {
            [other(own), other(ANY), found(own, method), found(ANY, method), found(own, ANY), found(ANY, ANY)]
        };
        self.merged(lists, identity)
    }

    /// All rules, in order, that concern the caller.
    pub(super) fn of<'i>(&'i self, identity: &'i Identity) -> impl Iterator<Item = &'i Arc<Rule>> {
        let found = |caller| self.by_caller.get(&caller).map_or(&[][..], Vec::as_slice);
        self.merged([found(caller(identity.parts())), found(ANY)], identity)
    }

    fn merged<'i, const LISTS: usize>(
        &'i self,
        mut lists: [&'i [u32]; LISTS],
        identity: &'i Identity,
    ) -> impl Iterator<Item = &'i Arc<Rule>> {
        let next = move || {
            let place = lists.iter().filter_map(|list| list.first()).min().copied()?;
            for list in &mut lists {
                if let Some(rest) = list.strip_prefix(&[place]) {
                    *list = rest;
                }
            }
            self.rules.get(usize::try_from(place).ok()?)
        };
        std::iter::from_fn(next).filter(move |rule| rule.concerns(identity))
    }
}

fn put(table: &mut Table, key: u64, place: u32) {
    let places = table.entry(key).or_default();
    if places.last() != Some(&place) {
        places.push(place);
    }
}

const TOOL: u64 = 1;
const PROMPT: u64 = 2;
const METHOD: u64 = 3;

/// What a rule names, each as [`subject`], or [`ANY`] where a name alone does not tell.
fn subjects(what: &What) -> Vec<u64> {
    let each = |kind, globs: &[Glob]| {
        let one = |glob: &Glob| if glob.is_literal() { subject(kind, glob.as_str()) } else { ANY };
        globs.iter().map(one).collect()
    };
    match what {
        What::Tools(globs) => each(TOOL, globs),
        What::Prompts(globs) => each(PROMPT, globs),
        What::Methods(globs) => each(METHOD, globs),
        // A resource is matched in every reading of its URI.
        What::Resources(_) | What::Everything => vec![ANY],
    }
}

fn subject(kind: u64, name: &str) -> u64 {
    let mut words = Words(kind);
    words.write(name.as_bytes());
    words.finish().max(1)
}

fn caller((trust_domain, namespace, app_id): (&str, &str, &str)) -> u64 {
    let mut words = Words::default();
    for part in [trust_domain, namespace, app_id] {
        words.write(part.as_bytes());
    }
    words.finish().max(1)
}

fn pair(caller: u64, name: u64) -> u64 {
    let mut words = Words(caller);
    words.write_u64(name);
    words.finish()
}

#[cfg(test)]
mod tests {
    use super::super::pattern::IdentityPattern;
    use super::super::rule::Effect;
    use super::*;

    const NAMES: [&str; 8] = ["a", "b", "tools/call", "prompts/get", "a*", "*", "tools/*", "b-c"];
    const CALLERS: [&str; 6] = ["x", "y", "*", "x.other", "spiffe://two.org/ns/*/x", "x-*"];

    /// Every rule with two of these, and one with more pairs than are kept.
    fn rules() -> Vec<Arc<Rule>> {
        let globs = |names: &[&str]| names.iter().map(|name| Glob::new(name).unwrap()).collect::<Vec<_>>();
        let mut all = Vec::new();
        let mut add = |callers: &[&str], what: What| {
            let pattern = |text: &&str| IdentityPattern::new(text, "one.org", "default").unwrap();
            all.push(Arc::new(Rule {
                name: all.len().to_string().into(),
                effect: Effect::Allow,
                callers: callers.iter().map(pattern).collect(),
                servers: Vec::new(),
                what,
                list: None,
                arguments: None,
            }));
        };
        for first in CALLERS {
            for second in CALLERS {
                for name in NAMES {
                    let names = [name, "b"];
                    add(&[first, second], What::Tools(globs(&names)));
                    add(&[first], What::Prompts(globs(&names)));
                    add(&[first], What::Methods(globs(&[name])));
                }
                add(&[first, second], What::Resources(globs(&["a"])));
                add(&[second], What::Everything);
            }
        }
        let many: Vec<_> = (0..PAIRS_MAX).map(|n| format!("t{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).chain(["a"]).collect();
        add(&["x"], What::Tools(globs(&many)));
        all
    }

    /// The index finds what asking every rule finds, in the same order.
    #[test]
    fn nothing_is_missed() {
        let mut indexed = Indexed::default();
        let all = rules();
        all.iter().for_each(|rule| indexed.push(Arc::clone(rule)));
        let identities = [
            ("one.org", "default", "x"),
            ("one.org", "default", "y"),
            ("two.org", "any", "x"),
            ("one.org", "other", "x"),
        ];
        for (domain, namespace, app_id) in identities {
            let identity = Identity::new(domain, namespace, app_id).unwrap();
            let concerned: Vec<_> = all.iter().filter(|rule| rule.concerns(&identity)).collect();
            assert_eq!(indexed.of(&identity).count(), concerned.len(), "{identity}");
            for (method, named) in [
                ("tools/call", Named::Tool("a")),
                ("tools/call", Named::Tool("b-c")),
                ("tools/call", Named::Tool("t7")),
                ("tools/call", Named::Tool("none")),
                ("prompts/get", Named::Prompt("a")),
                ("prompts/get", Named::Prompt("tools/call")),
                ("resources/read", Named::Nothing),
                ("a", Named::Nothing),
            ] {
                let fits = |globs: &[Glob], name: &str| globs.iter().any(|glob| glob.matches(name));
                let may_cover = |rule: &&&Arc<Rule>| match (&rule.what, named) {
                    (What::Tools(globs), Named::Tool(name)) | (What::Prompts(globs), Named::Prompt(name)) => {
                        fits(globs, name)
                    }
                    (What::Methods(globs), _) => fits(globs, method),
                    (What::Resources(_) | What::Everything, _) => true,
                    (What::Tools(_) | What::Prompts(_), _) => false,
                };
                let expected: Vec<_> = concerned.iter().filter(may_cover).map(|rule| &rule.name).collect();
                let found: Vec<_> = indexed.about(&identity, method, named).map(|rule| &rule.name).collect();
                let missed: Vec<_> = expected.iter().filter(|name| !found.contains(name)).collect();
                assert!(missed.is_empty(), "{identity} {method} {named:?}: {missed:?}");
                assert!(found.is_sorted_by_key(|name| all.iter().position(|rule| rule.name == **name)));
            }
        }
    }

    #[test]
    fn many_rules_about_others_are_not_asked() {
        let mut indexed = Indexed::default();
        let rule = |caller: &str, tool: &str| Rule {
            name: caller.into(),
            effect: Effect::Deny,
            callers: vec![IdentityPattern::new(caller, "one.org", "default").unwrap()],
            servers: Vec::new(),
            what: What::Tools(vec![Glob::name(tool).unwrap()]),
            list: None,
            arguments: None,
        };
        for n in 0..1000 {
            indexed.push(Arc::new(rule(&format!("caller-{n}"), "search")));
            indexed.push(Arc::new(rule("caller", &format!("tool-{n}"))));
        }
        let identity = Identity::new("one.org", "default", "caller").unwrap();
        let lists: usize = [(caller(identity.parts()), subject(TOOL, "search")), (ANY, ANY)]
            .into_iter()
            .filter_map(|(caller, name)| indexed.by_name.get(&pair(caller, name)))
            .map(Vec::len)
            .sum();
        assert_eq!(lists, 0);
        assert_eq!(indexed.about(&identity, "tools/call", Named::Tool("search")).count(), 0);
        assert_eq!(indexed.about(&identity, "tools/call", Named::Tool("tool-7")).count(), 1);
    }
}

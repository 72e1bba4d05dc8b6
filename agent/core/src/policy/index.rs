//! Finds the rules that may match without asking all of them: by caller, and by what a call names.
//!
//! What is found is still matched whole, so that a hash shared by two names costs a comparison and changes nothing.

use std::collections::HashMap;
use std::hash::Hasher as _;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::glob::Glob;
use super::rule::{Rule, What};
use crate::identity::{Identity, hash_of_names};
use crate::words::{ByWords, Words};

/// A rule with more pairs of callers and names than that is found by its callers alone.
const PAIRS_MAX: usize = 1024;

/// Stands where a pattern is none that one name alone fits.
const ANY: u64 = 0;

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

/// How a rule names what it is about: by the name of a tool or prompt, by a method, or in a way that a name alone does
/// not tell.
#[derive(Debug, Clone, Copy)]
enum By {
    Name,
    Method,
    Any,
}

/// Which ways of naming there are: what is not there is not looked up.
#[derive(Debug, Default, Clone, Copy)]
struct Ways([bool; 3]);

impl Ways {
    fn add(&mut self, by: By) {
        let [name, method, any] = &mut self.0;
        match by {
            By::Name => *name = true,
            By::Method => *method = true,
            By::Any => *any = true,
        }
    }
}

/// The rules of one effect about one server.
#[derive(Debug, Default)]
pub(super) struct Indexed {
    rules: Vec<Arc<Rule>>,
    by_name: Table,
    by_caller: Table,
    /// Of the rules that name callers one by one.
    own: Ways,
    /// Of those that do not.
    any: Ways,
}

impl Indexed {
    pub(super) fn push(&mut self, rule: Arc<Rule>) {
        // Beyond that a set of policies does not fit in memory.
        let place = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        let callers: Vec<u64> =
            rule.callers.iter().map(|pattern| pattern.literal().map_or(ANY, hash_of_names)).collect();
        let mut names = subjects(&rule.what);
        if callers.len().saturating_mul(names.len()) > PAIRS_MAX {
            names = vec![(By::Any, ANY)];
        }
        for &caller in &callers {
            put(&mut self.by_caller, caller, place);
            let ways = if caller == ANY { &mut self.any } else { &mut self.own };
            for &(by, name) in &names {
                ways.add(by);
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
        let mut lists = ArrayVec::new();
        for (caller, Ways([by_name, by_method, by_any])) in [(identity.words(), self.own), (ANY, self.any)] {
            if by_name {
                match named {
                    Named::Tool(name) => lists.extend(self.places(caller, subject(TOOL, name))),
                    Named::Prompt(name) => lists.extend(self.places(caller, subject(PROMPT, name))),
                    Named::Nothing => {}
                }
            }
            if by_method {
                lists.extend(self.places(caller, subject(METHOD, method)));
            }
            if by_any {
                lists.extend(self.places(caller, ANY));
            }
        }
        self.merged(lists, identity)
    }

    #[inline(never)]
    fn places(&self, caller: u64, name: u64) -> Option<&[u32]> {
        self.by_name.get(&pair(caller, name)).map(Vec::as_slice)
    }

    /// All rules, in order, that concern the caller.
    pub(super) fn of<'i>(&'i self, identity: &'i Identity) -> impl Iterator<Item = &'i Arc<Rule>> {
        let found = |caller| self.by_caller.get(&caller).map(Vec::as_slice);
        self.merged([found(identity.words()), found(ANY)].into_iter().flatten().collect(), identity)
    }

    fn merged<'i>(
        &'i self,
        mut lists: ArrayVec<&'i [u32], 6>,
        identity: &'i Identity,
    ) -> impl Iterator<Item = &'i Arc<Rule>> {
        let next = move || {
            // Most find all they need in one place.
            if let [list] = lists.as_mut_slice() {
                let (&place, rest) = list.split_first()?;
                *list = rest;
                return self.rules.get(usize::try_from(place).ok()?);
            }
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
fn subjects(what: &What) -> Vec<(By, u64)> {
    let each = |by, kind, globs: &[Glob]| {
        let one = |glob: &Glob| {
            if glob.is_literal() { (by, subject(kind, glob.as_str())) } else { (By::Any, ANY) }
        };
        globs.iter().map(one).collect()
    };
    match what {
        What::Tools(globs) => each(By::Name, TOOL, globs),
        What::Prompts(globs) => each(By::Name, PROMPT, globs),
        What::Methods(globs) => each(By::Method, METHOD, globs),
        // A resource is matched in every reading of its URI; of a server's requests there are few.
        What::Resources(_) | What::ServerRequests(_) | What::Everything => vec![(By::Any, ANY)],
    }
}

#[inline(never)]
fn subject(kind: u64, name: &str) -> u64 {
    let mut words = Words::new(kind);
    words.write(name.as_bytes());
    words.finish().max(1)
}

fn pair(caller: u64, name: u64) -> u64 {
    let mut words = Words::new(caller);
    words.write_u64(name);
    words.finish()
}

#[cfg(test)]
mod tests {
    use super::super::pattern::IdentityPattern;
    use super::super::rule::Effect;
    use super::*;
    use crate::mcp::ServerAsks;

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
                add(&[second], What::ServerRequests(vec![ServerAsks::Roots]));
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
                    (What::Resources(_) | What::ServerRequests(_) | What::Everything, _) => true,
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
        let lists: usize = [(identity.words(), subject(TOOL, "search")), (ANY, ANY)]
            .into_iter()
            .filter_map(|(caller, name)| indexed.by_name.get(&pair(caller, name)))
            .map(Vec::len)
            .sum();
        assert_eq!(lists, 0);
        assert_eq!(indexed.about(&identity, "tools/call", Named::Tool("search")).count(), 0);
        assert_eq!(indexed.about(&identity, "tools/call", Named::Tool("tool-7")).count(), 1);
    }
}

//! The rules of all policies by the servers that they name, so that many servers do not each ask every rule.

use std::collections::HashMap;
use std::sync::Arc;

use super::Policy;
use super::rule::Rule;
use crate::identity::{Identity, hash_of_names};
use crate::words::ByWords;

/// Places are those in `rules`, in order.
pub(super) struct ByServer<'p> {
    rules: Vec<(&'p Policy, Arc<Rule>)>,
    /// Of rules that name one server, by its names.
    by_names: HashMap<u64, Vec<usize>, ByWords>,
    /// Of rules that several servers may fit.
    others: Vec<usize>,
}

impl<'p> ByServer<'p> {
    pub(super) fn new(policies: &'p [Policy]) -> Self {
        let mut all = Self { rules: Vec::new(), by_names: HashMap::default(), others: Vec::new() };
        for policy in policies {
            for rule in &policy.rules {
                let place = all.rules.len();
                for server in &rule.servers {
                    match server.literal() {
                        Some(names) => all.by_names.entry(hash_of_names(names)).or_default().push(place),
                        None => all.others.push(place),
                    }
                }
                all.rules.push((policy, Arc::new(rule.clone())));
            }
        }
        all
    }

    /// All rules that name the server, in order.
    pub(super) fn of(&self, server: &Identity) -> Vec<(&'p Policy, Arc<Rule>)> {
        let by_names = self.by_names.get(&server.words()).map_or(&[][..], Vec::as_slice);
        let mut places: Vec<usize> = by_names.iter().chain(&self.others).copied().collect();
        places.sort_unstable();
        places.dedup();
        let rules = places.into_iter().filter_map(|place| self.rules.get(place));
        rules.filter(|(_, rule)| rule.names_server(server)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{At, Effect, IdentityPattern, PolicyMode, What};
    use super::*;

    const SERVERS: [&[&str]; 8] = [
        &["a"],
        &["*", "a"],
        &["b"],
        &["a", "a"],
        &["b.other", "a-*"],
        &[],
        &["*.*"],
        &["b", "spiffe://two.org/ns/*/a"],
    ];

    /// What is found by names is what asking every rule finds, once and in the same order.
    #[test]
    fn every_rule_that_names_a_server_is_found() {
        let rule = |(at, servers): (usize, &&[&str])| Rule {
            name: at.to_string().into(),
            effect: Effect::Allow,
            callers: Vec::new(),
            servers: servers
                .iter()
                .map(|text| IdentityPattern::new(text, "one.org", "default").unwrap())
                .collect(),
            what: What::Everything,
            list: None,
            arguments: None,
        };
        let rules: Vec<_> = SERVERS.iter().enumerate().map(rule).collect();
        let policy = |rules: &[Rule]| Policy {
            name: "p".into(),
            mode: PolicyMode::Enforce,
            at: At::Server,
            rules: rules.to_vec(),
        };
        let policies: Vec<_> = rules.chunks(3).map(policy).collect();
        let by_server = ByServer::new(&policies);
        for (domain, namespace, app_id) in [
            ("one.org", "default", "a"),
            ("one.org", "default", "b"),
            ("one.org", "other", "b"),
            ("one.org", "default", "a-1"),
            ("two.org", "other", "a"),
            ("two.org", "default", "c"),
        ] {
            let server = Identity::new(domain, namespace, app_id).unwrap();
            let expected: Vec<_> = rules
                .iter()
                .filter(|rule| rule.names_server(&server))
                .map(|rule| rule.name.clone())
                .collect();
            let found: Vec<_> =
                by_server.of(&server).into_iter().map(|(_, rule)| rule.name.clone()).collect();
            assert_eq!(found, expected, "{server}");
        }
    }
}

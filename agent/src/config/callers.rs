//! Workloads: who calls.

use std::collections::HashMap;
use std::fs::File;

use toolgate_core::identity::Identity;
use toolgate_core::workload::{Workload, proven_overlap};

use super::agent::AgentConfig;
use super::resources::{Names, Placed, identity};
use super::schema::WorkloadSpec;
use super::selectors::read_selectors;
use super::tls;
use super::words::Findings;

pub(super) fn read_workloads(
    placed: &[Placed<'_, WorkloadSpec>],
    agent: &AgentConfig,
    executables: &mut Vec<File>,
    findings: &mut Findings,
) -> (Vec<Workload>, Vec<Identity>) {
    let mut workloads: Vec<Workload> = Vec::new();
    let mut inspected = Vec::new();
    let mut names = Names::default();
    for Placed { source, metadata, spec } in placed {
        findings.refuse_later(source, &[("configuration", &spec.configuration)]);
        let opts_in = tls::opts_in(source, &spec.tls, agent.capture.tls, findings);
        let selectors = spec.selectors.as_ref();
        let selectors =
            selectors.map(|spec| read_selectors(source, spec, executables, findings)).unwrap_or_default();
        let Some(identity) = findings.keep(names.claim(source, metadata, agent, "Workload")) else {
            continue;
        };
        if let Some(other) = workloads.iter().find(|other| proven_overlap(&other.selectors, &selectors)) {
            let message =
                format!("every process that fits one of `{identity}` and `{}` fits the other", other.name);
            let help = "a process that fits two workloads is neither: make the selectors exclude each other";
            findings.push(source.error(&metadata.name, message).help(help));
        }
        if opts_in {
            inspected.push(identity.clone());
        }
        let name = identity.to_string().into();
        workloads.push(Workload { identity, selectors, name });
    }
    (workloads, inspected)
}

/// `agent_for` of the Workloads.
pub(super) fn read_agents(
    placed: &[Placed<'_, WorkloadSpec>],
    agent: &AgentConfig,
    findings: &mut Findings,
) -> HashMap<Identity, Vec<Identity>> {
    let mut agents = HashMap::new();
    for Placed { source, metadata, spec } in placed {
        let Some(words) = &spec.agent_for else { continue };
        let own = metadata.namespace.as_ref().map_or("default", |namespace| &namespace.value);
        let of = words.iter().filter_map(|word| {
            let (app_id, namespace) = word.value.split_once('.').unwrap_or((&word.value, own));
            let named = Identity::new(&agent.trust_domain, namespace, app_id);
            findings.keep(named.map_err(|error| source.error(word, error.to_string())))
        });
        let of = of.collect();
        if let Ok(identity) = identity(source, &metadata.name, &metadata.namespace, agent) {
            agents.insert(identity, of);
        }
    }
    agents
}

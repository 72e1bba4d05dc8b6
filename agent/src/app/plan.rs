//! Configuration and resources -> what the kernel is to capture.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use toolgate_core::decision::{Host, Mode};
use toolgate_core::policy::Glob;
use toolgate_core::workload::EXEC_CGROUP;

use crate::capture::cgroup;
use crate::capture::{CaptureError, CapturedCgroup, Destination, Destinations, Plan, Scope};
use crate::config::{self, AgentConfig, Resources};
use crate::forward::refusal;
use crate::names::{Names, Question};
use crate::netns::{CANARY, Namespaces, Root};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A cgroup that the configuration names does not exist.
    #[error("capture.cgroups: no cgroup `{name}` below `{}`: {cause}; start its unit first, or correct the name", mount.display())]
    Missing {
        /// As it is configured.
        name: String,
        /// The cgroup2 mount.
        mount: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Only a whole subtree can be followed by the kernel's programs.
    #[error("capture.cgroups: `{name}`: `*` can stand only as the last part, as in `machine.slice/*`")]
    Pattern {
        /// As it is configured.
        name: String,
    },
    /// No cgroup2.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// A cgroup that is to be captured, by its name: it may come and go.
#[derive(Debug)]
pub(super) struct Named {
    /// Below the cgroup2 root; empty: the root.
    pub(super) name: String,
    scope: Scope,
    destinations: Destinations,
}

impl Named {
    /// Where it is when it is there.
    pub(super) fn root(&self) -> Result<Root, CaptureError> {
        let below_only = matches!(self.scope, Scope::BelowOnly);
        Ok(Root { directory: cgroup::mount()?.join(&self.name), below_only })
    }

    /// The cgroup that has the name now, if one has.
    pub(super) fn present(&self) -> Result<Option<CapturedCgroup>, CaptureError> {
        match cgroup::id(&cgroup::mount()?.join(&self.name)) {
            Ok(id) => Ok(Some(CapturedCgroup { id, scope: self.scope, destinations: self.destinations })),
            Err(CaptureError::Cgroup { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is to be captured now: a cgroup that is away is not an error, it is followed (see `follow`).
///
/// # Errors
/// [`PlanError`]: nothing changes then.
pub(super) fn plan(
    agent: &AgentConfig,
    resources: &Resources,
    mode: Mode,
    namespaces: &Namespaces,
    names: &Names,
) -> Result<Plan, PlanError> {
    let named = named(agent, mode)?;
    let mut cgroups = Vec::new();
    for named in &named {
        cgroups.extend(named.present()?);
    }
    let declared = resources.servers.iter().filter_map(|server| server.address()).map(exactly);
    let named_ones = by_name(resources, namespaces, names);
    let listed = match &agent.capture.destinations {
        config::Destinations::List(list) => list,
        config::Destinations::All | config::Destinations::Declared => &Vec::new(),
    };
    Ok(Plan {
        cgroups,
        names: named.into_iter().map(|named| (named.name, named.scope, named.destinations)).collect(),
        capture: declared
            .chain(named_ones)
            .chain(listed.iter().map(destination))
            .chain(agent.listen.doors().map(exactly))
            .chain([exactly(CANARY)])
            .collect(),
        exclude: agent.capture.exclude.iter().map(destination).collect(),
        refuse: vec![agent.listen.metrics, agent.listen.ready],
        guarded: namespaces.listening(resources.local_servers().filter_map(|server| server.address())),
    })
}

/// Where clients of external servers connect to: the addresses that these had lately, but those that are none for them.
fn by_name(resources: &Resources, namespaces: &Namespaces, names: &Names) -> Vec<Destination> {
    let mut all = Vec::new();
    for external in resources.externals() {
        let known = match &external.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let known = names.known(&Question::Addresses(name.clone()));
                known.iter().flat_map(|known| &known.lately).map(|(found, _)| found.ip).collect()
            }
        };
        let at = |ip, port| SocketAddr::new(ip, port);
        let is_good = |ip: &IpAddr| refusal(external, at(*ip, external.port), namespaces).is_none();
        let good = known.into_iter().filter(is_good);
        all.extend(good.flat_map(|ip| external.client_ports().map(move |port| exactly(at(ip, port)))));
    }
    all
}

/// The cgroups to be captured: of `exec`, and those that the configuration names.
pub(super) fn named(agent: &AgentConfig, mode: Mode) -> Result<Vec<Named>, PlanError> {
    let all = mode.observe || matches!(agent.capture.destinations, config::Destinations::All);
    let destinations = if all { Destinations::All } else { Destinations::Declared };
    let exec =
        Named { name: EXEC_CGROUP.to_owned(), scope: Scope::BelowOnly, destinations: Destinations::All };
    let configured = agent.capture.cgroups.iter().map(|cgroup| {
        let (name, scope) = match cgroup {
            config::Cgroup::Root => ("", Scope::Subtree),
            config::Cgroup::Below(glob) => subtree(glob)?,
        };
        Ok(Named { name: name.to_owned(), scope, destinations })
    });
    std::iter::once(Ok(exec)).chain(configured).collect()
}

/// At the start a name without a cgroup is more likely wrong than early.
///
/// # Errors
/// [`PlanError::Missing`] or [`PlanError::Pattern`].
pub(super) fn check_named(agent: &AgentConfig) -> Result<(), PlanError> {
    let mount = cgroup::mount()?;
    for named in named(agent, Mode::default())?.into_iter().filter(|named| named.name != EXEC_CGROUP) {
        let missing = |cause| PlanError::Missing { name: named.name.clone(), mount: mount.clone(), cause };
        std::fs::metadata(mount.join(&named.name)).map_err(missing)?;
    }
    Ok(())
}

/// The cgroup whose subtree a pattern names, and whether it counts itself.
fn subtree(glob: &Glob) -> Result<(&str, Scope), PlanError> {
    let name = glob.as_str();
    let (parent, scope) = match name.strip_suffix("/*") {
        Some(parent) => (parent, Scope::BelowOnly),
        None => (name, Scope::Subtree),
    };
    if parent.contains('*') {
        return Err(PlanError::Pattern { name: name.to_owned() });
    }
    Ok((parent, scope))
}

fn destination(configured: &config::Destination) -> Destination {
    Destination { net: configured.net, port: configured.port }
}

fn exactly(address: SocketAddr) -> Destination {
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    };
    Destination { net: ip.into(), port: Some(address.port()) }
}

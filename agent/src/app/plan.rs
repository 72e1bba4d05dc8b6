//! Configuration and resources -> what the kernel is to capture.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use toolgate_core::decision::Mode;
use toolgate_core::policy::Glob;
use toolgate_core::workload::EXEC_CGROUP;

use crate::capture::cgroup;
use crate::capture::{CaptureError, CapturedCgroup, Destination, Destinations, Plan, Scope};
use crate::config::{self, AgentConfig, Resources};

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

/// What is to be captured.
///
/// # Errors
/// [`PlanError`]: nothing is attached then.
pub(super) fn plan(agent: &AgentConfig, resources: &Resources, mode: Mode) -> Result<Plan, PlanError> {
    let mut cgroups = vec![CapturedCgroup {
        id: cgroup::id(&cgroup::mount()?.join(EXEC_CGROUP))?,
        scope: Scope::BelowOnly,
        destinations: Destinations::All,
    }];
    cgroups.extend(named_cgroups(agent, mode)?);
    let declared = resources.servers.iter().map(|server| exactly(server.address));
    let listed = match &agent.capture.destinations {
        config::Destinations::List(list) => list,
        config::Destinations::All | config::Destinations::Declared => &Vec::new(),
    };
    Ok(Plan {
        listener: SocketAddrV4::new(Ipv4Addr::LOCALHOST, agent.listen.outbound),
        cgroups,
        capture: declared.chain(listed.iter().map(destination)).collect(),
        exclude: agent.capture.exclude.iter().map(destination).collect(),
        refuse: vec![agent.listen.metrics, agent.listen.ready],
    })
}

/// The cgroups that the configuration names.
pub(super) fn named_cgroups(agent: &AgentConfig, mode: Mode) -> Result<Vec<CapturedCgroup>, PlanError> {
    let mount = cgroup::mount()?;
    let all = mode.observe || matches!(agent.capture.destinations, config::Destinations::All);
    let destinations = if all { Destinations::All } else { Destinations::Declared };
    let mut cgroups = Vec::new();
    for cgroup in &agent.capture.cgroups {
        let (name, scope) = match cgroup {
            config::Cgroup::Root => ("", Scope::Subtree),
            config::Cgroup::Below(glob) => subtree(glob)?,
        };
        let path = mount.join(name);
        let missing = |cause| PlanError::Missing { name: name.to_owned(), mount: mount.clone(), cause };
        std::fs::metadata(&path).map_err(missing)?;
        cgroups.push(CapturedCgroup { id: cgroup::id(&path)?, scope, destinations });
    }
    Ok(cgroups)
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

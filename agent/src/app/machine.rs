//! What the machine allows: limits beyond it are lowered, and that is said.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use crate::capture::cgroup;
use crate::limits::{Limit, Limits};

/// Descriptors besides those of connections: files, maps, programs, sockets of the operator's, namespaces.
const OWN_DESCRIPTORS: usize = 512;
/// Of each connection: the client's end and the server's.
const DESCRIPTORS_EACH: usize = 2;

/// What there is.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// RLIMIT_NOFILE.
    descriptors: Option<usize>,
    /// Bytes of memory: the host's, or of the agent's own cgroup.
    memory: Option<usize>,
}

/// The limits that can be kept here, with a warning for each that was lowered.
pub(super) fn fit(limits: &Limits) -> Limits {
    let machine = Machine {
        descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok().and_then(|(soft, _)| usize::try_from(soft).ok()),
        memory: memory(),
    };
    let (limits, warnings) = fitted(limits, machine);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    limits
}

fn fitted(limits: &Limits, machine: Machine) -> (Limits, Vec<String>) {
    let mut limits = limits.clone();
    let mut warnings = Vec::new();
    if let Some(descriptors) = machine.descriptors {
        let most = (descriptors.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_EACH).max(1);
        if limits.connections_max > most {
            warnings.push(format!(
                "{} of {} needs {} descriptors, and RLIMIT_NOFILE is {descriptors}: {most} are served; raise \
                 `LimitNOFILE` or lower the limit",
                Limit::Connections,
                limits.connections_max,
                limits.connections_max.saturating_mul(DESCRIPTORS_EACH).saturating_add(OWN_DESCRIPTORS),
            ));
            limits.connections_max = most;
            limits.connections_per_cgroup_max = limits.connections_per_cgroup_max.min(most);
        }
    }
    if let Some(memory) = machine.memory {
        let most = memory / 2;
        if limits.memory_bytes_max > most {
            warnings.push(format!(
                "{} of {} is more than half of the {memory} bytes that there are: {most} are used; lower the limit",
                Limit::MemoryBytes,
                limits.memory_bytes_max,
            ));
            limits.memory_bytes_max = most;
            limits.memory_per_cgroup_bytes_max = limits.memory_per_cgroup_bytes_max.min(most);
        }
    }
    (limits, warnings)
}

fn memory() -> Option<usize> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        kilobytes.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
    });
    host.into_iter().chain(own_cgroup()).min()
}

/// `memory.max` of the agent's own cgroup; `max` is no number.
fn own_cgroup() -> Option<usize> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    fs::read_to_string(cgroup::mount().ok()?.join(path).join("memory.max")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_does_not_allow_is_lowered_and_said() {
        let limits = Limits {
            connections_max: 1_000,
            connections_per_cgroup_max: 900,
            memory_bytes_max: 64 << 20,
            memory_per_cgroup_bytes_max: 32 << 20,
            ..Limits::default()
        };
        let none: &[&str] = &[];
        let table = [
            (None, None, [1_000, 900, 64 << 20, 32 << 20], none),
            (Some(2_512), Some(128 << 20), [1_000, 900, 64 << 20, 32 << 20], none),
            (
                Some(2_112),
                None,
                [800, 800, 64 << 20, 32 << 20],
                &["`connections_max` of 1000 needs 2512 descriptors, and RLIMIT_NOFILE is 2112: 800 are"],
            ),
            (Some(100), None, [1, 1, 64 << 20, 32 << 20], &["`connections_max` of 1000 needs 2512"]),
            (
                None,
                Some(40 << 20),
                [1_000, 900, 20 << 20, 20 << 20],
                &["`memory_bytes_max` of 67108864 is more than half of the 41943040 bytes"],
            ),
        ];
        for (descriptors, memory, expected, warnings) in table {
            let machine = Machine { descriptors, memory };
            let (fitted, said) = fitted(&limits, machine);
            let got = [
                fitted.connections_max,
                fitted.connections_per_cgroup_max,
                fitted.memory_bytes_max,
                fitted.memory_per_cgroup_bytes_max,
            ];
            assert_eq!(got, expected, "{machine:?}");
            let fits = said.len() == warnings.len()
                && said.iter().zip(warnings).all(|(said, begin)| said.starts_with(begin));
            assert!(fits, "{machine:?}: {said:?}");
        }
    }
}

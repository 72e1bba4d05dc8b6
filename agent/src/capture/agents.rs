//! Which processes are the agent: the programs let these connect as they want, and bind the listener's port.

use aya::maps::{HashMap, MapData};
use toolgate_ebpf_common::Agent;

use super::{CaptureError, abi::Abi, host, plan::map_error, settings::is_absent};

/// The processes of the agent: two while one hands over to the next.
pub(super) struct Agents(HashMap<MapData, u32, Abi<Agent>>);

impl Agents {
    pub(super) fn new(map: HashMap<MapData, u32, Abi<Agent>>) -> Self {
        Self(map)
    }

    /// Adds this process, and removes those that ended. Whether it is alone.
    pub(super) fn claim(&mut self) -> Result<bool, CaptureError> {
        let failed = map_error("AGENTS");
        let own = std::process::id();
        let found: Vec<(u32, Abi<Agent>)> = self.0.iter().collect::<Result<_, _>>().map_err(&failed)?;
        let mut alone = true;
        for (tgid, Abi(agent)) in found.into_iter().filter(|&(tgid, _)| tgid != own) {
            if host::start_ns(tgid).is_ok_and(|(from, _)| from == agent.start_from_ns) {
                alone = false;
            } else {
                self.0.remove(&tgid).map_err(&failed)?;
            }
        }
        let (start_from_ns, start_until_ns) = host::start_ns(own)?;
        self.0.insert(own, Abi(Agent { start_from_ns, start_until_ns }), 0).map_err(failed)?;
        Ok(alone)
    }

    /// Removes this process.
    pub(super) fn retire(&mut self) -> Result<(), CaptureError> {
        match self.0.remove(&std::process::id()) {
            Err(error) if !is_absent(&error) => Err(map_error("AGENTS")(error)),
            _ => Ok(()),
        }
    }
}

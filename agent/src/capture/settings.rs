//! What the programs are told of the agent, and the cgroups that they let through for a while.

use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, MapError};
use toolgate_ebpf_common::{BYPASSES, Config, LOSS_OPEN};

use super::{CaptureError, abi::Abi, host, plan::map_error};

/// What the operator decides of capture as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of the agent's listeners, at 127.0.0.1 and ::1 of every namespace.
    pub port: u16,
    /// What becomes of captured connections while the agent is lost.
    pub agent_loss: Loss,
    /// Without a beat for so long the agent is lost. See [`super::Kernel::beat`].
    pub heartbeat_age_max: Duration,
}

/// What becomes of captured connections while the agent is lost: dead, stopped or stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// They are refused.
    Closed,
    /// They go where they are meant to, unchecked.
    DangerousOpen,
}

/// The two maps; both change together.
pub(super) struct Switches {
    config: Config,
    /// What this agent wants, while another one's words hold still.
    wanted: Option<Config>,
    config_map: Array<MapData, Abi<Config>>,
    bypassed: HashMap<MapData, u64, u64>,
}

impl Switches {
    /// Writes the settings, or leaves that to [`Self::settle`] where another agent lives: if this one does not start,
    /// that one goes on as it was. Bypasses that were found go on until their time.
    pub(super) fn new(
        settings: &Settings,
        alone: bool,
        config_map: Array<MapData, Abi<Config>>,
        bypassed: HashMap<MapData, u64, u64>,
    ) -> Result<Self, CaptureError> {
        let loss = match settings.agent_loss {
            Loss::Closed => 0,
            Loss::DangerousOpen => LOSS_OPEN,
        };
        let config = Config {
            heartbeat_age_ns_max: settings.heartbeat_age_max.as_nanos().try_into().unwrap_or(u64::MAX),
            listener_port: settings.port.into(),
            flags: loss,
        };
        let Abi(found) = config_map.get(&0, 0).map_err(map_error("CONFIG"))?;
        let mut switches = Self { config: found, wanted: Some(config), config_map, bypassed };
        if alone {
            switches.settle()?;
        }
        Ok(switches)
    }

    /// From now on what this agent wants holds.
    pub(super) fn settle(&mut self) -> Result<(), CaptureError> {
        let Some(wanted) = self.wanted.take() else { return Ok(()) };
        let flags = if self.is_any_bypassed()? { wanted.flags | BYPASSES } else { wanted.flags };
        self.config = wanted;
        self.set_flags(flags)
    }

    /// Lets a cgroup and all below it through until then, on CLOCK_MONOTONIC; `None`: no longer.
    pub(super) fn bypass(&mut self, cgroup: u64, until_ns: Option<u64>) -> Result<(), CaptureError> {
        match until_ns {
            Some(until_ns) => {
                self.bypassed.insert(cgroup, until_ns, 0).map_err(map_error("BYPASSED"))?;
            }
            None => remove(&mut self.bypassed, cgroup)?,
        }
        self.follow()
    }

    /// Removes bypasses that are over. How many.
    pub(super) fn expire(&mut self) -> Result<usize, CaptureError> {
        let now_ns = host::monotonic_ns();
        let over: Vec<u64> = self
            .bypassed
            .iter()
            .filter_map(Result::ok)
            .filter(|&(_, until_ns)| until_ns <= now_ns)
            .map(|(cgroup, _)| cgroup)
            .collect();
        for &cgroup in &over {
            remove(&mut self.bypassed, cgroup)?;
        }
        self.follow()?;
        Ok(over.len())
    }

    /// The programs look at the bypasses only where there are any.
    fn follow(&mut self) -> Result<(), CaptureError> {
        let any = self.is_any_bypassed()?;
        let flags = if any { self.config.flags | BYPASSES } else { self.config.flags & !BYPASSES };
        if flags == self.config.flags { Ok(()) } else { self.set_flags(flags) }
    }

    fn is_any_bypassed(&self) -> Result<bool, CaptureError> {
        Ok(self.bypassed.keys().next().transpose().map_err(map_error("BYPASSED"))?.is_some())
    }

    fn set_flags(&mut self, flags: u32) -> Result<(), CaptureError> {
        self.config.flags = flags;
        self.config_map.set(0, Abi(self.config), 0).map_err(map_error("CONFIG"))
    }
}

/// One that is gone is no error.
fn remove(map: &mut HashMap<MapData, u64, u64>, cgroup: u64) -> Result<(), CaptureError> {
    match map.remove(&cgroup) {
        Err(error) if !is_absent(&error) => Err(map_error("BYPASSED")(error)),
        _ => Ok(()),
    }
}

/// aya tells a lookup that found nothing from a failed one, but not so for a removal.
pub(super) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound)
        || matches!(error, MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ENOENT))
}

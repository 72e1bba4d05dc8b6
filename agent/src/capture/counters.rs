//! How often each way through each program was taken.

use aya::maps::{MapData, PerCpuArray};

use super::CaptureError;

/// One branch of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Hook, for example `connect4`.
    pub program: &'static str,
    /// Way through it, for example `redirected`.
    pub branch: &'static str,
    /// Since the programs were attached.
    pub count: u64,
}

/// All counters, summed over the CPUs.
pub(super) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Vec<Counter>, CaptureError> {
    toolgate_ebpf_common::Counter::ALL
        .iter()
        .map(|&counter| {
            let values = map
                .get(&(counter as u32), 0)
                .map_err(|source| CaptureError::Map { name: "COUNTERS", cause: Box::new(source) })?;
            let count = values.iter().sum();
            Ok(Counter { program: counter.program(), branch: counter.branch(), count })
        })
        .collect()
}

//! How many process ids the host has, as a test needs it.

use anyhow::Result;

use crate::setting::Setting;

/// Where the host has it.
pub const PATH: &str = "/proc/sys/kernel/pid_max";

/// Put back when dropped, and when the test is killed.
#[derive(Debug)]
pub struct PidMax {
    _setting: Setting,
}

impl PidMax {
    /// Sets the first number that no process gets. Those that have higher ones already keep them.
    ///
    /// # Errors
    /// No root.
    pub fn set(max: u32) -> Result<Self> {
        Ok(Self { _setting: Setting::set(PATH, &max.to_string())? })
    }
}

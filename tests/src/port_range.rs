//! The host's ephemeral ports, as a test needs them.

use std::fs;

use anyhow::{Context as _, Result};

/// Where a network namespace has them: that of the thread that reads or writes.
pub const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// First and last of the whole range that a test leaves.
const WHOLE: (u16, u16) = (32_768, 60_999);

/// Put back when dropped.
#[derive(Debug)]
pub struct PortRange(String);

impl PortRange {
    /// Sets the range, as `FIRST LAST`.
    ///
    /// # Errors
    /// No root.
    pub fn set(range: &str) -> Result<Self> {
        let before = fs::read_to_string(PATH).context("cannot read the port range")?;
        fs::write(PATH, range).context("cannot set the port range")?;
        Ok(Self(before))
    }

    /// Leaves a port out, as the port of an installed agent is.
    ///
    /// # Errors
    /// No root.
    pub fn without(port: u16) -> Result<Self> {
        let (first, last) = WHOLE;
        let below = port.saturating_sub(first) > last.saturating_sub(port);
        Self::set(&if below { format!("{first} {}", port - 1) } else { format!("{} {last}", port + 1) })
    }
}

impl Drop for PortRange {
    fn drop(&mut self) {
        let _told_by_later_tests = fs::write(PATH, &self.0);
    }
}

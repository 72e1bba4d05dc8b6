//! The host's ephemeral ports, as a test needs them.

use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use crate::setting::Setting;

/// Where a network namespace has them: that of the thread that reads or writes.
pub const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// First and last of the whole range that a test leaves.
const WHOLE: (u16, u16) = (32_768, 60_999);

/// Put back when dropped, and when the test is killed.
#[derive(Debug)]
pub struct PortRange {
    _setting: Setting,
}

impl PortRange {
    /// Sets the range, as `FIRST LAST`.
    ///
    /// # Errors
    /// No root.
    pub fn set(range: &str) -> Result<Self> {
        Ok(Self { _setting: Setting::set(PATH, range)? })
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

/// `IP_LOCAL_PORT_RANGE` (ip(7)).
const IP_LOCAL_PORT_RANGE: i32 = 51;

/// Whether a socket can have a range of its own: since 6.3, and in some older kernels that took it over.
///
/// # Errors
/// The kernel says neither.
pub fn is_settable() -> Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("cannot make a socket")?;
    let none = 0_u32;
    // SAFETY: the pointer is to four bytes that live until the call returns.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const none).cast(),
            4,
        )
    };
    match io::Error::last_os_error() {
        _ if set == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        error => Err(error).context("cannot ask for a port range"),
    }
}

//! A VRF of a test's own: a routing table for the sockets that are bound to its device.

use std::fs;

use anyhow::{Context as _, Result};

use crate::netns::run;

/// Lets unbound listeners accept what comes by a VRF (Documentation/networking/vrf.rst).
const ACCEPT: &str = "/proc/sys/net/ipv4/tcp_l3mdev_accept";
/// Of no other table.
const TABLE: &str = "10232";

/// Removed when dropped.
#[derive(Debug)]
pub struct Vrf {
    /// Of its device.
    pub name: String,
    /// The device in it that has the address.
    inside: String,
    /// What the setting was before.
    accepted: String,
}

impl Vrf {
    /// An address of the host's, in this VRF alone.
    pub const ADDRESS: &str = "10.232.0.1";

    /// `None`: this kernel has none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Option<Self>> {
        let [name, inside] = ["vrf", "vin"].map(|end| format!("tg{}{end}", std::process::id()));
        let add = ["ip", "link", "add", &name];
        match run(&[&add[..], &["type", "vrf", "table", TABLE]].concat()) {
            Err(error) if is_unknown(&format!("{error:#}")) => return Ok(None),
            made => made?,
        };
        let accepted = fs::read_to_string(ACCEPT).context("a VRF without its setting")?;
        let vrf = Self { name, inside, accepted };
        fs::write(ACCEPT, "1").context("cannot let listeners accept")?;
        run(&["ip", "link", "set", &vrf.name, "up"])?;
        run(&["ip", "link", "add", &vrf.inside, "type", "dummy"])?;
        run(&["ip", "link", "set", &vrf.inside, "master", &vrf.name])?;
        run(&["ip", "address", "add", &format!("{}/24", Self::ADDRESS), "dev", &vrf.inside])?;
        run(&["ip", "link", "set", &vrf.inside, "up"])?;
        Ok(Some(vrf))
    }
}

/// What `ip` says of a kind of device that the kernel does not know.
fn is_unknown(said: &str) -> bool {
    said.contains("Unknown device type") || said.contains("Operation not supported")
}

impl Drop for Vrf {
    fn drop(&mut self) {
        let _never_made = run(&["ip", "link", "del", &self.inside]);
        let _gone_already = run(&["ip", "link", "del", &self.name]);
        let _as_it_was = fs::write(ACCEPT, self.accepted.trim());
    }
}

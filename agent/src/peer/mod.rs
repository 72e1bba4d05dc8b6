//! Between two agents: mutual TLS by SVIDs, each end sure of exactly whom it speaks with.
//!
//! The agent that captured a call connects for its caller, with the caller's SVID, and says by SNI which server it wants;
//! the agent there shows that server's SVID. TLS 1.3 alone, neither 0-RTT nor resumption: every connection proves both ends
//! anew, and they are pooled. No connection outlives the SVIDs that opened it, nor their revocation ([`Tether`]).

mod accept;
mod connect;
pub mod lanes;
mod prove;
mod stream;
mod tether;

pub use self::accept::{AcceptError, Accepted, accept};
pub use self::connect::{ConnectError, connect};
pub use self::stream::Mutual;
pub use self::tether::{Cut, Tether, Tethers};

use sha2::{Digest as _, Sha256};
use toolgate_core::identity::Identity;

/// What is spoken within TLS. Another protocol between agents is another name (ALPN, RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 alone.
    Own,
    /// The same on [`lanes`], several at once.
    Lanes,
}

impl Protocol {
    /// Every protocol, in the order in which they are preferred.
    pub const ALL: [Self; 2] = [Self::Lanes, Self::Own];

    fn name(self) -> &'static [u8] {
        match self {
            Self::Own => b"toolgate/1",
            Self::Lanes => b"toolgate/2",
        }
    }

    fn names(all: &[Self]) -> Vec<Vec<u8>> {
        all.iter().map(|protocol| protocol.name().to_vec()).collect()
    }

    fn named(name: Option<&[u8]>) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| Some(protocol.name()) == name)
    }
}

/// How a server is named in SNI, which is sent in the clear and must be a DNS name: a digest of its SPIFFE ID says it to who
/// knows it already, and fits whatever the trust domain is called.
#[must_use]
pub fn server_name(server: &Identity) -> String {
    let digest = Sha256::digest(server.spiffe_id());
    let digits: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("s-{digits}.toolgate.internal")
}

#[cfg(test)]
mod tests;

//! Between two agents: mutual TLS by SVIDs, each end sure of exactly whom it speaks with.
//!
//! The agent that captured a call connects for its caller, with the caller's SVID, and says by SNI which server it wants;
//! the agent there shows that server's SVID. TLS 1.3 alone, neither 0-RTT nor resumption: every connection proves both ends
//! anew, and they are pooled. No connection outlives the SVIDs that opened it, nor their revocation ([`Tether`]).

mod accept;
mod connect;
mod prove;
mod stream;
mod tether;

pub use self::accept::{AcceptError, Accepted, accept};
pub use self::connect::{ConnectError, connect};
pub use self::stream::Mutual;
pub use self::tether::{Cut, Tether, Tethers};

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use sha2::{Digest as _, Sha256};
use toolgate_core::identity::Identity;

/// What is spoken within TLS. Another protocol between agents is another name (ALPN, RFC 7301).
const PROTOCOL: &[u8] = b"toolgate/1";

/// Hybrid post-quantum key exchange first; of equally strong ciphers the cheapest first.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

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

//! Whom this node believes: one bundle of roots for each trust domain, and what was revoked.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor};
use toolgate_core::spiffe::SpiffeId;

use super::{JwtKey, Peer, VerifyError};

/// A certificate's number, without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// Of its bytes, the most significant first.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes.iter().skip(zeros).copied().collect())
    }

    /// Reads hexadecimal digits, with or without `:` between the bytes, as `openssl x509 -serial` shows them, or as the number
    /// that it is, whose first digit may be half a byte.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits: String = text.chars().filter(|c| *c != ':').collect();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        if !digits.len().is_multiple_of(2) {
            if text.contains(':') {
                return None; // nobody knows of which byte a digit is missing
            }
            digits.insert(0, '0');
        }
        let byte = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        (0..digits.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>().map(|bytes| Self::new(&bytes))
    }
}

/// In hexadecimal digits.
impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Two digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The roots of one trust domain.
#[derive(Debug, Default)]
pub struct Bundle {
    /// The certificates themselves.
    pub roots: Vec<CertificateDer<'static>>,
    /// The same for a verifier.
    pub anchors: Vec<TrustAnchor<'static>>,
}

impl Bundle {
    /// A bundle of roots.
    ///
    /// # Errors
    /// [`VerifyError::Unreadable`]: one of them is no certificate.
    pub fn new(roots: Vec<CertificateDer<'static>>) -> Result<Self, VerifyError> {
        let anchor = |root| Ok(webpki::anchor_from_trusted_cert(root)?.to_owned());
        let anchors: Result<_, webpki::Error> = roots.iter().map(anchor).collect();
        let anchors = anchors.map_err(|cause| VerifyError::Unreadable { cause: cause.to_string() })?;
        Ok(Self { roots, anchors })
    }
}

/// What is not believed any more before its time is over.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Whose list it is: it says nothing of others.
    pub trust_domain: Box<str>,
    /// Counts up with every change of the list.
    pub number: u64,
    /// Certificates.
    pub serials: HashSet<Serial>,
    /// Everything of these names.
    pub ids: HashSet<SpiffeId>,
    /// Everything that was issued to these nodes.
    pub nodes: HashSet<Box<str>>,
}

impl Revoked {
    /// Whether it names a peer's certificate, name or node.
    #[must_use]
    pub fn covers(&self, peer: &Peer) -> bool {
        *self.trust_domain == *peer.id.trust_domain()
            && (self.serials.contains(&peer.serial)
                || self.ids.contains(&peer.id)
                || peer.node.as_ref().is_some_and(|node| self.nodes.contains(node)))
    }
}

/// Whom this node believes: one state of it, published whole.
#[derive(Debug, Default, Clone)]
pub struct Trust {
    /// Counts up with every change.
    pub generation: u64,
    /// By trust domain: a certificate is held against the bundle of its own alone.
    pub bundles: BTreeMap<Box<str>, Arc<Bundle>>,
    /// What verifies JWT-SVIDs, by trust domain.
    pub jwt_keys: BTreeMap<Box<str>, Vec<JwtKey>>,
    /// What of our own trust domain was revoked.
    pub revoked: Arc<Revoked>,
}

impl Trust {
    /// The roots of a trust domain.
    #[must_use]
    pub fn bundle(&self, trust_domain: &str) -> Option<&Arc<Bundle>> {
        self.bundles.get(trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_equal_as_numbers() {
        for (text, expected) in [
            ("00a1", Some("a1")),
            ("A1:0B", Some("a10b")),
            ("a1", Some("a1")),
            ("a", Some("0a")),
            ("a10", Some("0a10")),
            ("a1:0", None),
            ("", None),
            ("xy", None),
            ("+1", None),
            ("ä1", None),
        ] {
            assert_eq!(Serial::parse(text).map(|serial| serial.to_string()).as_deref(), expected, "{text}");
        }
    }
}

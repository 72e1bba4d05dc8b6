//! SPIFFE IDs, strictly as the specification has them (SPIFFE-ID, 2.1 to 2.3): no percent-encoding, no dot segments, no
//! port, query or fragment.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::identity::Identity;

/// The most bytes of a SPIFFE ID that everybody must be able to read (SPIFFE-ID, 2.3).
pub const ID_BYTES_MAX: usize = 2048;
/// The most bytes of a trust domain's name (SPIFFE-ID, 2.1).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// What is wrong with a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Another scheme.
    #[error("it does not begin with `spiffe://`")]
    Scheme,
    /// Too long.
    #[error("it has more than {ID_BYTES_MAX} bytes")]
    Length,
    /// A trust domain that is none.
    #[error("its trust domain is not 1 to {TRUST_DOMAIN_BYTES_MAX} of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain,
    /// A path that is none.
    #[error("a segment of its path is empty, `.` or `..`, or is not of A-Z, a-z, 0-9, `.`, `-` and `_`")]
    Path,
}

/// A text that is no SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{id}` is no SPIFFE ID: {flaw}")]
pub struct InvalidSpiffeId {
    /// What was given.
    pub id: String,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// Whether a text names a trust domain.
#[must_use]
pub fn is_trust_domain(name: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= TRUST_DOMAIN_BYTES_MAX && name.bytes().all(allowed)
}

/// Any SPIFFE ID, of this trust domain or another. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_bytes: usize,
}

impl SpiffeId {
    /// Reads a SPIFFE ID.
    ///
    /// # Errors
    /// [`InvalidSpiffeId`].
    pub fn parse(text: &str) -> Result<Self, InvalidSpiffeId> {
        let flawed = |flaw| InvalidSpiffeId { id: text.chars().take(ID_BYTES_MAX).collect(), flaw };
        if text.len() > ID_BYTES_MAX {
            return Err(flawed(Flaw::Length));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| flawed(Flaw::Scheme))?;
        let (trust_domain, path) = match rest.split_once('/') {
            Some((trust_domain, path)) => (trust_domain, Some(path)),
            None => (rest, None),
        };
        if !is_trust_domain(trust_domain) {
            return Err(flawed(Flaw::TrustDomain));
        }
        if !path.is_none_or(|path| path.split('/').all(is_segment)) {
            return Err(flawed(Flaw::Path));
        }
        Ok(Self { text: text.into(), trust_domain_bytes: trust_domain.len() })
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn rest(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.rest().get(..self.trust_domain_bytes).unwrap_or_default()
    }

    /// Its path, with the leading `/`; empty: it is the trust domain's own.
    #[must_use]
    pub fn path(&self) -> &str {
        self.rest().get(self.trust_domain_bytes..).unwrap_or_default()
    }

    /// The workload or server that it names, if it has the form `/ns/<namespace>/<app id>`.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        let (namespace, app_id) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        Identity::new(self.trust_domain(), namespace, app_id).ok()
    }
}

fn is_segment(segment: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

impl From<&Identity> for SpiffeId {
    fn from(identity: &Identity) -> Self {
        Self { text: identity.spiffe_id().into(), trust_domain_bytes: identity.trust_domain().len() }
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_the_specification_says() {
        let long = |bytes: usize| {
            let start = "spiffe://a/";
            format!("{start}{}", "b".repeat(bytes - start.len()))
        };
        let domain = |bytes: usize| format!("spiffe://{}/b", "a".repeat(bytes));
        let (fits, exceeds) = (long(ID_BYTES_MAX), long(ID_BYTES_MAX + 1));
        let (domain_fits, domain_exceeds) = (domain(255), domain(256));
        let table: &[(&str, Result<(), Flaw>)] = &[
            ("spiffe://example.org/ns/default/agent", Ok(())),
            ("spiffe://example.org", Ok(())),
            ("spiffe://example_1-x.org/A.b_c-D/...", Ok(())),
            (&fits, Ok(())),
            (&exceeds, Err(Flaw::Length)),
            (&domain_fits, Ok(())),
            (&domain_exceeds, Err(Flaw::TrustDomain)),
            ("", Err(Flaw::Scheme)),
            ("http://example.org/a", Err(Flaw::Scheme)),
            ("SPIFFE://example.org/a", Err(Flaw::Scheme)),
            (" spiffe://example.org/a", Err(Flaw::Scheme)),
            ("spiffe:///a", Err(Flaw::TrustDomain)),
            ("spiffe://Example.org/a", Err(Flaw::TrustDomain)),
            ("spiffe://example.org:80/a", Err(Flaw::TrustDomain)),
            ("spiffe://u@example.org/a", Err(Flaw::TrustDomain)),
            ("spiffe://example.org?a", Err(Flaw::TrustDomain)),
            ("spiffe://ex%61mple.org/a", Err(Flaw::TrustDomain)),
            ("spiffe://example.org/", Err(Flaw::Path)),
            ("spiffe://example.org/a/", Err(Flaw::Path)),
            ("spiffe://example.org//a", Err(Flaw::Path)),
            ("spiffe://example.org/a/./b", Err(Flaw::Path)),
            ("spiffe://example.org/a/../b", Err(Flaw::Path)),
            ("spiffe://example.org/%61", Err(Flaw::Path)),
            ("spiffe://example.org/a?b", Err(Flaw::Path)),
            ("spiffe://example.org/a#b", Err(Flaw::Path)),
            ("spiffe://example.org/ä", Err(Flaw::Path)),
            ("spiffe://example.org/a b", Err(Flaw::Path)),
            ("spiffe://example.org/a\n", Err(Flaw::Path)),
        ];
        for (text, expected) in table {
            let read = SpiffeId::parse(text);
            assert_eq!(read.as_ref().map(|_| ()).map_err(|error| error.flaw), *expected, "{text}");
            if let Ok(id) = read {
                assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), *text);
            }
        }
    }

    #[test]
    fn workloads_are_those_of_one_form() {
        let table = [
            ("spiffe://example.org/ns/default/agent", Some("agent")),
            ("spiffe://example.org/ns/team-a/agent", Some("agent.team-a")),
            ("spiffe://example.org/ns/default/agent/x", None),
            ("spiffe://example.org/ns/default", None),
            ("spiffe://example.org/ns/default/Agent", None),
            ("spiffe://example.org/sa/default/agent", None),
            ("spiffe://example.org", None),
        ];
        for (text, expected) in table {
            let id = SpiffeId::parse(text).unwrap();
            let identity = id.identity();
            assert_eq!(identity.as_ref().map(ToString::to_string).as_deref(), expected, "{text}");
            if let Some(identity) = identity {
                assert_eq!(SpiffeId::from(&identity), id);
            }
        }
    }
}

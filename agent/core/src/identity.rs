//! Names of workloads and servers: App ID, namespace, SPIFFE ID.
//!
//! The charset is the one of a DNS label (RFC 1123) plus `_`, so that an App ID fits a SPIFFE path segment,
//! a cgroup name and a metric label without escaping.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::words::Words;

/// The most bytes an App ID or a namespace may have (a DNS label's, RFC 1123).
pub const NAME_BYTES_MAX: usize = 63;

/// A name that is no valid App ID or namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is no valid App ID or namespace: use 1 to {NAME_BYTES_MAX} of a-z, 0-9, `-` and `_`, beginning with a letter or digit"
)]
pub struct InvalidName {
    /// What was given.
    pub name: String,
}

/// Checks an App ID or a namespace: 1 to 63 of `a-z 0-9 - _`, beginning with a letter or digit.
///
/// # Errors
/// [`InvalidName`] with what was given.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if starts && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(InvalidName { name: name.to_owned() })
}

/// Who a workload or a server is: App ID and namespace within a trust domain. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Names>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    trust_domain: Box<str>,
    namespace: Box<str>,
    app_id: Box<str>,
    /// Of all three.
    words: u64,
}

/// Made once: each call looks its caller and its server up.
impl Hash for Names {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.words);
    }
}

impl Identity {
    /// An identity of valid names.
    ///
    /// # Errors
    /// [`InvalidName`] for an App ID or a namespace that is none.
    pub fn new(trust_domain: &str, namespace: &str, app_id: &str) -> Result<Self, InvalidName> {
        check_name(namespace)?;
        check_name(app_id)?;
        let words = hash_of_names((trust_domain, namespace, app_id));
        let (trust_domain, namespace, app_id) = (trust_domain.into(), namespace.into(), app_id.into());
        Ok(Self(Arc::new(Names { trust_domain, namespace, app_id, words })))
    }

    /// The same, counted apart: threads that copy one and the same wait for each other's cache lines.
    #[must_use]
    pub fn apart(&self) -> Self {
        let Names { trust_domain, namespace, app_id, words } = &*self.0;
        let (trust_domain, namespace, app_id) = (trust_domain.clone(), namespace.clone(), app_id.clone());
        Self(Arc::new(Names { trust_domain, namespace, app_id, words: *words }))
    }

    /// The trust domain, as in SPIFFE.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The App ID, without its namespace.
    #[must_use]
    pub fn app_id(&self) -> &str {
        &self.0.app_id
    }

    /// Whether it is shown without its namespace.
    #[must_use]
    pub fn is_in_default_namespace(&self) -> bool {
        self.namespace() == "default"
    }

    /// [`hash_of_names`] of its names.
    pub(crate) fn words(&self) -> u64 {
        self.0.words
    }

    /// `spiffe://<trust domain>/ns/<namespace>/<app id>`.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{}/ns/{}/{}", self.trust_domain(), self.namespace(), self.app_id())
    }
}

/// A hash of trust domain, namespace and App ID; never 0.
pub(crate) fn hash_of_names((trust_domain, namespace, app_id): (&str, &str, &str)) -> u64 {
    let mut words = Words::default();
    for part in [trust_domain, namespace, app_id] {
        words.write(part.as_bytes());
    }
    words.finish().max(1)
}

/// `app` in the namespace `default`, `app.namespace` elsewhere: what labels, logs and commands show.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_in_default_namespace() {
            return f.write_str(self.app_id());
        }
        write!(f, "{}.{}", self.app_id(), self.namespace())
    }
}

//! Which callers or servers a rule is about.

use std::fmt;
use std::sync::Arc;

use super::glob::{Glob, InvalidGlob};
use crate::identity::{Identity, InvalidName, check_name};

/// `app` (the policy's namespace), `app.namespace`, or `spiffe://<trust domain>/ns/<namespace>/<app id>`, each
/// part with `*`. A `*` never crosses the `.`, a `/` or the trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPattern {
    text: Arc<str>,
    trust_domain: Arc<str>,
    namespace: Glob,
    app_id: Glob,
}

/// A pattern that no identity could fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Neither one nor two parts.
    #[error("`{pattern}` has more than one `.`: write `app`, `app.namespace` or a SPIFFE ID")]
    Parts {
        /// What was given.
        pattern: String,
    },
    /// A SPIFFE ID of another shape.
    #[error(
        "`{pattern}` is no SPIFFE ID of this kind: write `spiffe://<trust domain>/ns/<namespace>/<app id>`"
    )]
    SpiffeId {
        /// What was given.
        pattern: String,
    },
    /// A part that is no glob.
    #[error(transparent)]
    Glob(#[from] InvalidGlob),
    /// A part that is no name.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl IdentityPattern {
    /// Reads a pattern as written in a policy of `namespace` under `trust_domain`.
    ///
    /// # Errors
    /// [`InvalidPattern`].
    pub fn new(text: &str, trust_domain: &str, namespace: &str) -> Result<Self, InvalidPattern> {
        let (trust_domain, namespace, app_id) = if text.starts_with("spiffe://") {
            spiffe_parts(text).ok_or_else(|| InvalidPattern::SpiffeId { pattern: text.to_owned() })?
        } else {
            let (app_id, namespace) = text.split_once('.').unwrap_or((text, namespace));
            if namespace.contains('.') {
                return Err(InvalidPattern::Parts { pattern: text.to_owned() });
            }
            (trust_domain, namespace, app_id)
        };
        Ok(Self {
            text: text.into(),
            trust_domain: trust_domain.into(),
            namespace: name_glob(namespace)?,
            app_id: name_glob(app_id)?,
        })
    }

    /// Whether this identity is meant.
    #[must_use]
    pub fn matches(&self, identity: &Identity) -> bool {
        *self.trust_domain == *identity.trust_domain()
            && self.app_id.matches(identity.app_id())
            && self.namespace.matches(identity.namespace())
    }

    /// Whether it names exactly one identity.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.namespace.is_literal() && self.app_id.is_literal()
    }

    /// Trust domain, namespace and App ID, where it names exactly one identity.
    pub(super) fn literal(&self) -> Option<(&str, &str, &str)> {
        self.is_literal().then(|| (&*self.trust_domain, self.namespace.as_str(), self.app_id.as_str()))
    }

    /// The trust domain that it speaks of.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }
}

/// As it was written.
impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn spiffe_parts(text: &str) -> Option<(&str, &str, &str)> {
    let mut parts = text.strip_prefix("spiffe://")?.split('/');
    let (trust_domain, ns, namespace, app_id) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let whole =
        ns == "ns" && parts.next().is_none() && !trust_domain.is_empty() && !trust_domain.contains('*');
    whole.then_some((trust_domain, namespace, app_id))
}

/// A name with `*` in it: checked as a name with each `*` standing for a letter.
fn name_glob(text: &str) -> Result<Glob, InvalidPattern> {
    let glob = Glob::name(text)?;
    check_name(&text.replace('*', "a")).map_err(|_| InvalidName { name: text.to_owned() })?;
    Ok(glob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_identities() {
        let table = [
            ("agent", "agent", "default", true),
            ("agent", "agent", "team", false),
            ("agent.team", "agent", "team", true),
            ("*", "agent", "default", true),
            ("*", "agent", "team", false),
            ("*.*", "agent", "team", true),
            ("res-*.team", "res-1", "team", true),
            ("spiffe://example.org/ns/team/*", "x", "team", true),
            ("spiffe://other.org/ns/team/x", "x", "team", false),
        ];
        for (pattern, app_id, namespace, expected) in table {
            let identity = Identity::new("example.org", namespace, app_id).unwrap();
            let pattern_read = IdentityPattern::new(pattern, "example.org", "default").unwrap();
            assert_eq!(pattern_read.matches(&identity), expected, "{pattern} on {identity}");
        }
    }

    #[test]
    fn patterns_that_fit_nothing_are_refused() {
        for pattern in [
            "",
            ".",
            "a.b.c",
            "A",
            "a b",
            "spiffe://x",
            "spiffe://*/ns/a/b",
            "spiffe://x/ns/a/b/c",
            "**",
            "a?",
        ] {
            assert!(IdentityPattern::new(pattern, "example.org", "default").is_err(), "{pattern}");
        }
    }
}

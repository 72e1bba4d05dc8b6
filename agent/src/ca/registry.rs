//! Who may join, who has joined, and what was revoked: `registry.json`. Pure: what is done is written by the authority
//! before anybody hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use toolgate_core::identity::{Identity, InvalidName, check_name};

use super::state::seconds;

/// Of the file.
pub(super) const FORMAT: u32 = 1;
/// Nodes of one authority, and tokens that wait.
const NODES_MAX: usize = 10_000;
/// App IDs of one node.
const APP_IDS_MAX: usize = 256;
/// How long a token is known after its end, so that it is told from one that never was.
const TOKEN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a node does not get what it asks for. Node and operator are told the same: a token is a secret, a reason is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A token that never was, or is long over.
    #[error("this token is not known here; `toolgate ca token` on the authority makes another")]
    UnknownToken,
    /// Its time is over.
    #[error("this token ended {until}; `toolgate ca token` on the authority makes another")]
    Expired {
        /// When.
        until: String,
    },
    /// Somebody has joined with it.
    #[error(
        "this token was used {at}: if that was not this node, somebody else has it: `toolgate ca revoke {node}`, then make another"
    )]
    Used {
        /// When.
        at: String,
        /// Whose it is.
        node: String,
    },
    /// It names another node.
    #[error("this token is of another node than `{node}`")]
    OtherNode {
        /// Who asks.
        node: String,
    },
    /// Nobody's node.
    #[error("node `{node}` is not registered here")]
    UnknownNode {
        /// Who asks.
        node: String,
    },
    /// Revoked.
    #[error("node `{node}` was revoked")]
    Revoked {
        /// Who asks.
        node: String,
    },
    /// Not one of its App IDs.
    #[error("node `{node}` is registered for {}, not for `{identity}`", shown(registered))]
    ForeignAppId {
        /// Who asks.
        node: String,
        /// For whom.
        identity: String,
        /// What it may have.
        registered: Vec<String>,
    },
    /// A request that cannot be read.
    #[error("the request cannot be read: {problem}")]
    Malformed {
        /// What is wrong.
        problem: String,
    },
}

fn shown(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Why the operator's wish is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unregistrable {
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No App ID, or too many.
    #[error("a node has from 1 to {APP_IDS_MAX} App IDs (--app-ids a,b)")]
    AppIds,
    /// A token that never ends.
    #[error("a token lasts from a second to 30 days (--ttl)")]
    Ttl,
    /// A revoked node does not come back.
    #[error("node `{node}` was revoked, and what was issued to it stays refused: choose another name")]
    Revoked {
        /// Which.
        node: String,
    },
    /// Too many.
    #[error("{NODES_MAX} nodes and tokens are registered, and no more can be")]
    Full,
    /// Nothing to revoke.
    #[error(
        "`{what}` is neither a node that is registered here (`toolgate ca nodes`) nor a serial number in hexadecimal digits"
    )]
    Unknown {
        /// As it was given.
        what: String,
    },
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    /// What it may have SVIDs of, as `app` or `app.namespace`.
    pub(super) app_ids: BTreeSet<String>,
    /// When it joined last, in seconds since 1970.
    pub(super) joined_at: u64,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revoked_at: Option<u64>,
}

/// One token. What it is made of is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    /// SHA-256 of the secret.
    pub(super) secret: String,
    pub(super) node: String,
    pub(super) app_ids: BTreeSet<String>,
    pub(super) until: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) used: Option<Use>,
}

/// Who has used it: the same key may ask again, as its first answer may have been lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Use {
    at: u64,
    /// SHA-256 of the public key.
    key: String,
}

/// `registry.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    pub(super) format: u32,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) tokens: Vec<Token>,
    /// Counts up with each revocation.
    pub(super) revocations: u64,
    /// Serial numbers, and until when they are of use.
    pub(super) serials: BTreeMap<String, u64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            format: FORMAT,
            nodes: BTreeMap::new(),
            tokens: Vec::new(),
            revocations: 0,
            serials: BTreeMap::new(),
        }
    }
}

impl Registry {
    /// Notes a token that was made.
    pub(super) fn add(
        &mut self,
        (node, app_ids): (&str, &[String]),
        secret: String,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(), Unregistrable> {
        const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
        check_name(node)?;
        if app_ids.is_empty() || app_ids.len() > APP_IDS_MAX {
            return Err(Unregistrable::AppIds);
        }
        for app_id in app_ids {
            let (app_id, namespace) = names(app_id);
            check_name(app_id)?;
            check_name(namespace)?;
        }
        if ttl < Duration::from_secs(1) || ttl > TTL_MAX {
            return Err(Unregistrable::Ttl);
        }
        if self.nodes.get(node).is_some_and(|node| node.revoked_at.is_some()) {
            return Err(Unregistrable::Revoked { node: node.to_owned() });
        }
        self.forget(now);
        if self.nodes.len() + self.tokens.len() >= NODES_MAX {
            return Err(Unregistrable::Full);
        }
        let app_ids = app_ids.iter().map(|app_id| canonical(app_id)).collect();
        let until = seconds(now + ttl);
        self.tokens.push(Token { secret, node: node.to_owned(), app_ids, until, used: None });
        Ok(())
    }

    /// Takes a token for a key: once, in time, for its node. Then that node is registered.
    pub(super) fn redeem(
        &mut self,
        (node, secret): (&str, &str),
        key: &str,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let token = self.tokens.iter_mut().find(|token| token.secret == secret);
        let token = token.ok_or(Refusal::UnknownToken)?;
        if token.node != node {
            return Err(Refusal::OtherNode { node: node.to_owned() });
        }
        if let Some(used) = &token.used
            && used.key != key
        {
            return Err(Refusal::Used { at: time(used.at), node: node.to_owned() });
        }
        if token.until <= seconds(now) {
            return Err(Refusal::Expired { until: time(token.until) });
        }
        let before = self.nodes.get(node);
        if before.is_some_and(|node| node.revoked_at.is_some()) {
            return Err(Refusal::Revoked { node: node.to_owned() });
        }
        token.used = Some(Use { at: seconds(now), key: key.to_owned() });
        let joined = Node { app_ids: token.app_ids.clone(), joined_at: seconds(now), revoked_at: None };
        self.nodes.insert(node.to_owned(), joined);
        Ok(())
    }

    /// The node of a name, if it may still ask.
    pub(super) fn node(&self, name: &str) -> Result<&Node, Refusal> {
        let node = self.nodes.get(name).ok_or_else(|| Refusal::UnknownNode { node: name.to_owned() })?;
        if node.revoked_at.is_some() {
            return Err(Refusal::Revoked { node: name.to_owned() });
        }
        Ok(node)
    }

    /// Whether a node may have an SVID of a workload: what it was registered for, and nothing else.
    pub(super) fn permits(&self, name: &str, identity: &Identity) -> Result<(), Refusal> {
        let node = self.node(name)?;
        if node.app_ids.contains(&identity.to_string()) {
            return Ok(());
        }
        Err(Refusal::ForeignAppId {
            node: name.to_owned(),
            identity: identity.to_string(),
            registered: node.app_ids.iter().cloned().collect(),
        })
    }

    /// Revokes a node, or a certificate until `until`.
    pub(super) fn revoke(
        &mut self,
        what: &str,
        until: SystemTime,
        now: SystemTime,
    ) -> Result<(), Unregistrable> {
        self.forget(now);
        if let Some(node) = self.nodes.get_mut(what) {
            node.revoked_at.get_or_insert(seconds(now));
            self.tokens.retain(|token| token.node != what);
        } else {
            let serial = crate::svid::Serial::parse(what);
            let serial = serial.ok_or_else(|| Unregistrable::Unknown { what: what.to_owned() })?;
            self.serials.insert(serial.to_string(), seconds(until));
        }
        self.revocations += 1;
        Ok(())
    }

    /// The names of revoked nodes.
    pub(super) fn revoked_nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, node)| node.revoked_at.is_some()).map(|(name, _)| name.as_str())
    }

    /// What is of no use any more.
    fn forget(&mut self, now: SystemTime) {
        let now = seconds(now);
        self.tokens.retain(|token| now < token.until + TOKEN_KEPT.as_secs());
        self.serials.retain(|_, until| now < *until);
    }
}

/// App ID and namespace of `app` or `app.namespace`.
fn names(text: &str) -> (&str, &str) {
    text.split_once('.').unwrap_or((text, "default"))
}

/// As [`Identity`] shows itself.
fn canonical(text: &str) -> String {
    match names(text) {
        (app_id, "default") => app_id.to_owned(),
        (app_id, namespace) => format!("{app_id}.{namespace}"),
    }
}

/// The identity of `app` or `app.namespace`.
pub(super) fn identity(trust_domain: &str, text: &str) -> Result<Identity, InvalidName> {
    let (app_id, namespace) = names(text);
    Identity::new(trust_domain, namespace, app_id)
}

/// As people read it.
pub(super) fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    /// With a token of `node-a` for a minute.
    fn registry() -> Registry {
        let mut registry = Registry::default();
        let app_ids = ["docs".to_owned(), "agent.team".to_owned(), "chat.default".to_owned()];
        registry.add(("node-a", &app_ids), "secret".to_owned(), Duration::from_secs(60), at(0)).unwrap();
        registry
    }

    #[test]
    fn a_token_is_good_once_in_time_for_its_node() {
        type Before = fn(&mut Registry);
        /// Node, secret, key, second.
        type Asked = (&'static str, &'static str, &'static str, u64);
        let joined: Before = |r| r.redeem(("node-a", "secret"), "key", at(1)).unwrap();
        let revoked: Before = |r| {
            r.redeem(("node-a", "secret"), "key", at(1)).unwrap();
            r.revoke("node-a", at(100), at(2)).unwrap();
        };
        let table: &[(&str, Before, Asked, Option<&str>)] = &[
            ("the first", |_| {}, ("node-a", "secret", "key", 59), None),
            ("the same key again, whose answer was lost", joined, ("node-a", "secret", "key", 2), None),
            ("replayed by another", joined, ("node-a", "secret", "other", 2), Some("this token was used")),
            (
                "replayed by another, later",
                joined,
                ("node-a", "secret", "other", 99),
                Some("this token was used"),
            ),
            ("expired", |_| {}, ("node-a", "secret", "key", 60), Some("this token ended")),
            (
                "expired for the same key, too",
                joined,
                ("node-a", "secret", "key", 60),
                Some("this token ended"),
            ),
            (
                "of another node",
                |_| {},
                ("node-b", "secret", "key", 1),
                Some("of another node than `node-b`"),
            ),
            ("guessed", |_| {}, ("node-a", "guess", "key", 1), Some("is not known here")),
            ("of a revoked node", revoked, ("node-a", "secret", "key", 3), Some("is not known here")),
        ];
        for (name, before, (node, secret, key, second), expected) in table {
            let mut registry = registry();
            before(&mut registry);
            let kept = registry.clone();
            let error =
                registry.redeem((node, secret), key, at(*second)).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(error, None, "{name}"),
                Some(text) => {
                    assert!(error.as_ref().is_some_and(|error| error.contains(text)), "{name}: {error:?}");
                    assert_eq!(registry, kept, "{name}");
                }
            }
        }
    }

    #[test]
    fn a_node_has_its_app_ids_and_no_others() {
        let mut registry = registry();
        let table = [
            ("node-a", "docs", None),
            ("node-a", "agent.team", None),
            ("node-a", "chat", None),
            ("node-a", "agent", Some("is registered for `agent.team`, `chat`, `docs`, not for `agent`")),
            ("node-a", "docs.team", Some("not for `docs.team`")),
            ("node-a", "other", Some("not for `other`")),
            ("node-b", "docs", Some("is not registered here")),
        ];
        let permits = |registry: &Registry, node: &str, app_id: &str| {
            let identity = identity("example.org", app_id).unwrap();
            registry.permits(node, &identity).err().map(|refusal| refusal.to_string())
        };
        assert!(permits(&registry, "node-a", "docs").is_some(), "it has not joined yet");
        registry.redeem(("node-a", "secret"), "key", at(1)).unwrap();
        for (node, app_id, expected) in table {
            let refused = permits(&registry, node, app_id);
            match expected {
                None => assert_eq!(refused, None, "{app_id}"),
                Some(text) => {
                    assert!(refused.as_ref().is_some_and(|refused| refused.contains(text)), "{refused:?}");
                }
            }
        }
        registry.revoke("node-a", at(100), at(2)).unwrap();
        assert_eq!(permits(&registry, "node-a", "docs").as_deref(), Some("node `node-a` was revoked"));
        let again =
            registry.add(("node-a", &["docs".to_owned()]), "new".to_owned(), Duration::from_secs(60), at(3));
        assert!(again.is_err_and(|error| error.to_string().contains("choose another name")));
    }

    #[test]
    fn what_cannot_be_registered_or_revoked_is_refused() {
        let docs = || vec!["docs".to_owned()];
        let table = [
            ("Node A", docs(), 60, "`Node A` is no valid App ID"),
            ("node-b", vec![], 60, "from 1 to 256 App IDs"),
            ("node-b", vec!["docs".to_owned(); 257], 60, "from 1 to 256 App IDs"),
            ("node-b", vec!["a.b.c".to_owned()], 60, "`b.c` is no valid App ID"),
            ("node-b", vec!["*".to_owned()], 60, "`*` is no valid App ID"),
            ("node-b", docs(), 0, "a token lasts from a second"),
            ("node-b", docs(), 31 * 24 * 3600, "a token lasts from a second"),
        ];
        for (node, app_ids, ttl, expected) in table {
            let mut registry = registry();
            let added = registry.add((node, &app_ids), "s".to_owned(), Duration::from_secs(ttl), at(0));
            assert!(added.unwrap_err().to_string().contains(expected), "{expected}");
        }
        let mut registry = registry();
        assert!(registry.revoke("node-x", at(9), at(1)).is_err(), "neither a node nor a serial number");
        registry.revoke("0A:0b", at(9), at(1)).unwrap();
        assert_eq!((registry.revocations, registry.serials.contains_key("0a0b")), (1, true));
        registry.revoke("0c", at(20), at(9)).unwrap();
        assert!(!registry.serials.contains_key("0a0b"), "its certificate has ended by itself");
    }
}

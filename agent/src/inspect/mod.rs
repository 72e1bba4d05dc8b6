//! TLS that ends here: the node's own authority, what is shown in the place of servers, and who does not believe it.
//!
//! Nothing of it is made unless `capture.tls: inspect` says so. The authority's key is in memory alone: an agent that is
//! started anew has another authority, one that takes over from another has the same.

mod accept;
mod authority;
mod error;
mod trust;
mod untrusting;

pub(crate) use self::accept::provider;
pub use self::accept::{AcceptError, accept};
pub use self::authority::{Kept, LEAF_LIFE};
pub use self::error::InspectError;
pub use self::trust::Files;
pub use self::untrusting::{Untrusting, Untrusts};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nix::sys::resource::{Resource, setrlimit};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use toolgate_core::decision::Excluded;

use self::authority::Authority;
use crate::config::AgentConfig;
use crate::limits::Limits;

/// By which name a client's TLS is read: the one that it says (SNI), or the address that it connected to.
#[derive(Debug, Clone)]
pub struct Name {
    /// For certificates.
    pub name: ServerName<'static>,
    /// For people.
    pub shown: Arc<str>,
}

impl Name {
    /// Of a client that says this name, or none. `None`: it is no name that a certificate could have.
    #[must_use]
    pub fn of(server_name: Option<&str>, address: IpAddr) -> Option<Self> {
        let name = match server_name {
            Some(name) => ServerName::try_from(name.to_ascii_lowercase()).ok()?,
            None => ServerName::IpAddress(address.to_canonical().into()),
        };
        let shown = name.to_str().into_owned().into();
        Some(Self { name, shown })
    }
}

/// What is shown in the place of one server.
struct Leaf {
    certified: Arc<CertifiedKey>,
    made: SystemTime,
    used: SystemTime,
}

/// All that reading takes, shared by all threads.
pub struct Inspection {
    authority: Authority,
    leaves: Mutex<HashMap<ServerName<'static>, Leaf>>,
    leaves_max: usize,
    excluded: Vec<Excluded>,
    /// Clients that do not believe it.
    pub untrusting: Untrusting,
    /// Where clients find whom to believe.
    pub files: Files,
}

impl Inspection {
    /// The authority of the agent before, or a new one; its certificate is where clients find it then.
    ///
    /// # Errors
    /// [`InspectError`]: nobody's TLS can be read.
    pub fn start(agent: &AgentConfig, limits: &Limits, kept: Option<Kept>) -> Result<Self, InspectError> {
        // A core dump would have the key.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| InspectError::Core { cause: errno.into() })?;
        let excluded = agent.capture.tls_exclude.clone();
        let authority = match kept {
            Some(kept) => Authority::restored(kept)?,
            None => Authority::new(&excluded, SystemTime::now())?,
        };
        let files = Files::beside(&agent.listen.admin);
        let this = Self {
            authority,
            leaves: Mutex::default(),
            leaves_max: limits.inspected_names_max,
            excluded,
            untrusting: Untrusting::new(limits),
            files,
        };
        this.write_files()?;
        Ok(this)
    }

    /// Writes whom clients are to believe: the authority, and it together with whom the system believes now.
    ///
    /// # Errors
    /// [`InspectError`]
    pub fn write_files(&self) -> Result<(), InspectError> {
        self.files.write(&self.authority.certificate())
    }

    /// Its certificate, in PEM, and its SHA-256, in hex.
    #[must_use]
    pub fn authority(&self) -> (String, String) {
        (self.authority.certificate(), self.authority.fingerprint())
    }

    /// The authority for the agent that takes over.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.authority.kept()
    }

    /// Whether the TLS of this host is left alone.
    #[must_use]
    pub fn excludes(&self, server_name: Option<&str>, address: IpAddr) -> bool {
        self.excluded.iter().any(|one| one.covers(server_name, address))
    }

    /// What is shown in the place of that server.
    ///
    /// # Errors
    /// [`InspectError::Certify`]
    pub fn certified(&self, name: &ServerName<'static>) -> Result<Arc<CertifiedKey>, InspectError> {
        let now = SystemTime::now();
        let is_good = |leaf: &Leaf| now.duration_since(leaf.made).is_ok_and(|age| age < LEAF_LIFE / 2);
        if let Some(leaf) = self.lock().get_mut(name).filter(|leaf| is_good(leaf)) {
            leaf.used = now;
            return Ok(Arc::clone(&leaf.certified));
        }
        let certified = self.authority.leaf(name, now)?;
        let mut leaves = self.lock();
        while leaves.len() >= self.leaves_max && !leaves.contains_key(name) {
            let Some(oldest) = leaves.iter().min_by_key(|(_, leaf)| leaf.used).map(|(name, _)| name.clone())
            else {
                break;
            };
            leaves.remove(&oldest);
        }
        leaves.insert(name.clone(), Leaf { certified: Arc::clone(&certified), made: now, used: now });
        Ok(certified)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ServerName<'static>, Leaf>> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

//! The authority of a trust domain (`identity.source: embedded`): root -> issuing certificate -> SVIDs.
//!
//! - [`certify`]: the certificates
//! - [`folder`]: its files, and who may use them
//! - [`state`]: what there is
//! - [`rotation`]: what is due
//! - [`operate`]: what the operator sees, asks and keeps elsewhere
//! - [`jwt`]: the keys of JWT-SVIDs
//! - [`registry`], [`nodes`], [`listener`], [`wire`]: other nodes, that join by a token
//!
//! `authority.json` is what counts: keys are written before it names them, and removed after it does no more. Agents that
//! hand over to each other read it anew, under a lock, before they change it.

mod certify;
mod error;
pub(crate) mod folder;
mod jwt;
pub(crate) mod listener;
pub(crate) mod nodes;
mod operate;
mod registry;
mod rotation;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub use self::certify::{CertifyError, Validity};
pub use self::error::CaError;
pub use self::listener::Listener;
pub use self::nodes::NodeError;
pub use self::operate::{Level, restore};
pub use self::registry::{Refusal, Unregistrable};
pub use self::rotation::Lives;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use toolgate_core::spiffe::SpiffeId;

pub(crate) use self::certify::{Holder, IssuedTo, new_key, random};

use self::certify::Signer;
use self::folder::{Folder, Kind};
use self::nodes::Own;
use self::registry::Registry;
use self::rotation::{Step, due};
use self::state::{Entry, FORMAT, Stage, State, new_id, seconds};
use crate::svid::{Bundle, Serial};

/// Below the state directory.
const FOLDER: &str = "ca";
const STATE_FILE: &str = "authority.json";
/// The systemd credential that may hold the root's key (PKCS#8 in PEM, P-256).
pub const CREDENTIAL: &str = "toolgate-root.key";
/// Steps of one rotation: one that needs more goes round in circles.
const STEPS_MAX: usize = 64;

/// Where an authority is, and how it is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The agent's state directory.
    pub state_directory: PathBuf,
    /// Its trust domain.
    pub trust_domain: String,
    /// How long everything lives.
    pub lives: Lives,
    /// Where the service manager puts credentials, if it does.
    pub credentials: Option<PathBuf>,
}

impl Plan {
    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.state_directory.join(FOLDER)
    }
}

/// What was issued.
#[derive(Clone)]
pub(crate) struct Issued {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) validity: Validity,
    pub(crate) serial: Serial,
}

/// An open authority.
pub struct Authority {
    plan: Plan,
    folder: Folder,
    state: State,
    signer: Signer,
    bundle: Arc<Bundle>,
    registry: Registry,
    jwt_keys: jwt::Keys,
    /// What it shows of itself.
    own: Option<Own>,
}

impl Authority {
    /// Opens the authority of a state directory, or makes it where there is none, and rotates what is due.
    ///
    /// # Errors
    /// [`CaError`]: its files are left as they are.
    pub fn open(plan: Plan, now: SystemTime) -> Result<Self, CaError> {
        let folder = Folder::new(plan.folder());
        let lock = folder.lock()?;
        if folder.is_empty()? {
            let state = State::new(&plan.trust_domain);
            folder.make(|folder| Change { plan: &plan, folder, state, now }.rotate().map(drop))?;
        }
        let (state, signer, bundle) = load(&plan, &folder)?;
        drop(lock);
        let registry = Registry::default();
        let jwt_keys = jwt::Keys::default();
        let mut authority = Self { plan, folder, state, signer, bundle, registry, jwt_keys, own: None };
        authority.registry = authority.read_registry()?;
        authority.doubt_the_clock(now);
        authority.rotate(now)?;
        Ok(authority)
    }

    /// What is issued by a clock that has gone back begins so early that only who has the same clock takes it for valid.
    fn doubt_the_clock(&self, now: SystemTime) {
        let newest = self.state.all().map(|(_, entry)| entry.made_at()).max();
        if let Some(newest) = newest.filter(|newest| now + self.plan.lives.skew < *newest) {
            tracing::error!(
                file = %self.folder.file(STATE_FILE).display(),
                made = %humantime::format_rfc3339_seconds(newest),
                now = %humantime::format_rfc3339_seconds(now),
                "this clock is before the authority's newest certificate: set it right; until then peers may refuse what is issued"
            );
        }
    }

    /// Takes the steps of rotations that are due. True: the bundle, or who signs, has changed.
    ///
    /// # Errors
    /// [`CaError`]: what there was goes on.
    pub fn rotate(&mut self, now: SystemTime) -> Result<bool, CaError> {
        let is_new = self.refresh()? | self.rotate_jwt_keys(false, now)?;
        let damaged = |problem| self.damaged(problem);
        if due(&self.state, &self.plan.lives, now).map_err(damaged)?.is_none() {
            return Ok(is_new);
        }
        self.change(now, |_| Ok(())).map(|is_changed| is_changed || is_new)
    }

    /// Changes the state under the lock, and takes what is due then.
    fn change(
        &mut self,
        now: SystemTime,
        with: impl FnOnce(&mut Change<'_>) -> Result<(), CaError>,
    ) -> Result<bool, CaError> {
        let _lock = self.folder.lock()?;
        let (state, ..) = load(&self.plan, &self.folder)?;
        let mut change = Change { plan: &self.plan, folder: &self.folder, state, now };
        with(&mut change)?;
        change.rotate()?;
        let (state, signer, bundle) = load(&self.plan, &self.folder)?;
        let is_new = state != self.state;
        (self.state, self.signer, self.bundle) = (state, signer, bundle);
        Ok(is_new)
    }

    /// The roots that are believed.
    #[must_use]
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.plan.trust_domain
    }

    /// How long everything lives.
    #[must_use]
    pub fn lives(&self) -> &Lives {
        &self.plan.lives
    }

    /// Issues an SVID for a key. Who may have it was decided before.
    pub(crate) fn issue(
        &self,
        id: &SpiffeId,
        to: IssuedTo<'_>,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        self.issue_for(id, to, key, self.plan.lives.svid, now)
    }

    fn issue_for(
        &self,
        id: &SpiffeId,
        to: IssuedTo<'_>,
        key: &impl PublicKeyData,
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let skew = self.plan.lives.skew;
        let active = self.state.at(Level::Issuing, Stage::Active);
        let active = active.ok_or_else(|| self.damaged("no issuing certificate is active".to_owned()))?;
        let ends = active.validity().map_err(|problem| self.damaged(problem))?.not_after;
        if ends <= now {
            let id = active.root.clone().unwrap_or_default();
            return Err(CaError::RootEnded { id });
        }
        let validity = Validity::new(now, life, skew, Some(ends));
        let (leaf, serial) = certify::svid(id, to, key, &self.signer, validity)?;
        Ok(Issued { chain: vec![leaf, self.signer.certificate.clone()], validity, serial })
    }

    fn damaged(&self, problem: String) -> CaError {
        CaError::Damaged { path: self.folder.file(STATE_FILE), problem }
    }
}

/// A change of the state that is under way.
struct Change<'c> {
    plan: &'c Plan,
    folder: &'c Folder,
    state: State,
    now: SystemTime,
}

impl Change<'_> {
    /// Takes all that is due, and writes it.
    fn rotate(&mut self) -> Result<(), CaError> {
        let damaged = |problem| CaError::Damaged { path: self.folder.file(STATE_FILE), problem };
        for _ in 0..STEPS_MAX {
            match due(&self.state, &self.plan.lives, self.now).map_err(damaged)? {
                None => return Ok(()),
                Some(step) => self.take(&step)?,
            }
        }
        Err(damaged("rotations that never end; are the lives in `identity` too short?".to_owned()))
    }

    fn take(&mut self, step: &Step) -> Result<(), CaError> {
        let retired = match step {
            Step::MakeRoot { stage } => {
                self.make_root(*stage)?;
                None
            }
            Step::ActivateRoot => {
                let retired = self.retire(Level::Root);
                for root in &mut self.state.roots {
                    if root.stage == Stage::Prepared {
                        root.stage = Stage::Active;
                        tracing::info!(root = %root.id, "a new root signs from now on");
                    }
                }
                retired
            }
            Step::MakeIssuing => {
                let entry = self.issuing()?;
                let retired = self.retire(Level::Issuing);
                self.state.issuing.push(entry);
                retired
            }
            Step::Forget { level, id } => {
                self.state.of_mut(*level).retain(|entry| entry.id != *id);
                None
            }
        };
        self.write()?;
        // What signs nothing any more is not kept, so that nobody can steal it.
        retired.map_or(Ok(()), |file| self.folder.remove(&file))
    }

    /// Retires the active one; its key's file is to be removed then.
    fn retire(&mut self, level: Level) -> Option<String> {
        let active = self.state.of_mut(level).iter_mut().find(|entry| entry.stage == Stage::Active)?;
        active.stage = Stage::Retired;
        Some(level.key_file(&active.id))
    }

    fn make_root(&mut self, stage: Stage) -> Result<(), CaError> {
        let Plan { lives, trust_domain, .. } = self.plan;
        let id = new_id()?;
        let is_credential = lives.root_is_credential;
        let key = if is_credential { credential(self.plan, &id)? } else { new_key()? };
        let validity = Validity::new(self.now, lives.root, lives.skew, None);
        let certificate = certify::root(trust_domain, &id, &key, validity)?;
        if !is_credential {
            self.folder.write(&Level::Root.key_file(&id), Kind::Secret, &key.serialize_pem())?;
        }
        tracing::info!(root = %id, stage = stage.as_str(), "a new root of trust domain `{trust_domain}`");
        let entry = self.entry(id, stage, &certificate);
        self.state.roots.push(Entry { is_credential, ..entry });
        Ok(())
    }

    fn issuing(&mut self) -> Result<Entry, CaError> {
        let Plan { lives, trust_domain, .. } = self.plan;
        let damaged = |problem| CaError::Damaged { path: self.folder.file(STATE_FILE), problem };
        let root = self.state.at(Level::Root, Stage::Active).cloned();
        let root = root.ok_or_else(|| damaged("no root is active".to_owned()))?;
        let signer = signer(self.plan, self.folder, Level::Root, &root)?;
        let ends = root.validity().map_err(damaged)?.not_after;
        let (id, key) = (new_id()?, new_key()?);
        let validity = Validity::new(self.now, lives.issuing, lives.skew, Some(ends));
        let certificate = certify::issuing(trust_domain, &id, &key, &signer, validity)?;
        self.folder.write(&Level::Issuing.key_file(&id), Kind::Secret, &key.serialize_pem())?;
        let entry = self.entry(id, Stage::Active, &certificate);
        Ok(Entry { root: Some(root.id), ..entry })
    }

    fn entry(&self, id: String, stage: Stage, certificate: &CertificateDer<'_>) -> Entry {
        let certificate = pem("CERTIFICATE", certificate);
        Entry { id, stage, made_at: seconds(self.now), root: None, is_credential: false, certificate }
    }

    fn write(&mut self) -> Result<(), CaError> {
        self.state.generation += 1;
        self.folder.write(STATE_FILE, Kind::Public, &json(&self.state))
    }
}

/// Strings and numbers: that always serialises.
pub(crate) fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// The bytes of hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let byte = |at| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let is_whole = text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_whole.then(|| (0..text.len()).step_by(2).map_while(byte).collect())
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    ::pem::encode(&::pem::Pem::new(label, der))
}

/// Reads and checks all of it: an authority that is half there must not sign.
fn load(plan: &Plan, folder: &Folder) -> Result<(State, Signer, Arc<Bundle>), CaError> {
    let (state, bundle) = read_state(plan, folder)?;
    let mut active = None;
    for (level, entry) in state.all().filter(|(_, entry)| entry.stage != Stage::Retired) {
        let signer = signer(plan, folder, level, entry)?;
        if level == Level::Issuing {
            active = Some(signer);
        }
    }
    let problem = "no issuing certificate is active".to_owned();
    let active = active.ok_or_else(|| CaError::Damaged { path: folder.file(STATE_FILE), problem })?;
    Ok((state, active, Arc::new(bundle)))
}

fn read_state(plan: &Plan, folder: &Folder) -> Result<(State, Bundle), CaError> {
    let path = folder.file(STATE_FILE);
    let damaged = |problem: String| CaError::Damaged { path: path.clone(), problem };
    let text = folder.read(STATE_FILE, Kind::Public)?;
    let text = text.ok_or_else(|| CaError::Incomplete { path: path.clone() })?;
    let state: State = serde_json::from_str(&text).map_err(|problem| damaged(problem.to_string()))?;
    if state.format != FORMAT {
        return Err(CaError::Version { path, found: state.format, expected: FORMAT });
    }
    if state.trust_domain != plan.trust_domain {
        let (found, wanted) = (state.trust_domain, plan.trust_domain.clone());
        return Err(CaError::TrustDomain { path: folder.path.clone(), found, wanted });
    }
    let roots = state.roots.iter().map(Entry::der).collect::<Result<_, _>>().map_err(damaged)?;
    let bundle = Bundle::new(roots).map_err(|problem| damaged(problem.to_string()))?;
    Ok((state, bundle))
}

/// The key of an entry, proven to be its own.
fn signer(plan: &Plan, folder: &Folder, level: Level, entry: &Entry) -> Result<Signer, CaError> {
    let path = folder.file(STATE_FILE);
    let certificate = entry.der().map_err(|problem| CaError::Damaged { path: path.clone(), problem })?;
    let file = folder.file(&level.key_file(&entry.id));
    let (key, path) = if entry.is_credential {
        (credential(plan, &entry.id)?, credential_path(plan)?)
    } else {
        (read_key(&file)?, file)
    };
    let signer = Signer::new(certificate, key)?;
    if public_key(&signer.certificate) != Some(public_key_of(signer.key())) {
        return Err(CaError::Mismatch { path, id: entry.id.clone() });
    }
    Ok(signer)
}

/// The public key of a certificate (SubjectPublicKeyInfo).
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let anchor = webpki::anchor_from_trusted_cert(certificate).ok()?;
    Some(webpki::spki_for_anchor(&anchor).to_vec())
}

/// The same of a key.
pub(crate) fn public_key_of(key: &KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}

fn credential_path(plan: &Plan) -> Result<PathBuf, CaError> {
    let folder = plan.credentials.as_ref().ok_or(CaError::NoCredential { name: CREDENTIAL })?;
    Ok(folder.join(CREDENTIAL))
}

fn credential(plan: &Plan, id: &str) -> Result<KeyPair, CaError> {
    let path = credential_path(plan)?;
    if !path.exists() {
        tracing::error!(root = %id, credential = %path.display(), "no key");
        return Err(CaError::NoCredential { name: CREDENTIAL });
    }
    read_key(&path)
}

fn read_key(path: &std::path::Path) -> Result<KeyPair, CaError> {
    let text = folder::read(path, Kind::Secret)?;
    let text = text.ok_or_else(|| CaError::Incomplete { path: path.to_owned() })?;
    let read = KeyPair::from_pkcs8_pem_and_sign_algo(&text, &rcgen::PKCS_ECDSA_P256_SHA256);
    read.map_err(|problem| CaError::Damaged {
        path: path.to_owned(),
        problem: format!("it is no P-256 key in PKCS#8 PEM ({problem})"),
    })
}

//! What the operator sees of the authority, asks of it, and keeps elsewhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::folder::{self, Folder, Kind};
use super::jwt;
use super::rotation::Step;
use super::state::{Entry, Stage, seconds};
use super::{Authority, CaError, Plan, STATE_FILE, json as text_of, read_state, signer};
use crate::svid::hex;

/// Of a backup.
const BACKUP_FORMAT: u32 = 1;

/// Which certificates of an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// What everybody believes.
    Root,
    /// What signs SVIDs.
    Issuing,
}

/// An authority in one file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    toolgate_authority: u32,
    trust_domain: String,
    made_at: u64,
    files: BTreeMap<String, String>,
}

impl Authority {
    /// Its certificates, each with what it is there for now.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn status(&self, now: SystemTime) -> Result<Value, CaError> {
        let all = |level| -> Result<Vec<Value>, CaError> {
            self.state.of(level).iter().map(|entry| self.told(level, entry)).collect()
        };
        Ok(json!({
            "trust_domain": self.plan.trust_domain,
            "folder": self.folder.path,
            "generation": self.state.generation,
            "roots": all(Level::Root)?,
            "issuing": all(Level::Issuing)?,
            "jwt_keys": self.jwt_status(now),
        }))
    }

    fn told(&self, level: Level, entry: &Entry) -> Result<Value, CaError> {
        let validity = entry.validity().map_err(|problem| self.damaged(problem))?;
        let der = entry.der().map_err(|problem| self.damaged(problem))?;
        let key = match (entry.stage, entry.is_credential) {
            (Stage::Retired, _) => "gone",
            (Stage::Prepared | Stage::Active, true) => "credential",
            (Stage::Prepared | Stage::Active, false) => "file",
        };
        let mut told = json!({
            "id": entry.id,
            "stage": entry.stage.as_str(),
            "made_at": shown(entry.made_at()),
            "not_after": shown(validity.not_after),
            "sha256": fingerprint(&der),
            "key": key,
        });
        if entry.stage == Stage::Prepared {
            told["active_at"] = shown(entry.made_at() + self.plan.lives.overlap).into();
        }
        if level == Level::Issuing {
            told["root"] = entry.root.clone().into();
        }
        Ok(told)
    }

    /// Begins a rotation that is not due yet: a new root is prepared, or a new issuing certificate signs at once.
    ///
    /// # Errors
    /// A root is prepared already, or [`CaError`] as in [`rotate`](Self::rotate).
    pub fn rotate_now(&mut self, level: Level, now: SystemTime) -> Result<(), CaError> {
        let changed = self.change(now, |change| match level {
            Level::Root => match change.state.at(Level::Root, Stage::Prepared) {
                Some(prepared) => {
                    let at = shown(prepared.made_at() + change.plan.lives.overlap);
                    Err(CaError::Prepared { id: prepared.id.clone(), at })
                }
                None => change.take(&Step::MakeRoot { stage: Stage::Prepared }),
            },
            Level::Issuing => change.take(&Step::MakeIssuing),
        });
        changed.map(drop)
    }

    /// All of it in one text, with the keys: whoever has it is the authority.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn backup(&self, now: SystemTime) -> Result<String, CaError> {
        let _lock = self.folder.lock()?;
        let (state, _) = read_state(&self.plan, &self.folder)?;
        let mut files = BTreeMap::new();
        let keys = state.all().filter(|(_, entry)| entry.stage != Stage::Retired && !entry.is_credential);
        for (level, entry) in keys {
            let name = level.key_file(&entry.id);
            let text = self.folder.read(&name, Kind::Secret)?;
            let path = self.folder.file(&name);
            files.insert(name, text.ok_or(CaError::Incomplete { path })?);
        }
        if let Some(text) = self.folder.read(jwt::FILE, Kind::Secret)? {
            files.insert(jwt::FILE.to_owned(), text);
        }
        files.insert(STATE_FILE.to_owned(), text_of(&state));
        let (trust_domain, made_at) = (state.trust_domain, seconds(now));
        Ok(text_of(&Backup { toolgate_authority: BACKUP_FORMAT, trust_domain, made_at, files }))
    }
}

/// Puts an authority where there is none, from a backup's file.
///
/// # Errors
/// There is one, or the backup does not hold together: then nothing is changed.
pub fn restore(plan: &Plan, file: &Path) -> Result<(), CaError> {
    let no_backup = |problem: String| CaError::Backup { path: file.to_owned(), problem };
    let text =
        folder::read(file, Kind::Secret)?.ok_or_else(|| no_backup("there is no such file".to_owned()))?;
    let backup: Backup = serde_json::from_str(&text).map_err(|problem| no_backup(problem.to_string()))?;
    if backup.toolgate_authority != BACKUP_FORMAT {
        return Err(no_backup(format!("it has the format {}", backup.toolgate_authority)));
    }
    let folder = Folder::new(plan.folder());
    let _lock = folder.lock()?;
    if !folder.is_empty()? {
        return Err(CaError::Exists { path: folder.path });
    }
    folder.make(|folder| {
        for (name, text) in &backup.files {
            if name.contains('/') || name.starts_with('.') {
                return Err(no_backup(format!("`{name}` is no file of an authority")));
            }
            let kind = if name == STATE_FILE { Kind::Public } else { Kind::Secret };
            folder.write(name, kind, text)?;
        }
        let (state, _) = read_state(plan, folder)?;
        let mut keys = state.all().filter(|(_, entry)| entry.stage != Stage::Retired && !entry.is_credential);
        keys.try_for_each(|(level, entry)| signer(plan, folder, level, entry).map(drop))
    })
}

/// SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` says it, without the colons.
pub(super) fn fingerprint(certificate: &[u8]) -> String {
    hex(&Sha256::digest(certificate))
}

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

//! What a node keeps of its membership: its key, its certificate, and what it knew last of bundle and revocations.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::super::verify::validity;
use super::{Bundle, JoinError, JoinToken, Revoked};
use crate::ca::folder::{Folder, Kind};
use crate::ca::nodes::read_chain;
use crate::ca::{CaError, pem};
use crate::svid::Serial;

const FILE: &str = "node.json";
const KEY_FILE: &str = "node.key";
const FORMAT: u32 = 1;

/// A node that has joined.
pub(super) struct Member {
    pub(super) node: String,
    pub(super) trust_domain: String,
    /// `host:port`
    pub(super) authority: String,
    pub(super) key: KeyPair,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) not_after: SystemTime,
    pub(super) renew_at: SystemTime,
    pub(super) bundle: Arc<Bundle>,
    pub(super) revoked: Arc<Revoked>,
}

/// `node.json`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    trust_domain: String,
    node: String,
    authority: String,
    chain: String,
    roots: Vec<String>,
    /// What was revoked when it was last heard of.
    revocations: u64,
    revoked_serials: Vec<String>,
    revoked_nodes: Vec<String>,
}

impl Member {
    /// The node's key: made before it joins, so that a lost answer can be asked for again.
    pub(super) fn key(folder: &Folder) -> Result<KeyPair, JoinError> {
        if let Some(key) = read_key(folder)? {
            return Ok(key);
        }
        let key = crate::ca::new_key().map_err(|error| JoinError::File(error.into()))?;
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&folder.path);
        made.map_err(|cause| JoinError::File(CaError::File { path: folder.path.clone(), cause }))?;
        folder.write(KEY_FILE, Kind::Secret, &key.serialize_pem()).map_err(JoinError::File)?;
        Ok(key)
    }

    /// One that has just joined.
    pub(super) fn new(
        token: &JoinToken,
        key: KeyPair,
        chain: &str,
        bundle: Bundle,
        now: SystemTime,
    ) -> Result<Self, String> {
        let revoked = Revoked { trust_domain: token.trust_domain.as_str().into(), ..Revoked::default() };
        let mut member = Self {
            node: token.node.clone(),
            trust_domain: token.trust_domain.clone(),
            authority: token.authority.clone(),
            key,
            chain: Vec::new(),
            not_after: now,
            renew_at: now,
            bundle: Arc::new(bundle),
            revoked: Arc::new(revoked),
        };
        member.renewed(chain, now)?;
        Ok(member)
    }

    /// Takes its next certificate.
    pub(super) fn renewed(&mut self, chain: &str, now: SystemTime) -> Result<(), String> {
        let chain = read_chain(chain)?;
        let leaf = chain.first().ok_or("it issued nothing")?;
        if crate::ca::public_key(leaf).as_deref() != Some(&crate::ca::public_key_of(&self.key)) {
            return Err("it issued a certificate for another key".to_owned());
        }
        let validity = validity(leaf).map_err(|error| error.to_string())?;
        self.not_after = validity.not_after;
        self.renew_at = now + validity.not_after.duration_since(now).unwrap_or_default() / 2;
        self.chain = chain;
        Ok(())
    }

    pub(super) fn save(&self, folder: &Folder) -> Result<(), JoinError> {
        let pems = |all: &[CertificateDer<'_>]| all.iter().map(|one| pem("CERTIFICATE", one)).collect();
        let kept = Kept {
            format: FORMAT,
            trust_domain: self.trust_domain.clone(),
            node: self.node.clone(),
            authority: self.authority.clone(),
            chain: self.chain.iter().map(|one| pem("CERTIFICATE", one)).collect(),
            roots: pems(&self.bundle.roots),
            revocations: self.revoked.number,
            revoked_serials: self.revoked.serials.iter().map(ToString::to_string).collect(),
            revoked_nodes: self.revoked.nodes.iter().map(ToString::to_string).collect(),
        };
        folder.write(FILE, Kind::Public, &crate::ca::json(&kept)).map_err(JoinError::File)
    }

    /// The one that joined before; `None`: it has not yet.
    pub(super) fn load(
        folder: &Folder,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Option<Self>, JoinError> {
        let Some(text) = folder.read(FILE, Kind::Public).map_err(JoinError::File)? else { return Ok(None) };
        let damaged = |problem: String| JoinError::Damaged { path: folder.file(FILE), problem };
        let kept: Kept = serde_json::from_str(&text).map_err(|problem| damaged(problem.to_string()))?;
        if kept.format != FORMAT {
            let (path, found) = (folder.file(FILE), kept.format);
            return Err(JoinError::File(CaError::Version { path, found, expected: FORMAT }));
        }
        if kept.trust_domain != trust_domain {
            let (found, wanted) = (kept.trust_domain, trust_domain.to_owned());
            return Err(JoinError::TrustDomain { found, wanted });
        }
        let key = read_key(folder)?.ok_or_else(|| damaged(format!("`{KEY_FILE}` is missing beside it")))?;
        let roots = kept.roots.iter().map(|root| read_chain(root)).collect::<Result<Vec<_>, _>>();
        let bundle = Bundle::new(roots.map_err(damaged)?.concat());
        let revoked = Revoked {
            trust_domain: trust_domain.into(),
            number: kept.revocations,
            serials: kept.revoked_serials.iter().filter_map(|serial| Serial::parse(serial)).collect(),
            ids: Default::default(),
            nodes: kept.revoked_nodes.iter().map(|node| node.as_str().into()).collect(),
        };
        let mut member = Self {
            node: kept.node,
            trust_domain: kept.trust_domain,
            authority: kept.authority,
            key,
            chain: Vec::new(),
            not_after: now,
            renew_at: now,
            bundle: Arc::new(bundle.map_err(|problem| damaged(problem.to_string()))?),
            revoked: Arc::new(revoked),
        };
        member.renewed(&kept.chain, now).map_err(damaged)?;
        if member.not_after <= now {
            return Err(JoinError::Ended { folder: folder.path.clone(), until: member.not_after });
        }
        Ok(Some(member))
    }
}

fn read_key(folder: &Folder) -> Result<Option<KeyPair>, JoinError> {
    let Some(text) = folder.read(KEY_FILE, Kind::Secret).map_err(JoinError::File)? else { return Ok(None) };
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(&text, &rcgen::PKCS_ECDSA_P256_SHA256);
    let damaged = |problem: rcgen::Error| JoinError::Damaged {
        path: folder.file(KEY_FILE),
        problem: format!("it is no P-256 key in PKCS#8 PEM ({problem})"),
    };
    key.map(Some).map_err(damaged)
}

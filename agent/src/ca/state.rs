//! What the authority keeps of itself: its roots and issuing certificates, each with what it is there for now.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::certify::{self, CertifyError};
use super::operate::Level;
use crate::svid;

/// Of the file below.
pub(super) const FORMAT: u32 = 1;

/// What a root or an issuing certificate is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Peers learn of it; it signs nothing yet.
    Prepared,
    /// It signs.
    Active,
    /// It signs nothing any more, and what it signed is still believed. Its key is gone.
    Retired,
}

impl Stage {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

impl Level {
    /// The file of a key.
    pub(super) fn key_file(self, id: &str) -> String {
        match self {
            Self::Root => format!("root-{id}.key"),
            Self::Issuing => format!("issuing-{id}.key"),
        }
    }
}

/// A root or an issuing certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Its name here, and in its subject.
    pub(super) id: String,
    pub(super) stage: Stage,
    /// When it was made, in seconds since 1970.
    pub(super) made_at: u64,
    /// The root that signed it; none: it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) root: Option<String>,
    /// Whether its key is a systemd credential, and no file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_credential: bool,
    /// The certificate in PEM.
    pub(super) certificate: String,
}

impl Entry {
    pub(super) fn made_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.made_at)
    }

    /// Its certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn der(&self) -> Result<CertificateDer<'static>, String> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        der.map_err(|problem| format!("the certificate of {} cannot be read: {problem}", self.id))
    }

    /// From when to when it is valid.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn validity(&self) -> Result<certify::Validity, String> {
        svid::validity(&self.der()?).map_err(|problem| format!("{}: {problem}", self.id))
    }
}

/// `authority.json`: whoever replaces it changes whom everybody believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) format: u32,
    pub(super) trust_domain: String,
    /// Counts up with every change.
    pub(super) generation: u64,
    pub(super) roots: Vec<Entry>,
    pub(super) issuing: Vec<Entry>,
}

impl State {
    pub(super) fn new(trust_domain: &str) -> Self {
        let trust_domain = trust_domain.to_owned();
        Self { format: FORMAT, trust_domain, generation: 0, roots: Vec::new(), issuing: Vec::new() }
    }

    pub(super) fn of(&self, level: Level) -> &[Entry] {
        match level {
            Level::Root => &self.roots,
            Level::Issuing => &self.issuing,
        }
    }

    pub(super) fn of_mut(&mut self, level: Level) -> &mut Vec<Entry> {
        match level {
            Level::Root => &mut self.roots,
            Level::Issuing => &mut self.issuing,
        }
    }

    /// The one that is at a stage; there are several retired ones, and at most one of the others.
    pub(super) fn at(&self, level: Level, stage: Stage) -> Option<&Entry> {
        self.of(level).iter().find(|entry| entry.stage == stage)
    }

    /// All entries with their level.
    pub(super) fn all(&self) -> impl Iterator<Item = (Level, &Entry)> {
        let roots = self.roots.iter().map(|entry| (Level::Root, entry));
        roots.chain(self.issuing.iter().map(|entry| (Level::Issuing, entry)))
    }
}

/// Eight hexadecimal digits.
pub(super) fn new_id() -> Result<String, CertifyError> {
    Ok(svid::Serial::new(&certify::random::<4>()?).to_string())
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

//! The certificates: root, issuing, and SVIDs as the X509-SVID specification has them. All keys are ECDSA P-256.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use toolgate_core::spiffe::SpiffeId;

use crate::svid::Serial;

/// Bytes of a serial number: unguessable, and positive in twenty octets (RFC 5280, 4.1.2.2).
const SERIAL_BYTES: usize = 16;

/// The organisation in the subject of SVIDs whose keys processes hold themselves. Agents take none of these for each other's.
const PROCESSES: &str = "workload-api";

/// Who has the key of an SVID.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Holder {
    /// An agent, for a workload or a server behind it.
    #[default]
    Agent,
    /// The process itself, past its agent.
    Process,
}

impl Holder {
    pub(crate) fn is_agent(&self) -> bool {
        *self == Self::Agent
    }

    /// As the organisations of an SVID's subject say it, whatever trust domain it is of.
    pub(crate) fn named_by<'o>(mut organisations: impl Iterator<Item = &'o str>) -> Self {
        if organisations.any(|name| name == PROCESSES) { Self::Process } else { Self::Agent }
    }
}

/// Whom an SVID is issued to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct IssuedTo<'n> {
    /// The node, so that all of it can be revoked; `None`: the authority's own.
    pub(crate) node: Option<&'n str>,
    pub(crate) holder: Holder,
}

/// A certificate could not be made: names that do not fit, or no randomness.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate: {0}")]
pub struct CertifyError(String);

impl CertifyError {
    /// A key that cannot sign.
    pub(crate) fn of_key(error: &rustls::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rcgen::Error> for CertifyError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl CertifyError {
    pub(super) fn no_key() -> Self {
        Self("a new key is none".to_owned())
    }
}

impl From<aws_lc_rs::error::Unspecified> for CertifyError {
    fn from(error: aws_lc_rs::error::Unspecified) -> Self {
        Self(error.to_string())
    }
}

/// From when to when, in whole seconds as certificates have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: SystemTime,
    /// The first one after it.
    pub not_after: SystemTime,
}

impl Validity {
    /// From `now` for `ttl`, valid also for peers whose clocks are late by `skew`, and no longer than who signs it.
    pub(super) fn new(
        now: SystemTime,
        ttl: Duration,
        skew: Duration,
        signer_ends: Option<SystemTime>,
    ) -> Self {
        let whole = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            UNIX_EPOCH + Duration::from_secs(since.as_secs())
        };
        let not_after = whole(now + ttl);
        Self {
            not_before: whole(now.checked_sub(skew).unwrap_or(UNIX_EPOCH)),
            not_after: signer_ends.map_or(not_after, |ends| ends.min(not_after)),
        }
    }
}

/// A key that signs certificates, with its own.
pub(super) struct Signer {
    pub(super) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// Who signs with `key` as `certificate` says.
    pub(super) fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, CertifyError> {
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    pub(super) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    #[cfg(test)]
    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// A new key.
pub(crate) fn new_key() -> Result<KeyPair, CertifyError> {
    Ok(KeyPair::generate()?)
}

/// A root of a trust domain.
pub(super) fn root(
    trust_domain: &str,
    id: &str,
    key: &KeyPair,
    validity: Validity,
) -> Result<CertificateDer<'static>, CertifyError> {
    let mut params = authority(trust_domain, &format!("Toolgate root {id}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params.self_signed(key)?.into())
}

/// A certificate that signs SVIDs and nothing below them.
pub(super) fn issuing(
    trust_domain: &str,
    id: &str,
    key: &KeyPair,
    root: &Signer,
    validity: Validity,
) -> Result<CertificateDer<'static>, CertifyError> {
    let mut params = authority(trust_domain, &format!("Toolgate issuing {id}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Ok(params.signed_by(key, &root.issuer)?.into())
}

/// The leaf of an SVID: exactly one URI, no CA, for both ends of TLS.
pub(super) fn svid(
    id: &SpiffeId,
    to: IssuedTo<'_>,
    key: &impl PublicKeyData,
    issuing: &Signer,
    validity: Validity,
) -> Result<(CertificateDer<'static>, Serial), CertifyError> {
    let mut params = params(id.as_str(), validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    let name = id.path().rsplit('/').next().unwrap_or_default();
    let holder = (!to.holder.is_agent()).then_some(PROCESSES);
    params.distinguished_name = names(&[
        (DnType::OrganizationName, holder),
        (DnType::OrganizationalUnitName, to.node),
        (DnType::CommonName, Some(name)),
    ]);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
    Ok((params.signed_by(key, &issuing.issuer)?.into(), Serial::new(&serial)))
}

fn authority(trust_domain: &str, name: &str, validity: Validity) -> Result<CertificateParams, CertifyError> {
    let mut params = params(&format!("spiffe://{trust_domain}"), validity)?;
    params.distinguished_name =
        names(&[(DnType::OrganizationName, Some(trust_domain)), (DnType::CommonName, Some(name))]);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(uri: &str, validity: Validity) -> Result<CertificateParams, CertifyError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    let mut serial = random::<SERIAL_BYTES>()?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn names(all: &[(DnType, Option<&str>)]) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    for (kind, name) in all {
        if let Some(name) = name {
            names.push(kind.clone(), *name);
        }
    }
    names
}

/// Bytes that nobody can guess.
pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES], CertifyError> {
    let mut bytes = [0; BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).map_err(|_| CertifyError("no randomness".to_owned()))?;
    Ok(bytes)
}

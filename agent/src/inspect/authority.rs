//! The authority of what is read: made at the start, its key nowhere but in memory.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SigningKey};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use toolgate_core::decision::Excluded;

use super::InspectError;
use crate::ca::{CertifyError, new_key, random};
use crate::svid::hex;

/// For how long the authority may sign. It ends before, with its key: no agent runs for so long.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For how long what it shows is valid; made anew at half of that.
pub const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Clocks of containers and machines below this one may be late.
const SKEW: Duration = Duration::from_secs(3600);

/// The authority.
pub(super) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// Of all that is shown: who has it could be any of these servers to the clients of this node, and it is here alone.
    leaf_key: KeyPair,
    signing: Arc<dyn SigningKey>,
}

/// What the agent that takes over gets, by the socket between the two. It is never shown.
#[derive(Clone, Serialize, Deserialize)]
pub struct Kept {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, which can sign nothing that is `excluded`.
    pub(super) fn new(excluded: &[Excluded], now: SystemTime) -> Result<Self, CertifyError> {
        let mut params = params(now, LIFE)?;
        let number = random::<4>()?;
        params.distinguished_name = named(&format!("Toolgate inspection {}", hex(&number)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if !excluded.is_empty() {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: Vec::new(),
                excluded_subtrees: excluded.iter().map(subtree).collect(),
            });
        }
        let key = new_key()?;
        let certificate: CertificateDer<'static> = params.self_signed(&key)?.into();
        Self::with(certificate, key)
    }

    /// That of the agent before.
    pub(super) fn restored(kept: Kept) -> Result<Self, InspectError> {
        let Kept { certificate, key } = kept;
        let key =
            KeyPair::try_from(key).map_err(|error| InspectError::Kept { problem: error.to_string() })?;
        Ok(Self::with(certificate.into(), key)?)
    }

    fn with(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, CertifyError> {
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let leaf_key = new_key()?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing = any_ecdsa_type(&private).map_err(|error| CertifyError::of_key(&error))?;
        Ok(Self { certificate, issuer, leaf_key, signing })
    }

    pub(super) fn kept(&self) -> Kept {
        Kept { certificate: self.certificate.to_vec(), key: self.issuer.key().serialize_der() }
    }

    /// In PEM.
    pub(super) fn certificate(&self) -> String {
        pem(&self.certificate)
    }

    /// SHA-256, in hex.
    pub(super) fn fingerprint(&self) -> String {
        hex(&sha2::Sha256::digest(&self.certificate))
    }

    /// What is shown in the place of a server.
    pub(super) fn leaf(
        &self,
        name: &ServerName<'static>,
        now: SystemTime,
    ) -> Result<Arc<CertifiedKey>, CertifyError> {
        let mut params = params(now, LEAF_LIFE)?;
        params.distinguished_name = named("read by Toolgate");
        let name = if let ServerName::IpAddress(address) = name {
            SanType::IpAddress(IpAddr::from(*address))
        } else {
            SanType::DnsName(name.to_str().into_owned().try_into()?)
        };
        params.subject_alt_names = vec![name];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf: CertificateDer<'static> = params.signed_by(&self.leaf_key, &self.issuer)?.into();
        Ok(Arc::new(CertifiedKey::new(vec![leaf], Arc::clone(&self.signing))))
    }
}

/// A certificate in PEM.
pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", certificate.to_vec()), config)
}

fn subtree(excluded: &Excluded) -> GeneralSubtree {
    match excluded {
        Excluded::Name(name) => GeneralSubtree::DnsName(name.clone()),
        Excluded::Address(address) => {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, prefix))
        }
    }
}

fn params(now: SystemTime, life: Duration) -> Result<CertificateParams, CertifyError> {
    let mut params = CertificateParams::default();
    params.not_before = now.checked_sub(SKEW).unwrap_or(UNIX_EPOCH).into();
    params.not_after = (now + life).into();
    let mut serial = random::<16>()?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

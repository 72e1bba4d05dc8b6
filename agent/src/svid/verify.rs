//! Whether a peer is who its certificate says: X509-SVID, held against the bundle of its own trust domain alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use toolgate_core::spiffe::SpiffeId;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::{Serial, Trust, VerifyError};
use crate::ca::{Holder, Validity};

/// What the other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It connected.
    Client,
    /// It was connected to.
    Server,
}

/// Who a certificate was proven to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub id: SpiffeId,
    /// Of the leaf.
    pub serial: Serial,
    /// The node that it was issued to, where the authority says one.
    pub node: Option<Box<str>>,
    /// Whether the workload's process has the key itself: then its agent has not seen what it says.
    pub is_process: bool,
    /// When the leaf ends, and with it what it opened.
    pub not_after: SystemTime,
}

/// Proves who has shown a chain (leaf first). Whether that is who was expected, the caller compares: the exact ID.
///
/// # Errors
/// [`VerifyError`]: believe nothing of it.
pub fn verify(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    role: Role,
    now: SystemTime,
) -> Result<Peer, VerifyError> {
    let (leaf, rest) = chain.split_first().ok_or(VerifyError::None)?;
    let unreadable = |cause: webpki::Error| VerifyError::Unreadable { cause: cause.to_string() };
    let peer = read(&parsed(leaf)?)?;
    let id = peer.id.clone();
    let bundle =
        trust.bundle(id.trust_domain()).ok_or_else(|| VerifyError::UnknownTrustDomain { id: id.clone() })?;
    let end_entity = EndEntityCert::try_from(leaf).map_err(unreadable)?;
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let time = UnixTime::since_unix_epoch(since_epoch);
    end_entity
        .verify_for_usage(algorithms, &bundle.anchors, rest, time, usage, None, None)
        .map_err(|cause| in_our_words(&cause, &id, now))?;
    if trust.revoked.covers(&peer) {
        return Err(VerifyError::Revoked { id });
    }
    Ok(peer)
}

/// Who a chain that was proven already says that it is.
pub(crate) fn shown_by(chain: &[CertificateDer<'_>]) -> Result<Peer, VerifyError> {
    read(&parsed(chain.first().ok_or(VerifyError::None)?)?)
}

/// From when to when a certificate is valid.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, VerifyError> {
    let parsed = parsed(certificate)?;
    let at = |time: x509_parser::time::ASN1Time| system_time(time.timestamp());
    let validity = parsed.validity();
    Ok(Validity { not_before: at(validity.not_before), not_after: at(validity.not_after) })
}

fn parsed<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, VerifyError> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(|cause| VerifyError::Unreadable { cause: cause.to_string() })
}

/// Reads what an X509-SVID must say of itself (X509-SVID, 2 and 4).
fn read(leaf: &X509Certificate<'_>) -> Result<Peer, VerifyError> {
    let unreadable =
        |cause: x509_parser::error::X509Error| VerifyError::Unreadable { cause: cause.to_string() };
    let names = leaf.subject_alternative_name().map_err(unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris.as_slice() else { return Err(VerifyError::NotOneId { count: uris.len() }) };
    let id = SpiffeId::parse(uri)?;
    if id.path().is_empty() {
        return Err(VerifyError::NoPath { id });
    }
    let usage = |problem| VerifyError::Usage { id: id.clone(), problem };
    if leaf.is_ca() {
        return Err(usage("it may sign other certificates (CA)"));
    }
    match leaf.key_usage().map_err(unreadable)? {
        None => return Err(usage("it has no key usage")),
        Some(flags) if !flags.value.digital_signature() => {
            return Err(usage("its key may not sign (digitalSignature)"));
        }
        Some(flags) if flags.value.key_cert_sign() || flags.value.crl_sign() => {
            return Err(usage("its key may sign certificates (keyCertSign, cRLSign)"));
        }
        Some(_) => {}
    }
    let node = leaf.subject().iter_organizational_unit().next().and_then(|unit| unit.as_str().ok());
    let organisations = leaf.subject().iter_organization().filter_map(|name| name.as_str().ok());
    Ok(Peer {
        is_process: Holder::named_by(organisations) == Holder::Process,
        serial: Serial::new(leaf.raw_serial()),
        node: node.map(Into::into),
        not_after: system_time(leaf.validity().not_after.timestamp()),
        id,
    })
}

/// Of seconds since 1970.
fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "webpki's enum is open: its own words do for the rest")]
fn in_our_words(cause: &webpki::Error, id: &SpiffeId, now: SystemTime) -> VerifyError {
    let id = id.clone();
    let at = |time: &UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
    match cause {
        webpki::Error::CertExpired { not_after, .. } => {
            VerifyError::Expired { id, not_after: at(not_after), now }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            VerifyError::NotYetValid { id, not_before: at(not_before), now }
        }
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            VerifyError::Issuer { id }
        }
        other => VerifyError::Chain { id, cause: other.to_string() },
    }
}

//! Certificates and keys: who is believed, and what the agent shows of itself to servers without an agent.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_saphyr::Spanned;
use toolgate_core::decision::ClientCertificate;
use toolgate_core::secret::Secret;
use toolgate_core::workload::Sha256;

use super::diagnostic::Diagnostic;
use super::schema::Given;
use super::source::Source;
use super::words::{self, Findings};
use crate::inspect::provider;

/// The most bytes of a file of certificates, or of a key.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// The certificates of a file, each of which may sign.
pub(super) fn read_roots(source: &Source, word: &Spanned<String>) -> Result<Arc<[Box<[u8]>]>, Diagnostic> {
    roots(source, word, &read_file(source, word, ROOTS_HELP)?.0, ROOTS_HELP)
}

const ROOTS_HELP: &str = "name a file of CA certificates in PEM";

/// Certificates in PEM, each of which may sign.
pub(super) fn roots<T>(
    source: &Source,
    at: &Spanned<T>,
    pem: &[u8],
    help: &str,
) -> Result<Arc<[Box<[u8]>]>, Diagnostic> {
    let roots = certificates(source, at, pem, help)?;
    for (index, root) in roots.iter().enumerate() {
        webpki::anchor_from_trusted_cert(&CertificateDer::from(&**root)).map_err(|error| {
            source.error(at, format!("certificate {} is none: {error}", index + 1)).help(help)
        })?;
    }
    Ok(roots.into())
}

/// The certificate by which the agent is known to a server, and its key, where a Server names their files.
pub(super) fn read_certificate_files(
    source: &Source,
    certificate: &Given<String>,
    key: &Given<String>,
    findings: &mut Findings,
) -> Option<Arc<ClientCertificate>> {
    let (certificate, key) = both(source, ("certificate_file", certificate), ("key_file", key), findings)?;
    let read = || {
        let chain = read_file(source, certificate, "name a file of a certificate in PEM")?.0;
        let (pem, mode) = read_file(source, key, "name a file of a key in PEM")?;
        if is_open(mode) {
            return Err(too_open(source, key, mode, &key.value));
        }
        shown(source, (certificate, &chain), (key, &pem))
    };
    findings.keep(read())
}

/// Two values of which none says anything without the other.
pub(super) fn both<'v, T>(
    source: &Source,
    (name, one): (&str, &'v Given<T>),
    (other_name, other): (&str, &'v Given<T>),
    findings: &mut Findings,
) -> Option<(&'v Spanned<T>, &'v Spanned<T>)> {
    let (at, has, lacks) = match (one, other) {
        (None, None) => return None,
        (Some(one), Some(other)) => return Some((one, other)),
        (Some(one), None) => (one, name, other_name),
        (None, Some(other)) => (other, other_name, name),
    };
    let fault = source.error(at, format!("`{has}` says nothing without `{lacks}`"));
    findings.push(fault.help(format!("add `{lacks}`: a certificate is shown by who has its key")));
    None
}

/// Whether others than its owner may get at a file of these permissions.
pub(super) fn is_open(mode: u32) -> bool {
    mode & 0o077 != 0
}

/// A key that others may read is none.
pub(super) fn too_open<T>(source: &Source, at: &Spanned<T>, mode: u32, file: &str) -> Diagnostic {
    let mode = mode & 0o777;
    let fault = source.error(at, format!("others may get at this key (mode {mode:04o} of `{file}`)"));
    fault.help(format!("`chmod 600 {file}`, and a new key if others have had this one"))
}

/// What is shown, of texts in PEM.
pub(super) fn shown<T>(
    source: &Source,
    (certificate, chain): (&Spanned<T>, &[u8]),
    (key, pem): (&Spanned<T>, &[u8]),
) -> Result<Arc<ClientCertificate>, Diagnostic> {
    let chain = certificates(source, certificate, chain, "the server's owner gives it, in PEM")?;
    let fault = |what: String| {
        source.error(key, what).help("it is the key of that certificate, in PEM, without a passphrase")
    };
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| fault(format!("it is no key: {error}")))?;
    let secret = Secret::new(key.secret_der());
    let ders = chain.iter().map(|one| CertificateDer::from(one.to_vec())).collect();
    CertifiedKey::from_der(ders, key, &provider())
        .map_err(|error| fault(format!("it is not the key of the certificate: {error}")))?;
    Ok(Arc::new(ClientCertificate { chain: chain.into(), key: secret }))
}

fn certificates<T>(
    source: &Source,
    at: &Spanned<T>,
    pem: &[u8],
    help: &str,
) -> Result<Vec<Box<[u8]>>, Diagnostic> {
    let fault = |what: String| source.error(at, what).help(help);
    let all = CertificateDer::pem_slice_iter(pem).map(|one| one.map(|one| one.as_ref().into()));
    let all: Vec<_> =
        all.collect::<Result<_, _>>().map_err(|error| fault(format!("it is no PEM: {error}")))?;
    if all.is_empty() { Err(fault("there is no certificate in it".to_owned())) } else { Ok(all) }
}

/// What is in a file, and who may do what with it.
fn read_file(source: &Source, word: &Spanned<String>, help: &str) -> Result<(Vec<u8>, u32), Diagnostic> {
    let path = words::file_path(source, word)?;
    let fault = |what: String| source.error(word, what).help(help);
    let metadata = std::fs::metadata(&path).map_err(|error| fault(format!("cannot read it: {error}")))?;
    let length = metadata.len();
    if length > PEM_BYTES_MAX {
        return Err(fault(format!("it has {length} bytes, more than {PEM_BYTES_MAX}")));
    }
    let text = std::fs::read(&path).map_err(|error| fault(format!("cannot read it: {error}")))?;
    Ok((text, metadata.permissions().mode()))
}

pub(super) fn read_pin(source: &Source, word: &Spanned<String>) -> Result<Sha256, Diagnostic> {
    Sha256::from_hex(&word.value).ok_or_else(|| {
        let fault = source.error(word, "a pin is the SHA-256 of a public key: 64 digits");
        fault.help(
            "`openssl x509 -in CERT -noout -pubkey | openssl pkey -pubin -outform der | sha256sum` shows it",
        )
    })
}

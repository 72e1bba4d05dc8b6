//! Dapr's HTTPEndpoint: an external server with an App ID, which gets headers of its own and may ask for a certificate.

use std::sync::Arc;

use serde_saphyr::Spanned;
use toolgate_core::address;
use toolgate_core::decision::{ClientCertificate, External, Host, Place, Proof};
use toolgate_core::http1::{OwnHeader, OwnHeaderError};

use super::certificates::{self, both, is_open, roots, too_open};
use super::diagnostic::Diagnostic;
use super::place::{Found, Url, in_the_clear};
use super::schema::{
    ClientTlsSpec, DaprResource, EndpointSpec, Given, HeaderSpec, Later, Metadata, Outside, ServerSpec,
    TextSpec,
};
use super::source::Source;
use super::words::{self, Findings};

/// What Dapr's clients call of a server, behind its `baseUrl`.
const METHOD: &str = "/mcp";
/// The most headers of one endpoint.
const HEADERS_MAX: usize = 32;
/// The most bytes of them all.
const HEADERS_BYTES_MAX: usize = 8192;

/// The Server that it comes to.
pub(super) fn server(
    source: &Source,
    resource: DaprResource<EndpointSpec>,
) -> Result<(Metadata, ServerSpec), Diagnostic> {
    let DaprResource { metadata, spec, auth, scopes, .. } = resource;
    if let Some(word) = scopes {
        let fault = source.error(&word, "`scopes` is not read: who may call is said by Policies alone");
        return Err(fault.help(format!(
            "leave it out, and name these App IDs as `callers` in a rule whose `servers` has `{}`",
            metadata.name.value
        )));
    }
    if let Some(word) = auth {
        return Err(secret(source, &word, "auth"));
    }
    let Spanned { value, referenced, defined } = spec;
    let external = Some(Spanned { value: Outside::Daprs(value), referenced, defined });
    Ok((metadata, ServerSpec { external, ..ServerSpec::default() }))
}

/// Where it is.
pub(super) fn read(
    source: &Source,
    metadata: &Metadata,
    endpoint: &EndpointSpec,
    findings: &mut Findings,
) -> Option<Found> {
    let EndpointSpec { base_url, headers, client_tls } = endpoint;
    let Some(word) = base_url else {
        let fault = source.error(&metadata.name, "`baseUrl` is missing");
        findings.push(fault.help("add `baseUrl: https://api.example.com`"));
        return None;
    };
    let headers = headers.as_ref().map(|headers| read_headers(source, headers, findings)).unwrap_or_default();
    let url = findings.keep(Url::read(source, word))?;
    if let Host::Address(literal) = url.host
        && let Some(special) = address::special(literal)
    {
        let fault = source.error(word, format!("`{literal}` is no public address ({special})"));
        findings.push(fault.help("declare a `Server` with `external: { url: .., allow_private: true }`"));
    }
    let tls = client_tls.as_ref().map(|tls| read_tls(source, tls, findings)).unwrap_or_default();
    match (url.is_https, client_tls) {
        (true, _) => {}
        (false, None) => findings.push(in_the_clear(source, word)),
        (false, Some(tls)) => {
            let fault = source.error(tls, "`clientTLS` says nothing where the `baseUrl` is `http`");
            findings.push(fault.help("leave it out, or write an `https` URL"));
        }
    }
    let base = url.path.strip_suffix('/').unwrap_or(&url.path);
    let external = External::new(url.host, url.port, url.is_https.then_some(tls), None, false);
    let external = External { base: base.into(), own_headers: headers.into(), ..external };
    Some(Found { path: Some(format!("{base}{METHOD}")), place: Place::External(Arc::new(external)) })
}

fn read_headers(
    source: &Source,
    list: &Spanned<Vec<Spanned<HeaderSpec>>>,
    findings: &mut Findings,
) -> Vec<OwnHeader> {
    let mut all: Vec<OwnHeader> = Vec::new();
    let mut bytes = 0;
    for spec in &list.value {
        let HeaderSpec { name, value, secret_key_ref, env_ref } = &spec.value;
        refuse_secrets(source, &[("secretKeyRef", secret_key_ref), ("envRef", env_ref)], findings);
        let (Some(name), Some(value)) = (name, value) else {
            if secret_key_ref.is_none() && env_ref.is_none() {
                let fault = source.error(spec, "a header is a `name` and a `value`");
                findings.push(fault.help("write `{ name: Accept-Language, value: en }`"));
            }
            continue;
        };
        bytes += name.value.len() + value.value.len();
        if all.iter().any(|other| other.is(name.value.as_bytes())) {
            let fault = source.error(name, format!("`{}` is given twice", name.value));
            findings.push(fault.help("keep one of them: a server gets one"));
        }
        all.extend(findings.keep(own_header(source, name, value)));
    }
    if all.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        let most =
            format!("at most {HEADERS_MAX} headers, of {HEADERS_BYTES_MAX} bytes in all, can be added");
        findings.push(source.error(list, most).help("leave some out"));
    }
    all
}

fn own_header(
    source: &Source,
    name: &Spanned<String>,
    value: &Spanned<String>,
) -> Result<OwnHeader, Diagnostic> {
    OwnHeader::new(&name.value, &value.value).map_err(|error| {
        let help = match error {
            OwnHeaderError::Name => "write letters, digits and hyphens",
            OwnHeaderError::Agents => "leave it out",
            OwnHeaderError::Value => "write it in one line, without spaces around",
        };
        source.error(name, format!("`{}` cannot be added: {error}", name.value)).help(help)
    })
}

fn read_tls(source: &Source, tls: &Spanned<ClientTlsSpec>, findings: &mut Findings) -> Proof {
    let ClientTlsSpec { root_ca, certificate, private_key, renegotiation } = &tls.value;
    if let Some(word) = renegotiation.as_ref().filter(|word| word.value != "Never") {
        let fault = source.error(word, format!("`{}`: no TLS is negotiated anew here", word.value));
        findings.push(fault.help("leave `renegotiation` out: TLS 1.3 does not have it"));
    }
    let root_ca = read_text(source, root_ca, findings).and_then(|(at, pem)| {
        findings.keep(roots(source, at, pem, "write CA certificates in PEM: `value: |`"))
    });
    let pair = both(source, ("certificate", certificate), ("privateKey", private_key), findings);
    let shown = pair.and_then(|_| read_shown(source, certificate, private_key, findings));
    Proof { roots: root_ca, pins: Arc::default(), shown }
}

fn read_shown(
    source: &Source,
    certificate: &Given<TextSpec>,
    key: &Given<TextSpec>,
    findings: &mut Findings,
) -> Option<Arc<ClientCertificate>> {
    let (certificate, key) = (read_text(source, certificate, findings), read_text(source, key, findings));
    let (certificate, key) = (certificate?, key?);
    if is_open(source.mode) {
        let fault = too_open(source, key.0, source.mode, &source.file.display().to_string());
        findings.push(fault);
    }
    findings.keep(certificates::shown(source, certificate, key))
}

/// A part of `clientTLS`, and its text.
fn read_text<'s>(
    source: &Source,
    part: &'s Given<TextSpec>,
    findings: &mut Findings,
) -> Option<(&'s Spanned<TextSpec>, &'s [u8])> {
    let part = part.as_ref()?;
    let TextSpec { value, secret_key_ref } = &part.value;
    refuse_secrets(source, &[("secretKeyRef", secret_key_ref)], findings);
    if value.is_none() && secret_key_ref.is_none() {
        findings.push(source.error(part, "`value` is missing").help("write it in PEM: `value: |`"));
    }
    value.as_ref().map(|value| (part, value.value.as_bytes()))
}

/// Secrets that are elsewhere.
fn refuse_secrets(source: &Source, keys: &[(&str, &Later)], findings: &mut Findings) {
    for (name, word) in keys.iter().filter_map(|(name, word)| Some((name, word.as_ref()?))) {
        findings.push(secret(source, word, name));
    }
}

fn secret<T>(source: &Source, at: &Spanned<T>, name: &str) -> Diagnostic {
    words::later(source, at, name)
        .help("write its `value` here, in a file that only root may read (`chmod 600`)")
}

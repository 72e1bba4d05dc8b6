//! TLS that clients speak: whose is read, and of which hosts never.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use serde_saphyr::Spanned;
use toolgate_core::decision::{Excluded, TlsRule};

use super::agent::Capture;
use super::certificates::read_roots;
use super::diagnostic::Diagnostic;
use super::schema::{CaptureFile, Given};
use super::source::Source;
use super::words::{Findings, choice};

/// `capture.tls` and what goes with it.
pub(super) fn read(source: &Source, file: &CaptureFile, capture: &mut Capture, findings: &mut Findings) {
    let rules = [("opaque", TlsRule::Opaque), ("inspect", TlsRule::Inspect), ("deny", TlsRule::Deny)];
    let rule = findings.keep(choice(source, &file.tls, ("tls", capture.tls), &rules, &[]));
    let Some(rule) = rule else { return };
    capture.tls = rule;
    let of_inspection = [
        ("tls_exclude", file.tls_exclude.as_ref().map(|word| word.referenced)),
        ("tls_roots", file.tls_roots.as_ref().map(|word| word.referenced)),
    ];
    for (name, at) in of_inspection.into_iter().filter_map(|(name, at)| Some((name, at?))) {
        if rule != TlsRule::Inspect {
            let fault = source.error_at(at, format!("`{name}` says nothing without `tls: inspect`"));
            findings.push(fault.help("leave it out, or write `tls: inspect`"));
        }
    }
    for word in file.tls_exclude.iter().flat_map(|list| &list.value) {
        capture.tls_exclude.extend(findings.keep(excluded(source, word)));
    }
    if let Some(word) = &file.tls_roots {
        capture.tls_roots = findings.keep(read_roots(source, word)).unwrap_or_else(|| Arc::from([]));
    }
}

fn excluded(source: &Source, word: &Spanned<String>) -> Result<Excluded, Diagnostic> {
    let text = word.value.strip_suffix('.').unwrap_or(&word.value);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Excluded::Address(address.to_canonical()));
    }
    match ServerName::try_from(text) {
        Ok(ServerName::DnsName(name)) => Ok(Excluded::Name(name.as_ref().to_ascii_lowercase())),
        Ok(_) | Err(_) => {
            let fault =
                source.error(word, format!("`{}` is neither a host's name nor an address", word.value));
            Err(fault.help("write `bank.example`: it and all below it are left alone"))
        }
    }
}

/// Whether a Workload has its TLS read.
pub(super) fn opts_in(
    source: &Source,
    given: &Given<String>,
    rule: TlsRule,
    findings: &mut Findings,
) -> bool {
    let choices = [("opaque", false), ("inspect", true)];
    let opts_in = findings.keep(choice(source, given, ("tls", false), &choices, &[])) == Some(true);
    if let (Some(word), true) = (given, opts_in && rule != TlsRule::Inspect) {
        let fault = source.error(word, "this node reads nobody's TLS");
        findings.push(
            fault.help("write `capture: { tls: inspect }` into toolgate.yaml, and start the agent anew"),
        );
    }
    opts_in
}

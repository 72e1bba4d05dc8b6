//! `identity:` of `toolgate.yaml`: who issues this node's SVIDs, and how long everything lives.

use std::path::PathBuf;
use std::time::Duration;

use serde_saphyr::Spanned;

use super::diagnostic::Diagnostic;
use super::schema::{Given, IdentityFile};
use super::source::Source;
use super::words::{self, Findings, choice};

/// The shortest life: certificates count whole seconds.
const TTL_MIN: Duration = Duration::from_secs(2);
/// The longest: X.509 could have more, and nobody would know the key any more.
const TTL_MAX: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// `identity:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// Who issues.
    pub source: IdentitySource,
    /// How long an SVID lives; it is renewed at half of that.
    pub svid_ttl: Duration,
    /// The same of the certificate that signs them.
    pub issuing_ttl: Duration,
    /// The same of the root.
    pub root_ttl: Duration,
    /// How long a root is in everybody's bundle before it signs.
    pub overlap: Duration,
    /// How late peers' clocks may be.
    pub clock_skew: Duration,
    /// Where the root's key is.
    pub root_key: RootKey,
    /// Where the token is that this node joins by.
    pub token_file: Option<PathBuf>,
}

/// Who issues SVIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentitySource {
    /// This agent is an authority.
    Embedded,
    /// Another one, that this node joins.
    Join,
}

/// Where the key of the authority's root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootKey {
    /// A file in the state directory.
    File,
    /// A credential of the service manager's.
    Credential,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            source: IdentitySource::Embedded,
            svid_ttl: hours(24),
            issuing_ttl: hours(30 * 24),
            root_ttl: hours(5 * 365 * 24),
            overlap: hours(1),
            clock_skew: Duration::from_secs(300),
            root_key: RootKey::File,
            token_file: None,
        }
    }
}

/// Where the service manager puts what it gives to this process alone (systemd.exec(5)), if it does.
#[must_use]
pub fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

pub(super) fn read(source: &Source, file: &IdentityFile, findings: &mut Findings) -> IdentityConfig {
    let mut identity = IdentityConfig::default();
    let built = [("embedded", IdentitySource::Embedded), ("join", IdentitySource::Join)];
    let default = ("source", identity.source);
    let later = ["workload-api"];
    identity.source =
        findings.keep(choice(source, &file.source, default, &built, &later)).unwrap_or(default.1);
    let built = [("file", RootKey::File), ("credential", RootKey::Credential)];
    let default = ("root_key", identity.root_key);
    identity.root_key =
        findings.keep(choice(source, &file.root_key, default, &built, &[])).unwrap_or(default.1);
    let times = [
        (&file.svid_ttl, &mut identity.svid_ttl, TTL_MIN),
        (&file.issuing_ttl, &mut identity.issuing_ttl, TTL_MIN),
        (&file.root_ttl, &mut identity.root_ttl, TTL_MIN),
        (&file.overlap, &mut identity.overlap, Duration::ZERO),
        (&file.clock_skew, &mut identity.clock_skew, Duration::ZERO),
    ];
    for (word, place, min) in times {
        if let Some(word) = word {
            *place = findings.keep(time(source, word, min)).unwrap_or(*place);
        }
    }
    if let Some(word) = &file.token_file {
        identity.token_file = findings.keep(words::file_path(source, word));
    }
    relations(source, file, &identity, findings);
    identity
}

fn time(source: &Source, word: &Spanned<String>, min: Duration) -> Result<Duration, Diagnostic> {
    let time = words::duration(source, word)?;
    if time < min || time > TTL_MAX {
        let fault = source.error(word, format!("`{}` is no life of a certificate", word.value));
        return Err(fault.help("write from `2s` to `175200h`"));
    }
    Ok(time)
}

/// What signs must outlive what it signs, also when half of its own life is over. A node that joins is told all lives.
fn relations(source: &Source, file: &IdentityFile, identity: &IdentityConfig, findings: &mut Findings) {
    let IdentityConfig { svid_ttl, issuing_ttl, root_ttl, overlap, .. } = identity.clone();
    if identity.source == IdentitySource::Join {
        let ours = [&file.svid_ttl, &file.issuing_ttl, &file.root_ttl, &file.overlap, &file.clock_skew];
        for word in ours.into_iter().chain([&file.root_key]).flatten() {
            let fault = source.error(word, "with `source: join` that is the authority's to say");
            findings.push(fault.help("leave it out, and write it on the authority's node"));
        }
        return;
    }
    if let Some(word) = &file.token_file {
        let fault = source.error(word, "`token_file` is for nodes that join: this one is its own authority");
        findings.push(fault.help("write `source: join`, or leave it out"));
    }
    let given = |words: &[&Given<String>]| words.iter().find_map(|word| (*word).clone());
    if svid_ttl > issuing_ttl / 2
        && let Some(word) = given(&[&file.svid_ttl, &file.issuing_ttl])
    {
        let message = "`svid_ttl` is more than half of `issuing_ttl`: SVIDs would end with what signs them";
        findings.push(source.error(&word, message).help("make `issuing_ttl` at least twice as long"));
    }
    if issuing_ttl + overlap > root_ttl / 2
        && let Some(word) = given(&[&file.issuing_ttl, &file.overlap, &file.root_ttl])
    {
        let message = "`issuing_ttl` and `overlap` are more than half of `root_ttl`: a root would end before what it signs";
        findings.push(source.error(&word, message).help("make `root_ttl` at least twice as long as both"));
    }
}

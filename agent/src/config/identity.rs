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
    /// The Workload API that it asks: `unix:PATH`.
    pub socket: Option<String>,
}

/// Who issues SVIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentitySource {
    /// This agent is an authority.
    Embedded,
    /// Another one, that this node joins.
    Join,
    /// Whoever serves a Workload API to this agent.
    WorkloadApi,
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
            socket: None,
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
    let built = [
        ("embedded", IdentitySource::Embedded),
        ("join", IdentitySource::Join),
        ("workload-api", IdentitySource::WorkloadApi),
    ];
    let default = ("source", identity.source);
    identity.source = findings.keep(choice(source, &file.source, default, &built, &[])).unwrap_or(default.1);
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
    if identity.source == IdentitySource::WorkloadApi {
        identity.socket = findings.keep(socket(source, file));
    }
    identity
}

/// Where SPIFFE has it that a Workload API is named.
const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

fn socket(source: &Source, file: &IdentityFile) -> Result<String, Diagnostic> {
    let help = "write `socket: unix:///run/spire/agent/public/api.sock`, or the socket's path";
    let Some(word) = &file.socket else {
        let given = std::env::var(SOCKET_VARIABLE).ok();
        let Some(path) = given.as_deref().and_then(socket_path) else {
            let message = format!("there is no `socket`, and {SOCKET_VARIABLE} names none either");
            let place = file.source.as_ref().map(|word| source.error(word, &message));
            return Err(place.unwrap_or_else(|| Diagnostic::of_file(&source.file, message)).help(help));
        };
        return Ok(path);
    };
    let fault = || source.error(word, format!("`{}` is no Unix socket", word.value)).help(help);
    socket_path(&word.value).ok_or_else(fault)
}

/// `unix:PATH`, of what says the same: TCP could be anybody's.
fn socket_path(text: &str) -> Option<String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    let path = path.strip_prefix("//").unwrap_or(path);
    path.starts_with('/').then(|| format!("unix:{path}"))
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
    if identity.source != IdentitySource::WorkloadApi
        && let Some(word) = &file.socket
    {
        let fault = source.error(word, "`socket` is of `source: workload-api`");
        findings.push(fault.help("write that source, or leave it out"));
    }
    if identity.source != IdentitySource::Embedded {
        let ours = [&file.svid_ttl, &file.issuing_ttl, &file.root_ttl, &file.overlap, &file.clock_skew];
        for word in ours.into_iter().chain([&file.root_key]).flatten() {
            let fault = source.error(word, "with that `source` it is the authority's to say");
            findings.push(fault.help("leave it out, and write it where the authority is"));
        }
    }
    if identity.source != IdentitySource::Join
        && let Some(word) = &file.token_file
    {
        let fault = source.error(word, "`token_file` is for nodes that join: this one does not");
        findings.push(fault.help("write `source: join`, or leave it out"));
    }
    if identity.source != IdentitySource::Embedded {
        return;
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

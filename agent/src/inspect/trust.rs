//! Where clients find whom to believe: the authority alone, and with whom the system believes.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::InspectError;
use super::authority::pem;

/// Variables that name whom a client believes: OpenSSL, Python's `ssl` and `httpx`, Go, Rust's `rustls-native-certs`; Python's
/// `requests`; curl; Node, which believes its own besides.
const VARIABLES: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];

/// Two files in a directory that everybody may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    directory: PathBuf,
    /// The authority alone.
    pub authority: PathBuf,
    /// It and whom the system believes.
    pub bundle: PathBuf,
}

impl Files {
    /// Those of an agent, beside its admin socket.
    #[must_use]
    pub fn beside(admin: &Path) -> Self {
        let directory = admin.with_file_name("inspect");
        Self { authority: directory.join("authority.pem"), bundle: directory.join("bundle.pem"), directory }
    }

    /// What a client's environment must have.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        VARIABLES.iter().map(|name| (*name, &*self.bundle))
    }

    /// Writes both, each whole.
    pub(super) fn write(&self, authority: &str) -> Result<(), InspectError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |cause| InspectError::Write { path, cause }
        };
        fs::create_dir_all(&self.directory)
            .and_then(|()| fs::set_permissions(&self.directory, Permissions::from_mode(0o755)))
            .map_err(failed(&self.directory))?;
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "a certificate of the system is left out of what clients are to believe");
        }
        let mut bundle: String = system.certs.iter().map(pem).collect();
        bundle.push_str(authority);
        replace(&self.authority, authority).map_err(failed(&self.authority))?;
        replace(&self.bundle, &bundle).map_err(failed(&self.bundle))
    }
}

/// Readers see the old or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("fresh");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask: other users' programs read it.
    file.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(&fresh, path)
}

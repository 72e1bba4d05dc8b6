//! The digest of arguments: a MAC with a key of this node, so that the audit tells equal arguments from different ones
//! without telling what they are.
//!
//! BLAKE3 in its keyed mode (its paper, 2.3 and 6): SHA-256 over arguments of 64 KiB would cost more than all else of a
//! call. By hand: `b3sum --keyed ARGUMENTS < audit.key`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::AuditError;

const KEY_BYTES: usize = 32;
const KEY_FILE: &str = "audit.key";

/// Computes keyed BLAKE3 with the node's key.
pub struct Digester {
    key: [u8; KEY_BYTES],
}

impl Digester {
    /// Reads the node's key from the state directory, or makes one there (mode 0600).
    ///
    /// # Errors
    /// [`AuditError::Key`] where it can be neither read nor made, or others may read it.
    pub fn open(state_directory: &Path) -> Result<Self, AuditError> {
        let path = state_directory.join(KEY_FILE);
        let fault = |problem: String| AuditError::Key { path: path.clone(), problem };
        let key = match std::fs::read(&path) {
            Ok(key) => {
                let mode = std::fs::metadata(&path).map_err(|e| fault(e.to_string()))?.mode();
                if mode & 0o077 != 0 {
                    return Err(fault(format!("mode {:o} lets others read it: chmod 600", mode & 0o777)));
                }
                key
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                create(state_directory, &path).map_err(|e| fault(e.to_string()))?
            }
            Err(error) => return Err(fault(error.to_string())),
        };
        let key = key.try_into().map_err(|key: Vec<u8>| {
            fault(format!("has {} bytes, not {KEY_BYTES}: remove it to get a new one", key.len()))
        })?;
        Ok(Self { key })
    }

    /// What the audit shows of `text`.
    #[must_use]
    pub fn digest(&self, text: &[u8]) -> [u8; 32] {
        blake3::keyed_hash(&self.key, text).into()
    }
}

fn create(state_directory: &Path, path: &Path) -> std::io::Result<Vec<u8>> {
    std::fs::create_dir_all(state_directory)?;
    let mut key = vec![0; KEY_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_the_specifications() {
        // BLAKE3's own test_vectors.json, keyed_hash of no input.
        let digester = Digester { key: *b"whats the Elvish word for friend" };
        assert_eq!(digester.digest(b"")[..6], [0x92, 0xb2, 0xb7, 0x56, 0x04, 0xed]);
    }

    #[test]
    fn the_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let first = Digester::open(dir.path()).unwrap().digest(b"x");
        assert_eq!(Digester::open(dir.path()).unwrap().digest(b"x"), first);
        let key = dir.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        let widen = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&key, widen).unwrap();
        let error = Digester::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("644"), "{error}");
    }
}

//! The folder of an authority or of a node that has joined one: who may use its files, and how they are written: whole or not at all, on disk before anything
//! is said.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::CaError;
use crate::file::{Sync, stamp};

/// The most bytes of one of its files.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What a file may let others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: a key.
    Secret,
    /// Read it.
    Public,
}

impl Kind {
    /// Permissions that others must not have.
    fn forbidden(self) -> u32 {
        match self {
            Self::Secret => 0o077,
            Self::Public => 0o022,
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Secret => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// A folder that root alone uses.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether it has nothing in it, or is not there.
    ///
    /// # Errors
    /// It cannot be read, or is another's.
    pub(crate) fn is_empty(&self) -> Result<bool, CaError> {
        match fs::read_dir(&self.path) {
            Ok(mut entries) => {
                let folder = File::open(&self.path).map_err(|cause| failed(&self.path, cause))?;
                check(&folder, &self.path, Kind::Public)?;
                Ok(entries.next().is_none())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(cause) => Err(failed(&self.path, cause)),
        }
    }

    /// Until what is returned is dropped no other agent, and no `restore`, changes anything: the lock is on the folder
    /// around it, which is there before it.
    ///
    /// # Errors
    /// The folder around it cannot be made or locked.
    pub(crate) fn lock(&self) -> Result<File, CaError> {
        let around = self.path.parent().unwrap_or(&self.path);
        fs::create_dir_all(around).map_err(|cause| failed(around, cause))?;
        let locked = File::open(around).and_then(|around| around.lock().map(|()| around));
        locked.map_err(|cause| failed(around, cause))
    }

    /// The contents of a file; `None`: there is none.
    ///
    /// # Errors
    /// It is another's, others may use it, or it cannot be read.
    pub(crate) fn read(&self, name: &str, kind: Kind) -> Result<Option<String>, CaError> {
        read(&self.file(name), kind)
    }

    /// Puts a file in the place of the one before.
    ///
    /// # Errors
    /// It cannot be written; then the one before is still there.
    pub(crate) fn write(&self, name: &str, kind: Kind, text: &str) -> Result<(), CaError> {
        let path = self.file(name);
        let new = self.file(&format!(".{name}.new"));
        let written = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(kind.mode())
                .custom_flags(libc::O_NOFOLLOW)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        written().map_err(|cause| failed(&path, cause))
    }

    /// Removes a file; one that is gone already is as good.
    pub(crate) fn remove(&self, name: &str) -> Result<(), CaError> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&self.file(name), error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes it with all that `fill` writes, or not at all.
    ///
    /// # Errors
    /// Something is there already, or it cannot be written.
    pub(crate) fn make(&self, fill: impl FnOnce(&Self) -> Result<(), CaError>) -> Result<(), CaError> {
        let around = self.path.parent().unwrap_or(&self.path);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let new = Self::new(around.join(format!(".{name}.new")));
        let begun = || {
            // What an earlier attempt left is nothing that was ever used.
            match fs::remove_dir_all(&new.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            fs::DirBuilder::new().mode(0o700).create(&new.path)
        };
        begun().map_err(|cause| failed(&new.path, cause))?;
        fill(&new)?;
        // Takes the place of nothing, or of an empty folder.
        let done = || {
            fs::rename(&new.path, &self.path)?;
            File::open(around)?.sync_all()
        };
        done().map_err(|cause| failed(&self.path, cause))
    }
}

/// Reads a file that nobody else may have written, or read where it is a secret.
pub(crate) fn read(path: &Path, kind: Kind) -> Result<Option<String>, CaError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed(path, cause)),
    };
    check(&file, path, kind)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|cause| failed(path, cause))?;
    Ok(Some(text))
}

fn check(file: &File, path: &Path, kind: Kind) -> Result<(), CaError> {
    let stamp = stamp(file, Sync::AsStat).map_err(|cause| failed(path, cause))?;
    let ours = nix::unistd::geteuid().as_raw();
    if stamp.uid != ours {
        return Err(CaError::Owner { path: path.to_owned(), owner: stamp.uid, ours });
    }
    if stamp.mode & kind.forbidden() != 0 {
        let is_folder = !stamp.is_file();
        let wanted = if is_folder { 0o700 } else { kind.mode() };
        return Err(CaError::Mode { path: path.to_owned(), mode: stamp.mode & 0o7777, wanted });
    }
    Ok(())
}

fn failed(path: &Path, cause: io::Error) -> CaError {
    CaError::File { path: path.to_owned(), cause }
}

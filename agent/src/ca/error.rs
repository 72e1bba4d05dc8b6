//! Why the authority cannot be used: which file, what is wrong with it, and what to do. Nothing is overwritten then.

use std::io;
use std::path::PathBuf;

use super::certify::CertifyError;

/// What keeps the authority from being used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file system.
    #[error("cannot use `{}`: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Others may read a key, or write what is believed.
    #[error(
        "`{}` has mode {mode:o}, which others may use: see who did, `toolgate ca rotate` if a key was read, \
         then chmod {wanted:o}", path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What it should have.
        wanted: u32,
    },
    /// Somebody else's.
    #[error("`{}` belongs to uid {owner}, not to {ours}: see who made it, then chown it", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs the agent.
        ours: u32,
    },
    /// A folder without what makes it an authority.
    #[error(
        "`{}` is missing beside other files: restore a backup (`toolgate ca restore`), or move the folder away for a new \
         authority", path.display()
    )]
    Incomplete {
        /// The file.
        path: PathBuf,
    },
    /// It was cut off, or its bytes are not those that were written.
    #[error("`{}` of the authority is damaged: {problem}; restore a backup (`toolgate ca restore`)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Key and certificate of two authorities, or of two times.
    #[error(
        "the key in `{}` is not that of certificate {id}: put back the key that belongs to it, or restore a backup \
         (`toolgate ca restore`)", path.display()
    )]
    Mismatch {
        /// The key's file.
        path: PathBuf,
        /// Which certificate it should belong to.
        id: String,
    },
    /// Another trust domain's.
    #[error(
        "the authority in `{}` is of trust domain `{found}`, and `trust_domain` says `{wanted}`: correct it, or move the \
         folder away for a new authority", path.display()
    )]
    TrustDomain {
        /// Its folder.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// What is configured.
        wanted: String,
    },
    /// Another version wrote it.
    #[error("`{}` has the format {found}, and this version reads {expected}: run the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The one that is read.
        expected: u32,
    },
    /// The service manager gave none.
    #[error(
        "the root's key is to come from the systemd credential `{name}` (identity.root_key), and there is none: add \
         `LoadCredentialEncrypted={name}:FILE` to the unit, or leave identity.root_key out"
    )]
    NoCredential {
        /// Its name.
        name: &'static str,
    },
    /// No root that can sign.
    #[error(
        "root {id} of the authority has ended, or this clock is wrong; where its key is a systemd credential, leave \
         identity.root_key out and say `toolgate ca rotate`"
    )]
    RootEnded {
        /// Which root.
        id: String,
    },
    /// There is one already.
    #[error("`{}` exists, and is left as it is: move it away first if the backup is to take its place", path.display())]
    Exists {
        /// Its folder.
        path: PathBuf,
    },
    /// No backup of an authority.
    #[error("`{}` is no backup of an authority: {problem}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A rotation is under way.
    #[error("root {id} is prepared already, and signs from {at} on")]
    Prepared {
        /// Which root.
        id: String,
        /// When.
        at: String,
    },
    /// A node, token or revocation that cannot be.
    #[error(transparent)]
    Unregistrable(super::Unregistrable),
    /// The certificates.
    #[error(transparent)]
    Certify(#[from] CertifyError),
}

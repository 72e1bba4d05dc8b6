//! Why the store cannot be used, each with the next step. Nothing is overwritten then.

use std::io;
use std::path::PathBuf;

/// What keeps the store from being used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system.
    #[error("cannot use the store `{}` (store.embedded): {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Others may read or write it.
    #[error("the store `{}` has mode {mode:o}, which others may use: see who wrote to it, then chmod 600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is no store of Toolgate's.
    #[error("`{}` is no store of Toolgate's: {problem}; move it away, or name another folder (store.embedded)", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        problem: String,
    },
    /// Another version wrote it.
    #[error(
        "the store `{}` has the format {found}, and this version reads {expected}: run the version that wrote it, or move it \
         away, and nothing is approved any more", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The one that is read.
        expected: i64,
    },
    /// It is cut off, or its bytes are not those that were written.
    #[error(
        "the store `{}` is damaged: {problem}; put back a copy of it, or move it away, and nothing is approved any more",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// SQLite, while the file itself is as it should be.
    #[error("cannot use the store `{}`: {cause}", path.display())]
    Sql {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        cause: rusqlite::Error,
    },
    /// Its thread.
    #[error("the store's thread has ended; restart the agent")]
    Gone,
}

//! Programs by name, those of the administrator included, which may be outside an ordinary user's `PATH`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::workspace::find_program;

/// Its file, if there is one.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    find_program(name).or_else(|| {
        let folders = ["/usr/sbin", "/sbin"].map(Path::new);
        folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
    })
}

/// The same; without it a virtual machine cannot be made.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    match find(name) {
        Some(file) => Ok(file),
        None => bail!("`{name}` is missing on this machine, and the virtual machine needs it: install it"),
    }
}

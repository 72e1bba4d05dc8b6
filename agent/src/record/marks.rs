//! Marks of the agents that write the audit: a file each, locked as long as its process lives. One that is there and not
//! locked is of an agent that died: what it had not written yet is missing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Below the state directory.
const FOLDER: &str = "audit.writers";

/// This agent's mark. It stays behind where the process dies.
#[derive(Debug)]
pub(super) struct Mark {
    folder: PathBuf,
    own: PathBuf,
    /// Held: the kernel releases it with the process.
    _lock: File,
}

impl Mark {
    /// Makes it.
    pub(super) fn make(state_directory: &Path) -> io::Result<Self> {
        let folder = state_directory.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let own = folder.join(std::process::id().to_string());
        // A dead agent with the same process id has left its mark in the same place: it is seen as one more that died.
        if own.exists() {
            fs::rename(&own, own.with_extension("dead"))?;
        }
        let lock = File::create(&own)?;
        lock.lock()?;
        Ok(Self { folder, own, _lock: lock })
    }

    /// Removes the marks of agents that died. How many.
    pub(super) fn remove_dead(&self) -> io::Result<usize> {
        let mut dead = 0;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path == self.own {
                continue;
            }
            let died = match File::open(&path) {
                Ok(mark) => mark.try_lock().is_ok(),
                // It has ended in order meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if died {
                fs::remove_file(&path)?;
                dead += 1;
            }
        }
        Ok(dead)
    }

    /// All is written.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.own) {
            tracing::warn!(mark = %self.own.display(), %error, "the next agent will take this one for dead");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_are_counted() {
        let state = tempfile::tempdir().unwrap();
        let mark = Mark::make(state.path()).unwrap();
        let another = mark.folder.join("1");
        let alive = File::create(&another).unwrap();
        alive.lock().unwrap();
        assert_eq!(mark.remove_dead().unwrap(), 0);
        drop(alive);
        assert_eq!(mark.remove_dead().unwrap(), 1);
        assert!(!another.exists() && mark.own.exists());
        // A process id that is used again.
        fs::write(&another, "").unwrap();
        fs::rename(&another, &mark.own).unwrap();
        let again = Mark::make(state.path()).unwrap();
        assert_eq!(again.remove_dead().unwrap(), 1);
        again.remove();
        assert_eq!(fs::read_dir(&again.folder).unwrap().count(), 0);
    }
}

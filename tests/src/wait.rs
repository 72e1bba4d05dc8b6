//! The one place that polls: for what sends no event to wait for, such as a file's growth or another process's end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::PATIENCE;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `found` has something.
///
/// # Errors
/// `found` fails, or has nothing for too long; then `what` says what was missing.
pub fn until<T>(what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}

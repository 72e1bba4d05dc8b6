//! What a refused call says.

use anyhow::{Context as _, Result};

/// Programs choose the errno of what they refuse since this version of the kernel (bpf_set_retval).
const CHOSEN_SINCE: (u32, u32) = (5, 18);

/// The name of the errno that a caller gets where a program refuses with `chosen`: on older kernels it is EPERM.
///
/// # Errors
/// The kernel's version is not to be read.
pub fn refusal(chosen: &str) -> Result<&str> {
    Ok(if kernel()? >= CHOSEN_SINCE { chosen } else { "EPERM" })
}

/// The first two numbers of this kernel's version.
///
/// # Errors
/// It is not to be read.
pub fn kernel() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel release")?;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("`{release}` is no kernel release"),
    }
}

//! What processes use, as the kernel counts it.

use std::fs;

use anyhow::{Context as _, Result};

/// A process and all that it started, as they are now.
pub(super) fn tree(root: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list `/proc`")? {
        let name = entry.context("cannot list `/proc`")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that ended meanwhile is nobody's.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&one) = found.get(next) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == one).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(found)
}

/// Nanoseconds on a CPU (user and system) of all threads that live now.
pub(super) fn cpu_ns(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in processes {
        let folder = format!("/proc/{pid}/task");
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list `{folder}`"))? {
            let file = entry.with_context(|| format!("cannot list `{folder}`"))?.path().join("schedstat");
            let text = fs::read_to_string(&file).unwrap_or_default(); // a thread that ended
            sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// Resident memory in MiB; pages that processes share count in each.
pub(super) fn resident_mib(processes: &[u32]) -> Result<f64> {
    let mut kib = 0;
    for pid in processes {
        let file = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read `{file}`"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().split(' ').next()?.parse::<u32>().ok());
        kib += number.with_context(|| format!("no VmRSS in `{file}`"))?;
    }
    Ok(f64::from(kib) / 1024.0)
}

/// Open descriptors.
pub(super) fn descriptors(process: u32) -> Result<usize> {
    let folder = format!("/proc/{process}/fd");
    Ok(fs::read_dir(&folder).with_context(|| format!("cannot list `{folder}`"))?.count())
}

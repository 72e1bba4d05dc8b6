//! What only the start needed is given back, and what calls needed once nobody calls any more.

use std::fs;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

/// How long nothing must have gone through a connection, and how long it is at least from one time to the next.
const QUIET_MIN: Duration = Duration::from_secs(10);
/// What is less is not worth the page faults of the next call.
const GROWN_BYTES_MIN: usize = 1 << 20;

/// Blocks of so many bytes are mapped one by one, and so much of a heap that is free at its end is given back.
const HEAP_BYTES_MAX: libc::c_int = 1 << 20;

/// Lets the C library's heaps keep what they need and little more. By itself it keeps twice the largest block that was ever
/// freed, and the kernel's types, read at the start, are blocks of megabytes (mallopt(3)).
pub(super) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt(3) is given numbers alone, and may be called at any time.
        unsafe {
            libc::mallopt(parameter, HEAP_BYTES_MAX);
        }
    }
}

/// When memory is to be given back again: calls, canaries and sweeps bring pages of the program back, and nothing else takes
/// them away. The kernel maps a whole large folio, where its page cache has one, for each page that is touched (Linux 6.18).
pub(super) struct Rest {
    since: Instant,
    kept_bytes: usize,
}

impl Rest {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, kept_bytes: 0 }
    }

    /// Whether it is now; `is_busy`: a connection had something to do since this was last asked.
    pub(super) fn is_due(&mut self, is_busy: bool, now: Instant, resident_bytes: usize) -> bool {
        if is_busy {
            self.since = now;
        }
        self.kept_bytes = self.kept_bytes.min(resident_bytes);
        now.duration_since(self.since) >= QUIET_MIN && resident_bytes - self.kept_bytes >= GROWN_BYTES_MIN
    }

    /// It was given back, all but so much.
    pub(super) fn gave_back(&mut self, now: Instant, resident_bytes: usize) {
        (self.since, self.kept_bytes) = (now, resident_bytes);
    }
}

/// What is resident of this process; 0 where that cannot be told.
pub(super) fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    pages * page.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default()
}

/// Frees what was used and is no more: heap (of the start: the kernel's types, the configuration as text), and the pages of the
/// program. They are the file's, stay in the page cache, and come again from there when they are needed.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is given no memory of ours, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default(); // then all stays mapped
    for (start, length) in unchanged(&maps) {
        // SAFETY: a mapping of a file that this process cannot write to, with no page that is not the file's: each
        // that is dropped is read again, with the same bytes, when it is next touched (madvise(2)).
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED);
        }
    }
}

/// Where proc_pid_smaps(5) says that a file is mapped, not writable, and no page is another than the file's: where addresses were
/// relocated, or a debugger has set a breakpoint, some are.
fn unchanged(maps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in maps.lines() {
        match line.strip_prefix("Anonymous:").map(str::trim) {
            Some("0 kB") => found.extend(mapping.take()),
            Some(_) => mapping = None,
            None => mapping = of_file(line).or(mapping),
        }
    }
    found
}

/// The place and length of a mapping by its first line, if it is a private one of a file, and not writable.
fn of_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_fixed = matches!(fields.next()?, "r-xp" | "r--p") && fields.nth(3)?.starts_with('/');
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    is_fixed.then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_where_it_grew_and_nobody_calls() {
        const MIB: usize = 1 << 20;
        let begun = Instant::now();
        let mut rest = Rest::new(begun);
        // (seconds, busy, MiB resident, whether it is given back, what is left then)
        let table = [
            (9, false, 14, false, 14),
            (10, false, 14, true, 6),
            (19, false, 14, false, 14),
            (20, false, 6, false, 6),
            (60, false, 8, true, 7),
            (69, true, 14, false, 14),
            (78, true, 14, false, 14),
            (87, false, 14, false, 14),
            (88, false, 14, true, 7),
            (100, false, 4, false, 4),
            (101, false, 6, true, 4),
        ];
        for (seconds, is_busy, mib, expected, left) in table {
            let now = begun + Duration::from_secs(seconds);
            let is_due = rest.is_due(is_busy, now, mib * MIB);
            assert_eq!(is_due, expected, "after {seconds} s");
            if is_due {
                rest.gave_back(now, left * MIB);
            }
        }
    }

    #[test]
    fn only_what_a_file_says_again_is_dropped() {
        let file = "00001000 fe:00 1234     /usr/bin/toolgate";
        let table = [
            (format!("5000-9000 r-xp {file}"), "0 kB", Some((0x5000, 0x4000))),
            (format!("5000-9000 r--p {file} (deleted)"), "0 kB", Some((0x5000, 0x4000))),
            (format!("5000-9000 r-xp {file}"), "4 kB", None),
            (format!("5000-9000 r--p {file}"), "424 kB", None),
            (format!("5000-9000 rw-p {file}"), "0 kB", None),
            (format!("5000-9000 rwxp {file}"), "0 kB", None),
            (format!("5000-9000 r-xs {file}"), "0 kB", None),
            ("5000-9000 r-xp 00000000 00:00 0".to_owned(), "0 kB", None),
            ("5000-9000 r--s 00000000 00:0e 9     anon_inode:bpf-map".to_owned(), "0 kB", None),
            ("7ff0-7ff2 r-xp 00000000 00:00 0     [vdso]".to_owned(), "0 kB", None),
        ];
        let more = "Size:  16 kB\nRss:  16 kB\nPrivate_Dirty:  0 kB\n";
        let mut all = (String::new(), Vec::new());
        for (line, anonymous, expected) in table {
            let mapping = format!("{line}\n{more}Anonymous:  {anonymous}\nVmFlags: rd ex mr mw me\n");
            assert_eq!(unchanged(&mapping), Vec::from_iter(expected), "{mapping}");
            all.0 += &mapping;
            all.1.extend(expected);
        }
        assert_eq!(unchanged(&all.0), all.1, "one after another");
    }
}

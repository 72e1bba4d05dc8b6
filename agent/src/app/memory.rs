//! What only the start needed is given back.

use std::fs;

/// Frees what the start has used: its heap (the kernel's types, the configuration as text), and the pages of the program that it
/// alone has touched. They are the file's, and come again from the page cache when they are needed.
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

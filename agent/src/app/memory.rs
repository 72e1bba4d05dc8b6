//! What only the start needed is given back.

use std::fs;

/// Frees what the start has used: its heap (the kernel's types, the configuration as text), and the pages of code that ran once.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is given no memory of ours, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default(); // then all stays mapped
    for (start, length) in maps.lines().filter_map(code) {
        // SAFETY: a mapping of a file that this process cannot write to: each page that is dropped is read
        // again, with the same bytes, when it is next touched (madvise(2)).
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED);
        }
    }
}

/// Where a line of proc_pid_maps(5) maps code from a file, and how much. Other read-only mappings may have been relocated.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let of_file = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    of_file.then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_from_a_file_is_dropped() {
        let table = [
            (
                "5568ae417000-5568aeef6000 r-xp 0035d000 fe:00 1234     /usr/bin/toolgate",
                Some((0x5568_ae41_7000, 0xad_f000)),
            ),
            (
                "5568ae417000-5568aeef6000 r-xp 0035d000 fe:00 1234     /a b (deleted)",
                Some((0x5568_ae41_7000, 0xad_f000)),
            ),
            ("5568ae0ba000-5568ae417000 r--p 00000000 fe:00 1234     /usr/bin/toolgate", None),
            ("5568ae0ba000-5568ae417000 rwxp 00000000 fe:00 1234     /usr/bin/toolgate", None),
            ("5568ae0ba000-5568ae417000 r-xs 00000000 fe:00 1234     /usr/bin/toolgate", None),
            ("7f1a03886000-7f1a039dc000 r-xp 00000000 00:00 0", None),
            ("7fff43b20000-7fff43b22000 r-xp 00000000 00:00 0        [vdso]", None),
            ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]", None),
            ("", None),
        ];
        for (line, expected) in table {
            assert_eq!(code(line), expected, "{line}");
        }
    }
}

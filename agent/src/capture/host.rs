//! What the host says about itself and the agent: read once, before anything is attached.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::{fs, io, path::PathBuf, ptr};

use super::CaptureError;

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) at: PathBuf,
    pub(super) kind: String,
    /// Of the file system: controllers of a version 1 hierarchy are among them.
    pub(super) options: String,
}

impl Mount {
    pub(super) fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }
}

/// What is mounted in the agent's namespace.
pub(super) fn mounts() -> Result<Vec<Mount>, CaptureError> {
    let text = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|source| CaptureError::Host { what: "reading `/proc/self/mountinfo`", cause: source })?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// `36 35 98:0 /root /mount/point options [fields...] - type source options` (proc_pid_mountinfo(5)).
fn parse_mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let at = front.split(' ').nth(4)?;
    let mut back = back.split(' ');
    let kind = back.next()?.to_owned();
    let options = back.nth(1).unwrap_or_default().to_owned();
    Some(Mount { at: PathBuf::from(unescape(at)), kind, options })
}

/// Space, tab, newline and backslash are octal there.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// A file of a file system that nobody has mounted, through a mount that nobody sees (fsopen(2), Linux 5.2).
pub(super) fn read_unmounted(kind: &CStr, file: &str) -> io::Result<String> {
    /// FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC, FSCONFIG_CMD_CREATE (linux/mount.h).
    const CLOEXEC: libc::c_ulong = 1;
    const CREATE: libc::c_ulong = 6;
    // SAFETY: the pointer is to a text that outlives the call.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    let none = ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    if unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a call without pointers.
    let mount = descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })?;
    fs::read_to_string(format!("/proc/self/fd/{}/{file}", mount.as_raw_fd()))
}

fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the call that returned it has just made it, for nobody else.
        Ok(made) if made >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(made) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// The agent's effective capabilities, a bit each.
pub(super) fn capabilities() -> Result<u64, CaptureError> {
    let failed =
        |cause| CaptureError::Host { what: "reading the capabilities in `/proc/self/status`", cause };
    let status = fs::read_to_string("/proc/self/status").map_err(failed)?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .ok_or_else(|| failed(io::Error::other("no line `CapEff`")))
}

/// The kernel, as uname has it.
pub(super) fn release() -> Result<String, CaptureError> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|cause| CaptureError::Host { what: "reading `/proc/sys/kernel/osrelease`", cause })?;
    Ok(release.trim_end().to_owned())
}

/// Major and minor number of a release: `5.10.0-46-cloud-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// Whether the kernel is at least `major.minor`.
pub(super) fn since(major: u32, minor: u32) -> Result<bool, CaptureError> {
    let release = release()?;
    let found = version(&release).ok_or(CaptureError::KernelTooOld { release })?;
    Ok(found >= (major, minor))
}

/// The start of a process in nanoseconds since boot, as the half-open range that a tick spans.
pub(super) fn start_ns(process: u32) -> Result<(u64, u64), CaptureError> {
    let failed =
        |source| CaptureError::Host { what: "reading a start time in `/proc/PID/stat`", cause: source };
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).map_err(failed)?;
    let ticks = start_ticks(&stat).ok_or_else(|| failed(io::Error::other("no field 22")))?;
    // SAFETY: a call without pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).ok().filter(|&ticks| ticks > 0).unwrap_or(100);
    let tick_ns = 1_000_000_000 / per_second;
    Ok((ticks * tick_ns, (ticks + 1) * tick_ns))
}

/// Field 22 of proc_pid_stat(5), counted behind the name, which may hold anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(22 - 3)?.parse().ok()
}

/// CLOCK_MONOTONIC, as bpf_ktime_get_ns has it.
pub(super) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer, and a clock that every Linux has, so that it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let check = |line: &str, expected: Option<(&str, &str, &str)>| {
            let expected = expected.map(|(at, kind, options)| Mount {
                at: PathBuf::from(at),
                kind: kind.to_owned(),
                options: options.to_owned(),
            });
            assert_eq!(parse_mount(line), expected, "{line}");
        };
        check(
            "35 25 0:30 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw",
            Some(("/sys/fs/cgroup/unified", "cgroup2", "rw")),
        );
        check("36 25 0:31 / /a\\040b rw - bpf bpf rw", Some(("/a b", "bpf", "rw")));
        check(
            "37 25 0:32 / /c rw shared:1 - cgroup cgroup rw,net_cls,net_prio",
            Some(("/c", "cgroup", "rw,net_cls,net_prio")),
        );
        let controllers = parse_mount("37 25 0:32 / /c rw - cgroup c rw,net_cls,net_prio").unwrap();
        assert!(controllers.has_option("net_prio") && !controllers.has_option("net"));
        check("36 25 0:31", None);
        check("", None);
    }

    #[test]
    fn start_time_behind_a_name_with_brackets() {
        let stat = "1 (a) b) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 4711 21 22";
        // The name holds the delimiter: fields are counted from the last one.
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("1 (a) S 2"), None);
    }
}

//! What of this host keeps the agent from capturing: read first, so that nothing is half attached, and told by name.
//!
//! The reading is [`Facts::read`], the verdict [`Facts::judge`], which is pure.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::CaptureError;
use super::btf::VMLINUX;
use super::host::{self, Mount};

/// `/proc` names the initial PID namespace by this inode (PROC_PID_INIT_INO).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const BPFFS: &str = "/sys/fs/bpf";
const CAP_SYS_ADMIN: u32 = 21;

/// What the agent cannot do without, by their numbers (linux/capability.h).
const WANTED: [(&str, u32); 4] =
    [("CAP_DAC_READ_SEARCH", 2), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// CAP_SYS_ADMIN includes those that were once a part of it.
const OF_SYS_ADMIN: [u32; 2] = [38, 39];

/// The oldest kernel that has all that the programs use.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// From here on classes of version 1 are kept apart from a socket's cgroup (8520e224f547).
const KERNEL_CLASSES_APART: (u32, u32) = (5, 15);

/// What the host says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    /// Effective capabilities, a bit each.
    capabilities: u64,
    /// As uname has it.
    release: String,
    /// The agent's PID namespace is the host's.
    initial_pid_namespace: bool,
    /// The kernel describes its types.
    btf: bool,
    /// `none [integrity] confidentiality`; `None`: no lockdown, or the agent may not look.
    lockdown: Option<String>,
    /// There is a directory for the bpf file system.
    bpffs_directory: bool,
    mounts: Vec<Mount>,
}

/// Refuses early and in words what would fail late with an errno.
///
/// # Errors
/// What is missing or in the way, and the next step.
pub fn preflight() -> Result<(), CaptureError> {
    Facts::read()?.judge()
}

impl Facts {
    fn read() -> Result<Self, CaptureError> {
        let namespace = fs::read_link("/proc/self/ns/pid")
            .map_err(|cause| CaptureError::Host { what: "reading `/proc/self/ns/pid`", cause })?;
        Ok(Self {
            capabilities: host::capabilities()?,
            release: host::release()?,
            initial_pid_namespace: namespace.as_os_str() == INITIAL_PID_NAMESPACE,
            btf: Path::new(VMLINUX).exists(),
            lockdown: fs::read_to_string(LOCKDOWN)
                .or_else(|_not_mounted| host::read_unmounted(c"securityfs", "lockdown"))
                .ok(),
            bpffs_directory: Path::new(BPFFS).is_dir(),
            mounts: host::mounts()?,
        })
    }

    fn judge(&self) -> Result<(), CaptureError> {
        let missing = self.missing_capabilities();
        if !missing.is_empty() {
            return Err(CaptureError::Privilege { missing: missing.join(", ") });
        }
        if host::version(&self.release).is_none_or(|version| version < KERNEL_MIN) {
            return Err(CaptureError::KernelTooOld { release: self.release.clone() });
        }
        if !self.initial_pid_namespace {
            return Err(CaptureError::PidNamespace);
        }
        if !self.btf {
            return Err(CaptureError::Btf { reason: "it is not there".to_owned() });
        }
        if self.lockdown.as_ref().is_some_and(|modes| modes.contains("[confidentiality]")) {
            return Err(CaptureError::Lockdown);
        }
        self.judge_cgroups()?;
        self.judge_bpffs()
    }

    fn has(&self, capability: u32) -> bool {
        let one = |capability: u32| self.capabilities & (1 << capability) != 0;
        one(capability) || (OF_SYS_ADMIN.contains(&capability) && one(CAP_SYS_ADMIN))
    }

    fn missing_capabilities(&self) -> Vec<&'static str> {
        let missing = WANTED.into_iter().filter(|&(_, capability)| !self.has(capability));
        missing.map(|(name, _)| name).collect()
    }

    fn mounted(&self, kind: &str) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| mount.kind == kind)
    }

    fn judge_cgroups(&self) -> Result<(), CaptureError> {
        let version_1 = || self.mounted("cgroup");
        if self.mounted("cgroup2").next().is_none() {
            return Err(match version_1().next() {
                Some(_) => CaptureError::CgroupVersion1,
                None => CaptureError::NoCgroupMount,
            });
        }
        let classes = |mount: &&Mount| mount.has_option("net_cls") || mount.has_option("net_prio");
        match version_1().find(classes) {
            Some(mount) if host::version(&self.release) < Some(KERNEL_CLASSES_APART) => {
                Err(CaptureError::NetClasses { at: mount.at.clone(), release: self.release.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Where it is not mounted the agent does so, if it may.
    fn judge_bpffs(&self) -> Result<(), CaptureError> {
        let failed = |errno| {
            Err(CaptureError::Bpffs {
                path: PathBuf::from(BPFFS),
                cause: io::Error::from_raw_os_error(errno),
            })
        };
        match (self.mounted("bpf").next(), self.bpffs_directory) {
            (Some(_), _) => Ok(()),
            (None, false) => failed(libc::ENOENT),
            (None, true) if !self.has(CAP_SYS_ADMIN) => failed(libc::EPERM),
            (None, true) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, at: &str, options: &str) -> Mount {
        Mount { at: PathBuf::from(at), kind: kind.to_owned(), options: options.to_owned() }
    }

    /// A host on which nothing is wrong.
    fn good() -> Facts {
        Facts {
            capabilities: u64::MAX,
            release: "6.12.9-amd64".to_owned(),
            initial_pid_namespace: true,
            btf: true,
            lockdown: Some("none [integrity] confidentiality\n".to_owned()),
            bpffs_directory: true,
            mounts: vec![mount("cgroup2", "/sys/fs/cgroup", "rw"), mount("bpf", BPFFS, "rw")],
        }
    }

    fn without(capabilities: &[u32]) -> Facts {
        let all = capabilities.iter().fold(u64::MAX, |all, capability| all & !(1 << capability));
        Facts { capabilities: all, ..good() }
    }

    fn with_mounts(release: &str, mounts: Vec<Mount>) -> Facts {
        Facts { release: release.to_owned(), mounts, ..good() }
    }

    #[test]
    fn each_fact_is_told_by_name_with_the_next_step() {
        let release = |release: &str| Facts { release: release.to_owned(), ..good() };
        let bpf = || mount("bpf", BPFFS, "rw");
        let hybrid = |controllers: &str| {
            let version_1 = mount("cgroup", "/sys/fs/cgroup/net", controllers);
            vec![mount("cgroup2", "/sys/fs/cgroup/unified", "rw"), version_1, bpf()]
        };
        let no_bpffs = |facts: Facts| Facts { mounts: vec![mount("cgroup2", "/x", "rw")], ..facts };
        let table: Vec<(Facts, &[&str])> = vec![
            (good(), &[]),
            (without(&[38, 39]), &[]),
            (without(&[21]), &[]),
            (without(&[21, 39]), &["missing CAP_BPF:", "run as root, or with"]),
            (without(&[21, 38]), &["missing CAP_PERFMON:", "run as root, or with"]),
            (without(&[12]), &["missing CAP_NET_ADMIN:", "run as root, or with"]),
            (without(&[2]), &["missing CAP_DAC_READ_SEARCH:", "run as root, or with"]),
            (
                Facts { capabilities: 0, ..good() },
                &["CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF"],
            ),
            (release("5.9.16"), &["kernel `5.9.16` is too old", "5.10"]),
            (release("4.19.0-amd64"), &["too old", "5.10"]),
            (release("unknown"), &["kernel `unknown` is too old"]),
            (release("5.10.0-46-cloud-amd64"), &[]),
            (release("10.0"), &[]),
            (
                Facts { initial_pid_namespace: false, ..good() },
                &["PID namespace of its own", "run it in the host's"],
            ),
            (Facts { btf: false, ..good() }, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]),
            (
                Facts { lockdown: Some("none integrity [confidentiality]\n".to_owned()), ..good() },
                &["locked down for confidentiality", "lockdown=integrity"],
            ),
            (Facts { lockdown: None, ..good() }, &[]),
            (with_mounts("6.1", vec![bpf()]), &["no cgroup2 file system is mounted", "mount -t cgroup2"]),
            (
                with_mounts("6.1", vec![mount("cgroup", "/sys/fs/cgroup/cpu", "rw,cpu"), bpf()]),
                &["only version 1 of cgroups", "systemd.unified_cgroup_hierarchy=1", "mount -t cgroup2"],
            ),
            (
                with_mounts("5.14.21", hybrid("rw,net_cls")),
                &["`/sys/fs/cgroup/net`", "5.15", "cgroup_no_v1="],
            ),
            (with_mounts("5.10.0", hybrid("rw,net_cls,net_prio")), &["net_cls", "cgroup_no_v1="]),
            (with_mounts("5.10.0", hybrid("rw,xattr,net_prio")), &["net_prio", "cgroup_no_v1="]),
            (with_mounts("5.15.0", hybrid("rw,net_cls,net_prio")), &[]),
            (with_mounts("5.10.0", hybrid("rw,cpu,cpuacct")), &[]),
            (no_bpffs(good()), &[]),
            (no_bpffs(without(&[21])), &["bpf file system at `/sys/fs/bpf`", "mount -t bpf bpf /sys/fs/bpf"]),
            (no_bpffs(Facts { bpffs_directory: false, ..good() }), &["`/sys/fs/bpf`", "No such file"]),
        ];
        for (facts, words) in table {
            let said = facts.judge().map_err(|error| error.to_string()).err().unwrap_or_default();
            assert_eq!(said.is_empty(), words.is_empty(), "{said} {facts:?}");
            assert!(words.iter().all(|word| said.contains(word)), "{said}\n{words:?}");
        }
    }

    #[test]
    fn this_host_is_read() {
        let facts = Facts::read().unwrap();
        assert_eq!(facts.btf, Path::new(VMLINUX).exists());
        assert!(!facts.mounts.is_empty() && host::version(&facts.release).is_some());
    }
}

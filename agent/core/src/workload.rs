//! Which workload a process is: selectors against what the kernel recorded.

use std::sync::Arc;

use crate::denial::Reason;
use crate::identity::Identity;
use crate::policy::Glob;

/// The cgroup below the cgroup2 root in which `toolgate exec` starts processes.
pub const EXEC_CGROUP: &str = "toolgate.exec";

/// A file by device (as `stat` says it) and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`
    pub dev: u64,
    /// `st_ino`
    pub ino: u64,
}

/// A process as the kernel recorded it when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its cgroup below the cgroup2 root: `/system.slice/x.service`.
    pub cgroup: String,
    /// Its effective user.
    pub uid: u32,
    /// Its executable.
    pub exe: FileId,
}

/// What names the processes of a workload; all that are given must fit. Without any, only `toolgate exec` starts
/// processes of the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selectors {
    /// A service or scope of the system's service manager.
    pub unit: Option<String>,
    /// A cgroup below the cgroup2 root, without the leading `/`, and what is below it.
    pub cgroup: Option<Glob>,
    /// A user by number.
    pub user: Option<u32>,
    /// An executable.
    pub exe: Option<ExeSelector>,
}

/// An executable by path, found when the resources were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExeSelector {
    /// As it was written.
    pub path: String,
    /// `None`: there is no such file, and the selector never fits.
    pub file: Option<FileId>,
}

/// A Workload resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Who its processes are.
    pub identity: Identity,
    /// Which they are.
    pub selectors: Selectors,
    /// The resource's name.
    pub name: Arc<str>,
}

/// Why a process has no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// Nothing names it.
    #[error("no Workload fits the process: add one whose selectors do, or start it with `toolgate exec`")]
    Unknown,
    /// Several name it.
    #[error("{} fit the process: make their selectors exclude each other", list(.workloads))]
    Ambiguous {
        /// The names of the Workloads, and the App ID of `exec`.
        workloads: Vec<Arc<str>>,
    },
    /// `exec` claims an App ID whose Workload has selectors that do not fit.
    #[error(
        "`toolgate exec` claims `{claimed}`, but the selectors of Workload `{workload}` do not fit the process"
    )]
    Contradicted {
        /// What `exec` claims.
        claimed: Identity,
        /// The Workload of that App ID.
        workload: Arc<str>,
    },
}

fn list(names: &[Arc<str>]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ")
}

impl Unidentified {
    /// The reason for audit and metrics.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unknown => Reason::UnidentifiedCaller,
            Self::Ambiguous { .. } => Reason::AmbiguousCaller,
            Self::Contradicted { .. } => Reason::ExecContradicted,
        }
    }
}

/// Who a process is. `exec_claim` is [`exec_claim`] of its cgroup.
///
/// # Errors
/// [`Unidentified`]: no workload, several, or one that contradicts the claim.
pub fn identify(
    process: &Process,
    workloads: &[Workload],
    exec_claim: Option<&Identity>,
) -> Result<Identity, Unidentified> {
    let fitting: Vec<&Workload> = workloads.iter().filter(|one| one.selectors.fit(process)).collect();
    let Some(claimed) = exec_claim else {
        return match fitting.as_slice() {
            [] => Err(Unidentified::Unknown),
            [one] => Ok(one.identity.clone()),
            several => {
                Err(Unidentified::Ambiguous { workloads: several.iter().map(|w| w.name.clone()).collect() })
            }
        };
    };
    let contradicts = |one: &&Workload| {
        one.identity == *claimed && !one.selectors.is_empty() && !one.selectors.fit(process)
    };
    if let Some(workload) = workloads.iter().find(contradicts) {
        let (claimed, workload) = (claimed.clone(), workload.name.clone());
        return Err(Unidentified::Contradicted { claimed, workload });
    }
    let others: Vec<_> =
        fitting.iter().filter(|one| one.identity != *claimed).map(|one| one.name.clone()).collect();
    if others.is_empty() {
        return Ok(claimed.clone());
    }
    let claim: Arc<str> = claimed.to_string().into();
    Err(Unidentified::Ambiguous { workloads: [claim].into_iter().chain(others).collect() })
}

/// The identity that `toolgate exec` gave a cgroup: `/toolgate.exec/<app id>.<n>` and what is below it.
#[must_use]
pub fn exec_claim(cgroup: &str, trust_domain: &str) -> Option<Identity> {
    let mut parts = cgroup.strip_prefix('/')?.split('/');
    if parts.next()? != EXEC_CGROUP {
        return None;
    }
    let (app_id, number) = parts.next()?.rsplit_once('.')?;
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Identity::new(trust_domain, "default", app_id).ok()
}

/// Whether every process that fits one set of selectors provably fits the other: then no process of it would ever
/// be identified.
#[must_use]
pub fn proven_overlap(a: &Selectors, b: &Selectors) -> bool {
    !a.is_empty() && !b.is_empty() && (a.implies(b) || b.implies(a))
}

impl Selectors {
    /// Whether none is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn fit(&self, process: &Process) -> bool {
        let Self { unit, cgroup, user, exe } = self;
        let path = process.cgroup.strip_prefix('/').unwrap_or(&process.cgroup);
        !self.is_empty()
            && unit.as_deref().is_none_or(|unit| system_unit(&process.cgroup) == Some(unit))
            && cgroup.as_ref().is_none_or(|glob| glob.matches_ancestor(path))
            && user.is_none_or(|user| user == process.uid)
            && exe.as_ref().is_none_or(|exe| exe.file == Some(process.exe))
    }

    fn implies(&self, other: &Self) -> bool {
        let exe = |one: &Self| one.exe.as_ref().and_then(|exe| exe.file);
        (other.unit.is_none() || self.unit == other.unit)
            && other
                .cgroup
                .as_ref()
                .is_none_or(|wide| self.cgroup.as_ref().is_some_and(|narrow| wide.covers(narrow)))
            && (other.user.is_none() || self.user == other.user)
            && (other.exe.is_none() || (exe(other).is_some() && exe(self) == exe(other)))
    }
}

/// The unit of the system's service manager that a cgroup belongs to: the first part that is no slice. What is
/// further down was made by the unit itself, and what is in `user.slice` by a user: neither names a unit.
#[must_use]
pub fn system_unit(cgroup: &str) -> Option<&str> {
    let mut parts = cgroup.strip_prefix('/')?.split('/');
    if cgroup.starts_with("/user.slice/") {
        return None;
    }
    let unit = parts.find(|part| !part.ends_with(".slice"))?;
    (unit.ends_with(".service") || unit.ends_with(".scope")).then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(app_id: &str) -> Identity {
        Identity::new("example.org", "default", app_id).unwrap()
    }

    fn workload(app_id: &str, selectors: Selectors) -> Workload {
        Workload { identity: identity(app_id), selectors, name: app_id.into() }
    }

    fn unit(name: &str) -> Selectors {
        Selectors { unit: Some(name.to_owned()), ..Selectors::default() }
    }

    fn cgroup(glob: &str) -> Selectors {
        Selectors { cgroup: Some(Glob::new(glob).unwrap()), ..Selectors::default() }
    }

    fn user(uid: u32) -> Selectors {
        Selectors { user: Some(uid), ..Selectors::default() }
    }

    fn exe(ino: Option<u64>) -> Selectors {
        let file = ino.map(|ino| FileId { dev: 1, ino });
        Selectors { exe: Some(ExeSelector { path: "/bin/x".to_owned(), file }), ..Selectors::default() }
    }

    #[test]
    fn units_are_those_of_the_system_manager() {
        let table = [
            ("/system.slice/a.service", Some("a.service")),
            ("/system.slice/system-a.slice/a@1.service", Some("a@1.service")),
            ("/system.slice/a.service/b.service", Some("a.service")),
            ("/machine.slice/docker-1.scope/x", Some("docker-1.scope")),
            ("/init.scope", Some("init.scope")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", None),
            ("/user.slice/user-1000.slice/session-1.scope", None),
            ("/toolgate.exec/a.1/b.service", None),
            ("/system.slice", None),
            ("/", None),
        ];
        for (cgroup, expected) in table {
            assert_eq!(system_unit(cgroup), expected, "{cgroup}");
        }
    }

    #[test]
    fn selectors_must_all_fit() {
        let process = Process {
            cgroup: "/system.slice/a.service/sub".to_owned(),
            uid: 7,
            exe: FileId { dev: 1, ino: 5 },
        };
        let table = [
            (unit("a.service"), true),
            (unit("sub"), false),
            (cgroup("system.slice/*"), true),
            (cgroup("system.slice"), true),
            (cgroup("*/a.service/sub"), true),
            (cgroup("*/a.service/sub/x"), false),
            (cgroup("system.slice/b.service"), false),
            (user(7), true),
            (user(0), false),
            (exe(Some(5)), true),
            (exe(Some(6)), false),
            (exe(None), false),
            (Selectors { user: Some(7), ..unit("a.service") }, true),
            (Selectors { user: Some(0), ..unit("a.service") }, false),
            (Selectors::default(), false),
        ];
        for (selectors, fits) in table {
            assert_eq!(selectors.fit(&process), fits, "{selectors:?}");
        }
    }

    #[test]
    fn one_workload_or_none() {
        let process =
            Process { cgroup: "/system.slice/a.service".to_owned(), uid: 7, exe: FileId { dev: 1, ino: 5 } };
        let one = workload("one", unit("a.service"));
        let two = workload("two", user(7));
        let miss = workload("miss", user(0));
        let bare = workload("bare", Selectors::default());
        type Row<'r> = (&'r [&'r Workload], Option<&'r str>, Result<&'r str, Reason>);
        let table: &[Row<'_>] = &[
            (&[], None, Err(Reason::UnidentifiedCaller)),
            (&[&one, &miss], None, Ok("one")),
            (&[&one, &two], None, Err(Reason::AmbiguousCaller)),
            (&[&miss], Some("free"), Ok("free")),
            (&[&bare], Some("bare"), Ok("bare")),
            (&[&bare], None, Err(Reason::UnidentifiedCaller)),
            (&[&one], Some("one"), Ok("one")),
            (&[&miss], Some("miss"), Err(Reason::ExecContradicted)),
            (&[&one], Some("free"), Err(Reason::AmbiguousCaller)),
        ];
        for (workloads, claim, expected) in table {
            let workloads: Vec<Workload> = workloads.iter().copied().cloned().collect();
            let claim = claim.map(identity);
            let got = identify(&process, &workloads, claim.as_ref()).map_err(|error| error.reason());
            assert_eq!(got, expected.map(identity), "{workloads:?} {claim:?}");
        }
    }

    #[test]
    fn exec_claims_come_from_its_own_cgroup() {
        let table = [
            ("/toolgate.exec/demo-agent.1", Some("demo-agent")),
            ("/toolgate.exec/demo-agent.12/sub", Some("demo-agent")),
            ("/toolgate.exec", None),
            ("/toolgate.exec/demo-agent", None),
            ("/toolgate.exec/demo-agent.", None),
            ("/toolgate.exec/demo-agent.x", None),
            ("/toolgate.exec/Demo.1", None),
            ("/x/toolgate.exec/demo-agent.1", None),
            ("/toolgate.execs/demo-agent.1", None),
        ];
        for (cgroup, expected) in table {
            assert_eq!(exec_claim(cgroup, "example.org"), expected.map(identity), "{cgroup}");
        }
    }

    #[test]
    fn overlap_is_claimed_only_when_proven() {
        let table = [
            (unit("a.service"), unit("a.service"), true),
            (unit("a.service"), unit("b.service"), false),
            (unit("a.service"), user(7), false),
            (Selectors { user: Some(7), ..unit("a.service") }, unit("a.service"), true),
            (cgroup("system.slice/*"), cgroup("system.slice/a.service"), true),
            (cgroup("system.slice/a*"), cgroup("system.slice/b*"), false),
            (exe(Some(5)), exe(Some(5)), true),
            (exe(None), exe(None), false),
            (Selectors::default(), unit("a.service"), false),
        ];
        for (a, b, expected) in table {
            assert_eq!(proven_overlap(&a, &b), expected, "{a:?} {b:?}");
            assert_eq!(proven_overlap(&b, &a), expected, "{b:?} {a:?}");
        }
    }
}

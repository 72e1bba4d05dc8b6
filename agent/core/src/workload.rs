//! Which workload a process is: selectors against what the kernel recorded.

use std::sync::Arc;

use crate::container::{Container, ContainerSelector, Image};
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
    /// Its executable; `None`: what it ran then is not known, so that nothing can be said of Workloads that ask.
    pub exe: Option<FileId>,
}

/// A SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Reads 64 digits, as `sha256sum` writes them.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 2 * bytes.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

/// In lower case.
impl std::fmt::Display for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What was looked up for selectors that ask for more than the kernel's record; or why it cannot be told. `None`:
/// nobody asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Of the executable.
    pub exe_sha256: Option<Result<Sha256, Arc<str>>>,
    /// Of the container.
    pub image: Option<Result<Image, Arc<str>>>,
}

/// What [`Evidence`] selectors ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The SHA-256 of the executable.
    pub exe_sha256: bool,
    /// The image of this container.
    pub image: Option<Container>,
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
    /// The contents of an executable.
    pub exe_sha256: Option<Sha256>,
    /// A container.
    pub container: Option<ContainerSelector>,
}

/// Whether selectors fit a process.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fit {
    Yes,
    No,
    /// All else fits, and this selector cannot be told.
    Untold {
        selector: &'static str,
        why: Arc<str>,
    },
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
    /// All but one selector of a Workload fit, and that one cannot be compared: it may fit, or not.
    #[error("whether `{selector}` of Workload `{workload}` fits the process cannot be told: {why}")]
    Untold {
        /// The name of the Workload.
        workload: Arc<str>,
        /// Its selector.
        selector: &'static str,
        /// What keeps it from being compared.
        why: Arc<str>,
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
            Self::Unknown | Self::Untold { .. } => Reason::UnidentifiedCaller,
            Self::Ambiguous { .. } => Reason::AmbiguousCaller,
            Self::Contradicted { .. } => Reason::ExecContradicted,
        }
    }
}

/// What to look up before a process can be [identified](identify): only what decides, so that nobody makes the agent
/// work whom no Workload could be about.
#[must_use]
pub fn asked(process: &Process, workloads: &[Workload]) -> Asked {
    let mut asked = Asked::default();
    for Workload { selectors, .. } in workloads {
        if selectors.fit_record(process) {
            asked.exe_sha256 |= selectors.exe_sha256.is_some();
            if selectors.container.as_ref().is_some_and(|container| container.image.is_some()) {
                asked.image = Container::of(&process.cgroup);
            }
        }
    }
    asked
}

/// Who a process is. `exec_claim` is [`exec_claim`] of its cgroup; `evidence` is of what was [`asked`].
///
/// # Errors
/// [`Unidentified`]: no workload, several, one that contradicts the claim, or one of which it cannot be told.
pub fn identify(
    process: &Process,
    evidence: &Evidence,
    workloads: &[Workload],
    exec_claim: Option<&Identity>,
) -> Result<Identity, Unidentified> {
    let mut fitting: Vec<&Workload> = Vec::new();
    let mut untold = None;
    for one in workloads {
        match one.selectors.fit(process, evidence) {
            Fit::Yes => fitting.push(one),
            Fit::No if exec_claim == Some(&one.identity) && !one.selectors.is_empty() => {
                let (claimed, workload) = (one.identity.clone(), one.name.clone());
                return Err(Unidentified::Contradicted { claimed, workload });
            }
            Fit::No => {}
            Fit::Untold { selector, why } => {
                let workload = one.name.clone();
                untold = untold.or(Some(Unidentified::Untold { workload, selector, why }));
            }
        }
    }
    // It may be this one, or two: neither is proven.
    if let Some(untold) = untold {
        return Err(untold);
    }
    let Some(claimed) = exec_claim else {
        return match fitting.as_slice() {
            [] => Err(Unidentified::Unknown),
            [one] => Ok(one.identity.clone()),
            several => {
                Err(Unidentified::Ambiguous { workloads: several.iter().map(|w| w.name.clone()).collect() })
            }
        };
    };
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

    /// Whether they say who may have made the cgroup of a container and chosen its name.
    fn names_owner(&self) -> bool {
        self.user.is_some() || self.unit.is_some()
    }

    /// Whether all fit that the kernel's record tells: `exe_sha256` and a container's image need more.
    #[must_use]
    pub fn fit_record(&self, process: &Process) -> bool {
        let Self { unit, cgroup, user, exe, exe_sha256: _, container } = self;
        let path = process.cgroup.strip_prefix('/').unwrap_or(&process.cgroup);
        !self.is_empty()
            && unit.as_deref().is_none_or(|unit| system_unit(&process.cgroup) == Some(unit))
            && cgroup.as_ref().is_none_or(|glob| glob.matches_ancestor(path))
            && user.is_none_or(|user| user == process.uid)
            && exe.as_ref().is_none_or(|exe| process.exe.is_none() || exe.file == process.exe)
            && container
                .as_ref()
                .is_none_or(|container| container.fits_path(&process.cgroup, self.names_owner()))
    }

    fn fit(&self, process: &Process, evidence: &Evidence) -> Fit {
        if !self.fit_record(process) {
            return Fit::No;
        }
        let image = self.container.as_ref().and_then(|container| container.image.as_ref());
        let exe = self.exe_sha256.map(|wanted| {
            (
                "exe_sha256",
                evidence.exe_sha256.as_ref().map(|found| found.as_ref().map(|found| *found == wanted)),
            )
        });
        let image = image.map(|wanted| {
            (
                "container.image",
                evidence.image.as_ref().map(|found| found.as_ref().map(|found| found.is(wanted))),
            )
        });
        let mut fit = match (&self.exe, process.exe) {
            (Some(_), None) => {
                Fit::Untold { selector: "exe", why: "what it ran when it connected is not known".into() }
            }
            (Some(_) | None, _) => Fit::Yes,
        };
        for (selector, found) in exe.into_iter().chain(image) {
            match found {
                Some(Ok(true)) => {}
                Some(Ok(false)) => return Fit::No,
                Some(Err(why)) => fit = Fit::Untold { selector, why: Arc::clone(why) },
                None => fit = Fit::Untold { selector, why: "it was not looked up".into() },
            }
        }
        fit
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
            && (other.exe_sha256.is_none() || self.exe_sha256 == other.exe_sha256)
            && other.container.as_ref().is_none_or(|wide| {
                // One that names a user or unit fits delegated cgroups, too.
                let as_wide = other.names_owner() || !self.names_owner();
                as_wide && self.container.as_ref().is_some_and(|narrow| narrow.implies(wide))
            })
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
    use crate::container::{IdPrefix, ImageName};

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
            exe: Some(FileId { dev: 1, ino: 5 }),
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
            let expected = if fits { Fit::Yes } else { Fit::No };
            assert_eq!(selectors.fit(&process, &Evidence::default()), expected, "{selectors:?}");
        }
    }

    const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn in_container(image: Option<&str>) -> Selectors {
        let container = ContainerSelector {
            id: IdPrefix::new(CONTAINER).ok(),
            image: image.map(|image| ImageName::new(image).unwrap()),
            ..ContainerSelector::default()
        };
        Selectors { container: Some(container), ..Selectors::default() }
    }

    fn contents(byte: u8) -> Selectors {
        Selectors { exe_sha256: Some(Sha256([byte; 32])), ..Selectors::default() }
    }

    fn process(cgroup: &str) -> Process {
        Process { cgroup: cgroup.to_owned(), uid: 1000, exe: Some(FileId { dev: 1, ino: 5 }) }
    }

    #[test]
    fn a_container_that_a_user_could_have_made_up_needs_the_user() {
        let system = format!("/machine.slice/libpod-{CONTAINER}.scope/container");
        let users =
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{CONTAINER}.scope");
        let services = format!("/system.slice/web.service/libpod-payload-{CONTAINER}");
        let with = |selectors: Selectors| Selectors { container: in_container(None).container, ..selectors };
        let table = [
            (&system, in_container(None), Fit::Yes),
            (&system, with(user(1000)), Fit::Yes),
            (&users, in_container(None), Fit::No),
            (&users, with(cgroup("user.slice")), Fit::No),
            (&users, with(user(1000)), Fit::Yes),
            (&users, with(user(1001)), Fit::No),
            (&services, in_container(None), Fit::No),
            (&services, with(unit("web.service")), Fit::Yes),
            (&services, with(unit("other.service")), Fit::No),
        ];
        for (cgroup, selectors, expected) in table {
            assert_eq!(
                selectors.fit(&process(cgroup), &Evidence::default()),
                expected,
                "{cgroup} {selectors:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_told_is_denied() {
        let docker = process(&format!("/system.slice/docker-{CONTAINER}.scope"));
        let digest = |result: Result<u8, &str>| {
            let found = result.map(|byte| Sha256([byte; 32])).map_err(Into::into);
            Evidence { exe_sha256: Some(found), image: None }
        };
        let image = |result: Result<&str, &str>| {
            let made_from = |name: &str| Image { id: CONTAINER.to_owned(), names: vec![name.to_owned()] };
            Evidence { exe_sha256: None, image: Some(result.map(made_from).map_err(Into::into)) }
        };
        let python = "docker.io/library/python:latest";
        let untold = "whether `exe_sha256` of Workload `w` fits the process cannot be told: it is gone";
        let untold_image =
            "whether `container.image` of Workload `w` fits the process cannot be told: unknown";
        let unasked =
            "whether `exe_sha256` of Workload `w` fits the process cannot be told: it was not looked up";
        let nobody =
            "no Workload fits the process: add one whose selectors do, or start it with `toolgate exec`";
        let table: &[(Selectors, Evidence, Result<(), &str>)] = &[
            (contents(7), digest(Ok(7)), Ok(())),
            (contents(7), digest(Ok(8)), Err(nobody)),
            (contents(7), digest(Err("it is gone")), Err(untold)),
            (contents(7), Evidence::default(), Err(unasked)),
            (in_container(Some("python")), image(Ok(python)), Ok(())),
            (in_container(Some("python:3")), image(Ok(python)), Err(nobody)),
            (in_container(Some(&format!("sha256:{CONTAINER}"))), image(Ok(python)), Ok(())),
            (in_container(Some("python")), image(Err("unknown")), Err(untold_image)),
            // What does not fit anyway is not asked.
            (Selectors { user: Some(7), ..contents(7) }, digest(Err("it is gone")), Err(nobody)),
        ];
        for (selectors, evidence, expected) in table {
            let got = identify(&docker, evidence, &[workload("w", selectors.clone())], None);
            let got = got.map(drop).map_err(|error| error.to_string());
            assert_eq!(got, expected.map_err(str::to_owned), "{selectors:?} {evidence:?}");
        }
        // It fits one, and may fit another: nobody knows that it is not two.
        let workloads = [workload("v", user(1000)), workload("w", contents(7))];
        let got = identify(&docker, &digest(Err("it is gone")), &workloads, None);
        assert_eq!(got.unwrap_err().to_string(), untold);
        assert_eq!(identify(&docker, &digest(Ok(8)), &workloads, None), Ok(identity("v")));
    }

    #[test]
    fn only_what_decides_is_looked_up() {
        let docker = process(&format!("/system.slice/docker-{CONTAINER}.scope"));
        let elsewhere = Selectors { unit: Some("a.service".to_owned()), ..contents(7) };
        let table = [
            (vec![user(1000), in_container(None)], false, false),
            (vec![elsewhere.clone()], false, false),
            (vec![elsewhere, contents(8)], true, false),
            (vec![in_container(Some("python"))], false, true),
            (vec![Selectors { user: Some(7), ..in_container(Some("python")) }], false, false),
        ];
        for (selectors, exe_sha256, image) in table {
            let workloads: Vec<_> = selectors.iter().map(|one| workload("w", one.clone())).collect();
            let asked = asked(&docker, &workloads);
            assert_eq!((asked.exe_sha256, asked.image.is_some()), (exe_sha256, image), "{selectors:?}");
        }
    }

    #[test]
    fn digests_are_as_sha256sum_writes_them() {
        let hex = "ab".repeat(32);
        assert_eq!(Sha256::from_hex(&hex), Some(Sha256([0xab; 32])));
        assert_eq!(Sha256::from_hex(&hex.to_uppercase()).unwrap().to_string(), hex);
        for bad in ["", &hex[1..], &format!("{hex}00"), &format!("+{}", &hex[1..]), &"é".repeat(32)] {
            assert_eq!(Sha256::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_workload_or_none() {
        let process = Process {
            cgroup: "/system.slice/a.service".to_owned(),
            uid: 7,
            exe: Some(FileId { dev: 1, ino: 5 }),
        };
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
            let got = identify(&process, &Evidence::default(), &workloads, claim.as_ref())
                .map_err(|error| error.reason());
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
            (contents(7), Selectors { user: Some(7), ..contents(7) }, true),
            (contents(7), contents(8), false),
            (in_container(None), in_container(Some("python")), true),
            (in_container(Some("python")), in_container(Some("python:3")), false),
            // The second fits a delegated cgroup, which the first does not.
            (in_container(None), Selectors { user: Some(7), ..in_container(None) }, false),
        ];
        for (a, b, expected) in table {
            assert_eq!(proven_overlap(&a, &b), expected, "{a:?} {b:?}");
            assert_eq!(proven_overlap(&b, &a), expected, "{b:?} {a:?}");
        }
    }
}

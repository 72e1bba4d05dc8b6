//! Break-glass: a cgroup goes where it is meant to for a while, unseen. The kernel ends it, also without an agent.
//!
//! What the kernel does not keep (who, why, the cgroup's name) is in a file beside the audit's key, so that the next
//! agent can tell, and write the line of the end.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use toolgate_core::identity::{self, InvalidName};
use toolgate_core::workload::{self, EXEC_CGROUP, Selectors, Workload};

use super::canary;
use crate::capture::{CaptureError, Kernel, cgroup};
use crate::record::{NoSlot, Recorder};

/// The longest bypass: what is longer is a configuration, and belongs there.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The most bytes of a reason.
const REASON_BYTES_MAX: usize = 1_000;
/// Below the state directory.
const FILE: &str = "bypasses.json";

/// Why there is no bypass.
#[derive(Debug, thiserror::Error)]
pub enum BypassError {
    /// No reason.
    #[error("a bypass needs a reason of 1 to {REASON_BYTES_MAX} bytes (--reason): the audit tells it")]
    Reason,
    /// No time, or too long.
    #[error("a bypass lasts from a second to {}h (--for); what is to last is a configuration: `capture.exclude`", TIME_MAX.as_secs() / 3600)]
    Time,
    /// No such cgroup.
    #[error("no cgroup `{name}` below `{}`", mount.display())]
    NoCgroup {
        /// As it was asked for.
        name: String,
        /// The cgroup2 mount.
        mount: PathBuf,
    },
    /// An App ID that is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An App ID whose processes no cgroup tells from others.
    #[error(
        "no cgroup of App ID `{app_id}`: `toolgate exec` started none that runs, and no Workload names it by unit or \
         cgroup alone; give the cgroup (--cgroup)"
    )]
    NoWorkload {
        /// As it was asked for.
        app_id: String,
    },
    /// Nothing to end.
    #[error("`{name}` has no bypass; `toolgate status` lists them")]
    None {
        /// As it was asked for.
        name: String,
    },
    /// It must be recorded.
    #[error("it cannot be recorded, and is not done: {0}")]
    Audit(#[from] NoSlot),
    /// Its file.
    #[error("cannot write `{}`: {cause}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The maps.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// Which cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whom {
    /// One, below the cgroup2 root or by its directory; `/`: the whole host.
    Cgroup(String),
    /// Those of an App ID.
    AppId(String),
}

/// One cgroup that is let through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// Below the cgroup2 root; empty: the root.
    pub cgroup: String,
    /// The cgroup that has the name.
    cgroup_id: u64,
    /// Why.
    pub reason: String,
    /// Who asked for it.
    pub by: String,
    /// When it ends by the wall clock, as it was set when it began: RFC 3339.
    pub until: String,
    /// When it ends: CLOCK_MONOTONIC.
    until_ns: u64,
}

/// The file: of another boot it says nothing, as that clock begins anew and the maps are gone.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    bypasses: Vec<Bypass>,
}

/// A line of the audit.
#[derive(Serialize)]
struct Event<'e> {
    event: &'static str,
    cgroup: &'e str,
    cgroup_id: u64,
    reason: &'e str,
    by: &'e str,
    until: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_by: Option<&'e str>,
}

/// All that are under way.
pub struct Bypasses {
    file: PathBuf,
    boot_id: String,
    live: Mutex<Vec<Bypass>>,
}

impl Bypasses {
    /// Those that an earlier agent began in this boot.
    pub(super) fn load(state_directory: &Path) -> Self {
        let file = state_directory.join(FILE);
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let bypasses = Self { file, boot_id, live: Mutex::default() };
        bypasses.reload();
        bypasses
    }

    /// Reads the file again: another agent wrote it until now.
    pub(super) fn reload(&self) {
        let kept = match fs::read(&self.file) {
            Ok(text) => serde_json::from_slice::<Kept>(&text).unwrap_or_else(|error| {
                tracing::error!(file = %self.file.display(), %error, "bypasses that an earlier agent began are not known");
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        *self.lock() = if kept.boot_id == self.boot_id { kept.bypasses } else { Vec::new() };
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Bypass>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are under way.
    #[must_use]
    pub fn all(&self) -> Vec<Bypass> {
        self.lock().clone()
    }

    /// Whether a cgroup, by its name, is let through by one of its own or of a cgroup above it.
    pub(super) fn covers(&self, name: &str) -> bool {
        self.names().iter().any(|cgroup| Path::new(name).starts_with(cgroup.trim_matches('/')))
    }

    /// The cgroups that are let through now.
    pub(super) fn names(&self) -> Vec<String> {
        let now = now_ns();
        self.lock().iter().filter(|one| one.until_ns > now).map(|one| one.cgroup.clone()).collect()
    }

    /// Begins one for each of `cgroups`, or sets its end anew. Audited before it is done.
    ///
    /// # Errors
    /// [`BypassError`]: nothing is let through then that was not before.
    pub fn begin(
        &self,
        asked: &Asked<'_>,
        cgroups: &[String],
        kernel: &Kernel,
        recorder: &Recorder,
    ) -> Result<Vec<Bypass>, BypassError> {
        let reason = asked.reason.trim();
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
            return Err(BypassError::Reason);
        }
        if asked.length < Duration::from_secs(1) || asked.length > TIME_MAX {
            return Err(BypassError::Time);
        }
        let until = humantime::format_rfc3339_seconds(SystemTime::now() + asked.length).to_string();
        let length_ns = u64::try_from(asked.length.as_nanos()).unwrap_or(u64::MAX);
        let mount = cgroup::mount()?;
        let mut begun = Vec::new();
        for name in cgroups {
            begun.push(Bypass {
                cgroup: name.clone(),
                cgroup_id: cgroup::id(&mount.join(name))?,
                reason: reason.to_owned(),
                by: asked.by.to_owned(),
                until: until.clone(),
                until_ns: now_ns().saturating_add(length_ns),
            });
        }
        let mut live = self.lock();
        let mut all = live.clone();
        all.retain(|one| !cgroups.contains(&one.cgroup));
        all.extend(begun.iter().cloned());
        self.keep(&all)?;
        let done = begun.iter().try_for_each(|one| {
            recorder.event(&one.event("bypass_began", None))?;
            kernel.bypass(one.cgroup_id, Some(one.until_ns))?;
            let (cgroup, until, by) = (canary::shown(&one.cgroup), &one.until, &one.by);
            tracing::warn!(cgroup, %until, reason, %by, "bypass began: this cgroup is not captured");
            Ok::<(), BypassError>(())
        });
        *live = all;
        if let Err(error) = done {
            drop(live);
            // Those that did not begin have nothing to end.
            let _ = self.end(cgroups, "a failure", kernel, recorder);
            return Err(error);
        }
        Ok(begun)
    }

    /// Ends those of `cgroups`.
    ///
    /// # Errors
    /// [`BypassError::None`]; or the kernel does not.
    pub fn end(
        &self,
        cgroups: &[String],
        by: &str,
        kernel: &Kernel,
        recorder: &Recorder,
    ) -> Result<Vec<Bypass>, BypassError> {
        let mut live = self.lock();
        let of = |one: &&Bypass| cgroups.contains(&one.cgroup);
        let ended: Vec<Bypass> = live.iter().filter(of).cloned().collect();
        if ended.is_empty() {
            let name = cgroups.first().map(|name| canary::shown(name).to_owned()).unwrap_or_default();
            return Err(BypassError::None { name });
        }
        for one in &ended {
            kernel.bypass(one.cgroup_id, None)?;
            self.say_ended(one, by, recorder);
        }
        live.retain(|one| !cgroups.contains(&one.cgroup));
        self.keep(&live)?;
        Ok(ended)
    }

    /// Says of what the kernel has ended, and lets through again what was made anew under the same name, as a unit
    /// that is restarted. To be called every few seconds.
    pub(super) fn look(&self, kernel: &Kernel, recorder: &Recorder) {
        let mut live = self.lock();
        let now = now_ns();
        let before = live.clone();
        live.retain(|one| {
            let is_over = one.until_ns <= now;
            if is_over {
                self.say_ended(one, "its time", recorder);
            }
            !is_over
        });
        for one in live.iter_mut() {
            let Ok(id) = cgroup::mount().and_then(|mount| cgroup::id(&mount.join(&one.cgroup))) else {
                continue;
            };
            if id == one.cgroup_id {
                continue;
            }
            match kernel.bypass(id, Some(one.until_ns)).and_then(|()| kernel.bypass(one.cgroup_id, None)) {
                Ok(()) => one.cgroup_id = id,
                Err(error) => tracing::error!(cgroup = %one.cgroup, %error, "bypass not renewed"),
            }
        }
        if *live != before
            && let Err(error) = self.keep(&live)
        {
            tracing::error!(%error, "the next agent will not know of bypasses as they are");
        }
    }

    fn say_ended(&self, one: &Bypass, by: &str, recorder: &Recorder) {
        tracing::info!(
            cgroup = canary::shown(&one.cgroup),
            by,
            "bypass ended: what was captured there is again"
        );
        if let Err(error) = recorder.event(&one.event("bypass_ended", Some(by))) {
            tracing::error!(%error, "the end of a bypass is not recorded");
        }
    }

    /// Written beside and renamed over: whole or not at all.
    fn keep(&self, bypasses: &[Bypass]) -> Result<(), BypassError> {
        let kept = Kept { boot_id: self.boot_id.clone(), bypasses: bypasses.to_vec() };
        let fresh = self.file.with_extension("json.fresh");
        let write = || {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec(&kept)?)?;
            fs::rename(&fresh, &self.file)
        };
        write().map_err(|cause| BypassError::File { path: self.file.clone(), cause })
    }
}

/// What an operator asks for.
#[derive(Debug)]
pub struct Asked<'a> {
    /// How long.
    pub length: Duration,
    /// Why.
    pub reason: &'a str,
    /// Who asks, as the kernel says.
    pub by: &'a str,
}

impl Bypass {
    fn event<'e>(&'e self, event: &'static str, ended_by: Option<&'e str>) -> Event<'e> {
        Event {
            event,
            cgroup: canary::shown(&self.cgroup),
            cgroup_id: self.cgroup_id,
            reason: &self.reason,
            by: &self.by,
            until: &self.until,
            ended_by,
        }
    }

    /// What is left of it.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.until_ns.saturating_sub(now_ns()))
    }
}

/// The names, below the cgroup2 root, of the cgroups that are asked for.
///
/// # Errors
/// There is none.
pub fn cgroups(whom: &Whom, workloads: &[Workload], trust_domain: &str) -> Result<Vec<String>, BypassError> {
    let mount = cgroup::mount()?;
    match whom {
        Whom::Cgroup(given) => {
            let below = Path::new(given).strip_prefix(&mount).unwrap_or(Path::new(given));
            let name = below.to_string_lossy().trim_matches('/').to_owned();
            let is_plain = !name.split('/').any(|part| part == "..");
            if is_plain && mount.join(&name).join("cgroup.procs").exists() {
                return Ok(vec![name]);
            }
            Err(BypassError::NoCgroup { name: given.clone(), mount })
        }
        Whom::AppId(app_id) => {
            let name = app_id.split('.').next().unwrap_or_default();
            identity::check_name(name)?;
            let mut found = Vec::new();
            let wanted = |cgroup: &str| {
                is_of(cgroup, app_id, workloads, trust_domain) && is_populated(&mount.join(cgroup))
            };
            walk(&mount, "", &wanted, &mut found);
            if found.is_empty() {
                return Err(BypassError::NoWorkload { app_id: app_id.clone() });
            }
            Ok(found)
        }
    }
}

/// Whether a cgroup is all of an App ID's: made by `exec`, or named by its Workload.
fn is_of(cgroup: &str, app_id: &str, workloads: &[Workload], trust_domain: &str) -> bool {
    let path = format!("/{cgroup}");
    if cgroup.starts_with(EXEC_CGROUP) {
        let claim = workload::exec_claim(&path, trust_domain);
        return claim.is_some_and(|identity| identity.to_string() == app_id);
    }
    workloads.iter().filter(|workload| workload.identity.to_string() == app_id).any(|workload| {
        let Selectors { unit, cgroup: glob, user, exe, exe_sha256, container } = &workload.selectors;
        // These do not speak of a whole cgroup: others could be in it.
        let narrower = user.is_some() || exe.is_some() || exe_sha256.is_some() || container.is_some();
        let named = unit.is_some() || glob.is_some();
        let by_unit = unit.as_deref().is_none_or(|unit| workload::system_unit(&path) == Some(unit));
        let by_glob = glob.as_ref().is_none_or(|glob| glob.matches(cgroup));
        named && !narrower && by_unit && by_glob
    })
}

/// Whether a process is in it, or below: what `exec` started may have ended.
fn is_populated(directory: &Path) -> bool {
    fs::read_to_string(directory.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
}

/// The highest cgroups that are wanted; what is below one goes with it.
fn walk(directory: &Path, name: &str, wanted: &impl Fn(&str) -> bool, found: &mut Vec<String>) {
    if !name.is_empty() && wanted(name) {
        return found.push(name.to_owned());
    }
    for below in fs::read_dir(directory).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(part) = below.file_name().to_str()
        {
            let name = if name.is_empty() { part.to_owned() } else { format!("{name}/{part}") };
            walk(&below.path(), &name, wanted, found);
        }
    }
}

/// CLOCK_MONOTONIC, as the programs in the kernel read it: no clock step ends a bypass, and a suspended host gains none.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

//! Whose listener is at the address of a local Server, for `toolgate check` and the start of the agent.
//!
//! `local.workload` says which process serves. Where another one listens, as systemd does for a `.socket` unit and
//! docker-proxy for a published port, what the agent takes for that workload's server is not, and its port would be
//! guarded for the wrong cgroup: the kernel goes by the cgroup that a socket was made in.

mod holders;
mod units;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use toolgate_core::workload::{Process, Workload, exec_claim};

use self::holders::{Holder, Holders};
use crate::capture::{CaptureError, cgroup};
use crate::config::{Diagnostic, LocalWorkload, Resources, Severity};
use crate::sockdiag::{Diag, Socket};

/// Where the service manager's units lie, the first that has one wins (systemd.unit(5)).
const UNITS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// What was found at the address of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// Nobody listens yet.
    Nobody,
    /// All is as `local.workload` says.
    Belongs,
    /// Who holds the socket may not be seen.
    Hidden,
    /// Another listens.
    Foreign(Foreign),
}

/// The cgroup that a socket was made in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Made {
    In(String),
    /// It was removed since.
    Gone,
    /// The kernel does not tell, or not to us.
    Untold,
}

/// A listener that is not its workload's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Foreign {
    /// Who holds the socket.
    holder: Option<Holder>,
    made: Made,
    /// The service manager's unit that holds it.
    socket_unit: Option<String>,
}

/// A listening socket with all that is known of it.
#[derive(Debug, Clone)]
struct Listener {
    made: Made,
    holders: Vec<Holder>,
    /// There are processes that may not be looked at.
    hidden: bool,
}

/// What is not as `local.workload` of the Servers says: errors, each at its place; and warnings of what cannot be told.
///
/// # Errors
/// The kernel does not tell listening sockets, or `/proc` is not there.
pub fn check(resources: &Resources, trust_domain: &str) -> io::Result<Vec<Diagnostic>> {
    if resources.local_workloads.is_empty() {
        return Ok(Vec::new());
    }
    let sockets = Diag::open()?.listening()?;
    let chosen: Vec<Vec<&Socket>> =
        resources.local_workloads.iter().map(|local| serving(&sockets, local.address)).collect();
    let inodes: Vec<u64> = chosen.iter().flatten().map(|socket| socket.inode).collect();
    let holders = Holders::of(&inodes)?;
    let mut findings = Vec::new();
    for (local, sockets) in resources.local_workloads.iter().zip(chosen) {
        let Some(workload) = resources.workloads.iter().find(|one| one.identity == local.workload) else {
            continue; // the resources were read: it is there
        };
        let listeners: Vec<Listener> = sockets.into_iter().map(|one| listener(one, &holders)).collect();
        let found = judge(&listeners, workload, trust_domain);
        let socket_unit = |address| units::listening_at(address, &UNITS.map(Path::new));
        findings.extend(say(local, found, socket_unit));
    }
    Ok(findings)
}

/// The sockets that a connect to `address` reaches.
fn serving(sockets: &[Socket], address: SocketAddr) -> Vec<&Socket> {
    let best = sockets.iter().filter_map(|socket| socket.serves(address)).max();
    sockets.iter().filter(|socket| best.is_some() && socket.serves(address) == best).collect()
}

fn listener(socket: &Socket, holders: &Holders) -> Listener {
    let made = socket.cgroup_id.map_or(Made::Untold, |id| match cgroup::path_of(id) {
        Ok(path) => Made::In(path),
        Err(CaptureError::CgroupId { cause, .. }) if cause.raw_os_error() == Some(libc::ESTALE) => Made::Gone,
        Err(_may_not) => Made::Untold,
    });
    Listener { made, holders: holders.holding(socket.inode), hidden: holders.hidden > 0 }
}

/// Whether all who hold a listener, and the cgroup it was made in, are the workload's. Contents of executables and
/// images are not looked at: what decides is where the process runs.
fn judge(listeners: &[Listener], workload: &Workload, trust_domain: &str) -> Found {
    let fits = |process: &Process| match workload.selectors.is_empty() {
        true => exec_claim(&process.cgroup, trust_domain).as_ref() == Some(&workload.identity),
        false => workload.selectors.fit_record(process),
    };
    let foreign = |holder: Option<&Holder>, made: &Made| {
        Found::Foreign(Foreign { holder: holder.cloned(), made: made.clone(), socket_unit: None })
    };
    let mut found = Found::Nobody;
    for Listener { made, holders, hidden } in listeners {
        found = match holders.is_empty() {
            true if *hidden => Found::Hidden,
            // The kernel's own, or held in flight: nobody's process.
            true => return foreign(None, made),
            false => Found::Belongs,
        };
        for holder in holders {
            let made_fits = match made {
                Made::In(cgroup) => fits(&Process { cgroup: cgroup.clone(), ..holder.process.clone() }),
                Made::Gone => false,
                Made::Untold => true,
            };
            if !made_fits || !fits(&holder.process) {
                return foreign(Some(holder), made);
            }
        }
    }
    found
}

fn say(
    local: &LocalWorkload,
    found: Found,
    socket_unit: impl Fn(SocketAddr) -> Option<String>,
) -> Option<Diagnostic> {
    let LocalWorkload { address, workload, place } = local;
    match found {
        Found::Nobody | Found::Belongs => None,
        Found::Hidden => Some(Diagnostic {
            message: format!("who listens at {address} may not be seen"),
            help: Some("run as root, to be told whether it is the Workload's".to_owned()),
            severity: Severity::Warning,
            ..place.clone()
        }),
        Found::Foreign(mut foreign) => {
            let manager = foreign.holder.as_ref().is_some_and(|holder| holder.pid == 1);
            foreign.socket_unit = foreign.made_by_socket_unit().or_else(|| {
                let unit = || socket_unit(*address);
                manager.then(unit).flatten()
            });
            Some(Diagnostic {
                message: format!("the listener at {address} is not of Workload `{workload}`: {foreign}"),
                help: Some(foreign.next_step(workload.app_id())),
                ..place.clone()
            })
        }
    }
}

impl Foreign {
    /// systemd makes a unit's socket in the unit's own cgroup, where BPF is there.
    fn made_by_socket_unit(&self) -> Option<String> {
        let Made::In(cgroup) = &self.made else { return None };
        let part = cgroup.rsplit('/').next()?;
        part.ends_with(".socket").then(|| part.to_owned())
    }

    fn next_step(&self, workload: &str) -> String {
        if let Some(unit) = &self.socket_unit {
            return format!(
                "`systemctl disable --now {unit}`, and let the service listen by itself: a listener stays the cgroup's that made it"
            );
        }
        match &self.holder {
            Some(holder) if holder.pid == 1 => {
                "disable the `.socket` unit that listens there, and let the service listen by itself".to_owned()
            }
            Some(holder) if holder.name == "docker-proxy" => {
                "run the container with `--network host`, or declare the address that it has itself: docker-proxy is a process of Docker's".to_owned()
            }
            Some(_) | None => {
                format!("stop what listens there, or correct `address` or the selectors of Workload `{workload}`")
            }
        }
    }
}

/// `process 1 (systemd) of init.scope holds it, made in system.slice/docs.socket`
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = |cgroup: &str| match cgroup.trim_start_matches('/') {
            "" => "the root cgroup".to_owned(),
            cgroup => format!("`{cgroup}`"),
        };
        match &self.holder {
            Some(Holder { pid, name, process }) => {
                write!(f, "process {pid} ({name}) in {} holds it", within(&process.cgroup))?;
            }
            None => f.write_str("no process of this host holds it")?,
        }
        match &self.made {
            Made::In(made) if self.holder.as_ref().is_none_or(|holder| holder.process.cgroup != *made) => {
                write!(f, ", and it was made in {}", within(made))?;
            }
            Made::In(_) | Made::Untold => {}
            Made::Gone => f.write_str(", and the cgroup it was made in is gone")?,
        }
        match &self.socket_unit {
            Some(unit) => write!(f, " (socket activation by {unit})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::PathBuf;

    use toolgate_core::identity::Identity;
    use toolgate_core::workload::{FileId, Selectors};

    use super::*;

    fn workload(selectors: Selectors) -> Workload {
        Workload { identity: identity(), selectors, name: "docs".into() }
    }

    fn identity() -> Identity {
        Identity::new("example.org", "default", "docs").unwrap()
    }

    fn unit() -> Workload {
        workload(Selectors { unit: Some("docs.service".to_owned()), ..Selectors::default() })
    }

    fn holder(pid: u32, name: &str, cgroup: &str) -> Holder {
        let process = Process { cgroup: cgroup.to_owned(), uid: 0, exe: Some(FileId { dev: 1, ino: 2 }) };
        Holder { pid, name: name.to_owned(), process }
    }

    fn listener(made: &str, holders: &[Holder]) -> Listener {
        let made = match made {
            "gone" => Made::Gone,
            "untold" => Made::Untold,
            path => Made::In(path.to_owned()),
        };
        Listener { made, holders: holders.to_vec(), hidden: false }
    }

    const SERVICE: &str = "/system.slice/docs.service";

    /// What is said of listeners, if something is.
    fn said(listeners: &[Listener], workload: &Workload, unit: Option<&str>) -> Option<(String, String)> {
        let place = Diagnostic {
            severity: Severity::Error,
            file: PathBuf::from("docs.yaml"),
            line: 4,
            column: 7,
            width: 1,
            message: String::new(),
            excerpt: None,
            help: None,
        };
        let address = "127.0.0.1:8000".parse().unwrap();
        let local = LocalWorkload { address, workload: identity(), place };
        let finding = say(&local, judge(listeners, workload, "example.org"), |_| unit.map(str::to_owned))?;
        let (wrong, help) = (finding.message, finding.help.unwrap_or_default());
        Some((wrong.rsplit_once("`docs`: ").map_or(wrong.clone(), |(_, text)| text.to_owned()), help))
    }

    #[test]
    fn listeners_of_others_are_named() {
        let service = holder(7, "docs", SERVICE);
        let systemd = holder(1, "systemd", "/init.scope");
        let proxy = holder(8, "docker-proxy", "/system.slice/docker.service");
        let stray = holder(9, "nc", "/user.slice/user-0.slice/session-1.scope");
        let socket = "/system.slice/docs.socket";
        let table: &[(&[Listener], Option<&str>, &str, &str)] = &[
            (
                &[listener("/init.scope", std::slice::from_ref(&systemd))],
                Some("docs.socket"),
                "process 1 (systemd) in `init.scope` holds it (socket activation by docs.socket)",
                "`systemctl disable --now docs.socket`",
            ),
            (
                &[listener(socket, &[service.clone(), systemd.clone()])],
                None,
                "process 7 (docs) in `system.slice/docs.service` holds it, and it was made in `system.slice/docs.socket` (socket activation by docs.socket)",
                "`systemctl disable --now docs.socket`",
            ),
            (
                &[listener("untold", &[service.clone(), systemd.clone()])],
                None,
                "process 1 (systemd) in `init.scope` holds it",
                "disable the `.socket` unit that listens there",
            ),
            (
                &[listener("/system.slice/docker.service", &[proxy])],
                None,
                "process 8 (docker-proxy) in `system.slice/docker.service` holds it",
                "run the container with `--network host`",
            ),
            (
                &[listener(SERVICE, std::slice::from_ref(&service)), listener("/", &[stray])],
                None,
                "process 9 (nc) in `user.slice/user-0.slice/session-1.scope` holds it, and it was made in the root cgroup",
                "stop what listens there",
            ),
            (
                &[listener("gone", &[service])],
                None,
                "process 7 (docs) in `system.slice/docs.service` holds it, and the cgroup it was made in is gone",
                "stop what listens there",
            ),
            (
                &[listener("/", &[])],
                None,
                "no process of this host holds it, and it was made in the root",
                "stop",
            ),
        ];
        for (listeners, unit_file, expected, step) in table {
            let (wrong, help) = said(listeners, &unit(), *unit_file).expect(expected);
            assert!(wrong.starts_with(expected), "{wrong}\n{expected}");
            assert!(help.starts_with(step), "{help}");
        }
    }

    #[test]
    fn listeners_of_the_workload_are_left_alone() {
        let service = [holder(7, "docs", SERVICE)];
        let exec = [holder(7, "docs", "/toolgate.exec/docs.7")];
        let other = [holder(7, "docs", "/toolgate.exec/other.7")];
        let bare = workload(Selectors::default());
        let contents =
            Selectors { exe_sha256: Some(toolgate_core::workload::Sha256([0; 32])), ..unit().selectors };
        assert_eq!(said(&[], &unit(), None), None);
        assert_eq!(said(&[listener(SERVICE, &service)], &unit(), None), None);
        assert_eq!(said(&[listener("untold", &service)], &unit(), None), None);
        assert_eq!(said(&[listener(SERVICE, &service)], &workload(contents), None), None);
        assert_eq!(said(&[listener("/toolgate.exec/docs.7", &exec)], &bare, None), None);
        assert!(said(&[listener("/toolgate.exec/other.7", &other)], &bare, None).is_some());
        let hidden = Listener { hidden: true, ..listener("untold", &[]) };
        let (wrong, help) = said(&[hidden], &unit(), None).unwrap();
        assert!(wrong.contains("may not be seen") && help.contains("root"), "{wrong} {help}");
    }

    #[test]
    fn the_best_listener_decides() {
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = any.local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let sockets = || Diag::open().unwrap().listening().unwrap();
        let chosen =
            |sockets: &[Socket]| serving(sockets, address).iter().map(|one| one.local()).collect::<Vec<_>>();
        assert_eq!(chosen(&sockets()), [any.local_addr().unwrap()]);
        assert_eq!(chosen(&[]), []);
        let own = Holders::of(&[serving(&sockets(), address)[0].inode]).unwrap();
        let holding = own.holding(serving(&sockets(), address)[0].inode);
        assert_eq!(holding.iter().map(|one| one.pid).collect::<Vec<_>>(), [std::process::id()]);
    }
}

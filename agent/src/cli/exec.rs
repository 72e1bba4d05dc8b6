//! `toolgate exec`: asks the agent for a captured cgroup, then becomes the program. Process id, terminal, signals and
//! exit code are the program's own, since no process of ours remains.

use std::collections::HashSet;
use std::ffi::{CString, OsString};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use nix::unistd::{Uid, User};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::{Config, block_on};
use crate::admin::client::{self, ExecRequest};

/// The program cannot be started (POSIX shell, 2.8.2).
const CANNOT_START: u8 = 126;
/// There is no program of that name.
const NOT_FOUND: u8 = 127;

/// What `exec` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    #[command(flatten)]
    config: Config,
    /// The App ID that the program has
    #[arg(long, value_name = "NAME")]
    app_id: String,
    /// The user that the program runs as [default: root, who calls this]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Exec {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if !Uid::effective().is_root() {
            anyhow::bail!("only root may choose an App ID; run `toolgate exec` with sudo");
        }
        toolgate_core::identity::check_name(&self.app_id)?;
        let Some((program, arguments)) = self.command.split_first() else {
            anyhow::bail!("no command given: toolgate exec --app-id NAME -- COMMAND");
        };
        let Some(exe) = find(Path::new(program)) else {
            let _ = writeln!(std::io::stderr(), "toolgate: `{}`: command not found", program.display());
            return Ok(ExitCode::from(NOT_FOUND));
        };
        let user = self.user.as_deref().map(user).transpose()?;
        let wanted = ExecRequest {
            app_id: self.app_id,
            exe: super::shown(&exe),
            uid: user.as_ref().map_or(0, |user| user.uid.as_raw()),
        };
        let socket = self.config.admin()?;
        let entered = block_on(async { Ok(client::exec(&socket, &wanted).await?) })?;
        let variables = missing(&entered["variables"]);
        if let Some(user) = &user {
            become_user(user).with_context(|| format!("cannot become user `{}`", user.name))?;
        }
        let error = Command::new(&exe).arg0(program).args(arguments).envs(variables).exec();
        let _ = writeln!(std::io::stderr(), "toolgate: cannot start `{}`: {error}", exe.display());
        Ok(ExitCode::from(CANNOT_START))
    }
}

/// What the program's environment must have to believe this node, and has not. Where it has whom our file does not have, that
/// is left, and said.
fn missing(variables: &Value) -> Vec<(&str, &str)> {
    let all = variables.as_object().into_iter().flatten();
    let all = all.filter_map(|(name, path)| Some((name.as_str(), path.as_str()?)));
    let is_missing = |(name, path): &(&str, &str)| match std::env::var_os(name) {
        None => true,
        Some(own) if has_all_of(Path::new(path), Path::new(&own)) => true,
        Some(own) => {
            let _ = writeln!(
                std::io::stderr(),
                "toolgate: the TLS of this program is read, and {name} stays `{}`: what goes by that believes this node only \
                 if it has the certificates of `{path}`",
                own.display()
            );
            false
        }
    };
    all.filter(is_missing).collect()
}

/// Whether a file has all certificates that another one has.
fn has_all_of(ours: &Path, other: &Path) -> bool {
    let read = |path: &Path| -> Option<HashSet<CertificateDer<'static>>> {
        CertificateDer::pem_file_iter(path).ok()?.collect::<Result<_, _>>().ok()
    };
    read(other).zip(read(ours)).is_some_and(|(other, ours)| other.is_subset(&ours))
}

fn user(name: &str) -> anyhow::Result<User> {
    User::from_name(name)?.with_context(|| format!("no user `{name}` on this machine (--user)"))
}

/// Groups first: without root they cannot be set.
fn become_user(user: &User) -> nix::Result<()> {
    let name = CString::new(user.name.as_str()).map_err(|_| nix::errno::Errno::EINVAL)?;
    nix::unistd::initgroups(&name, user.gid)?;
    nix::unistd::setgid(user.gid)?;
    nix::unistd::setuid(user.uid)
}

/// As a shell finds it: a path is taken as it is, a name is looked for in PATH.
fn find(program: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Some(program.to_owned()).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(runs)
}

//! `selectors:` of a Workload, with names of users and files resolved.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use serde_saphyr::Spanned;
use toolgate_core::policy::Glob;
use toolgate_core::workload::{ExeSelector, FileId, Selectors};

use super::diagnostic::Diagnostic;
use super::schema::SelectorsSpec;
use super::source::Source;
use super::words::{Findings, file_path};

/// The selectors of one Workload. The file of `exe` goes to `held`.
pub(super) fn read_selectors(
    source: &Source,
    spec: &SelectorsSpec,
    held: &mut Vec<File>,
    findings: &mut Findings,
) -> Selectors {
    findings.refuse_later(source, &[("exe_sha256", &spec.exe_sha256), ("container", &spec.container)]);
    Selectors {
        unit: spec.unit.as_ref().and_then(|word| findings.keep(unit(source, word))),
        cgroup: spec.cgroup.as_ref().and_then(|word| findings.keep(cgroup(source, word))),
        user: spec.user.as_ref().and_then(|word| findings.keep(user(source, word))),
        exe: spec.exe.as_ref().and_then(|word| exe(source, word, held, findings)),
    }
}

fn unit(source: &Source, word: &Spanned<String>) -> Result<String, Diagnostic> {
    let unit = &word.value;
    if (unit.ends_with(".service") || unit.ends_with(".scope")) && !unit.contains(['/', '*']) {
        return Ok(unit.clone());
    }
    let fault = source.error(word, format!("`{unit}` is no service or scope of the system manager"));
    Err(fault.help("write its whole name, as in `research-agent.service`; for several use `cgroup`"))
}

fn cgroup(source: &Source, word: &Spanned<String>) -> Result<Glob, Diagnostic> {
    let path = word.value.trim_matches('/');
    let fault = |message: String| {
        source.error(word, message).help("write it from the cgroup2 root: `machine.slice/*`")
    };
    if path.is_empty() {
        return Err(fault("every process is in the root".to_owned()));
    }
    Glob::new(path).map_err(|error| fault(error.to_string()))
}

fn user(source: &Source, word: &Spanned<String>) -> Result<u32, Diagnostic> {
    if let Ok(uid) = word.value.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(&word.value) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => {
            let fault = source.error(word, format!("there is no user `{}`", word.value));
            Err(fault.help("create it, or write its number"))
        }
        Err(error) => {
            let fault = source.error(word, format!("cannot look up user `{}`: {error}", word.value));
            Err(fault.help("write its number"))
        }
    }
}

fn exe(
    source: &Source,
    word: &Spanned<String>,
    held: &mut Vec<File>,
    findings: &mut Findings,
) -> Option<ExeSelector> {
    let path = findings.keep(file_path(source, word))?;
    let warn = |message: String| {
        let warning = source.error(word, message).warning();
        warning.help("install it and reload: the file is looked up when the resources are read")
    };
    let file = match hold(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata))) {
        Ok((file, metadata)) if metadata.is_file() => {
            held.push(file);
            Some(FileId { dev: metadata.dev(), ino: metadata.ino() })
        }
        Ok(_) => {
            findings.push(warn(format!("`{}` is no file, so no process fits", word.value)));
            None
        }
        Err(error) => {
            findings.push(warn(format!("`{}` cannot be found, so no process fits: {error}", word.value)));
            None
        }
    };
    Some(ExeSelector { path: word.value.clone(), file })
}

/// Holds a file without being able to read it: while it is held no other file can get its inode.
fn hold(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)
}

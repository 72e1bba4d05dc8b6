//! `selectors:` of a Workload, with names of users and files resolved.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde_saphyr::Spanned;
use toolgate_core::container::{ContainerSelector, IdPrefix, ImageName};
use toolgate_core::policy::Glob;
use toolgate_core::workload::{ExeSelector, FileId, Selectors, Sha256};

use super::diagnostic::Diagnostic;
use super::schema::{ContainerSpec, SelectorsSpec};
use super::source::Source;
use super::words::{Findings, file_path};
use crate::file::{self, Stamp, Sync};

/// What runs programs that it is given: its name says nothing of the program. A version may follow, and for `*` anything.
const INTERPRETERS: [&str; 42] = [
    "ash",
    "awk",
    "bash",
    "beam.smp",
    "bun",
    "busybox",
    "dash",
    "deno",
    "dotnet",
    "fish",
    "gawk",
    "gjs",
    "guile",
    "java",
    "julia",
    "jshell",
    "ksh",
    "ld-linux-*",
    "ld.so",
    "ld-musl-*",
    "lua",
    "luajit",
    "mawk",
    "mksh",
    "mono",
    "node",
    "nodejs",
    "perl",
    "php",
    "php-cgi",
    "pwsh",
    "pypy",
    "python",
    "qemu-*",
    "R",
    "racket",
    "ruby",
    "sh",
    "tclsh",
    "wasmtime",
    "wish",
    "zsh",
];

/// The selectors of one Workload. The file of `exe` goes to `held`.
pub(super) fn read_selectors(
    source: &Source,
    spec: &SelectorsSpec,
    held: &mut Vec<File>,
    findings: &mut Findings,
) -> Selectors {
    Selectors {
        unit: spec.unit.as_ref().and_then(|word| findings.keep(unit(source, word))),
        cgroup: spec.cgroup.as_ref().and_then(|word| findings.keep(cgroup(source, word))),
        user: spec.user.as_ref().and_then(|word| findings.keep(user(source, word))),
        exe: spec.exe.as_ref().and_then(|word| exe(source, word, spec, held, findings)),
        exe_sha256: spec.exe_sha256.as_ref().and_then(|word| findings.keep(exe_sha256(source, word))),
        container: spec.container.as_ref().and_then(|spec| container(source, spec, findings)),
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

fn exe_sha256(source: &Source, word: &Spanned<String>) -> Result<Sha256, Diagnostic> {
    Sha256::from_hex(&word.value).ok_or_else(|| {
        let fault = source.error(word, format!("`{}` is no SHA-256", word.value));
        fault.help("write the 64 digits that `sha256sum FILE` shows")
    })
}

fn container(
    source: &Source,
    spec: &Spanned<ContainerSpec>,
    findings: &mut Findings,
) -> Option<ContainerSelector> {
    let ContainerSpec { id, machine, image } = &spec.value;
    if id.is_none() && machine.is_none() && image.is_none() {
        let fault = source.error(spec, "`container` does not say which");
        findings.push(fault.help("add `id`, `image`, or the `machine` that `machinectl` shows"));
        return None;
    }
    if let (Some(machine), true) = (machine, id.is_some() || image.is_some()) {
        let fault = source.error(machine, "a machine has neither `id` nor `image`, so no process fits");
        findings.push(fault.help("keep `machine`, or the others"));
    }
    let id = id.as_ref().map(|word| {
        IdPrefix::new(&word.value).map_err(|error| {
            source.error(word, error.to_string()).help("write what `docker ps` or `podman ps` shows of it")
        })
    });
    let image = image.as_ref().map(|word| {
        ImageName::new(&word.value).map_err(|error| {
            let fault = source.error(word, error.to_string());
            fault.help("write `python:3.12`, or the image's own id as `sha256:` and 64 digits")
        })
    });
    Some(ContainerSelector {
        id: id.and_then(|id| findings.keep(id)),
        machine: machine.as_ref().map(|word| word.value.clone()),
        image: image.and_then(|image| findings.keep(image)),
    })
}

fn exe(
    source: &Source,
    word: &Spanned<String>,
    spec: &SelectorsSpec,
    held: &mut Vec<File>,
    findings: &mut Findings,
) -> Option<ExeSelector> {
    let path = findings.keep(file_path(source, word))?;
    let mut warn = |message: String, help: &str| {
        findings.push(source.error(word, message).warning().help(help));
    };
    let install = "install it and reload: the file is looked up when the resources are read";
    let found =
        file::hold(&path).and_then(|file| file::stamp(&file, Sync::AsStat).map(|stamp| (file, stamp)));
    let file = match found {
        Ok((file, stamp)) if stamp.is_file() => {
            if let Some((message, help)) = doubt(&word.value, &file, &stamp, spec) {
                warn(message, &help);
            }
            held.push(file);
            Some(FileId { dev: stamp.dev, ino: stamp.ino })
        }
        Ok(_) => {
            warn(format!("`{}` is no file, so no process fits", word.value), install);
            None
        }
        Err(error) => {
            warn(format!("`{}` cannot be found, so no process fits: {error}", word.value), install);
            None
        }
    };
    Some(ExeSelector { path: word.value.clone(), file })
}

/// What is probably not meant by an `exe` that is there, and the next step.
fn doubt(name: &str, file: &File, stamp: &Stamp, spec: &SelectorsSpec) -> Option<(String, String)> {
    if let Some(interpreter) = script(file) {
        let message = format!("`{name}` is a script, so no process fits: what runs is its interpreter");
        let help = format!(
            "write `exe: {interpreter}`, which runs any script, with the `unit`, `cgroup`, `user` or `container` of this one"
        );
        return Some((message, help));
    }
    let mount = file::mount("self", stamp.mount_id).ok().flatten();
    if let Some(mount) = mount.filter(|mount| mount.dev != stamp.dev) {
        let message = format!(
            "`{name}` is on {}, where the kernel records another device than `stat` shows, so no process fits",
            mount.kind
        );
        return Some((message, "use `unit`, `cgroup`, `user` or `container` instead".to_owned()));
    }
    let narrowed =
        spec.unit.is_some() || spec.cgroup.is_some() || spec.user.is_some() || spec.container.is_some();
    // By its own name: `/usr/bin/python3` is a link to the version.
    let real = file::path(file).ok()?;
    if narrowed || !is_interpreter(&real) {
        return None;
    }
    let message = format!("`{name}` runs whatever it is given: every program that it runs fits");
    Some((message, "add the `unit`, `cgroup`, `user` or `container` of the one that is meant".to_owned()))
}

/// The interpreter that the first line of a script names (execve(2)).
fn script(file: &File) -> Option<String> {
    let mut head = Vec::new();
    let read = |mut file: File| -> io::Result<usize> { file.by_ref().take(256).read_to_end(&mut head) };
    file::readable(file).and_then(read).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    Some(line.split_whitespace().next().unwrap_or("/bin/sh").to_owned())
}

fn is_interpreter(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    INTERPRETERS.iter().any(|known| match known.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => version_only(name.strip_prefix(known)),
    })
}

/// `3.12`, `-5.36`, nothing: what follows an interpreter's name.
fn version_only(rest: Option<&str>) -> bool {
    let part = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-');
    rest.is_some_and(|rest| rest.bytes().all(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_known_by_name() {
        let table = [
            ("/usr/bin/python3.11", true),
            ("/usr/bin/python", true),
            ("/opt/x/bin/node", true),
            ("/usr/bin/perl5.36.0", true),
            ("/usr/bin/php8.2", true),
            ("/usr/bin/ruby3.1", true),
            ("/usr/bin/pypy3", true),
            ("/usr/lib/jvm/bin/java", true),
            ("/bin/bash", true),
            ("/bin/busybox", true),
            ("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", true),
            ("/usr/bin/qemu-aarch64-static", true),
            ("/usr/bin/lua5.4", true),
            ("/usr/bin/deno", true),
            ("/usr/bin/bun", true),
            ("/usr/bin/python-agent", false),
            ("/usr/bin/nodemon", false),
            ("/usr/bin/bundle", false),
            ("/usr/bin/R", true),
            ("/usr/bin/Rest", false),
            ("/usr/bin/shfmt", false),
            ("/usr/local/bin/agent", false),
        ];
        for (path, expected) in table {
            assert_eq!(is_interpreter(Path::new(path)), expected, "{path}");
        }
    }
}

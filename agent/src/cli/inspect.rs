//! `toolgate inspect`: lets programs believe the authority by which their TLS is read.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{Config, block_on, print_json, shown};
use crate::admin::client;

/// The drop-in's name: behind most others, whose variables would count less.
const DROP_IN: &str = "90-toolgate-inspect.conf";

/// What `inspect` does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Inspect {
    /// Write whom clients are to believe, and say by which variables they do; with `--unit` give these to a service
    #[command(
        after_help = "Example: toolgate inspect trust --unit research-agent && systemctl daemon-reload && \
                            systemctl restart research-agent"
    )]
    Trust(Trust),
}

/// What `inspect trust` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Trust {
    #[command(flatten)]
    config: Config,
    /// A unit of systemd that gets a drop-in with the variables
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// Where units have their drop-ins
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system", requires = "unit")]
    directory: PathBuf,
    /// As JSON: `bundle`, `authority` and its `fingerprint`, `variables`, `drop_in` and whether that has `changed`
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self::Trust(Trust { config, unit, directory, json }) = self;
        let mut told = block_on(async { Ok(client::inspection(&config.admin()?).await?) })?;
        if let Some(unit) = unit {
            let path = drop_in(&directory, &unit)?;
            let changed = write(&path, &text(&told["variables"]))?;
            told["drop_in"] = json!(path);
            told["changed"] = json!(changed);
        }
        if json {
            return print_json(&told);
        }
        Ok(io::stdout().write_all(words(&told).as_bytes())?)
    }
}

/// The drop-in of a unit; a name without a type is a service's.
fn drop_in(directory: &Path, unit: &str) -> anyhow::Result<PathBuf> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if unit.is_empty() || !unit.chars().all(is_plain) || unit.starts_with('.') {
        bail!("`{unit}` is no name of a unit: write one as `systemctl` shows it");
    }
    let is_typed = [".service", ".scope", ".slice"].iter().any(|kind| unit.ends_with(kind));
    let unit = if is_typed { unit.to_owned() } else { format!("{unit}.service") };
    if !unit.ends_with(".service") {
        bail!("`{unit}` starts no program: only services have an environment of their own");
    }
    Ok(directory.join(format!("{unit}.d")).join(DROP_IN))
}

fn text(variables: &Value) -> String {
    let mut text =
        "# Written by `toolgate inspect trust`: TLS of this unit is read, by an authority of this node.\n\
                    [Unit]\n# The agent writes the files.\nAfter=toolgate.service\n\n[Service]\n"
            .to_owned();
    for (name, path) in variables.as_object().into_iter().flatten() {
        // Writing to a String cannot fail. `%` begins a specifier in units.
        let _ =
            writeln!(text, "Environment=\"{name}={}\"", path.as_str().unwrap_or_default().replace('%', "%%"));
    }
    text
}

/// Whether there was something else.
fn write(path: &Path, text: &str) -> anyhow::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(false);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| shown(directory))?;
    }
    let fresh = path.with_extension("fresh");
    let written = fs::write(&fresh, text)
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&fresh, path));
    written.with_context(|| shown(path))?;
    Ok(true)
}

/// The first directory above that others may not pass, if there is one.
fn closed(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|above| {
        !above.as_os_str().is_empty()
            && fs::metadata(above).is_ok_and(|above| above.permissions().mode() & 0o001 == 0)
    })
}

fn words(told: &Value) -> String {
    let word = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ =
        writeln!(out, "wrote {}: the authority alone (SHA-256 {})", word("authority"), word("fingerprint"));
    let _ = writeln!(out, "wrote {}: it, and whom this system believes", word("bundle"));
    if let Some(path) = closed(Path::new(&word("bundle"))) {
        let _ =
            writeln!(out, "others than root cannot read them there: `{}` is closed to them", path.display());
    }
    match (told["drop_in"].as_str(), &told["changed"]) {
        (Some(path), Value::Bool(true)) => {
            let _ = writeln!(out, "wrote {path}: run `systemctl daemon-reload`, and restart the unit");
        }
        (Some(path), _) => {
            let _ = writeln!(
                out,
                "{path} says it already: restart the unit if the authority is another than it knows"
            );
        }
        (None, _) => {
            out.push_str("programs believe it by these variables, which `toolgate exec` sets by itself:\n");
            for (name, path) in told["variables"].as_object().into_iter().flatten() {
                let _ = writeln!(out, "  {name}={}", path.as_str().unwrap_or_default());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_is_written_once_for_a_service() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            ("agent", Some("agent.service.d")),
            ("agent.service", Some("agent.service.d")),
            ("agent@1.service", Some("agent@1.service.d")),
            ("machine.slice", None),
            ("../agent", None),
            ("", None),
        ];
        for (unit, expected) in table {
            let path = drop_in(folder.path(), unit).ok();
            let expected = expected.map(|unit| folder.path().join(unit).join(DROP_IN));
            assert_eq!(path, expected, "{unit}");
        }
        let variables = json!({ "SSL_CERT_FILE": "/run/a%b/bundle.pem" });
        let (path, text) = (drop_in(folder.path(), "agent").unwrap(), text(&variables));
        assert!(text.contains("Environment=\"SSL_CERT_FILE=/run/a%%b/bundle.pem\"\n"), "{text}");
        assert!(write(&path, &text).unwrap());
        assert!(!write(&path, &text).unwrap(), "a second time");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

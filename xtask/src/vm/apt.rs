//! Debian's archive, read with a configuration of our own: lists and downloads lie below `target/vm/apt`, the machine's
//! own apt is left as it is. Only the mirror is the machine's, where its sources name one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::sbin;
use crate::workspace::{find_program, run_quietly, say};
use crate::{debian, sudo};

const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
/// Where suites go that are no longer supported.
const OLD_MIRROR: &str = "http://archive.debian.org/debian";
const OLD_SECURITY_MIRROR: &str = "http://archive.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with lists of a few suites.
pub(super) struct Apt {
    folder: PathBuf,
}

/// A package that can be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) version: String,
}

impl Apt {
    /// Fetches the lists of these suites into `folder`: from the machine's mirror, or else from Debian's.
    pub(super) fn with_suites(folder: &Path, suites: &[&str]) -> Result<Self> {
        if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
            bail!("no apt-get or dpkg-deb here: this task takes its kernels from Debian's packages");
        }
        if !Path::new(KEYRING).is_file() {
            bail!("`{KEYRING}` is missing: `apt-get install debian-archive-keyring`");
        }
        for below in ["lists/partial", "cache/archives/partial", "state", "parts"] {
            let below = folder.join(below);
            fs::create_dir_all(&below).with_context(|| format!("cannot create `{}`", below.display()))?;
        }
        let apt = Self { folder: folder.to_owned() };
        let mut tried = Vec::new();
        for mirrors in mirrors() {
            let sources: String = suites.iter().map(|suite| mirrors.line(suite)).collect();
            fs::write(folder.join("sources.list"), sources).context("cannot write apt's sources")?;
            match run_quietly(apt.command("apt-get").args(["--error-on=any", "update"])) {
                Ok(_lists) => return Ok(apt),
                Err(error) => tried.push(format!("{error:#}")),
            }
        }
        bail!("cannot read the lists of {} from any mirror:\n{}", suites.join(", "), tried.join("\n"))
    }

    /// The packages whose whole name matches, newest first.
    pub(super) fn newest(&self, pattern: &str) -> Result<Vec<Candidate>> {
        let found = run_quietly(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        let found = String::from_utf8(found.stdout).context("apt-cache's answer is not UTF-8")?;
        let names: Vec<_> = found.lines().filter_map(|line| line.split(' ').next()).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let versions = run_quietly(self.command("apt-cache").arg("madison").args(names))?;
        Ok(candidates(&String::from_utf8_lossy(&versions.stdout)))
    }

    /// Fetches one package into `folder` and unpacks it there.
    pub(super) fn unpack(&self, wanted: &Candidate, folder: &Path) -> Result<()> {
        let package = format!("{}={}", wanted.name, wanted.version);
        run_quietly(self.command("apt-get").arg("download").arg(&package).current_dir(folder))?;
        let entries = fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
        let archive = entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get has not put `{package}` into `{}`", folder.display()))?;
        run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(folder))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove `{}`", archive.display()))
    }

    /// What makes any apt command read these lists.
    pub(super) fn options(&self) -> Vec<String> {
        let below = |name: &str| self.folder.join(name).display().to_string();
        [
            format!("Dir::State={}", below("state")),
            format!("Dir::State::lists={}", below("lists")),
            "Dir::State::status=/var/lib/dpkg/status".to_owned(),
            format!("Dir::Cache={}", below("cache")),
            format!("Dir::Etc::sourcelist={}", below("sources.list")),
            format!("Dir::Etc::sourceparts={}", below("parts")),
            // Suites that are no longer supported have no new dates; their signatures are checked as ever.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The download goes where another user may not write.
            "APT::Sandbox::User=root".to_owned(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options()).env("LC_ALL", "C");
        command
    }
}

/// Lines of `sources.list` for these suites, from the first mirror that is tried.
pub(crate) fn sources(suites: &[&str]) -> String {
    let mirrors = mirrors();
    let lines = mirrors.first().map(|mirrors| suites.iter().map(|suite| mirrors.line(suite)).collect());
    lines.unwrap_or_default()
}

/// Installs the packages of the programs that are missing, where this is root or there is sudo: from the machine's own
/// sources; else, as where a package of backports is in the way of the older one, from the backports of its release.
/// Nothing is removed for it.
pub(crate) fn install(vm: &Path, wanted: &[(&str, &str)]) -> Result<()> {
    let missing = wanted.iter().filter(|(program, _)| sbin::find(program).is_none());
    let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    install_packages(vm, &packages)
        .with_context(|| format!("cannot install what is missing: `apt-get install {}`", packages.join(" ")))
}

fn install_packages(vm: &Path, packages: &[&str]) -> Result<()> {
    let Err(own) = debian::install(packages) else { return Ok(()) };
    let about = fs::read_to_string("/etc/os-release").context("cannot read `/etc/os-release`")?;
    let value = |key: &str| about.lines().find_map(|line| line.strip_prefix(key));
    let (Some("debian"), Some(release)) = (value("ID="), value("VERSION_CODENAME=")) else { return Err(own) };
    let backports = format!("{release}-backports");
    let suites = [release, &format!("{release}-updates"), &format!("{release}-security"), &backports];
    let lists = Apt::with_suites(&vm.join("apt").join(release), &suites)?;
    say(format_args!("installing them from {backports}"));
    let mut command = sudo::command(sudo::root()?, "env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(lists.options());
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]);
    run_quietly(command.args(["--target-release", &backports]).args(packages)).map(|_done| ())
}

/// Where suites and where their security updates are.
struct Mirrors {
    suites: String,
    security: String,
}

impl Mirrors {
    fn line(&self, suite: &str) -> String {
        let from = if suite.ends_with("-security") { &self.security } else { &self.suites };
        format!("deb [arch=amd64 signed-by={KEYRING}] {from} {suite} main\n")
    }
}

/// In the order in which they are tried.
fn mirrors() -> Vec<Mirrors> {
    let mut command = Command::new("apt-get");
    let asked = run_quietly(command.args(["indextargets", "--format", "$(REPO_URI)"]));
    let text = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let named = |last: &str, otherwise: &str| {
        let found = text.lines().map(|line| line.trim_end_matches('/')).find(|line| line.ends_with(last));
        found.unwrap_or(otherwise).to_owned()
    };
    let pair = |suites: &str, security: &str| Mirrors { suites: suites.into(), security: security.into() };
    let own = pair(&named("/debian", MIRROR), &named("/debian-security", SECURITY_MIRROR));
    let usual = pair(MIRROR, SECURITY_MIRROR);
    let old = pair(OLD_MIRROR, OLD_SECURITY_MIRROR);
    if own.suites == usual.suites && own.security == usual.security {
        return vec![usual, old];
    }
    vec![own, usual, old]
}

/// The answer of `apt-cache madison`, `name | version | source` a line, newest first.
fn candidates(text: &str) -> Vec<Candidate> {
    let mut found: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            let (name, version) = (columns.next()?.to_owned(), columns.next()?.to_owned());
            Some(Candidate { name, version })
        })
        .collect();
    found.sort_by_key(|candidate| std::cmp::Reverse(numbers(&candidate.version)));
    found
}

/// The numbers in a version, in their order: enough to tell two builds of one kernel series.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn the_newest_comes_first() {
        let text = "\
linux-image-6.12.90+deb13.1-cloud-amd64 | 6.12.90-2 | http://example.org trixie-security/main amd64 Packages
linux-image-6.12.117+deb13-cloud-amd64 | 6.12.117-1 | http://example.org trixie/main amd64 Packages
linux-image-6.12.90+deb13-cloud-amd64 | 6.12.90-1 | http://example.org trixie/main amd64 Packages
";
        let versions: Vec<_> = candidates(text).into_iter().map(|found| found.version).collect();
        assert_eq!(versions, ["6.12.117-1", "6.12.90-2", "6.12.90-1"]);
    }
}

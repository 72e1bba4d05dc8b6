//! Debian's stock kernels: fetched once, never installed, kept under `target/vm/kernels/SERIES`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt::Apt;
use crate::workspace::{run_quietly, say};

/// A series of kernels, and the suites of Debian that have it.
pub(super) struct Series {
    pub(super) name: &'static str,
    suites: &'static [&'static str],
}

/// From the oldest that Toolgate runs on.
pub(super) const SERIES: [Series; 4] = [
    Series { name: "5.10", suites: &["bullseye", "bullseye-security"] },
    Series { name: "6.1", suites: &["bookworm", "bookworm-security"] },
    Series { name: "6.12", suites: &["trixie", "trixie-security"] },
    Series { name: "6.18", suites: &["trixie-backports"] },
];

/// Written last: a folder without it is the rest of an interrupted run.
const STAMP: &str = "toolgate-stamp";

/// A kernel that lies unpacked.
pub(super) struct Kernel {
    pub(super) series: &'static str,
    /// As `uname -r` has it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// Files of its modules by name, with `_` for `-`.
    modules: BTreeMap<String, PathBuf>,
}

/// A module as it is given to the kernel.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

impl Kernel {
    /// The newest of its series that the archive has, or what was fetched before.
    pub(super) fn get(vm: &Path, series: &Series) -> Result<Self> {
        let folder = vm.join("kernels").join(series.name);
        if !folder.join(STAMP).is_file() {
            if folder.exists() {
                fs::remove_dir_all(&folder)
                    .with_context(|| format!("cannot remove `{}`", folder.display()))?;
            }
            fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
            fetch(vm, series, &folder).with_context(|| format!("cannot get a kernel {}", series.name))?;
        }
        Self::open(series.name, &folder)
    }

    fn open(series: &'static str, folder: &Path) -> Result<Self> {
        let boot = folder.join("boot");
        let names = fs::read_dir(&boot).with_context(|| format!("cannot list `{}`", boot.display()))?;
        let release = names
            .flatten()
            .find_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
            .with_context(|| format!("no kernel in `{}`", boot.display()))?;
        let image = boot.join(format!("vmlinuz-{release}"));
        let mut modules = BTreeMap::new();
        // Debian moved them when it merged /usr.
        for above in ["lib/modules", "usr/lib/modules"] {
            let above = folder.join(above).join(&release).join("kernel");
            if above.is_dir() {
                list(&above, &mut modules)?;
            }
        }
        if modules.is_empty() {
            bail!("the package of kernel {release} has no modules");
        }
        Ok(Self { series, release, image, modules })
    }

    /// The modules of these names with all that they need, each after what it needs. Those that this kernel does not
    /// have as modules are left out: it may have them built in, or not at all.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in names {
            self.add(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, ordered: &mut Vec<Module>) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(file) = self.modules.get(&name) else { return Ok(()) };
        if ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let content = read(file)?;
        for needed in needs(&content) {
            self.add(&needed, ordered)?;
        }
        ordered.push(Module { name, content });
        Ok(())
    }
}

fn fetch(vm: &Path, series: &Series, folder: &Path) -> Result<()> {
    let apt = Apt::with_suites(&vm.join("apt").join(series.name), series.suites)?;
    let pattern = format!("^linux-image-{}[.-][^ ]*-cloud-amd64$", series.name.replace('.', "\\."));
    let found = apt.newest(&pattern)?;
    let Some(newest) = found.first() else {
        bail!("none in {}", series.suites.join(", "));
    };
    say(format_args!("fetching {} {}", newest.name, newest.version));
    apt.unpack(newest, folder)?;
    fs::write(folder.join(STAMP), &newest.version)
        .with_context(|| format!("cannot write `{STAMP}` into `{}`", folder.display()))
}

/// All modules below a folder.
fn list(folder: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list `{}`", folder.display()))?.path();
        if path.is_dir() {
            list(&path, modules)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((stem, _compressed)) = name.split_once(".ko")
        {
            modules.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// A module as the kernel takes it: not compressed.
fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = run_quietly(Command::new("xz").args(["--decompress", "--stdout"]).arg(file))?;
        return Ok(unpacked.stdout);
    }
    fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))
}

/// The names after `depends=` in a module's `.modinfo`, whose entries end with a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::needs;

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(
            needs(b"\x7fELF\0license=GPL\0depends=virtio,virtio-ring\0name=x\0"),
            ["virtio", "virtio-ring"]
        );
        assert!(needs(b"\0depends=\0").is_empty());
        assert!(needs(b"nothing").is_empty());
    }
}

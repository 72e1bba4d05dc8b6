//! A choice of this machine's files, each at its own path: what a virtual machine needs of it to run what runs here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::run_quietly;

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    Link(PathBuf),
    File,
    /// A program whose debug information stays behind: it takes room, and nobody looks at it there.
    Stripped,
}

/// The files, by their absolute paths.
#[derive(Default)]
pub(super) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// A file or folder, without what is in it, with every link on the way to it. Returns where it really is.
    pub(super) fn add(&mut self, path: &Path) -> Result<PathBuf> {
        let mut at = PathBuf::from("/");
        let mut parts = path.components();
        while let Some(part) = parts.next() {
            match part {
                Component::RootDir | Component::Prefix(_) | Component::CurDir => continue,
                Component::ParentDir => {
                    at.pop();
                    continue;
                }
                Component::Normal(name) => at.push(name),
            }
            let about =
                fs::symlink_metadata(&at).with_context(|| format!("cannot see `{}`", at.display()))?;
            if about.is_symlink() {
                let to = fs::read_link(&at).with_context(|| format!("cannot read `{}`", at.display()))?;
                self.nodes.insert(at.clone(), Node::Link(to.clone()));
                at.pop();
                return self.add(&at.join(to).join(parts.as_path()));
            }
            let node = if about.is_dir() { Node::Folder } else { Node::File };
            self.nodes.insert(at.clone(), node);
        }
        Ok(at)
    }

    /// A folder with all that is in it, but what has one of the names in `without`, and the libraries that the libraries
    /// in it load.
    pub(super) fn add_all(&mut self, folder: &Path, without: &[&str]) -> Result<()> {
        let folder = self.add(folder)?;
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
            let entry = entry.with_context(|| format!("cannot list `{}`", folder.display()))?;
            let (path, kind) = (entry.path(), entry.file_type().context("a file without type")?);
            if without.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if kind.is_dir() {
                self.add_all(&path, without)?;
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "so") {
                self.program(&path)?;
            } else if path.exists() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    /// A program or library with the libraries that it loads.
    pub(super) fn program(&mut self, path: &Path) -> Result<()> {
        for library in libraries(path)? {
            self.add(&library)?;
        }
        self.add(path).map(|_really| ())
    }

    /// A program that was built here, likewise; its copy has no debug information.
    pub(super) fn built(&mut self, path: &Path) -> Result<()> {
        self.program(path)?;
        let really = self.add(path)?;
        self.nodes.insert(really, Node::Stripped);
        Ok(())
    }

    /// Changes whenever a file does: paths, sizes and times.
    pub(super) fn fingerprint(&self) -> Result<String> {
        use std::fmt::Write as _;
        use std::os::unix::fs::MetadataExt as _;
        let mut text = String::new();
        for (path, node) in &self.nodes {
            let _infallible = match node {
                Node::Folder => writeln!(text, "{}/", path.display()),
                Node::Link(to) => writeln!(text, "{} -> {}", path.display(), to.display()),
                Node::File | Node::Stripped => {
                    let about =
                        fs::metadata(path).with_context(|| format!("cannot see `{}`", path.display()))?;
                    writeln!(
                        text,
                        "{} {} {}.{}",
                        path.display(),
                        about.len(),
                        about.mtime(),
                        about.mtime_nsec()
                    )
                }
            };
        }
        Ok(text)
    }

    /// Copies them below a folder that is empty, and says how many bytes that was.
    pub(super) fn copy_below(&self, folder: &Path) -> Result<u64> {
        let mut bytes = 0;
        for (path, node) in &self.nodes {
            let to = folder.join(path.strip_prefix("/").unwrap_or(path));
            match node {
                Node::Folder => fs::create_dir_all(&to).map_err(Into::into),
                Node::Link(target) => std::os::unix::fs::symlink(target, &to).map_err(Into::into),
                Node::File => copy(path, &to).map(|copied| bytes += copied).map_err(Into::into),
                Node::Stripped => strip(path, &to).map(|copied| bytes += copied),
            }
            .with_context(|| format!("cannot copy `{}` to `{}`", path.display(), to.display()))?;
        }
        Ok(bytes)
    }

    /// Is that path among them?
    #[cfg(test)]
    fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(Path::new(path))
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    let bytes = fs::copy(from, to)?;
    let mut permissions = fs::metadata(to)?.permissions();
    // mkfs.ext4 must read it, whatever this user may not write here.
    permissions.set_mode(permissions.mode() | 0o600);
    fs::set_permissions(to, permissions)?;
    Ok(bytes)
}

fn strip(from: &Path, to: &Path) -> Result<u64> {
    run_quietly(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from))?;
    Ok(fs::metadata(to)?.len())
}

/// The libraries that a program loads at its start, the loader included. Scripts and static programs have none.
pub(super) fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(path).env("LC_ALL", "C").output().context("cannot start `ldd`")?;
    if !output.status.success() {
        return Ok(Vec::new());
    }
    parse(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("`{}`", path.display()))
}

/// `NAME => PATH (ADDRESS)` or `PATH (ADDRESS)` a line; what the kernel maps by itself has no path.
fn parse(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in ldd.lines().map(str::trim) {
        if line.contains("not found") {
            bail!("a library is missing: {line}");
        }
        let path = line.split_once(" => ").map_or(line, |(_name, path)| path);
        let path = path.split_once(" (").map_or(path, |(path, _address)| path);
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// Where a Python interpreter has what it needs: its own file, its prefix' library, and the environment's.
pub(super) fn python(interpreter: &Path) -> Result<Vec<PathBuf>> {
    let ask =
        "import sys, sysconfig; print(sysconfig.get_path('stdlib')); print(sysconfig.get_path('platstdlib'))";
    let output = run_quietly(Command::new(interpreter).args(["-I", "-c", ask]))?;
    let text = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    let mut paths: Vec<_> = text.lines().map(PathBuf::from).collect();
    paths.dedup();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Tree, parse};

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so (0x0)\n";
        assert_eq!(
            parse(text).expect("paths"),
            [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so")]
        );
        assert!(parse("\tstatically linked\n").expect("none").is_empty());
        parse("\tlibx.so => not found\n").expect_err("one is missing");
    }

    #[test]
    fn links_on_the_way_come_along() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().canonicalize().expect("a path");
        fs::create_dir_all(real.join("usr/lib")).expect("a folder");
        fs::write(real.join("usr/lib/a"), "text").expect("a file");
        std::os::unix::fs::symlink("usr/lib", real.join("lib")).expect("a link");
        let mut tree = Tree::default();
        assert_eq!(tree.add(&real.join("lib/a")).expect("it is there"), real.join("usr/lib/a"));
        for name in ["lib", "usr", "usr/lib", "usr/lib/a"] {
            assert!(tree.has(&real.join(name).display().to_string()), "{name}");
        }
        let copy = tempfile::tempdir().expect("a folder");
        assert_eq!(tree.copy_below(copy.path()).expect("copied"), 4);
        let below = real.strip_prefix("/").unwrap_or(Path::new(""));
        assert_eq!(fs::read(copy.path().join(below).join("lib/a")).expect("a file"), b"text");
    }
}

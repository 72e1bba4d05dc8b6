//! The archive that a kernel unpacks as its first file system: cpio, "new ASCII" (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that is being written. Everything in it belongs to root.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// A file that may be run, at an absolute path; the folders above it are made.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        let name = self.folders_of(path)?;
        self.entry(&name, PROGRAM, [0, 0], content)
    }

    /// An empty folder.
    pub(super) fn folder(&mut self, path: &Path) -> Result<()> {
        self.folders_of(&path.join("."))?;
        Ok(())
    }

    /// A character device, by its numbers.
    pub(super) fn device(&mut self, path: &Path, numbers: [u32; 2]) -> Result<()> {
        let name = self.folders_of(path)?;
        self.entry(&name, CHARACTER_DEVICE, numbers, &[])
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, [0, 0], &[])?;
        Ok(self.bytes)
    }

    /// The name that an absolute path has in the archive; folders that are not in it yet come first.
    fn folders_of(&mut self, path: &Path) -> Result<String> {
        let text = path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))?;
        let name = text.trim_start_matches('/').to_owned();
        for (at, _slash) in name.match_indices('/') {
            let folder = name[..at].to_owned();
            if self.folders.insert(folder.clone()) {
                self.entry(&folder, FOLDER, [0, 0], &[])?;
            }
        }
        Ok(name)
    }

    fn entry(&mut self, name: &str, mode: u32, device: [u32; 2], content: &[u8]) -> Result<()> {
        self.entries += 1;
        let bytes = u32::try_from(content.len()).with_context(|| format!("`{name}` is above 4 GiB"))?;
        let name_bytes = u32::try_from(name.len() + 1).context("a name above 4 GiB")?;
        // Inode, mode, uid, gid, links, mtime, size, device, device of a node, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, bytes, 0, 0, device[0], device[1], name_bytes, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Archive;

    #[test]
    fn entries_are_aligned_and_folders_come_first() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/c"), b"12345").expect("a file");
        archive.file(Path::new("/a/d"), b"").expect("a file");
        archive.device(Path::new("/dev/console"), [5, 1]).expect("a device");
        let bytes = archive.finish().expect("an archive");
        assert_eq!(bytes.len() % 4, 0);
        let mut names = Vec::new();
        let mut at = 0;
        let field = |at: usize, number: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + 8 * number..][..8]).expect("ASCII");
            usize::from_str_radix(text, 16).expect("hexadecimal")
        };
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let name = &bytes[at + 110..][..field(at, 11) - 1];
            let content = (at + 110 + field(at, 11)).next_multiple_of(4);
            if name == b"a/b/c" {
                assert_eq!(&bytes[content..content + 5], b"12345");
            }
            names.push(String::from_utf8_lossy(name).into_owned());
            at = (content + field(at, 6)).next_multiple_of(4);
        }
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", "dev", "dev/console", "TRAILER!!!"]);
    }
}

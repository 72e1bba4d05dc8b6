//! What a container was made from, as its runtime keeps it on disk, for `container.image`.
//!
//! - Docker: `<docker>/containers/<id>/config.v2.json`
//! - Podman and CRI-O: `<storage>/<driver>-containers/{containers,volatile-containers}.json` and
//!   `<storage>/<driver>-images/images.json`
//!
//! Only files that root owns and nobody else may write are read, in directories of the same kind.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toolgate_core::container::{Container, Image, Runtime, full_name};

use crate::file::{self, Sync};

/// Of one file of a runtime's state.
const STATE_BYTES_MAX: u64 = 16 << 20;
/// Storage drivers of containers/storage.
const DRIVERS: [&str; 3] = ["overlay", "btrfs", "vfs"];

/// Why it is not known what a container was made from: its selector does not fit then.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoImage {
    #[error(
        "the container belongs to a user or unit, who could change what its runtime says: use `container.id` with `user`"
    )]
    Delegated,
    #[error("containerd keeps images in a database that is not read: use `container.id`, or `cgroup`")]
    Database,
    #[error("a machine has no image: use `container.machine`")]
    Machine,
    #[error("`{path}`: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error("`{path}` may be written by others than root")]
    Untrusted { path: PathBuf },
    #[error("`{path}` is not what this version expects of it: {cause}")]
    Shape { path: PathBuf, cause: serde_json::Error },
    #[error("no state of container {id} below `{root}`: does the runtime keep it elsewhere")]
    Absent { id: String, root: PathBuf },
}

/// Where runtimes keep their state.
#[derive(Debug, Clone)]
pub(super) struct Runtimes {
    docker: PathBuf,
    storage: PathBuf,
    /// Who owns it: root.
    owner: u32,
}

impl Default for Runtimes {
    fn default() -> Self {
        Self { docker: "/var/lib/docker".into(), storage: "/var/lib/containers/storage".into(), owner: 0 }
    }
}

/// `config.v2.json`
#[derive(Deserialize)]
struct DockerContainer {
    #[serde(rename = "Image")]
    id: String,
    #[serde(rename = "Config")]
    config: DockerConfig,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "Image")]
    name: String,
}

/// One of `containers.json`.
#[derive(Deserialize)]
struct StoredContainer {
    id: String,
    image: String,
}

/// One of `images.json`.
#[derive(Deserialize)]
struct StoredImage {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
}

impl Runtimes {
    /// What `container` was made from. Reads files.
    pub(super) fn image(&self, container: &Container) -> Result<Image, NoImage> {
        if container.delegated {
            return Err(NoImage::Delegated);
        }
        match container.runtime {
            Runtime::Docker => self.docker(&container.id),
            Runtime::Podman | Runtime::Crio => self.storage(&container.id),
            Runtime::Containerd | Runtime::Kubernetes => Err(NoImage::Database),
            Runtime::Machine => Err(NoImage::Machine),
        }
    }

    fn docker(&self, id: &str) -> Result<Image, NoImage> {
        let file = format!("containers/{id}/config.v2.json");
        let found: Option<DockerContainer> = self.read(&self.docker, &file)?;
        let found = found.ok_or_else(|| absent(id, &self.docker))?;
        let id = found.id.strip_prefix("sha256:").unwrap_or(&found.id).to_owned();
        // As `docker run` was told: a name, which is given to another image by the next pull, or an id.
        Ok(Image { id, names: full_name(&found.config.name).into_iter().collect() })
    }

    fn storage(&self, id: &str) -> Result<Image, NoImage> {
        for driver in DRIVERS {
            for file in ["containers.json", "volatile-containers.json"] {
                let file = format!("{driver}-containers/{file}");
                let all: Option<Vec<StoredContainer>> = self.read(&self.storage, &file)?;
                let found = all.into_iter().flatten().find(|one| one.id == id);
                if let Some(StoredContainer { image, .. }) = found {
                    let file = format!("{driver}-images/images.json");
                    let images: Option<Vec<StoredImage>> = self.read(&self.storage, &file)?;
                    let names = images.into_iter().flatten().find(|one| one.id == image);
                    let names = names.and_then(|image| image.names).unwrap_or_default();
                    return Ok(Image {
                        id: image,
                        names: names.iter().filter_map(|name| full_name(name)).collect(),
                    });
                }
            }
        }
        Err(absent(id, &self.storage))
    }

    /// A file below `root`; `None`: there is none.
    fn read<T: DeserializeOwned>(&self, root: &Path, file: &str) -> Result<Option<T>, NoImage> {
        let path = root.join(file);
        let failed = |cause| NoImage::Read { path: path.clone(), cause };
        let held = match file::hold(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            held => held.map_err(failed)?,
        };
        let real = file::path(&held).map_err(failed)?;
        let above = root.canonicalize().map_err(failed)?;
        for directory in real.ancestors().skip(1).take_while(|one| one.starts_with(&above)) {
            self.trusted(directory, &file::hold(directory).map_err(failed)?)?;
        }
        let stamp = self.trusted(&path, &held)?;
        if !stamp.is_file() || stamp.bytes > STATE_BYTES_MAX {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        let mut text = Vec::new();
        let mut file = file::readable(&held).map_err(failed)?.take(STATE_BYTES_MAX);
        file.read_to_end(&mut text).map_err(failed)?;
        let shape = |cause| NoImage::Shape { path: path.clone(), cause };
        serde_json::from_slice(&text).map(Some).map_err(shape)
    }

    fn trusted(&self, path: &Path, held: &std::fs::File) -> Result<file::Stamp, NoImage> {
        let failed = |cause| NoImage::Read { path: path.to_owned(), cause };
        let stamp = file::stamp(held, Sync::AsStat).map_err(failed)?;
        if stamp.uid != self.owner || stamp.is_writable_by_others() {
            return Err(NoImage::Untrusted { path: path.to_owned() });
        }
        Ok(stamp)
    }
}

fn absent(id: &str, root: &Path) -> NoImage {
    NoImage::Absent { id: id.to_owned(), root: root.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const IMAGE: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    /// The state of two runtimes, as Docker 28 and Podman 4.3 write it, cut to a few of its fields.
    fn state() -> (tempfile::TempDir, Runtimes) {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let write = |path: &str, text: String| {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), text).unwrap();
        };
        write(
            &format!("docker/containers/{ID}/config.v2.json"),
            format!(
                r#"{{"ID":"{ID}","Image":"sha256:{IMAGE}","Name":"/web","Config":{{"Image":"python:3.12","Cmd":["x"]}}}}"#
            ),
        );
        write(
            "storage/overlay-containers/containers.json",
            format!(
                r#"[{{"id":"other","image":"x"}},{{"id":"{ID}","names":["web"],"image":"{IMAGE}","layer":"l"}}]"#
            ),
        );
        write(
            "storage/overlay-images/images.json",
            format!(
                r#"[{{"id":"x"}},{{"id":"{IMAGE}","digest":"sha256:d","names":["ghcr.io/me/agent:1","localhost/b:latest"]}}]"#
            ),
        );
        // SAFETY: a call without arguments.
        let owner = unsafe { libc::geteuid() };
        let runtimes = Runtimes { docker: at("docker"), storage: at("storage"), owner };
        (root, runtimes)
    }

    fn container(runtime: Runtime) -> Container {
        Container { runtime, id: ID.to_owned(), delegated: false }
    }

    #[test]
    fn images_are_read_from_the_runtimes_state() {
        let (_root, runtimes) = state();
        let image = |names: &[&str]| Image {
            id: IMAGE.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let stored = image(&["ghcr.io/me/agent:1", "localhost/b:latest"]);
        assert_eq!(
            runtimes.image(&container(Runtime::Docker)).unwrap(),
            image(&["docker.io/library/python:3.12"])
        );
        assert_eq!(runtimes.image(&container(Runtime::Podman)).unwrap(), stored);
        assert_eq!(runtimes.image(&container(Runtime::Crio)).unwrap(), stored);
        // `podman run --rm` on a transient store.
        let folder = runtimes.storage.join("overlay-containers");
        fs::rename(folder.join("containers.json"), folder.join("volatile-containers.json")).unwrap();
        assert_eq!(runtimes.image(&container(Runtime::Podman)).unwrap(), stored);
    }

    #[test]
    fn what_is_not_told_is_an_error() {
        let (_root, runtimes) = state();
        let check = |container: &Container, words: &str| {
            let said = runtimes.image(container).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        };
        check(&container(Runtime::Containerd), "containerd keeps images in a database");
        check(&container(Runtime::Kubernetes), "containerd keeps images in a database");
        check(&container(Runtime::Machine), "a machine has no image");
        check(&Container { delegated: true, ..container(Runtime::Podman) }, "belongs to a user or unit");
        for runtime in [Runtime::Docker, Runtime::Podman] {
            check(&Container { id: IMAGE.to_owned(), ..container(runtime) }, "no state of container");
        }
        fs::write(runtimes.storage.join("overlay-images/images.json"), "{}").unwrap();
        check(&container(Runtime::Podman), "is not what this version expects");
    }

    #[test]
    fn state_that_others_may_write_is_not_trusted() {
        let (_root, mut runtimes) = state();
        let files = ["docker", "docker/containers", &format!("docker/containers/{ID}/config.v2.json")];
        let root = runtimes.docker.parent().unwrap().to_owned();
        for file in files {
            let path = root.join(file);
            let before = fs::metadata(&path).unwrap().permissions();
            for mode in [0o777, 0o720] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let said = runtimes.image(&container(Runtime::Docker)).unwrap_err();
                assert!(matches!(said, NoImage::Untrusted { .. }), "{file} {mode:o}: {said}");
            }
            fs::set_permissions(&path, before).unwrap();
        }
        assert!(runtimes.image(&container(Runtime::Docker)).is_ok());
        runtimes.owner += 1;
        let said = runtimes.image(&container(Runtime::Docker)).unwrap_err();
        assert!(matches!(said, NoImage::Untrusted { .. }), "another owner: {said}");
    }
}

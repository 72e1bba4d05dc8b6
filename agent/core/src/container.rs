//! Which container a process is in: what runtimes and the service manager write into the path of its cgroup, and
//! names of images.
//!
//! The path is all that is trusted for the id. A user can make a cgroup of any name below a cgroup that was delegated to
//! it, so what is found there is [delegated](Container::delegated) and fits only selectors that name more.

/// Digits of a container's id, as all runtimes have it.
const ID_DIGITS: usize = 64;

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
    /// CRI-O.
    Crio,
    /// containerd, by Kubernetes or nerdctl.
    Containerd,
    /// Kubernetes with the cgroupfs driver: the path does not say what runs it.
    Kubernetes,
    /// systemd-nspawn, and what else is registered with systemd-machined.
    Machine,
}

/// A container as a cgroup's path tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What runs it.
    pub runtime: Runtime,
    /// Its id; of a machine its name.
    pub id: String,
    /// A user, or the unit it is in, may have made the cgroup, and chosen its name.
    pub delegated: bool,
}

impl Container {
    /// The outermost container of a path below the cgroup2 root: `/machine.slice/libpod-<id>.scope/container`. What is
    /// further in was made by the container itself.
    #[must_use]
    pub fn of(cgroup: &str) -> Option<Self> {
        let mut parents = Parents::default();
        let parts: Vec<&str> = cgroup.strip_prefix('/')?.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            let next = parts.get(at + 1).copied();
            if let Some((runtime, id)) = parents.scope(part, next) {
                return Some(Self { runtime, id, delegated: parents.delegated });
            }
            parents.pass(part);
        }
        None
    }
}

/// What leads from the root to a part of the path.
#[derive(Debug, Default)]
struct Parents<'p> {
    /// From one of them on their owner need not be root.
    delegated: bool,
    /// The last two: `kubepods`, `pod<uid>`, `docker`.
    last: Option<&'p str>,
    first: Option<&'p str>,
}

impl<'p> Parents<'p> {
    fn pass(&mut self, part: &'p str) {
        let first = *self.first.get_or_insert(part);
        // What makes cgroups there is root's: the service manager, a kubelet, a daemon.
        let systems = match first {
            "user.slice" => false,
            "kubepods" | "docker" | "libpod_parent" => true,
            _slice_or_not => part.ends_with(".slice"),
        };
        self.delegated |= !systems;
        self.last = Some(part);
    }

    /// The container that a part of the path names.
    fn scope(&self, part: &str, next: Option<&str>) -> Option<(Runtime, String)> {
        let scope = part.strip_suffix(".scope");
        if let Some(name) = scope.and_then(|name| name.strip_prefix("machine-")) {
            return Some((Runtime::Machine, unescape(name)?));
        }
        if let Some((prefix, id)) = scope.and_then(|name| name.rsplit_once('-')).filter(|(_, id)| is_id(id)) {
            let runtime = match prefix {
                "docker" => Runtime::Docker,
                "libpod" => Runtime::Podman,
                "crio" => Runtime::Crio,
                "cri-containerd" | "nerdctl" => Runtime::Containerd,
                // `libpod-conmon-<id>`: what watches a container is not in it.
                _other => return None,
            };
            return Some((runtime, id.to_owned()));
        }
        if let Some(name) =
            part.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"))
        {
            // `supervisor`: systemd-nspawn itself.
            return (next != Some("supervisor")).then_some((Runtime::Machine, unescape(name)?));
        }
        if let Some(id) = part.strip_prefix("libpod-payload-").filter(|id| is_id(id)) {
            return Some((Runtime::Podman, id.to_owned()));
        }
        let kubernetes =
            self.first == Some("kubepods") && self.last.is_some_and(|pod| pod.starts_with("pod"));
        match (self.first, self.last) {
            (Some("docker"), Some("docker")) if is_id(part) => Some((Runtime::Docker, part.to_owned())),
            (Some("libpod_parent"), Some("libpod_parent")) => {
                let id = part.strip_prefix("libpod-").filter(|id| is_id(id))?;
                Some((Runtime::Podman, id.to_owned()))
            }
            _pod if kubernetes && is_id(part) => Some((Runtime::Kubernetes, part.to_owned())),
            _pod if kubernetes => {
                let id = part.strip_prefix("crio-").filter(|id| is_id(id))?;
                Some((Runtime::Crio, id.to_owned()))
            }
            _other => None,
        }
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_hex(text)
}

/// As systemd escapes what is part of a unit's name: `my\x2dbox` (systemd.unit(5)).
fn unescape(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((plain, escaped)) = rest.split_once("\\x") {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.get(..2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = escaped.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

/// `container:` of a Workload's selectors; all that are given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSelector {
    /// The id, or its first digits.
    pub id: Option<IdPrefix>,
    /// The name of a machine, as `machinectl` has it.
    pub machine: Option<String>,
    /// What it was made from.
    pub image: Option<ImageName>,
}

/// The first 12 to 64 digits of a container's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdPrefix(String);

/// Why a text names no container or image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContainer {
    /// Not hex, or too short or long.
    #[error("`{text}` is no container id: it has 12 to 64 digits of 0-9 and a-f")]
    Id {
        /// As it was written.
        text: String,
    },
    /// A digest of a manifest, which a runtime's state need not hold.
    #[error("`{text}` names an image by its manifest's digest, which the runtimes' state does not tell")]
    Digest {
        /// As it was written.
        text: String,
    },
    /// Nothing that could name an image.
    #[error("`{text}` is no name of an image")]
    Image {
        /// As it was written.
        text: String,
    },
}

impl IdPrefix {
    /// The shortest that `docker ps` and `podman ps` show.
    const DIGITS_MIN: usize = 12;

    /// Reads an id.
    ///
    /// # Errors
    /// [`InvalidContainer::Id`]
    pub fn new(text: &str) -> Result<Self, InvalidContainer> {
        if (Self::DIGITS_MIN..=ID_DIGITS).contains(&text.len()) && is_hex(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidContainer::Id { text: text.to_owned() })
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An image as a selector names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageName {
    /// Its id, 64 digits: a name may be given to another image, an id never is.
    Id(String),
    /// Registry, repository and tag: `docker.io/library/python:3.12`.
    Name(String),
}

impl ImageName {
    /// Reads `sha256:<id>`, or a name as `docker run` takes it: registry, `library/` and tag may be left out.
    ///
    /// # Errors
    /// [`InvalidContainer::Digest`] or [`InvalidContainer::Image`]
    pub fn new(text: &str) -> Result<Self, InvalidContainer> {
        let invalid = || InvalidContainer::Image { text: text.to_owned() };
        if let Some(id) = text.strip_prefix("sha256:") {
            return if is_id(id) { Ok(Self::Id(id.to_owned())) } else { Err(invalid()) };
        }
        if text.contains('@') {
            return Err(InvalidContainer::Digest { text: text.to_owned() });
        }
        full_name(text).map(Self::Name).ok_or_else(invalid)
    }
}

/// As it was written, with what was left out.
impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "sha256:{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The whole name of an image, with what Docker leaves out of it.
#[must_use]
pub fn full_name(text: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':');
    if text.is_empty() || !text.bytes().all(allowed) {
        return None;
    }
    // A registry is told from a user by a dot, a port, or `localhost`.
    let registry = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let (registry, path) = match text.split_once('/') {
        Some((first, rest)) if registry(first) => (first, rest.to_owned()),
        Some(_) => ("docker.io", text.to_owned()),
        None => ("docker.io", format!("library/{text}")),
    };
    let (repository, tag) = path.split_once(':').unwrap_or((&path, "latest"));
    let sound = |part: &str| !part.is_empty() && !part.contains(':');
    (repository.split('/').all(sound) && sound(tag) && !tag.contains('/'))
        .then(|| format!("{registry}/{repository}:{tag}"))
}

/// What a container was made from, as its runtime's state on disk tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id, 64 digits.
    pub id: String,
    /// Its [whole names](full_name).
    pub names: Vec<String>,
}

impl Image {
    pub(crate) fn is(&self, wanted: &ImageName) -> bool {
        match wanted {
            ImageName::Id(id) => self.id == *id,
            ImageName::Name(name) => self.names.contains(name),
        }
    }
}

impl ContainerSelector {
    /// Whether the path fits; the image is not part of it.
    pub(crate) fn fits_path(&self, cgroup: &str, delegation_is_named: bool) -> bool {
        let Some(container) = Container::of(cgroup) else { return false };
        let machine = container.runtime == Runtime::Machine;
        let Self { id, machine: name, image: _ } = self;
        (!container.delegated || delegation_is_named)
            && id.as_ref().is_none_or(|id| !machine && container.id.starts_with(id.as_str()))
            && name.as_ref().is_none_or(|name| machine && container.id == *name)
    }

    pub(crate) fn implies(&self, other: &Self) -> bool {
        let id =
            |wide: &IdPrefix| self.id.as_ref().is_some_and(|own| own.as_str().starts_with(wide.as_str()));
        other.id.as_ref().is_none_or(id)
            && (other.machine.is_none() || self.machine == other.machine)
            && (other.image.is_none() || self.image == other.image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    #[test]
    fn containers_are_told_by_their_cgroup() {
        use Runtime::{Containerd, Crio, Docker, Kubernetes, Machine, Podman};
        let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        let user = "/user.slice/user-1000.slice/user@1000.service";
        type Row<'r> = (String, Option<(Runtime, &'r str, bool)>);
        let table: &[Row<'_>] = &[
            (format!("/system.slice/docker-{A}.scope"), Some((Docker, A, false))),
            (format!("/system.slice/docker-{A}.scope/init.scope"), Some((Docker, A, false))),
            (format!("/my.slice/my-own.slice/docker-{A}.scope"), Some((Docker, A, false))),
            (format!("/docker/{A}"), Some((Docker, A, false))),
            (format!("/docker/{A}/docker/{B}"), Some((Docker, A, false))),
            (format!("/machine.slice/libpod-{A}.scope/container"), Some((Podman, A, false))),
            (format!("/libpod_parent/libpod-{A}"), Some((Podman, A, false))),
            (format!("{pod}/cri-containerd-{A}.scope"), Some((Containerd, A, false))),
            (format!("{pod}/crio-{A}.scope"), Some((Crio, A, false))),
            (format!("{pod}/docker-{A}.scope"), Some((Docker, A, false))),
            (format!("/system.slice/nerdctl-{A}.scope"), Some((Containerd, A, false))),
            (format!("/kubepods/burstable/pod1-2/{A}"), Some((Kubernetes, A, false))),
            (format!("/kubepods/pod1-2/{A}/x"), Some((Kubernetes, A, false))),
            (format!("/kubepods/besteffort/pod1-2/crio-{A}"), Some((Crio, A, false))),
            ("/machine.slice/systemd-nspawn@box.service/payload".into(), Some((Machine, "box", false))),
            ("/machine.slice/systemd-nspawn@box.service".into(), Some((Machine, "box", false))),
            (r"/machine.slice/machine-my\x2dbox.scope".into(), Some((Machine, "my-box", false))),
            // Outermost: what is inside was made by the container.
            (
                format!("/system.slice/docker-{A}.scope/system.slice/docker-{B}.scope"),
                Some((Docker, A, false)),
            ),
            (format!("/machine.slice/machine-a.scope/docker/{A}"), Some((Machine, "a", false))),
            // Delegated: its user, or the unit, chose the name.
            (format!("{user}/user.slice/libpod-{A}.scope/container"), Some((Podman, A, true))),
            (format!("{user}/app.slice/docker-{A}.scope"), Some((Docker, A, true))),
            (format!("/user.slice/docker-{A}.scope"), Some((Docker, A, true))),
            (format!("{user}/docker/{A}"), None),
            (format!("/system.slice/web.service/libpod-payload-{A}"), Some((Podman, A, true))),
            (format!("/system.slice/web.service/docker-{A}.scope"), Some((Docker, A, true))),
            (format!("/own/docker-{A}.scope"), Some((Docker, A, true))),
            (format!("/toolgate.exec/a.1/docker-{A}.scope"), Some((Docker, A, true))),
            (format!("{user}/machine.slice/systemd-nspawn@box.service"), Some((Machine, "box", true))),
            // Not in a container.
            (format!("/machine.slice/libpod-conmon-{A}.scope"), None),
            (format!("{pod}/crio-conmon-{A}.scope"), None),
            ("/machine.slice/systemd-nspawn@box.service/supervisor".into(), None),
            ("/system.slice/docker.service".into(), None),
            (format!("/system.slice/docker-{}.scope", &A[1..]), None),
            (format!("/system.slice/docker-{}.scope", A.to_uppercase()), None),
            (format!("/x/{A}"), None),
            (format!("/docker/x/{A}"), None),
            (format!("/kubepods/burstable/{A}"), None),
            (r"/machine.slice/machine-\x2.scope".into(), None),
            (r"/machine.slice/machine-\xff.scope".into(), None),
            ("/machine.slice/machine-.scope".into(), None),
            ("/".into(), None),
            (String::new(), None),
        ];
        for (cgroup, expected) in table {
            let expected =
                expected.map(|(runtime, id, delegated)| Container { runtime, id: id.to_owned(), delegated });
            assert_eq!(Container::of(cgroup), expected, "{cgroup}");
        }
    }

    #[test]
    fn images_have_whole_names() {
        let table = [
            ("python", Some("docker.io/library/python:latest")),
            ("python:3.12", Some("docker.io/library/python:3.12")),
            ("me/agent:1", Some("docker.io/me/agent:1")),
            ("docker.io/library/python:3.12", Some("docker.io/library/python:3.12")),
            ("ghcr.io/me/x/agent", Some("ghcr.io/me/x/agent:latest")),
            ("localhost/agent", Some("localhost/agent:latest")),
            ("registry:5000/agent:2", Some("registry:5000/agent:2")),
            ("", None),
            ("a b", None),
            ("a/", None),
            ("/a", None),
            ("a:", None),
            ("a:1:2", None),
            ("a:1/b:2/c", None),
            ("a:1/b", Some("a:1/b:latest")),
            ("a*", None),
        ];
        for (text, expected) in table {
            assert_eq!(full_name(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(ImageName::new(&format!("sha256:{A}")), Ok(ImageName::Id(A.to_owned())));
        assert!(matches!(ImageName::new("sha256:abc"), Err(InvalidContainer::Image { .. })));
        assert!(matches!(ImageName::new("a@sha256:b"), Err(InvalidContainer::Digest { .. })));
    }

    #[test]
    fn ids_are_prefixes() {
        for (text, good) in [(&A[..12], true), (A, true), (&A[..11], false), ("0123456789AB", false)] {
            assert_eq!(IdPrefix::new(text).is_ok(), good, "{text}");
        }
        let selector = |id: &str| ContainerSelector { id: IdPrefix::new(id).ok(), ..Default::default() };
        let docker = format!("/system.slice/docker-{A}.scope");
        assert!(selector(&A[..12]).fits_path(&docker, false));
        assert!(!selector(&B[..12]).fits_path(&docker, false));
        assert!(selector(A).implies(&selector(&A[..12])));
        assert!(!selector(&A[..12]).implies(&selector(A)));
        // A machine's name is chosen: it may look like an id.
        let machine = format!("/machine.slice/machine-{A}.scope");
        assert!(!selector(A).fits_path(&machine, false));
        let named = ContainerSelector { machine: Some(A.to_owned()), ..Default::default() };
        assert!(named.fits_path(&machine, false) && !named.fits_path(&docker, false));
    }
}

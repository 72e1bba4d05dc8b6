//! Which `.socket` unit of the service manager listens at an address, from the unit files: for systemd that did not
//! make the socket in the unit's own cgroup.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The unit, if a file of one says so. What drop-ins and generators add elsewhere is not seen.
pub(super) fn listening_at(address: SocketAddr, folders: &[&Path]) -> Option<String> {
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = || std::fs::read_to_string(entry.path()).unwrap_or_default();
            if name.ends_with(".socket") && text().lines().any(|line| listens(line, address)) {
                return Some(name);
            }
        }
    }
    None
}

/// `ListenStream=` with a port, or an address and a port (systemd.socket(5)).
fn listens(line: &str, address: SocketAddr) -> bool {
    let Some(("ListenStream", value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
    else {
        return false;
    };
    let same = |ip: IpAddr| ip.is_unspecified() || ip.to_canonical() == address.ip().to_canonical();
    match (value.parse::<u16>(), value.parse::<SocketAddr>()) {
        (Ok(port), _) => port == address.port(),
        (Err(_), Ok(one)) => one.port() == address.port() && same(one.ip()),
        (Err(_), Err(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_say_where_they_listen() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            ("[Socket]\nListenStream=8000\n", true),
            ("[Socket]\nListenStream = 8000\n", true),
            ("[Socket]\n ListenStream=127.0.0.1:8000\n", true),
            ("ListenStream=[::]:8000\n", true),
            ("ListenStream=0.0.0.0:8000\n", true),
            ("ListenStream=127.0.0.2:8000\n", false),
            ("ListenStream=8001\n", false),
            ("ListenStream=/run/8000\n", false),
            ("#ListenStream=8000\n", false),
        ];
        for (text, expected) in table {
            std::fs::write(folder.path().join("docs.socket"), text).unwrap();
            std::fs::write(folder.path().join("docs.service"), "ListenStream=8000").unwrap();
            let found = listening_at("127.0.0.1:8000".parse().unwrap(), &[Path::new("/none"), folder.path()]);
            assert_eq!(found.as_deref(), expected.then_some("docs.socket"), "{text}");
        }
    }
}

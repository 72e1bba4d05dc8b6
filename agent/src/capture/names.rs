//! Names of cgroups that the kernel captures by itself when they are made.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use toolgate_ebpf_common::{NAME_BYTES_MAX, NAMES_MAX, Name};

use super::{
    CaptureError,
    abi::Abi,
    cgroup,
    plan::{Plan, flags, map_error, room},
};

/// The map of names, and which they are now.
pub(super) struct Names {
    map: HashMap<MapData, Abi<Name>, u32>,
    wanted: BTreeMap<Name, u32>,
}

impl Names {
    pub(super) fn new(map: HashMap<MapData, Abi<Name>, u32>) -> Self {
        Self { map, wanted: BTreeMap::new() }
    }

    /// Before the cgroups themselves: what is made meanwhile is captured by one of the two.
    pub(super) fn apply(&mut self, plan: &Plan) -> Result<(), CaptureError> {
        let wanted = wanted(plan);
        let failed = map_error("NAMES");
        for (name, flags) in &wanted {
            self.map.insert(Abi(*name), flags, 0).map_err(&failed)?;
        }
        let known: Vec<Abi<Name>> = self.map.keys().collect::<Result<_, _>>().map_err(&failed)?;
        for Abi(name) in known.iter().filter(|Abi(name)| !wanted.contains_key(name)) {
            self.map.remove(&Abi(*name)).map_err(&failed)?;
        }
        self.wanted = wanted;
        Ok(())
    }

    /// Whether the names of a plan have room beside those that it does without.
    pub(super) fn check_room(&self, plan: &Plan) -> Result<(), CaptureError> {
        let wanted = wanted(plan);
        let is_wanted = |Abi(name): &Abi<Name>| wanted.contains_key(name);
        room("NAMES", self.map.keys(), is_wanted, wanted.len(), NAMES_MAX)
    }

    /// Whether the kernel captured this cgroup by its name, perhaps after the plan was made.
    pub(super) fn holds(&self, id: u64) -> bool {
        cgroup::path_of(id).is_ok_and(|path| key(&path).is_some_and(|name| self.wanted.contains_key(&name)))
    }
}

fn wanted(plan: &Plan) -> BTreeMap<Name, u32> {
    let names = plan.names.iter().filter(|(name, ..)| !name.is_empty());
    names.filter_map(|(name, scope, destinations)| Some((key(name)?, flags(*scope, *destinations)))).collect()
}

/// Nothing for a name that is too long: the agent follows it by inotify alone.
fn key(name: &str) -> Option<Name> {
    let mut path = [0; NAME_BYTES_MAX];
    let bytes = name.trim_start_matches('/').as_bytes();
    let (first, rest) = path.split_first_mut()?;
    *first = b'/';
    // A zero must be left behind it.
    let room = rest.len() - 1;
    rest.get_mut(..bytes.len()).filter(|_| bytes.len() <= room)?.copy_from_slice(bytes);
    Some(Name { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_with_zeros_behind() {
        let check = |name: &str, expected: Option<&str>| {
            let found = key(name).map(|name| name.path);
            let text = found.map(|path| String::from_utf8_lossy(&path).trim_end_matches('\0').to_owned());
            assert_eq!(text.as_deref(), expected, "{name}");
        };
        check("system.slice/a.service", Some("/system.slice/a.service"));
        check("/toolgate.exec", Some("/toolgate.exec"));
        let longest = "x".repeat(NAME_BYTES_MAX - 2);
        check(&longest, Some(&format!("/{longest}")));
        check(&"x".repeat(NAME_BYTES_MAX - 1), None);
        check(&"x".repeat(NAME_BYTES_MAX * 2), None);
    }
}

//! What is to be captured, and how it gets into the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use aya::maps::{
    HashMap, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::IpNet;
use toolgate_ebpf_common::{
    CGROUP_LEVELS_MAX, CGROUPS_MAX, DESTINATIONS_ALL, DESTINATIONS_DECLARED, DESTINATIONS_MAX, GUARDED_MAX,
    Guarded, SCOPE_BELOW_ONLY, SCOPE_SUBTREE, v4_mapped,
};

use super::{CaptureError, Cookie, abi::Abi, cgroup, names::Names};

/// What is captured, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whose connections; of nested ones the deepest decides.
    pub cgroups: Vec<CapturedCgroup>,
    /// Whose connections by name, there or not: a cgroup of that name is captured from its making on. Below the
    /// cgroup2 root, without a leading `/`; empty: the root.
    pub names: Vec<(String, Scope, Destinations)>,
    /// Which destinations, for cgroups with [`Destinations::Declared`].
    pub capture: Vec<Destination>,
    /// Destinations that are left alone: these win over captures.
    pub exclude: Vec<Destination>,
    /// Ports of the agent that captured processes are refused at: these win over all. An unspecified address means any.
    pub refuse: Vec<SocketAddr>,
    /// Ports of local servers, on whatever address, that only the agent may connect to.
    pub guarded: Vec<(Cookie, u16)>,
}

/// A cgroup by its id, see [`cgroup::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedCgroup {
    /// Inode of its directory.
    pub id: u64,
    /// Which processes.
    pub scope: Scope,
    /// Which destinations.
    pub destinations: Destinations,
}

/// Which processes of a captured cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those in it and below.
    Subtree,
    /// Those below it only.
    BelowOnly,
}

/// Which destinations of a captured cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destinations {
    /// Those that the plan names.
    Declared,
    /// All.
    All,
}

/// A network, and one port or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Addresses.
    pub net: IpNet,
    /// Port; none: every port.
    pub port: Option<u16>,
}

type AbiKey = Abi<toolgate_ebpf_common::Destination>;
type Trie = LpmTrie<MapData, AbiKey, u32>;
/// Prefix length, port and address.
type Entry = (u32, [u8; 2], [u8; 16]);
/// The keys of a trie; all values are 1.
type Entries = BTreeSet<Entry>;

/// The maps that a plan fills.
pub(super) struct PlanMaps {
    pub(super) captured: HashMap<MapData, u64, u32>,
    pub(super) names: Names,
    pub(super) refused: Trie,
    pub(super) excluded: Trie,
    pub(super) destinations: Trie,
    pub(super) guarded: HashMap<MapData, Abi<Guarded>, u32>,
}

impl PlanMaps {
    /// Brings the maps to `plan`. They change one entry at a time, in an order in which at no moment
    /// less is captured than both the old plan and the new one capture.
    pub(super) fn apply(&mut self, plan: &Plan) -> Result<(), CaptureError> {
        let captured = cgroup_entries(&plan.cgroups)?;
        let refused = trie_entries("REFUSED", plan.refuse.iter().map(refused_key))?;
        let destinations = trie_entries("DESTINATIONS", plan.capture.iter().map(key))?;
        let excluded = trie_entries("EXCLUDED", plan.exclude.iter().map(key))?;
        let guarded = guarded_keys(&plan.guarded)?;
        self.check_room(&captured, &refused, &destinations, &excluded, &guarded)?;
        self.names.check_room(plan)?;
        for key in &guarded {
            self.guarded.insert(Abi(*key), 1, 0).map_err(map_error("GUARDED"))?;
        }
        insert(&mut self.refused, "REFUSED", &refused)?;
        remove_stale(&mut self.excluded, "EXCLUDED", &excluded)?;
        insert(&mut self.destinations, "DESTINATIONS", &destinations)?;
        self.names.apply(plan)?;
        for (id, flags) in &captured {
            self.captured.insert(id, flags, 0).map_err(map_error("CAPTURED"))?;
        }
        let known: Vec<u64> =
            self.captured.keys().collect::<Result<_, _>>().map_err(map_error("CAPTURED"))?;
        for id in known.iter().filter(|id| !captured.contains_key(id) && !self.names.holds(**id)) {
            self.captured.remove(id).map_err(map_error("CAPTURED"))?;
        }
        remove_stale(&mut self.destinations, "DESTINATIONS", &destinations)?;
        remove_stale(&mut self.refused, "REFUSED", &refused)?;
        insert(&mut self.excluded, "EXCLUDED", &excluded)?;
        self.remove_unguarded(&guarded)
    }

    /// What is new is inserted before what is old is removed: there must be room for both, or half of a plan would hold.
    fn check_room(
        &self,
        captured: &BTreeMap<u64, u32>,
        refused: &Entries,
        destinations: &Entries,
        excluded: &Entries,
        guarded: &[Guarded],
    ) -> Result<(), CaptureError> {
        room("CAPTURED", self.captured.keys(), |id| captured.contains_key(id), captured.len(), CGROUPS_MAX)?;
        let of_guarded = |Abi(key): &Abi<Guarded>| guarded.contains(key);
        room("GUARDED", self.guarded.keys(), of_guarded, guarded.len(), GUARDED_MAX)?;
        for (name, trie, wanted) in [
            ("REFUSED", &self.refused, refused),
            ("DESTINATIONS", &self.destinations, destinations),
            ("EXCLUDED", &self.excluded, excluded),
        ] {
            let is_wanted = |key: &Key<AbiKey>| wanted.contains(&entry(key));
            room(name, trie.keys(), is_wanted, wanted.len(), DESTINATIONS_MAX)?;
        }
        Ok(())
    }

    fn remove_unguarded(&mut self, wanted: &[Guarded]) -> Result<(), CaptureError> {
        let failed = map_error("GUARDED");
        let known: Vec<Abi<Guarded>> = self.guarded.keys().collect::<Result<_, _>>().map_err(&failed)?;
        for Abi(key) in known {
            if !wanted.contains(&key) {
                self.guarded.remove(&Abi(key)).map_err(&failed)?;
            }
        }
        Ok(())
    }
}

pub(super) fn map_error(name: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { name, cause: Box::new(source) }
}

fn cgroup_entries(cgroups: &[CapturedCgroup]) -> Result<BTreeMap<u64, u32>, CaptureError> {
    for cgroup in cgroups {
        check_depth(cgroup.id)?;
    }
    limit("CAPTURED", cgroups.len(), CGROUPS_MAX)?;
    Ok(cgroups.iter().map(|cgroup| (cgroup.id, flags(cgroup.scope, cgroup.destinations))).collect())
}

fn guarded_keys(ports: &[(Cookie, u16)]) -> Result<Vec<Guarded>, CaptureError> {
    limit("GUARDED", ports.len(), GUARDED_MAX)?;
    let key =
        |&(cookie, port): &(Cookie, u16)| Guarded { netns_cookie: cookie.0, port: port.into(), reserved: 0 };
    Ok(ports.iter().map(key).collect())
}

/// The programs look at the upper levels only. A cgroup that is gone captures nobody at any depth.
fn check_depth(id: u64) -> Result<(), CaptureError> {
    match cgroup::path_of(id) {
        Ok(path) if levels(&path) >= CGROUP_LEVELS_MAX as usize => {
            Err(CaptureError::CgroupTooDeep { path, max: CGROUP_LEVELS_MAX - 1 })
        }
        Ok(_) | Err(CaptureError::CgroupId { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn levels(path: &str) -> usize {
    path.split('/').filter(|name| !name.is_empty()).count()
}

pub(super) fn flags(scope: Scope, destinations: Destinations) -> u32 {
    let scope = match scope {
        Scope::Subtree => SCOPE_SUBTREE,
        Scope::BelowOnly => SCOPE_BELOW_ONLY,
    };
    let destinations = match destinations {
        Destinations::Declared => DESTINATIONS_DECLARED,
        Destinations::All => DESTINATIONS_ALL,
    };
    scope | destinations
}

fn trie_entries(name: &'static str, entries: impl Iterator<Item = Entry>) -> Result<Entries, CaptureError> {
    let entries: Entries = entries.collect();
    limit(name, entries.len(), DESTINATIONS_MAX)?;
    Ok(entries)
}

/// Whether a map has room for `wanted` entries beside those in it that are not among them.
pub(super) fn room<K>(
    name: &'static str,
    known: impl Iterator<Item = Result<K, MapError>>,
    is_wanted: impl Fn(&K) -> bool,
    wanted: usize,
    max: u32,
) -> Result<(), CaptureError> {
    let stale = known.filter_map(Result::ok).filter(|key| !is_wanted(key)).count();
    if wanted + stale > max as usize {
        return Err(CaptureError::NoRoom { name, wanted, stale, max });
    }
    Ok(())
}

fn limit(name: &'static str, count: usize, max: u32) -> Result<(), CaptureError> {
    if count > max as usize { Err(CaptureError::TooMany { name, count, max }) } else { Ok(()) }
}

fn key(destination: &Destination) -> Entry {
    let (address, bits) = match destination.net.trunc() {
        IpNet::V4(net) => (mapped(net.network().into()), 96 + u32::from(net.prefix_len())),
        IpNet::V6(net) => (net.network().octets(), u32::from(net.prefix_len())),
    };
    // Port 0 is what the programs look up for "any port": nobody can connect to it.
    let port = destination.port.unwrap_or(0).to_be_bytes();
    (toolgate_ebpf_common::Destination::PORT_BITS + bits, port, address)
}

fn refused_key(address: &SocketAddr) -> Entry {
    let port = address.port().to_be_bytes();
    if address.ip().is_unspecified() {
        return (toolgate_ebpf_common::Destination::PORT_BITS, port, [0; 16]);
    }
    (toolgate_ebpf_common::Destination::BITS, port, mapped(address.ip()))
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => v4_mapped(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => address.octets(),
    }
}

fn trie_key(&(bits, port, address): &Entry) -> Key<AbiKey> {
    Key::new(bits, Abi(toolgate_ebpf_common::Destination { port, address }))
}

fn entry(key: &Key<AbiKey>) -> Entry {
    let Abi(destination) = key.data();
    (key.prefix_len(), destination.port, destination.address)
}

fn insert(trie: &mut Trie, name: &'static str, entries: &Entries) -> Result<(), CaptureError> {
    entries.iter().try_for_each(|key| trie.insert(&trie_key(key), 1, 0)).map_err(map_error(name))
}

fn remove_stale(trie: &mut Trie, name: &'static str, wanted: &Entries) -> Result<(), CaptureError> {
    let known: Vec<Key<AbiKey>> = trie.keys().collect::<Result<_, _>>().map_err(map_error(name))?;
    for key in known {
        if !wanted.contains(&entry(&key)) {
            trie.remove(&key).map_err(map_error(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_compare_from_the_left() {
        let check = |net: &str, port: Option<u16>, bits: u32, port_bytes: [u8; 2], address: &str| {
            let found = key(&Destination { net: net.parse().unwrap(), port });
            let expected = address.parse::<std::net::Ipv6Addr>().unwrap().octets();
            assert_eq!(found, (bits, port_bytes, expected), "{net}");
        };
        check("127.0.0.1/32", Some(8000), 144, [0x1f, 0x40], "::ffff:127.0.0.1");
        check("10.1.2.3/8", None, 120, [0, 0], "::ffff:10.0.0.0");
        check("0.0.0.0/0", None, 112, [0, 0], "::ffff:0.0.0.0");
        check("fd00::1/64", Some(1), 80, [0, 1], "fd00::");
    }

    #[test]
    fn levels_below_the_root() {
        assert_eq!(levels("/"), 0);
        assert_eq!(levels("/system.slice/a.service"), 2);
    }
}

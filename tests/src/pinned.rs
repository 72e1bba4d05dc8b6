//! The pinned maps of the programs, as the kernel holds them: for tests that look into them, or take a guard away.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo};

/// Where the agent pins.
const PINS: &str = "/sys/fs/bpf/toolgate";

/// A hash map whose keys are `K` bytes and whose values are `V`.
pub type Bytes<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;

/// The one directory of pins, of whatever layout.
///
/// # Errors
/// There is none, or there are two.
pub fn directory() -> Result<PathBuf> {
    let found = std::fs::read_dir(PINS).with_context(|| format!("cannot read `{PINS}`"))?;
    let found = found.collect::<Result<Vec<_>, _>>().context("cannot read the pins")?;
    let [one] = found.as_slice() else { anyhow::bail!("{} layouts are pinned: {found:?}", found.len()) };
    Ok(one.path())
}

/// Opens a pinned hash map.
///
/// # Errors
/// It is not pinned, or has other sizes.
pub fn map<const K: usize, const V: usize>(name: &str) -> Result<Bytes<K, V>> {
    HashMap::try_from(Map::HashMap(open(name)?)).with_context(|| format!("`{name}` has another layout"))
}

/// The agent counts as alive until it, or another one, beats the next time.
///
/// # Errors
/// As `map`.
pub fn beat_for_ever() -> Result<()> {
    let heartbeat = Array::<_, u64>::try_from(Map::Array(open("HEARTBEAT")?));
    heartbeat.context("`HEARTBEAT` has another layout")?.set(0, u64::MAX, 0).context("cannot beat")
}

fn open(name: &str) -> Result<MapData> {
    let path = directory()?.join("maps").join(name);
    MapData::from_pin(&path).with_context(|| format!("cannot open `{}`", path.display()))
}

/// How many entries a pinned hash map has.
///
/// # Errors
/// As `map`.
pub fn entries<const K: usize, const V: usize>(name: &str) -> Result<usize> {
    map::<K, V>(name)?.keys().try_fold(0, |count, key| key.map(|_key| count + 1)).context("cannot count")
}

/// Fills a pinned hash map with `value` under keys that mean nothing, until it takes no more; returns how many it took.
///
/// # Errors
/// It takes none at all.
pub fn fill<const K: usize, const V: usize>(name: &str, value: [u8; V]) -> Result<u64> {
    let mut map = map::<K, V>(name)?;
    let mut made = 0_u64;
    while map.insert(nonsense(made)?, value, 0).is_ok() {
        made += 1;
    }
    ensure!(made > 0, "`{name}` takes nothing");
    Ok(made)
}

/// Removes what `fill` has made; returns how many were there still.
///
/// # Errors
/// As `map`.
pub fn empty<const K: usize, const V: usize>(name: &str, made: u64) -> Result<u64> {
    let mut map = map::<K, V>(name)?;
    let mut removed = 0;
    for number in 0..made {
        removed += u64::from(map.remove(&nonsense(number)?).is_ok());
    }
    Ok(removed)
}

fn nonsense<const K: usize>(number: u64) -> Result<[u8; K]> {
    let mut key = [0xfe; K];
    key.get_mut(..8).context("a key below 8 bytes")?.copy_from_slice(&number.to_ne_bytes());
    Ok(key)
}

/// Files below the pins: every link and map.
///
/// # Errors
/// They cannot be read.
pub fn pins() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    below(Path::new(PINS), &mut found)?;
    found.sort();
    Ok(found)
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).context("cannot read the pins")? {
        let path = entry.context("cannot read the pins")?.path();
        if path.is_dir() {
            below(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// What the kernel holds in all: maps of this layout's names, whoever keeps them.
///
/// # Errors
/// The kernel does not tell.
pub fn loaded_maps() -> Result<usize> {
    let names = ["CONFIG", "CONNECTIONS", "LISTENERS", "CAPTURED", "ADMITTED", "ORIGINALS", "COUNTERS"];
    let ours = |info: &MapInfo| info.name_as_str().is_some_and(|name| names.contains(&name));
    let mut count = 0;
    for info in aya::maps::loaded_maps() {
        // One that goes while it is listed is not there.
        count += usize::from(info.is_ok_and(|info| ours(&info)));
    }
    Ok(count)
}

/// Programs of ours that the kernel holds, and links in all.
///
/// # Errors
/// The kernel does not tell.
pub fn loaded_programs() -> Result<(usize, usize)> {
    let ours = |name: Option<&str>| name.is_some_and(|name| name.starts_with("toolgate_"));
    let programs = aya::programs::loaded_programs().flatten();
    let programs = programs.filter(|program| ours(program.name_as_str())).count();
    Ok((programs, aya::programs::loaded_links().flatten().count()))
}

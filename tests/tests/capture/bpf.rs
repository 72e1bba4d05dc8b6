//! As much of bpf(2) as these tests look with.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::rig::pins;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

/// Larger than the keys of all maps that are looked into.
const KEY_BYTES_MAX: usize = 64;

/// A pinned map, to be looked into past the agent.
pub(crate) struct Pinned(OwnedFd);

impl Pinned {
    /// Of the only layout that is pinned.
    pub(crate) fn map(name: &str) -> Result<Self> {
        let pins = pins()?;
        open(&pins.first().context("no pins")?.join("maps").join(name)).map(Self)
    }

    /// Whether the map has a value for a key; it is copied to `value`, which is as large as it is.
    pub(crate) fn get(&self, key: &[u8], value: &mut [u8]) -> bool {
        self.element(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64).is_ok()
    }

    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.element(BPF_MAP_UPDATE_ELEM, key, value.as_ptr() as u64)
    }

    /// How many keys a hash map has.
    pub(crate) fn len(&self) -> Result<usize> {
        let (mut last, mut next) = (None, [0_u8; KEY_BYTES_MAX]);
        let mut count = 0;
        loop {
            let map = u64::try_from(self.0.as_raw_fd())?;
            let from = last.as_ref().map_or(0, |key: &[u8; KEY_BYTES_MAX]| key.as_ptr() as u64);
            if call(BPF_MAP_GET_NEXT_KEY, &[map, from, next.as_mut_ptr() as u64, 0]).is_err() {
                return Ok(count);
            }
            last = Some(next);
            count += 1;
        }
    }

    fn element(&self, command: libc::c_int, key: &[u8], value: u64) -> Result<()> {
        let map = u64::try_from(self.0.as_raw_fd())?;
        call(command, &[map, key.as_ptr() as u64, value, 0]).map(drop)
    }
}

/// What is pinned, by its path from the layout's directory on, and which kernel object it is.
pub(crate) fn pinned_ids() -> Result<BTreeMap<String, u32>> {
    let mut ids = BTreeMap::new();
    for layout in pins()? {
        for (kind, label) in [("links", "link_id:"), ("maps", "map_id:")] {
            for entry in fs::read_dir(layout.join(kind))? {
                let path = entry?.path();
                let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
                ids.insert(format!("{kind}/{name}"), id(&open(&path)?, label)?);
            }
        }
    }
    Ok(ids)
}

/// How many programs, maps and links the host has.
pub(crate) fn objects() -> [usize; 3] {
    [BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, BPF_LINK_GET_NEXT_ID].map(|command| {
        let mut last = 0_u32;
        let mut count = 0;
        loop {
            // The id to begin behind, and the one that is found.
            let mut attribute = [u64::from(last), 0];
            if call_mut(command, &mut attribute).is_err() {
                return count;
            }
            let [low, high, ..] = split(attribute[0]);
            debug_assert_eq!(low, last);
            last = high;
            count += 1;
        }
    })
}

fn split(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

fn id(object: &OwnedFd, label: &str) -> Result<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix(label));
    line.with_context(|| format!("no {label} in\n{info}"))?.trim().parse().context("no number")
}

fn open(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let fd = call(BPF_OBJ_GET, &[name.as_ptr() as u64, 0, 0, 0]);
    let fd = fd.with_context(|| format!("cannot open `{}`", path.display()))?;
    // SAFETY: a descriptor that the call has just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: libc::c_int, attribute: &[u64; 4]) -> Result<libc::c_int> {
    call_mut(command, &mut attribute.clone())
}

/// `union bpf_attr` of these commands is made of 8-byte words.
fn call_mut<const WORDS: usize>(command: libc::c_int, attribute: &mut [u64; WORDS]) -> Result<libc::c_int> {
    // SAFETY: the kernel reads and writes the given number of bytes; what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(attribute)) };
    let result = libc::c_int::try_from(result).ok().filter(|&result| result >= 0);
    result.with_context(|| std::io::Error::last_os_error().to_string())
}

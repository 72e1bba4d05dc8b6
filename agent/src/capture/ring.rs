//! What the programs tell the agent of their own accord: captured processes in namespaces that it does not serve.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::maps::{MapData, RingBuf};

use super::Cookie;

/// A captured process was refused because its network namespace is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// That namespace.
    pub namespace: Cookie,
    /// Cgroup of the process.
    pub cgroup_id: u64,
    /// The process, in the host's PID namespace.
    pub tgid: u32,
}

/// Readable when there is something to drain. What comes too fast is lost: the process will try again.
pub struct SeenReader {
    ring: RingBuf<MapData>,
    retired: Arc<AtomicBool>,
}

impl SeenReader {
    pub(super) fn new(ring: RingBuf<MapData>, retired: Arc<AtomicBool>) -> Self {
        Self { ring, retired }
    }

    /// Takes all that is there. After [`super::Kernel::retire`] it is the next agent's, and nothing comes.
    pub fn drain(&mut self, mut each: impl FnMut(Seen)) {
        while !self.retired.load(Ordering::Acquire) {
            let Some(item) = self.ring.next() else { break };
            // One of another size is no message of these programs.
            if let Some(seen) = parse(&item) {
                each(seen);
            }
        }
    }
}

impl AsFd for SeenReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for SeenReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// As the programs lay it out: see [`toolgate_ebpf_common::Seen`].
fn parse(bytes: &[u8]) -> Option<Seen> {
    let (cookie, rest) = bytes.split_first_chunk()?;
    let (cgroup_id, rest) = rest.split_first_chunk()?;
    let (tgid, rest) = rest.split_first_chunk()?;
    let seen = Seen {
        namespace: Cookie(u64::from_ne_bytes(*cookie)),
        cgroup_id: u64::from_ne_bytes(*cgroup_id),
        tgid: u32::from_ne_bytes(*tgid),
    };
    (rest.len() == 4).then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_one_size() {
        let mut bytes = Vec::new();
        bytes.extend(7_u64.to_ne_bytes());
        bytes.extend(8_u64.to_ne_bytes());
        bytes.extend(9_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        assert_eq!(bytes.len(), size_of::<toolgate_ebpf_common::Seen>());
        assert_eq!(parse(&bytes), Some(Seen { namespace: Cookie(7), cgroup_id: 8, tgid: 9 }));
        assert_eq!(parse(bytes.get(1..).unwrap_or_default()), None);
        bytes.push(0);
        assert_eq!(parse(&bytes), None);
    }
}

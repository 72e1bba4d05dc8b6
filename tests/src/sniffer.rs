//! What goes over a device, as whoever stands in between would see it.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::libc;
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use crate::wait;

/// A frame, at most.
const FRAME_BYTES_MAX: usize = 128 * 1024;
/// How late the end is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Keeps all frames that a device carries, from its start to its drop.
#[derive(Debug)]
pub struct Sniffer {
    seen: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Of a device of the host's.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn on(device: &str) -> Result<Self> {
        let index =
            fs::read_to_string(format!("/sys/class/net/{device}/ifindex")).context("no such device")?;
        let index: usize = index.trim().parse()?;
        let every = u16::try_from(libc::ETH_P_ALL)?.to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every))));
        let socket = socket.context("no packet socket")?;
        socket.set_read_timeout(Some(LOOK_EVERY)).context("cannot set a timeout")?;
        let (seen, ended) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::new(AtomicBool::new(false)));
        let (its_seen, its_end) = (Arc::clone(&seen), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0; FRAME_BYTES_MAX];
            while !its_end.load(Ordering::SeqCst) {
                let Ok((bytes, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) else {
                    continue;
                };
                if from.ifindex() == index {
                    its_seen
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&frame[..bytes]);
                }
            }
        });
        Ok(Self { seen, ended, thread: Some(thread) })
    }

    /// Whether these bytes were seen so far.
    #[must_use]
    pub fn saw(&self, bytes: &[u8]) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Waits until they are seen.
    ///
    /// # Errors
    /// They are not for too long.
    pub fn sees(&self, bytes: &[u8]) -> Result<()> {
        wait::until("some bytes on a device", || Ok(self.saw(bytes).then_some(())))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _it_cannot_panic = self.thread.take().map(JoinHandle::join);
    }
}

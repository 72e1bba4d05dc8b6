//! Read buffers: blocks of a thread-local pool, held only while there is something in them.
//!
//! An idle connection holds no block. A message larger than a block gets a buffer of its own that grows with it
//! and is freed with it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a pooled block: one read takes what a socket holds, and a 64 KiB message fits with its head.
pub const BLOCK_BYTES: usize = 128 * 1024;
/// What waits with fewer bytes than these for more holds no block: one byte a minute must not cost 128 KiB.
pub const PARKED_BYTES: usize = 4 * 1024;
/// Blocks that a thread keeps for reuse; more are freed.
const POOLED_MAX: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_block() -> Vec<u8> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BLOCK_BYTES])
}

fn give_back(block: Vec<u8>) {
    if block.len() == BLOCK_BYTES {
        POOL.with_borrow_mut(|pool| {
            if pool.len() < POOLED_MAX {
                pool.push(block);
            }
        });
    }
}

/// Bytes of a small buffer that is kept for reuse, at most.
const SCRATCH_BYTES_MAX: usize = 32 * 1024;

thread_local! {
    static SCRATCHES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of its thread's, empty at first, for what is put together to be written: heads, chunks, events.
#[derive(Default)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// To be written to.
    pub fn vec(&mut self) -> &mut Vec<u8> {
        if self.0.capacity() == 0 {
            self.0 = SCRATCHES.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.0
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Forgets all, and gives the memory back to the thread.
    pub fn clear(&mut self) {
        let mut vec = std::mem::take(&mut self.0);
        if (1..=SCRATCH_BYTES_MAX).contains(&vec.capacity()) {
            vec.clear();
            SCRATCHES.with_borrow_mut(|kept| {
                if kept.len() < POOLED_MAX {
                    kept.push(vec);
                }
            });
        }
    }
}

impl std::ops::Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes that were read and not yet used.
#[derive(Default)]
pub struct Buffer {
    /// Empty, or all initialised: `start..end` is what was read.
    store: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What was read and not yet consumed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.store[self.start..self.end]
    }

    /// Whether nothing waits in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes of memory that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.store.len()
    }

    /// Holds no more memory than it must while it waits for more.
    pub fn park(&mut self) {
        let waiting = self.end - self.start;
        if waiting > PARKED_BYTES || self.store.len() <= PARKED_BYTES {
            return;
        }
        let mut small = vec![0; PARKED_BYTES];
        small[..waiting].copy_from_slice(self.bytes());
        give_back(std::mem::replace(&mut self.store, small));
        (self.start, self.end) = (0, waiting);
        self.release_if_empty();
    }

    /// Puts `other`'s bytes behind its own.
    pub fn append(&mut self, other: &mut Self) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            std::mem::swap(self, other);
            return;
        }
        let joined = [self.bytes(), other.bytes()].concat();
        (self.start, self.end) = (0, joined.len());
        give_back(std::mem::replace(&mut self.store, joined));
        other.consume(other.bytes().len());
    }

    /// Forgets the first `count` bytes; an empty buffer gives its block back.
    ///
    /// # Panics
    /// When `count` exceeds what is there: a fault of this program.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than was read");
        self.start += count;
        self.release_if_empty();
    }

    fn release_if_empty(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            give_back(std::mem::take(&mut self.store));
        }
    }

    /// Makes room for one more byte at least; false where `bytes_max` are waiting already.
    fn make_room(&mut self, bytes_max: usize) -> bool {
        if self.end - self.start >= bytes_max {
            return false;
        }
        if self.store.is_empty() {
            self.store = take_block();
        }
        if self.end < self.store.len() {
            return true;
        }
        if self.start > 0 {
            self.store.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            return true;
        }
        if self.store.len() < BLOCK_BYTES {
            // It was parked, and more came than that has room for.
            let mut block = take_block();
            block[..self.end].copy_from_slice(&self.store);
            self.store = block;
            return true;
        }
        let grown = (self.store.len() * 2).min(bytes_max);
        self.store.resize(grown, 0);
        true
    }

    /// Reads once. `Ready(Ok(0))`: the other side closed. `OutOfMemory`: `bytes_max` are waiting already.
    pub fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut R,
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.make_room(bytes_max) {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let end = self.store.len().min(self.start + bytes_max);
        let mut space = ReadBuf::new(&mut self.store[self.end..end]);
        let polled = Pin::new(io).poll_read(cx, &mut space);
        let count = space.filled().len();
        self.end += count;
        self.release_if_empty();
        ready!(polled)?;
        Poll::Ready(Ok(count))
    }

    /// Reads once, when there is something; safe to cancel.
    ///
    /// # Errors
    /// As [`Buffer::poll_fill`].
    pub async fn fill<R: AsyncRead + Unpin>(&mut self, io: &mut R, bytes_max: usize) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, io, bytes_max)).await
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.store));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled() -> usize {
        POOL.with_borrow(Vec::len)
    }

    #[tokio::test]
    async fn an_idle_buffer_holds_no_block_and_a_large_message_gets_its_own() {
        let mut buffer = Buffer::default();
        let mut small: &[u8] = b"abc";
        assert_eq!(buffer.fill(&mut small, BLOCK_BYTES).await.unwrap(), 3);
        buffer.consume(1);
        assert_eq!(buffer.bytes(), b"bc");
        assert_eq!(pooled(), 0);
        buffer.consume(2);
        assert_eq!(pooled(), 1, "the block went back");

        let large = vec![7; 3 * BLOCK_BYTES];
        let mut source = &large[..];
        while buffer.bytes().len() < large.len() {
            assert_ne!(buffer.fill(&mut source, 4 * BLOCK_BYTES).await.unwrap(), 0);
        }
        assert_eq!(buffer.bytes(), large);
        buffer.consume(large.len());
        assert_eq!(pooled(), 0, "a grown block is freed, not pooled");
    }

    #[tokio::test]
    async fn what_waits_with_little_holds_little() {
        let mut buffer = Buffer::default();
        let mut some: &[u8] = b"abcdef";
        buffer.fill(&mut some, BLOCK_BYTES).await.unwrap();
        buffer.consume(2);
        buffer.park();
        assert_eq!((buffer.bytes(), buffer.held(), pooled()), (&b"cdef"[..], PARKED_BYTES, 1));
        let more = vec![7; 2 * BLOCK_BYTES];
        let mut source = &more[..];
        while buffer.bytes().len() < 4 + more.len() {
            assert_ne!(buffer.fill(&mut source, 4 * BLOCK_BYTES).await.unwrap(), 0);
        }
        assert_eq!(&buffer.bytes()[..5], b"cdef\x07");
        buffer.park();
        assert!(buffer.held() > PARKED_BYTES, "it has more than can be parked");
    }

    #[tokio::test]
    async fn what_was_read_apart_comes_behind() {
        let (mut first, mut later) = (Buffer::default(), Buffer::default());
        let (mut one, mut two): (&[u8], &[u8]) = (b"one", b"two");
        first.append(&mut later);
        assert!(first.is_empty());
        later.fill(&mut two, 2).await.unwrap();
        assert_eq!(later.fill(&mut two, 2).await.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        first.append(&mut later);
        assert_eq!((first.bytes(), later.is_empty()), (&b"tw"[..], true));
        later.fill(&mut one, BLOCK_BYTES).await.unwrap();
        first.append(&mut later);
        assert_eq!((first.bytes(), later.is_empty()), (&b"twone"[..], true));
    }

    #[tokio::test]
    async fn a_full_buffer_says_so() {
        let mut buffer = Buffer::default();
        let mut source = tokio::io::repeat(1);
        while buffer.bytes().len() < BLOCK_BYTES {
            buffer.fill(&mut source, BLOCK_BYTES).await.unwrap();
        }
        let error = buffer.fill(&mut source, BLOCK_BYTES).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    }
}

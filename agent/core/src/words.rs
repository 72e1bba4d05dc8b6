//! A hash for look-ups by what an administrator declared: fast, without a key, the same in every process.

use std::hash::{BuildHasherDefault, Hasher};

/// What is hashed so far. Its keys are declared, and what a call names is only looked up, so nobody can fill a table.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Words(u64);

impl Words {
    /// Beginning with what tells one kind of keys from another.
    pub(crate) fn new(kind: u64) -> Self {
        Self(kind)
    }
}

impl Hasher for Words {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        // The last eight bytes again are quicker to have than the rest alone.
        let last = match bytes.last_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => rest.iter().fold(0, |last, &byte| last << 8 | u64::from(byte)),
        };
        self.write_u64(last ^ bytes.len() as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Hashes by [`Words`].
pub(crate) type ByWords = BuildHasherDefault<Words>;

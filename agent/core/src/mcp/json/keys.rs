//! Bookkeeping of the keys of the objects that are open: duplicates without a tree and without allocating.

use super::text;

/// Up to here a new key is compared with each before it; a larger object is sorted once, when it closes.
const LINEAR_MAX: usize = 16;

/// What a [`Scratch`] keeps between texts, so that one hostile text does not hold memory for ever.
const KEYS_KEPT_MAX: usize = 4096;
const ARENA_BYTES_KEPT_MAX: usize = 64 * 1024;

/// Reusable bookkeeping for one text at a time. Once warm, a text costs no allocation.
#[derive(Debug, Default)]
pub struct Scratch {
    keys: Vec<Mark>,
    /// Keys that had escapes, unescaped, and folded ones.
    arena: Vec<u8>,
}

/// One key of an open object.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The first eight bytes: what most comparisons end with.
    head: u64,
    start: usize,
    end: usize,
    in_arena: bool,
    /// The key's place in the text.
    offset: usize,
}

/// Where an open object's keys begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    keys: usize,
    arena: usize,
}

/// A key of the text, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'b> {
    pub(super) text: &'b str,
    /// Its place in the text.
    pub(super) offset: usize,
    pub(super) end: usize,
    pub(super) escaped: bool,
}

impl<'b> Key<'b> {
    /// As it stands in the text. Sliced only when it is wanted: most keys are only compared.
    pub(super) fn raw(&self) -> &'b str {
        self.text.get(self.offset..self.end).unwrap_or_default()
    }
}

impl Scratch {
    /// An empty one; it grows with the first texts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn reset(&mut self) {
        self.keys.clear();
        self.arena.clear();
        self.keys.shrink_to(KEYS_KEPT_MAX);
        self.arena.shrink_to(ARENA_BYTES_KEPT_MAX);
    }

    pub(super) fn open(&self) -> Frame {
        Frame { keys: self.keys.len(), arena: self.arena.len() }
    }

    pub(super) fn count(&self, frame: Frame) -> usize {
        self.keys.len() - frame.keys
    }

    /// Notes a key.
    ///
    /// # Errors
    /// The offset of the key, where a small object has it already.
    pub(super) fn add(&mut self, frame: Frame, key: &Key<'_>) -> Result<(), usize> {
        let text = key.text.as_bytes();
        let mark = if key.escaped {
            let start = self.arena.len();
            text::unescape_with(key.raw(), |part| self.arena.extend_from_slice(part.as_bytes()));
            let head = head(self.arena.get(start..).unwrap_or_default());
            Mark { head, start, end: self.arena.len(), in_arena: true, offset: key.offset }
        } else {
            let head = head_in(text, key.offset, key.end - key.offset);
            Mark { head, start: key.offset, end: key.end, in_arena: false, offset: key.offset }
        };
        let earlier = self.keys.get(frame.keys..).unwrap_or_default();
        if earlier.len() < LINEAR_MAX && earlier.iter().any(|other| self.equal(text, other, &mark)) {
            return Err(key.offset);
        }
        self.keys.push(mark);
        Ok(())
    }

    /// Ends an object: what [`Self::add`] left unchecked is checked now.
    ///
    /// # Errors
    /// The offset of a key that stands twice.
    pub(super) fn close(&mut self, frame: Frame, text: &[u8]) -> Result<(), usize> {
        if self.count(frame) > LINEAR_MAX {
            self.sorted_duplicate(frame.keys, text)?;
        }
        self.keys.truncate(frame.keys);
        self.arena.truncate(frame.arena);
        Ok(())
    }

    /// Whether two keys of the object are equal to a reader that ignores case. Before [`Self::close`], which
    /// refuses those that are equal to every reader.
    ///
    /// # Errors
    /// The offset of such a key.
    pub(super) fn collision(&mut self, frame: Frame, text: &[u8]) -> Result<(), usize> {
        let end = self.keys.len();
        let keys = self.keys.get(frame.keys..).unwrap_or_default();
        if keys.iter().all(|mark| folds_to_itself(bytes(text, &self.arena, mark))) {
            return Ok(());
        }
        for index in frame.keys..end {
            let Some(&mark) = self.keys.get(index) else { break };
            let start = self.arena.len();
            if mark.in_arena {
                self.arena.extend_from_within(mark.start..mark.end);
            } else {
                self.arena.extend_from_slice(bytes(text, &[], &mark));
            }
            fold_from(start, &mut self.arena);
            let head = head(self.arena.get(start..).unwrap_or_default());
            self.keys.push(Mark { head, start, end: self.arena.len(), in_arena: true, ..mark });
        }
        let found = self.sorted_duplicate(end, text);
        self.keys.truncate(end);
        found
    }

    fn sorted_duplicate(&mut self, from: usize, text: &[u8]) -> Result<(), usize> {
        let Self { keys, arena } = self;
        let keys = keys.get_mut(from..).unwrap_or_default();
        let order = |mark: &Mark| (mark.head, mark.end - mark.start);
        keys.sort_unstable_by(|a, b| {
            order(a).cmp(&order(b)).then_with(|| bytes(text, arena, a).cmp(bytes(text, arena, b)))
        });
        let same =
            |a: &Mark, b: &Mark| order(a) == order(b) && bytes(text, arena, a) == bytes(text, arena, b);
        for pair in keys.windows(2) {
            if let [a, b] = pair
                && same(a, b)
            {
                return Err(a.offset.max(b.offset));
            }
        }
        Ok(())
    }

    fn equal(&self, text: &[u8], a: &Mark, b: &Mark) -> bool {
        let length = a.end - a.start;
        a.head == b.head
            && length == b.end - b.start
            && (length <= 8 || bytes(text, &self.arena, a) == bytes(text, &self.arena, b))
    }
}

fn bytes<'a>(text: &'a [u8], arena: &'a [u8], mark: &Mark) -> &'a [u8] {
    let from = if mark.in_arena { arena } else { text };
    from.get(mark.start..mark.end).unwrap_or_default()
}

/// [`head`] of a key in the text, where the bytes behind a short one can be read along.
fn head_in(text: &[u8], start: usize, length: usize) -> u64 {
    match text.get(start..).and_then(<[u8]>::first_chunk::<8>) {
        Some(word) if length >= 8 => u64::from_le_bytes(*word),
        Some(word) => u64::from_le_bytes(*word) & !(u64::MAX << (8 * length)),
        None => head(text.get(start..start + length).unwrap_or_default()),
    }
}

fn head(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_le_bytes(*first),
        None => key.iter().rev().fold(0, |head, &byte| head << 8 | u64::from(byte)),
    }
}

fn folds_to_itself(key: &[u8]) -> bool {
    key.iter().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
}

/// Folds what stands in the arena from `start`; allocates only beyond ASCII, which no name of the protocol is.
fn fold_from(start: usize, arena: &mut Vec<u8>) {
    let key = arena.get_mut(start..).unwrap_or_default();
    if key.is_ascii() {
        key.make_ascii_lowercase();
        return;
    }
    let folded: String = text::fold(std::str::from_utf8(key).unwrap_or_default()).collect();
    arena.truncate(start);
    arena.extend_from_slice(folded.as_bytes());
}

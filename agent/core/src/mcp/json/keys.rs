//! Bookkeeping of the keys of the objects that are open: duplicates without a tree and without allocating.

use super::text;

/// Up to here a new key may be compared with each before it; a larger object is sorted once, when it closes.
const LINEAR_MAX: usize = 32;

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
    /// Its place in the text, or, behind the text's last, in the arena.
    start: usize,
    bytes: usize,
    /// The key's place in the text.
    offset: usize,
}

/// Where an open object's keys begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    keys: usize,
    arena: usize,
    /// A bit for each key, by its hash: one whose bit is new is a new key.
    seen: u64,
}

/// A key of the text, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'b> {
    pub(super) text: &'b str,
    /// Its first eight bytes, where it has no escapes.
    pub(super) head: u64,
    /// Its place in the text.
    pub(super) offset: usize,
    pub(super) end: usize,
    pub(super) escaped: bool,
}

/// A key that is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<T = &'static str> {
    text: T,
    head: u64,
}

impl Name {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self { text, head: text::head(text.as_bytes()) }
    }
}

impl Name<Box<str>> {
    pub(crate) fn owned(text: &str) -> Self {
        Self { text: text.into(), head: text::head(text.as_bytes()) }
    }
}

impl<T: AsRef<str>> Name<T> {
    pub(crate) fn as_str(&self) -> &str {
        self.text.as_ref()
    }
}

impl<'b> Key<'b> {
    /// As it stands in the text. Sliced only when it is wanted: most keys are only compared.
    pub(super) fn raw(self) -> &'b str {
        self.text.get(self.offset..self.end).unwrap_or_default()
    }

    /// Whether it is this one, whose head nobody has at hand.
    #[inline]
    pub(super) fn is_text(self, text: &str) -> bool {
        if self.escaped { self.text() == text } else { self.raw() == text }
    }

    /// Whether it is this one.
    #[inline(always)]
    pub(crate) fn is<T: AsRef<str>>(self, name: &Name<T>) -> bool {
        let text = name.as_str();
        if self.escaped {
            return self.text() == text;
        }
        let raw = || self.text.as_bytes().get(self.offset..self.end).unwrap_or_default();
        self.head == name.head
            && self.end - self.offset == text.len()
            && (text.len() <= 8 || raw() == text.as_bytes())
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
        Frame { keys: self.keys.len(), arena: self.arena.len(), seen: 0 }
    }

    #[inline]
    pub(super) fn count(&self, frame: Frame) -> usize {
        self.keys.len() - frame.keys
    }

    /// Notes a key without escapes. False where a small object has it already.
    #[inline(always)]
    pub(super) fn add_plain(
        &mut self,
        frame: &mut Frame,
        text: &[u8],
        head: u64,
        start: usize,
        bytes: usize,
    ) -> bool {
        self.push(frame, text, Mark { head, start, bytes, offset: start })
    }

    /// Notes any key. False where a small object has it already.
    pub(super) fn add(&mut self, frame: &mut Frame, key: Key<'_>) -> bool {
        let Key { text, head, offset, end, escaped } = key;
        let text = text.as_bytes();
        if !escaped {
            return self.add_plain(frame, text, head, offset, end - offset);
        }
        let start = self.arena.len();
        text::unescape_with(key.raw(), |part| self.arena.extend_from_slice(part.as_bytes()));
        let unescaped = self.arena.get(start..).unwrap_or_default();
        let (head, bytes) = (text::head(unescaped), unescaped.len());
        self.push(frame, text, Mark { head, start: text.len() + start, bytes, offset })
    }

    // The mark is passed by value: as long as no reference to it is made it stays in registers.
    #[inline(always)]
    fn push(&mut self, frame: &mut Frame, text: &[u8], mark: Mark) -> bool {
        let bit = mark.bit();
        if frame.seen & bit != 0 && self.stands_already(frame.keys, text, mark.head, mark.start, mark.bytes) {
            return false;
        }
        frame.seen |= bit;
        self.keys.push(mark);
        true
    }

    #[inline(never)]
    fn stands_already(&self, from: usize, text: &[u8], head: u64, start: usize, bytes: usize) -> bool {
        let mark = Mark { head, start, bytes, offset: start };
        let earlier = self.keys.get(from..).unwrap_or_default();
        earlier.len() < LINEAR_MAX && earlier.iter().any(|other| self.equal(text, other, &mark))
    }

    /// Ends an object: what [`Self::add`] left unchecked is checked now.
    ///
    /// # Errors
    /// The offset of a key that stands twice.
    #[inline]
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
            match mark.start.checked_sub(text.len()) {
                Some(from) => self.arena.extend_from_within(from..from + mark.bytes),
                None => self.arena.extend_from_slice(bytes(text, &[], &mark)),
            }
            fold_from(start, &mut self.arena);
            let folded = self.arena.get(start..).unwrap_or_default();
            let (head, bytes) = (text::head(folded), folded.len());
            self.keys.push(Mark { head, start: text.len() + start, bytes, ..mark });
        }
        let found = self.sorted_duplicate(end, text);
        self.keys.truncate(end);
        found
    }

    fn sorted_duplicate(&mut self, from: usize, text: &[u8]) -> Result<(), usize> {
        let Self { keys, arena } = self;
        let keys = keys.get_mut(from..).unwrap_or_default();
        let order = |mark: &Mark| (mark.head, mark.bytes);
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
        a.head == b.head
            && a.bytes == b.bytes
            && (a.bytes <= 8 || bytes(text, &self.arena, a) == bytes(text, &self.arena, b))
    }
}

impl Mark {
    /// Its bit in a [`Frame`]: the upper bits of a product hang on all of its factor's (Fibonacci hashing).
    #[inline]
    fn bit(self) -> u64 {
        1 << ((self.head ^ self.bytes as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
    }
}

fn bytes<'a>(text: &'a [u8], arena: &'a [u8], mark: &Mark) -> &'a [u8] {
    let (from, start) = match mark.start.checked_sub(text.len()) {
        Some(start) => (arena, start),
        None => (text, mark.start),
    };
    from.get(start..start + mark.bytes).unwrap_or_default()
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

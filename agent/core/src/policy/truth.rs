//! True, false or "cannot tell", and what may be read to find out.

/// The most bytes of arguments that the rules of one decision may read; spent, nothing more can be told.
/// A body of 4 MiB is read sixteen times.
pub const ARGUMENT_BYTES_READ_MAX: usize = 64 * 1024 * 1024;

/// The outcome of a predicate. `Unknown` counts as false in an allow rule and as true in a deny rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Absent, of another type, ambiguous, beyond exact numbers, or the budget is spent.
    Unknown,
}

impl Truth {
    /// Both hold (Kleene): false beats unknown.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::True, Self::True) => Self::True,
        }
    }

    /// One holds (Kleene): true beats unknown.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::True, _) | (_, Self::True) => Self::True,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::False, Self::False) => Self::False,
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What is left of [`ARGUMENT_BYTES_READ_MAX`] in one decision.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
}

impl Budget {
    /// A budget of `bytes` to read.
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes }
    }

    /// Takes `bytes`; `false` once there are not that many left, and from then on.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                true
            }
            None => {
                self.bytes = 0;
                false
            }
        }
    }
}

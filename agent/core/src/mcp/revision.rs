//! The revisions of MCP, by the dates that name them.

/// A revision that is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    /// 2024-11-05: HTTP with SSE.
    November2024,
    /// 2025-03-26: Streamable HTTP, batches.
    March2025,
    /// 2025-06-18: no batches.
    June2025,
    /// 2025-11-25: tasks.
    November2025,
    /// 2026-07-28: no sessions.
    July2026,
}

impl Revision {
    /// Each of them, the oldest first.
    pub const ALL: [Self; 5] =
        [Self::November2024, Self::March2025, Self::June2025, Self::November2025, Self::July2026];

    /// Its date.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::November2024 => "2024-11-05",
            Self::March2025 => "2025-03-26",
            Self::June2025 => "2025-06-18",
            Self::November2025 => "2025-11-25",
            Self::July2026 => "2026-07-28",
        }
    }

    /// The one of that date; `None`: a draft, a later one, or nothing.
    #[must_use]
    pub fn named(date: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|revision| revision.as_str().as_bytes() == date)
    }
}

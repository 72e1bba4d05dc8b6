//! Tables of what belongs to callers. They are bounded, and a caller that fills one loses its own oldest first.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A caller may hold one in so many of what there is room for.
pub(crate) const CALLER_SHARE: usize = 8;

/// An entry of such a table.
pub(crate) trait Owned {
    /// What tells callers apart.
    type Owner: PartialEq;

    fn owner(&self) -> &Self::Owner;

    /// When it was used last.
    fn at(&self) -> Instant;
}

/// Makes room for one more of `owner`'s in a table of at most `count_max` entries, each good for `life`.
pub(crate) fn make_room<K: Clone + Eq + Hash, E: Owned>(
    table: &mut HashMap<K, E>,
    owner: &E::Owner,
    count_max: usize,
    life: Duration,
    now: Instant,
) {
    let owner_max = (count_max / CALLER_SHARE).max(1);
    if table.len() < owner_max {
        return;
    }
    table.retain(|_, entry| now.duration_since(entry.at()) < life);
    if table.values().filter(|entry| entry.owner() == owner).count() >= owner_max {
        forget_oldest(table, |entry| entry.owner() == owner);
    }
    if table.len() >= count_max {
        forget_oldest(table, |_| true);
    }
}

fn forget_oldest<K: Clone + Eq + Hash, E: Owned>(table: &mut HashMap<K, E>, of: impl Fn(&E) -> bool) {
    let oldest = table.iter().filter(|(_, entry)| of(entry)).min_by_key(|(_, entry)| entry.at());
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        table.remove(&key);
    }
}

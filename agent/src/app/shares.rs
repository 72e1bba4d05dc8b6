//! How many connections a thread serves at once, in all and of one captured cgroup.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use crate::limits::Limits;

/// Why one more connection is refused. Each names its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoom {
    #[error("this thread serves {max} connections already (connections_max)")]
    All { max: usize },
    #[error(
        "captured cgroup {cgroup} has {max} connections on this thread already (connections_per_cgroup_max)"
    )]
    OfCgroup { cgroup: u64, max: usize },
}

/// The counts of one thread.
#[derive(Debug, Default)]
pub(super) struct Shares {
    all: Cell<usize>,
    of_cgroup: RefCell<HashMap<u64, usize>>,
}

/// A connection that is being served; counted until it is dropped, whatever ends it.
#[derive(Debug)]
pub(super) struct Counted {
    shares: Rc<Shares>,
    cgroup: u64,
}

impl Shares {
    /// Whether the thread serves none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.get() == 0
    }

    /// Counts a connection of a captured cgroup, by its id.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub(super) fn one_more(self: &Rc<Self>, cgroup: u64, limits: &Limits) -> Result<Counted, NoRoom> {
        if self.all.get() >= limits.connections_max {
            return Err(NoRoom::All { max: limits.connections_max });
        }
        let mut of_cgroup = self.of_cgroup.borrow_mut();
        let share = of_cgroup.get(&cgroup).copied().unwrap_or_default();
        let max = limits.connections_per_cgroup_max;
        if share >= max {
            return Err(NoRoom::OfCgroup { cgroup, max });
        }
        of_cgroup.insert(cgroup, share + 1);
        self.all.set(self.all.get() + 1);
        Ok(Counted { shares: Rc::clone(self), cgroup })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shares.all.set(self.shares.all.get() - 1);
        let mut of_cgroup = self.shares.of_cgroup.borrow_mut();
        if let Some(share) = of_cgroup.get_mut(&self.cgroup) {
            *share -= 1;
            if *share == 0 {
                of_cgroup.remove(&self.cgroup); // cgroups come and go
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cgroup_uses_up_the_others_share() {
        let limits = Limits { connections_max: 3, connections_per_cgroup_max: 2, ..Limits::default() };
        let shares = Rc::<Shares>::default();
        let one = shares.one_more(7, &limits).unwrap();
        let two = shares.one_more(7, &limits).unwrap();
        let full = NoRoom::OfCgroup { cgroup: 7, max: 2 };
        assert_eq!(shares.one_more(7, &limits).unwrap_err(), full);
        let other = shares.one_more(8, &limits).unwrap();
        assert_eq!(shares.one_more(9, &limits).unwrap_err(), NoRoom::All { max: 3 });
        drop(one);
        let again = shares.one_more(7, &limits).unwrap();
        drop((two, other, again));
        assert_eq!(shares.all.get(), 0);
        assert!(shares.of_cgroup.borrow().is_empty());
    }
}

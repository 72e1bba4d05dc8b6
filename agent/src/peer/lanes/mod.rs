//! One connection between two agents that several calls of one caller to one server share, each on a lane of its own.
//!
//! A [`Driver`] moves the bytes: it is the only one that reads and writes the connection. What lanes say is put together
//! where it is said and goes out when the driver's turn comes, which is behind all tasks that are ready: what several
//! calls say at the same time costs one record and one system call. Everything is of one thread.

mod driver;
mod lane;
mod state;

pub use self::driver::Driver;
pub use self::lane::Lane;

use std::cell::RefCell;
use std::rc::Rc;

use toolgate_core::lanes::End;

use self::state::State;

/// Lanes at once on one connection; both ends hold to it.
pub const LANES_MAX: usize = 256;
/// Bytes that wait to be sent, beyond which lanes say nothing more.
const UNSENT_BYTES_MAX: usize = 128 * 1024;
/// The same together with what is said for lanes: beyond it the other end takes nothing, and the connection is over.
const STUCK_BYTES: usize = 2 * UNSENT_BYTES_MAX;

/// The connecting end's hold on a connection: once it is dropped the connection ends with its last lane.
pub struct Lanes {
    state: Rc<RefCell<State>>,
}

impl Lanes {
    /// Lanes over a connection that nothing was said on yet, and what moves their bytes.
    #[must_use]
    pub fn over<S>(io: S) -> (Self, Driver<S>) {
        let state = Rc::new(RefCell::new(State::new(End::Connecting)));
        (Self { state: Rc::clone(&state) }, Driver::new(io, state))
    }

    /// One more lane; `None`: there are as many as may be, or the other end takes no more.
    #[must_use]
    pub fn open(&self) -> Option<Lane> {
        let id = self.state.borrow_mut().open()?;
        Some(Lane::new(Rc::clone(&self.state), id))
    }

    /// Whether it is alive, and the other end does not leave.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.state.borrow().takes_more()
    }

    /// Whether nobody uses it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.borrow().is_idle()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.state.borrow_mut().close();
    }
}

#[cfg(test)]
mod tests;

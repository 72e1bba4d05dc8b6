//! Room for the state of a request that is served. It is its thread's, and lent for as long as that takes: a connection
//! that waits for its next request holds none.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Bytes of one room: what the largest state takes, and some more, since a state's layout is the compiler's choice.
const ROOM_BYTES: usize = 7 * 1024;
/// Rooms that a thread keeps for reuse; more are freed.
const KEPT_MAX: usize = 64;

#[repr(align(16))]
struct Room {
    _space: [MaybeUninit<u8>; ROOM_BYTES],
}

thread_local! {
    static ROOMS: RefCell<Vec<Box<Room>>> = const { RefCell::new(Vec::new()) };
}

/// A future whose state is in a room of its thread.
pub struct Housed<F> {
    /// At the beginning of its room, which this owns.
    future: NonNull<F>,
}

/// Puts a future into a room.
pub fn housed<F: Future>(make: impl FnOnce() -> F) -> Housed<F> {
    const {
        assert!(size_of::<F>() <= ROOM_BYTES, "a room is too small");
        assert!(align_of::<F>() <= align_of::<Room>());
    }
    let kept = ROOMS.with_borrow_mut(Vec::pop);
    let room = kept.unwrap_or_else(|| Box::new(Room { _space: [MaybeUninit::uninit(); ROOM_BYTES] }));
    let room: *mut Room = Box::into_raw(room);
    // SAFETY: a box is never null.
    let future = unsafe { NonNull::new_unchecked(room) }.cast::<F>();
    // SAFETY: it fits, as asserted above, and nobody else has this room.
    unsafe { future.write(make()) };
    Housed { future }
}

impl<F: Future> Future for Housed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: it lives until `drop`, and stays where it is: the room is not given to anybody else before.
        unsafe { Pin::new_unchecked(self.future.as_mut()) }.poll(cx)
    }
}

impl<F> Drop for Housed<F> {
    fn drop(&mut self) {
        // SAFETY: `housed` wrote it, and nothing has dropped it.
        unsafe { self.future.drop_in_place() };
        // SAFETY: the room came from `Box::into_raw`, and nothing in it is used any more.
        let room = unsafe { Box::from_raw(self.future.cast::<Room>().as_ptr()) };
        ROOMS.with_borrow_mut(|rooms| {
            if rooms.len() < KEPT_MAX {
                rooms.push(room);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn kept() -> usize {
        ROOMS.with_borrow(Vec::len)
    }

    #[tokio::test]
    async fn a_room_is_lent_for_as_long_as_the_work_takes() {
        let witness = Rc::new(());
        let work = |answer: u64| {
            let held = Rc::clone(&witness);
            async move {
                tokio::task::yield_now().await;
                drop(held);
                answer
            }
        };
        assert_eq!(housed(|| work(1)).await, 1);
        assert_eq!((kept(), Rc::strong_count(&witness)), (1, 1));
        let (one, other) = (housed(|| work(2)), housed(|| work(3)));
        assert_eq!((kept(), Rc::strong_count(&witness)), (0, 3), "each has its own");
        assert_eq!(tokio::join!(one, other), (2, 3));
        // Dropped before it is done, and before it has begun.
        let mut begun = housed(|| work(4));
        assert!(Pin::new(&mut begun).poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        drop((begun, housed(|| work(5))));
        assert_eq!((kept(), Rc::strong_count(&witness)), (2, 1), "what they held is dropped with them");
    }

    #[tokio::test]
    async fn a_thread_keeps_so_many() {
        let many: Vec<_> = (0..2 * KEPT_MAX).map(|_| housed(|| async {})).collect();
        drop(many);
        assert_eq!(kept(), KEPT_MAX);
    }
}

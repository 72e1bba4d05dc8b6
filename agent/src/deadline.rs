//! Deadlines: one timer for a connection, however many waits it has.
//!
//! tokio's own timeout puts a timer into its wheel for each wait that is not over at once, and takes it out again: several
//! times a request. Here a wait only says when it is due; the connection's timer is moved where it would ring too late,
//! and looks again where it rang too early, which is nearly never.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A wait was not over in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// What the waits of the connection that is being polled say.
#[derive(Clone, Copy)]
enum Said {
    /// No connection is: waits have timers of their own.
    Outside,
    Nothing,
    Due(Instant),
}

thread_local! {
    static SAID: Cell<Said> = const { Cell::new(Said::Outside) };
    static IS_BUSY: Cell<bool> = const { Cell::new(false) };
    /// When the connection that is being polled first asked.
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Until the timer is first needed.
const FAR: Duration = Duration::from_secs(24 * 3600);

pin_project_lite::pin_project! {
    /// A connection's work and its timer. A future of its own: an `async fn` keeps room for the work twice, as it was
    /// given and as it is polled.
    pub struct Connection<F> {
        #[pin]
        work: F,
        #[pin]
        timer: Sleep,
    }
}

/// Whether a connection of this thread had something to do since this was last asked.
pub fn was_busy() -> bool {
    IS_BUSY.take()
}

/// The time, read once for all that a connection does without waiting: that is over in microseconds.
pub fn now() -> Instant {
    match (NOW.get(), SAID.get()) {
        (Some(now), _) => now,
        (None, Said::Outside) => Instant::now(),
        (None, Said::Nothing | Said::Due(_)) => {
            let now = Instant::now();
            NOW.set(Some(now));
            now
        }
    }
}

/// Does all of a connection's work, whose waits ([`timeout`]) share one timer. Each poll must reach all waits that are
/// going on: `select!` and plain `await` do, a set that polls only what was woken does not.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn connection<F: Future>(work: F) -> Connection<F> {
    Connection { work, timer: tokio::time::sleep(FAR) }
}

impl<F: Future> Future for Connection<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        IS_BUSY.set(true);
        loop {
            let outside = (SAID.replace(Said::Nothing), NOW.take());
            let polled = this.work.as_mut().poll(cx);
            NOW.set(outside.1);
            let Said::Due(due) = SAID.replace(outside.0) else { return polled };
            if polled.is_ready() {
                return polled;
            }
            if this.timer.is_elapsed() || this.timer.deadline() > due {
                this.timer.as_mut().reset(due);
            }
            // It rang: either for the wait that is due, which the work will find, or too early.
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// Waits for its work, until it is due. A future of its own, not an `async fn`: that would copy the work, which holds
    /// the state of a whole reply, from hand to hand.
    pub struct Timeout<F> {
        #[pin]
        work: F,
        due: Option<Instant>,
        limit: Duration,
        own: Option<Pin<Box<Sleep>>>,
    }
}

/// The outcome of `work`, unless it takes longer than `limit`: then [`Elapsed`].
pub fn timeout<F: Future>(limit: Duration, work: F) -> Timeout<F> {
    Timeout { work, due: None, limit, own: None }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(done) = this.work.poll(cx) {
            return Poll::Ready(Ok(done));
        }
        let now = now();
        let due = *this.due.get_or_insert_with(|| now + *this.limit);
        if now >= due {
            return Poll::Ready(Err(Elapsed));
        }
        match SAID.get() {
            Said::Nothing => SAID.set(Said::Due(due)),
            Said::Due(other) => SAID.set(Said::Due(due.min(other))),
            Said::Outside => {
                let own = this.own.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
                return own.as_mut().poll(cx).map(|()| Err(Elapsed));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Of the paused clock: no test waits.
    fn ready_in(time: Duration) -> Sleep {
        tokio::time::sleep_until(Instant::now() + time)
    }

    /// Runs it in a connection and outside of one: (outcome, how long it took).
    async fn both<T: PartialEq + std::fmt::Debug, F: Future<Output = T>>(
        work: impl Fn() -> F,
    ) -> (T, Duration) {
        let begun = Instant::now();
        let inside = connection(work()).await;
        let took = begun.elapsed();
        let begun = Instant::now();
        assert_eq!((work().await, begun.elapsed()), (inside, took));
        (work().await, took)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_it_is_due() {
        let (ended, took) = both(|| timeout(30 * SECOND, pending::<()>())).await;
        assert_eq!((ended, took.as_secs()), (Err(Elapsed), 30));
        assert_eq!(both(|| timeout(SECOND, ready(7))).await, (Ok(7), Duration::ZERO));
        let (ended, took) = both(|| timeout(30 * SECOND, ready_in(29 * SECOND))).await;
        assert_eq!((ended, took.as_secs()), (Ok(()), 29));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_after_and_within_one_another_have_their_own_limits() {
        let (ended, took) = both(|| async {
            let first = timeout(300 * SECOND, ready_in(SECOND)).await;
            let short = timeout(5 * SECOND, pending::<()>()).await;
            let long = timeout(600 * SECOND, pending::<()>()).await;
            (first, short, long)
        })
        .await;
        assert_eq!((ended, took.as_secs()), ((Ok(()), Err(Elapsed), Err(Elapsed)), 606));
        let nested = || timeout(10 * SECOND, timeout(20 * SECOND, pending::<()>()));
        let (ended, took) = both(nested).await;
        assert_eq!((ended, took.as_secs()), (Err(Elapsed), 10));
        let nested = || timeout(20 * SECOND, timeout(10 * SECOND, pending::<()>()));
        let (ended, took) = both(nested).await;
        assert_eq!((ended, took.as_secs()), (Ok(Err(Elapsed)), 10));
    }
}

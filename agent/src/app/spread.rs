//! Other agents' connections, spread over the threads in turn: one may carry many calls, and two on one thread would leave
//! another idle. The kernel's own choice (`SO_REUSEPORT`) is by a hash.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

/// A connection, and from where.
pub(super) type Came = (TcpStream, SocketAddr);

/// Connections that wait for a thread; beyond it they are of the thread that accepted them.
const CAME_MAX: usize = 64;

/// All threads of the agent.
pub(super) struct Spread {
    threads: Vec<mpsc::Sender<Came>>,
    turn: AtomicUsize,
}

impl Spread {
    /// Of so many threads, and what each of them is given.
    pub(super) fn new(threads: usize) -> (Self, Vec<mpsc::Receiver<Came>>) {
        let (threads, given) = (0..threads).map(|_| mpsc::channel(CAME_MAX)).unzip();
        (Self { threads, turn: AtomicUsize::new(0) }, given)
    }

    /// Whose turn it is. Each round begins with another thread: of agents that open two connections in a row, one of which
    /// carries little, the busy ones would all be the same thread's.
    fn turn(&self) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let threads = self.threads.len();
        (turn + turn / threads) % threads
    }

    /// Gives a connection to the thread whose turn it is. Returned: it is for this one, whose turn it is, or whose is over.
    pub(super) fn pass(&self, own: usize, came: Came) -> Option<Came> {
        let turn = self.turn();
        if turn == own {
            return Some(came);
        }
        self.threads[turn].try_send(came).err().map(mpsc::error::TrySendError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn each_thread_has_its_share_of_all_and_of_every_second_one() {
        for threads in 1..=5 {
            let spread = Spread::new(threads).0;
            let turns: Vec<_> = (0..2 * threads * threads).map(|_| spread.turn()).collect();
            for step in [1, 2] {
                for thread in 0..threads {
                    let count = turns.iter().step_by(step).filter(|&&turn| turn == thread).count();
                    assert_eq!(count, turns.len() / step / threads, "{thread} of {threads}, every {step}.");
                }
            }
        }
    }

    #[test]
    fn what_a_thread_takes_no_more_is_of_who_has_accepted_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let came = || (TcpStream::connect(address).unwrap(), address);
        let (spread, mut given) = Spread::new(2);
        let is_own = || spread.pass(0, came()).is_some();
        assert_eq!([is_own(), is_own(), is_own(), is_own()], [true, false, false, true]);
        assert!(given[1].try_recv().is_ok() && given[1].try_recv().is_ok());
        given[1].close();
        assert_eq!([is_own(), is_own()], [true, true]);
    }
}

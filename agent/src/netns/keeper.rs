//! The thread that follows the namespaces of captured processes, and what it is told.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::discover::Root;
use super::follower::Follower;
use super::inside::Listeners;
use super::{Namespaces, NetnsError, Order};
use crate::capture::{Cookie, Kernel};
use crate::record::Metrics;

/// What the thread is given.
pub struct Keeper {
    /// Where it tells all threads what is served.
    pub namespaces: Arc<Namespaces>,
    /// The programs.
    pub kernel: Arc<Kernel>,
    /// The captured cgroups.
    pub roots: Vec<Root>,
    /// Of `listen.outbound`.
    pub port: u16,
    /// Namespaces of one captured cgroup.
    pub per_cgroup_max: usize,
    /// Where it counts what that limit refused.
    pub metrics: Arc<Metrics>,
    /// One for each worker.
    pub workers: Vec<mpsc::Sender<Order>>,
    /// What the agent before listens with in other namespaces.
    pub heritage: BTreeMap<Cookie, Listeners>,
}

/// The running thread. Dropped: it ends by itself.
#[derive(Debug)]
pub struct Keeping {
    words: mpsc::Sender<Word>,
    thread: JoinHandle<()>,
    detached: Arc<AtomicBool>,
}

/// What the thread is told. No more words: it ends.
pub(super) enum Word {
    /// Serve nothing anew and leave nothing: another agent may do so. Answered with all listeners.
    Rest(oneshot::Sender<io::Result<Vec<(Cookie, TcpListener)>>>),
    /// Serve all again as before the rest, whatever another agent did meanwhile.
    GoOn,
}

impl Keeping {
    /// Lets it rest, and returns the listeners of all namespaces that are served.
    ///
    /// # Errors
    /// No descriptor is left, or the thread has ended.
    pub async fn rest(&self) -> io::Result<Vec<(Cookie, TcpListener)>> {
        let ended = || io::Error::other("the thread that follows network namespaces has ended");
        let (answer, answered) = oneshot::channel();
        self.words.send(Word::Rest(answer)).await.map_err(|_no_receiver| ended())?;
        answered.await.map_err(|_no_sender| ended())?
    }

    /// Ends its rest: all is served as before.
    pub async fn go_on(&self) {
        // No receiver: it has panicked, which its end tells.
        let _ = self.words.send(Word::GoOn).await;
    }

    /// Ends it: nothing is served anew when this returns, and what is served stays so. `detached`: nobody serves any
    /// more, so that the agent's port is given back.
    pub fn stop(self, detached: bool) {
        self.detached.store(detached, Ordering::Release);
        drop(self.words);
        if self.thread.join().is_err() {
            tracing::error!("the thread that follows network namespaces panicked: no new ones were served");
        }
    }
}

impl Keeper {
    /// Starts the thread, and waits until it serves what it finds at first.
    ///
    /// # Errors
    /// No thread, or no runtime for it.
    pub fn start(self) -> Result<Keeping, NetnsError> {
        let failed = |cause| NetnsError::Thread { cause };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (words, told) = mpsc::channel(1);
        let detached = Arc::new(AtomicBool::new(false));
        let gives_back = Arc::clone(&detached);
        let (looked, first) = std::sync::mpsc::channel();
        let run = move || {
            runtime.block_on(async move {
                let mut follower = Follower::new(self);
                follower.begin().await;
                // No receiver: the start has failed meanwhile, and there are no words.
                let _ = looked.send(());
                follower.run(told).await;
                if gives_back.load(Ordering::Acquire) {
                    follower.give_back();
                }
            });
        };
        let thread =
            std::thread::Builder::new().name("toolgate-netns".to_owned()).spawn(run).map_err(failed)?;
        // An error is a panic of the thread, which its end tells.
        let _ = first.recv();
        Ok(Keeping { words, thread, detached })
    }
}

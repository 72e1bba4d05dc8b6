//! Does what the bench says: opens connections, asks on each as fast as replies come, and tells how long they took.
//!
//! It spins in epoll: if it slept, each proxy would look better by what waking it up costs.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::listener::Listeners;
use super::message::{self, Flow, Kind};

/// Connections at once.
const CONNECTIONS_MAX: usize = 12_000;
/// Of one step.
const STEP_MAX: Duration = Duration::from_secs(15);
/// Replies measured in one step.
const REPLIES_MAX: usize = 4_000_000;

/// One line of the input.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Opens connections, and asks on each of them for a while: pools and caches are filled then.
    Open(Open),
    /// Asks on all of them for so many milliseconds; `anew`: each request on a connection of its own.
    Run { millis: u64, anew: bool },
    /// Opens so many streams, or idle connections that have asked once, and keeps them until `close`.
    Hold { count: usize, streams: bool },
    /// Opens so many streams with an event each second, or so many that nobody ever reads.
    Listen { count: usize, read: bool },
    /// Reads those for so many milliseconds; the delays are of all since they were opened.
    Hear { millis: u64 },
    /// Closes all.
    Close,
}

#[derive(Deserialize)]
struct Open {
    address: SocketAddr,
    app_id: Option<String>,
    kind: Kind,
    bytes: usize,
    connections: usize,
    /// `cgroup.procs` of the cgroups that the connections are opened from, in turn; none: where this process is.
    from: Vec<PathBuf>,
    /// Where this process goes back to.
    home: PathBuf,
    warm_up_millis: u64,
}

/// What is answered to a step.
#[derive(Serialize, Default)]
struct Done {
    /// Replies in all, those between the measured ones included.
    requests: usize,
    p50_ns: u64,
    p99_ns: u64,
    per_second: f64,
}

struct Load {
    epoll: Epoll,
    open: Option<Open>,
    request: Vec<u8>,
    connections: Vec<Connection>,
    listeners: Listeners,
    block: Vec<u8>,
}

/// Reads orders until the input ends.
pub(crate) fn obey() -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
    let mut load = Load {
        epoll,
        open: None,
        request: Vec::new(),
        connections: Vec::new(),
        listeners: Listeners::default(),
        block: vec![0; 256 * 1024],
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read an order")?;
        let order = serde_json::from_str(&line).with_context(|| format!("no order: {line}"))?;
        let done = load.obey(order)?;
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &done).context("cannot answer")?;
        out.write_all(b"\n").and_then(|()| out.flush()).context("cannot answer")?;
    }
    Ok(())
}

impl Load {
    fn obey(&mut self, order: Order) -> Result<Done> {
        match order {
            Order::Open(open) => self.open(open),
            Order::Run { millis, anew } => self.run(Duration::from_millis(millis), anew),
            Order::Hold { count, streams } => self.hold(count, streams),
            Order::Listen { count, read } => {
                ensure!(count <= CONNECTIONS_MAX, "at most {CONNECTIONS_MAX} streams");
                self.listeners.open(self.open.as_ref().context("nothing is open")?.address, count, read)?;
                Ok(Done { requests: count, ..Done::default() })
            }
            Order::Hear { millis } => {
                let time = Duration::from_millis(millis);
                ensure!(time <= STEP_MAX, "at most {STEP_MAX:?} a step");
                let delays = self.listeners.hear(time, &mut self.block)?;
                Ok(summary(&mut delays.to_vec(), delays.len(), time))
            }
            Order::Close => {
                self.listeners = Listeners::default();
                self.connections.clear();
                Ok(Done::default())
            }
        }
    }

    fn open(&mut self, open: Open) -> Result<Done> {
        self.connections.clear();
        ensure!(open.connections <= CONNECTIONS_MAX, "at most {CONNECTIONS_MAX} connections");
        self.request =
            message::request(open.kind, open.bytes, &open.address.to_string(), open.app_id.as_deref());
        if open.from.is_empty() {
            move_to(&open.home)?;
        }
        let cgroups = open.from.len().max(1);
        for cgroup in 0..cgroups {
            if let Some(procs) = open.from.get(cgroup) {
                move_to(procs)?;
            }
            for _ in (cgroup..open.connections).step_by(cgroups) {
                self.add(open.address)?;
            }
        }
        if open.from.len() > 1 {
            move_to(&open.home)?;
        }
        let warm_up = Duration::from_millis(open.warm_up_millis);
        self.open = Some(open);
        if self.connections.is_empty() { Ok(Done::default()) } else { self.run(warm_up, false) }
    }

    fn add(&mut self, address: SocketAddr) -> Result<()> {
        let connection = self.watched(address, self.connections.len())?;
        self.connections.push(connection);
        Ok(())
    }

    fn watched(&self, address: SocketAddr, index: usize) -> Result<Connection> {
        let connection = Connection::open(address)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&connection.stream, EpollEvent::new(flags, index as u64)).context("no epoll")?;
        Ok(connection)
    }

    fn run(&mut self, time: Duration, anew: bool) -> Result<Done> {
        let address = self.open.as_ref().context("nothing is open")?.address;
        ensure!(time <= STEP_MAX, "at most {STEP_MAX:?} a step");
        let mut took: Vec<u32> = Vec::with_capacity(1 << 20);
        let begun = Instant::now();
        for connection in &mut self.connections {
            connection.since = Instant::now();
            connection.ask(&self.request)?;
        }
        let mut waiting = self.connections.len();
        let mut ended = None;
        let mut events = [EpollEvent::empty(); 128];
        while waiting > 0 {
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).context("epoll fails")?;
            let now = Instant::now();
            let is_over = now.duration_since(begun) >= time || took.len() >= REPLIES_MAX;
            ensure!(now.duration_since(begun) < time + STEP_MAX, "no replies any more");
            if is_over && ended.is_none() {
                ended = Some((took.len(), now.duration_since(begun)));
            }
            for event in &events[..count] {
                let index = usize::try_from(event.data()).context("no index")?;
                let Some(connection) = self.connections.get_mut(index) else { continue };
                if !connection.go_on(&self.request, &mut self.block)? {
                    continue;
                }
                let now = Instant::now();
                took.push(nanoseconds(now.duration_since(connection.since)));
                if is_over {
                    waiting -= 1;
                    continue;
                }
                connection.since = now;
                if anew {
                    let fresh = self.watched(address, index)?;
                    self.connections[index] = fresh; // the one before is closed
                }
                self.connections[index].ask(&self.request)?;
            }
        }
        let (measured, lasted) = ended.unwrap_or((took.len(), begun.elapsed()));
        Ok(summary(&mut took, measured, lasted))
    }

    fn hold(&mut self, count: usize, streams: bool) -> Result<Done> {
        ensure!(count <= CONNECTIONS_MAX, "at most {CONNECTIONS_MAX} connections");
        let open = self.open.as_ref().context("nothing is open")?;
        let address = open.address;
        let request = if streams {
            message::stream_request(&address.to_string(), Flow::Silent)
        } else {
            self.request.clone()
        };
        let begun = Instant::now();
        while self.connections.len() < count {
            let mut connection = Connection::open(address)?;
            connection.ask(&request)?;
            loop {
                let is_there = match streams {
                    true => connection.stream_is_open(&request, &mut self.block)?,
                    false => connection.go_on(&request, &mut self.block)?,
                };
                if is_there {
                    break;
                }
                if connection.since.elapsed() > STEP_MAX || begun.elapsed() > 4 * STEP_MAX {
                    bail!("stuck at {} of {count}", self.connections.len());
                }
            }
            self.connections.push(connection);
        }
        Ok(Done { requests: count, ..Done::default() })
    }
}

/// Moves this process to the cgroup of this `cgroup.procs`: what it connects from then on is of that cgroup.
fn move_to(procs: &PathBuf) -> Result<()> {
    fs::write(procs, "0").with_context(|| format!("cannot move to `{}`", procs.display()))
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

fn summary(took: &mut Vec<u32>, measured: usize, lasted: Duration) -> Done {
    let requests = took.len();
    took.truncate(measured);
    took.sort_unstable();
    let at = |share: usize| took.get(measured * share / 100).or(took.last()).map_or(0, |&ns| u64::from(ns));
    let per_second = measured as f64 / lasted.as_secs_f64();
    Done { requests, p50_ns: at(50), p99_ns: at(99), per_second }
}

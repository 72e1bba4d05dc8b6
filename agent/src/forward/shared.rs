//! Connections to other agents that the calls of one caller to one server share. A call that is alone has one that is not
//! shared: nobody's frames are to be put together there, and it is the faster for it.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use socket2::SockRef;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::{ForwardError, Leg, Upstream, Ways, connect_peer};
use crate::io::Io;
use crate::limits::Limits;
use crate::peer::lanes::{Driver, Lanes};
use crate::peer::{Mutual, Protocol, Tether};

/// One connection.
struct Connected {
    address: SocketAddr,
    lanes: Lanes,
    tether: Rc<Tether>,
    /// When it was seen in use last.
    used: Instant,
}

impl Connected {
    fn takes_more(&self) -> bool {
        self.lanes.takes_more() && self.tether.takes_more()
    }
}

/// Somebody connects; others wait for what comes of it.
#[derive(Default)]
struct Dial {
    is_over: Notify,
    failed: OnceCell<Arc<ForwardError>>,
}

type OfLegs<T> = HashMap<Leg, Vec<T>, RandomState>;

/// All of a thread.
#[derive(Default)]
pub(super) struct Shared {
    connected: RefCell<OfLegs<Connected>>,
    dials: RefCell<HashMap<(Leg, SocketAddr), Rc<Dial>, RandomState>>,
    /// Those for calls that are alone: one to each address.
    alone: RefCell<OfLegs<(SocketAddr, Weak<Alone>)>>,
}

/// Held by a connection for calls that are alone, and by who makes it.
pub(super) struct Alone;

/// Who connects. Whatever ends it, those who wait go on.
struct Dialling<'s> {
    shared: &'s Shared,
    key: (Leg, SocketAddr),
    dial: Rc<Dial>,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.shared.dials.borrow_mut().remove(&self.key);
        self.dial.is_over.notify_waiters();
    }
}

impl Shared {
    /// A new lane on a connection that there is.
    fn open(&self, leg: &Leg, address: SocketAddr) -> Option<Io> {
        let mut all = self.connected.borrow_mut();
        let connected = all.get_mut(leg)?;
        connected.retain(Connected::takes_more);
        let there = connected.iter().filter(|one| one.address == address);
        there.into_iter().find_map(|one| Some(Io::Lane(one.lanes.open()?, Rc::clone(&one.tether))))
    }

    fn dials(&self, leg: &Leg, address: SocketAddr) -> Dialling<'_> {
        let (key, dial) = ((leg.clone(), address), Rc::<Dial>::default());
        self.dials.borrow_mut().insert(key.clone(), Rc::clone(&dial));
        Dialling { shared: self, key, dial }
    }

    fn add(&self, leg: &Leg, connected: Connected) {
        self.connected.borrow_mut().entry(leg.clone()).or_default().push(connected);
    }

    /// Whether a call goes on the connection for calls that are alone, or it is being made: the next call is not alone.
    pub(super) fn is_alone_out(&self, leg: &Leg, address: SocketAddr) -> bool {
        let all = self.alone.borrow();
        let there = all.get(leg).and_then(|there| there.iter().find(|(at, _)| *at == address));
        there.is_some_and(|(_, alone)| alone.strong_count() > 0)
    }

    fn take_alone(&self, leg: &Leg, address: SocketAddr) -> Option<Rc<Alone>> {
        if self.is_alone_out(leg, address) {
            return None;
        }
        let (alone, mut all) = (Rc::new(Alone), self.alone.borrow_mut());
        let there = all.entry(leg.clone()).or_default();
        there.retain(|(at, _)| *at != address);
        there.push((address, Rc::downgrade(&alone)));
        Some(alone)
    }

    /// Leaves what nobody has used for long, or what takes no more: it ends with its last lane.
    pub(super) fn sweep(&self, limits: &Limits) {
        self.alone.borrow_mut().retain(|_, there| {
            there.retain(|(_, alone)| alone.strong_count() > 0);
            !there.is_empty()
        });
        self.connected.borrow_mut().retain(|_, connected| {
            connected.retain_mut(|one| {
                if !one.lanes.is_idle() {
                    one.used = Instant::now();
                }
                one.takes_more() && one.used.elapsed() < limits.peer_idle_max
            });
            !connected.is_empty()
        });
    }
}

/// A connection to the agent at an address for a call that is alone, or else a lane.
pub(super) async fn reach(
    leg: &Leg,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let Some(alone) = ways.pool.shared.take_alone(leg, address) else {
        return lane(leg, address, ways, limits).await;
    };
    let mutual = connect_peer(leg, address, &[Protocol::Own], ways, limits).await?;
    Ok(Upstream { alone: Some(alone), ..Upstream::new(Io::Mutual(Box::new(mutual)), address) })
}

/// A lane to the agent at an address. While nobody is connected there one connects, and the others wait.
async fn lane(
    leg: &Leg,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let shared = &ways.pool.shared;
    loop {
        if let Some(io) = shared.open(leg, address) {
            return Ok(Upstream::new(io, address));
        }
        let dial = shared.dials.borrow().get(&(leg.clone(), address)).map(Rc::clone);
        let Some(dial) = dial else { return first(leg, address, ways, limits).await };
        dial.is_over.notified().await;
        if let Some(error) = dial.failed.get() {
            return Err(ForwardError::Shared(Arc::clone(error)));
        }
    }
}

/// The first lane of a new connection; an agent of before there were lanes gets a connection for this call alone.
async fn first(
    leg: &Leg,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let shared = &ways.pool.shared;
    let dialling = shared.dials(leg, address);
    let mutual = match connect_peer(leg, address, &Protocol::ALL, ways, limits).await {
        Ok(mutual) => mutual,
        Err(error) => {
            let error = dialling.dial.failed.get_or_init(|| Arc::new(error));
            return Err(ForwardError::Shared(Arc::clone(error)));
        }
    };
    if mutual.protocol == Protocol::Own {
        return Ok(Upstream::new(Io::Mutual(Box::new(mutual)), address));
    }
    // Without it a host that is gone without a word would keep all calls waiting. Best effort, as each has its own limits.
    let _ = SockRef::from(mutual.socket()).set_tcp_user_timeout(Some(limits.send_time_max));
    let tether = Rc::clone(&mutual.tether);
    let (lanes, driver) = Lanes::over(mutual);
    spawn_local(drive(driver, address));
    let opened = lanes.open().map(|lane| Io::Lane(lane, Rc::clone(&tether)));
    shared.add(leg, Connected { address, lanes, tether, used: Instant::now() });
    opened.map(|io| Upstream::new(io, address)).ok_or(ForwardError::Nowhere)
}

async fn drive(mut driver: Driver<Mutual>, address: SocketAddr) {
    if let Err(error) = driver.next().await {
        tracing::debug!(%address, %error, "the connection to another agent broke");
    }
}

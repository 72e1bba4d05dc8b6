//! Which of a server's endpoints a request goes to: the one that has its session, or of those that are well one with little to
//! do; if that one cannot be reached, another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use toolgate_core::decision::{Endpoint, External, Place};
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;

use super::external::connect_external;
use super::{ForwardError, Leg, Upstream, Ways, connect_local, connect_peer, external, shared};
use crate::io::Io;
use crate::limits::Limits;
use crate::names::{Known, NameError, Names, Question};
use crate::peer::Protocol;
use crate::replicas::{Candidate, Candidates, Replica};

/// How many endpoints are tried for one request.
const TRIES: usize = 3;

/// What binds a request to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundBy {
    /// Its session.
    Session,
    /// The task that it is about.
    Task,
    /// The stream on which it is answered (MCP 2024-11-05, HTTP with SSE).
    Stream,
}

impl BoundBy {
    /// What its client is told where that endpoint is gone: as of a session, task or stream that is no more.
    pub(super) fn reason(self) -> (Reason, u16) {
        match self {
            Self::Session => (Reason::UnknownSession, 404),
            Self::Task => (Reason::UnknownTask, 200),
            Self::Stream => (Reason::UnknownEndpoint, 404),
        }
    }
}

/// The endpoint that a request must go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Where it is.
    pub address: SocketAddr,
    /// Why.
    pub by: BoundBy,
}

/// A connection of a leg to one of these endpoints.
pub(super) async fn reach(
    leg: &Leg,
    endpoints: &[Endpoint],
    bound: Option<Bound>,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    // One alone, as most have it: there is nothing to choose, and nothing to be asked of names.
    if let ([Endpoint::Address(address)], None) = (endpoints, bound) {
        return at(leg, *address, ways, limits).await;
    }
    let candidates = lookup(endpoints, ways.names).await?;
    let mut upstream = match (bound, candidates.as_slice()) {
        (None, [only]) => at(leg, only.address, ways, limits).await?,
        (Some(Bound { address, .. }), [only]) if only.address == address => {
            at(leg, address, ways, limits).await?
        }
        (None, candidates) => reach_any(leg, candidates, ways, limits).await?,
        (Some(bound), candidates) => reach_bound(leg, bound, (endpoints, candidates), ways, limits).await?,
    };
    upstream.binds = true;
    Ok(upstream)
}

async fn reach_any(
    leg: &Leg,
    candidates: &[Candidate],
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let reach = async |replica: &Arc<Replica>| try_at(leg, replica, ways, limits).await;
    first_that_answers(&leg.server, candidates, ways, reach).await
}

/// An address that is none for the server is passed over, however many there are.
async fn first_that_answers<T>(
    server: &Identity,
    candidates: &[Candidate],
    ways: &Ways<'_>,
    reach: impl AsyncFn(&Arc<Replica>) -> Result<T, ForwardError>,
) -> Result<T, ForwardError> {
    let (mut refused, mut failed, mut tries) = (None, None, 0);
    for replica in ways.replicas.order(server, candidates, Instant::now()) {
        match reach(&replica).await {
            Ok(reached) => return Ok(reached),
            Err(error @ ForwardError::Refused { .. }) => refused = Some(error),
            Err(error) if error.tells_of_endpoint() => {
                failed = Some(error);
                tries += 1;
            }
            Err(error) => return Err(error),
        }
        if tries == TRIES {
            break;
        }
    }
    Err(failed.or(refused).unwrap_or(ForwardError::Nowhere))
}

/// Nothing is sent elsewhere in silence: another endpoint does not have what the request is about. One that does not answer is
/// gone when it is left out for that, and not before: it may come back with all it had.
async fn reach_bound(
    leg: &Leg,
    Bound { address, by }: Bound,
    (endpoints, candidates): (&[Endpoint], &[Candidate]),
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let Some(replica) = ways.replicas.one(&leg.server, candidates, address) else {
        if !may_be_former(leg, endpoints, address, ways) {
            return Err(ForwardError::ReplicaGone { address, by, cause: None });
        }
        let reached = at(leg, address, ways, limits).await;
        return reached.map_err(|error| error.of_gone(address, by));
    };
    let reached = try_at(leg, &replica, ways, limits).await;
    reached.map_err(|error| if replica.is_left_out() { error.of_gone(address, by) } else { error })
}

/// Whether an address that a name had not long ago still serves who is bound to it: names are made to lead elsewhere while
/// servers finish what they have, and rotate. Where nothing proves the server, another may have the address by now.
fn may_be_former(leg: &Leg, endpoints: &[Endpoint], address: SocketAddr, ways: &Ways<'_>) -> bool {
    let is_proven = match &leg.place {
        Place::Local { .. } => false,
        Place::Peer { .. } => true,
        Place::External(external) => external.tls.is_some(),
    };
    let had = |endpoint: &Endpoint| {
        let known = Question::of(endpoint).and_then(|question| ways.names.known(&question));
        let port = endpoint.port().unwrap_or_default();
        known.is_some_and(|known| known.lately.iter().any(|(found, _)| found.at(port) == address))
    };
    is_proven && endpoints.iter().any(had)
}

/// A connection to an endpoint of several, which is busy with it from now on.
async fn try_at(
    leg: &Leg,
    replica: &Arc<Replica>,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    let busy = replica.busy();
    match at(leg, replica.address, ways, limits).await {
        Ok(mut upstream) => {
            upstream.busy = Some(busy);
            Ok(upstream)
        }
        Err(error) => {
            error.tell(replica);
            Err(error)
        }
    }
}

/// A connection to an address: one that waits, or a new one.
pub(super) async fn at(
    leg: &Leg,
    address: SocketAddr,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<Upstream, ForwardError> {
    if let Some(idle) = ways.pool.checkout(leg, address, limits) {
        return Ok(idle);
    }
    // Elsewhere: what a handshake needs would be room in each request.
    match &leg.place {
        Place::Local { .. } => Box::pin(connect_local(leg, address, ways, limits)).await,
        Place::Peer { .. } if leg.shares => Box::pin(shared::reach(leg, address, ways, limits)).await,
        Place::Peer { .. } => {
            let mutual = Box::pin(connect_peer(leg, address, &[Protocol::Own], ways, limits)).await?;
            Ok(Upstream::new(Io::Mutual(Box::new(mutual)), address))
        }
        Place::External(external) => Box::pin(connect_external(external, address, ways, limits)).await,
    }
}

/// Dials an external server for what is not read here.
pub(super) async fn dial(
    external: &External,
    server: &Identity,
    ways: &Ways<'_>,
    limits: &Limits,
) -> Result<(TcpStream, SocketAddr), ForwardError> {
    let candidates = lookup(&external.endpoints, ways.names).await?;
    if let [only] = candidates.as_slice() {
        let plain = external::dial(external, only.address, ways, limits).await?;
        return Ok((plain, only.address));
    }
    let reach = async |replica: &Arc<Replica>| {
        // Until it is connected: what is said then, and when it ends, tells nothing here.
        let _busy = replica.busy();
        let dialled = external::dial(external, replica.address, ways, limits).await;
        dialled.map(|plain| (plain, replica.address)).inspect_err(|error| error.tell(replica))
    };
    first_that_answers(server, &candidates, ways, reach).await
}

/// All that these endpoints lead to; of the names, those that lead anywhere.
async fn lookup(endpoints: &[Endpoint], names: &Names) -> Result<Candidates, NameError> {
    let (mut all, mut failed) = (Candidates::new(), None);
    for endpoint in endpoints {
        match Question::of(endpoint) {
            None => add(&mut all, endpoint, &Known::default()),
            Some(question) => match names.answer(&question).await {
                Ok(known) => add(&mut all, endpoint, &known),
                Err(error) => failed = Some(error),
            },
        }
    }
    match failed {
        Some(error) if all.is_empty() => Err(error),
        Some(_) | None => Ok(all),
    }
}

/// The same of what is known now, for who looks.
#[must_use]
pub fn candidates_now(endpoints: &[Endpoint], names: &Names) -> Candidates {
    let mut all = Candidates::new();
    for endpoint in endpoints {
        let known = Question::of(endpoint).and_then(|question| names.known(&question));
        add(&mut all, endpoint, &known.unwrap_or_default());
    }
    all
}

/// Each once: two names may lead to one address.
fn add(all: &mut Candidates, endpoint: &Endpoint, known: &Known) {
    let mut one = |address, priority| {
        if all.iter().all(|one| one.address != address) {
            all.push(Candidate { address, priority });
        }
    };
    match endpoint {
        Endpoint::Address(address) => one(*address, 0),
        Endpoint::Name { .. } | Endpoint::Service(_) => {
            let port = endpoint.port().unwrap_or_default();
            known.found.iter().for_each(|found| one(found.at(port), found.priority));
        }
    }
}

impl ForwardError {
    /// The same where it is the end of what was there.
    fn of_gone(self, address: SocketAddr, by: BoundBy) -> Self {
        if self.tells_of_endpoint() {
            Self::ReplicaGone { address, by, cause: Some(Box::new(self)) }
        } else {
            self
        }
    }

    /// Keeps what it tells of an endpoint.
    fn tell(&self, replica: &Replica) {
        if self.is_endpoints_fault() {
            replica.failed(self, Instant::now());
        }
    }

    /// Whether another endpoint may do better. Who answers and does not prove who it is ends the search: nobody may be made to
    /// look elsewhere.
    fn tells_of_endpoint(&self) -> bool {
        if let Self::Shared(error) = self {
            return error.tells_of_endpoint();
        }
        self.is_endpoints_fault() && !matches!(self, Self::Peer { .. } | Self::Tls { .. })
    }

    /// Whether it is the endpoint that failed, and not this host or the client.
    fn is_endpoints_fault(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Peer { .. }
            | Self::Tls { .. }
            | Self::HandshakeTimeout { .. }
            | Self::Send { .. }
            | Self::SendTimeout { .. } => true,
            Self::Shared(error) => error.is_endpoints_fault(),
            Self::Exhausted { .. }
            | Self::ReplicaGone { .. }
            | Self::Nowhere
            | Self::Name(_)
            | Self::Refused { .. }
            | Self::Namespace { .. }
            | Self::TunnelEnded { .. }
            | Self::Guarded { .. }
            | Self::LinkLocal { .. }
            | Self::ClientBody { .. }
            | Self::ClientLeft => false,
        }
    }
}

//! `listen.workload_api`: processes of this node get their own SVIDs, JWT-SVIDs and the bundles here, by the SPIFFE Workload API (gRPC over a
//! Unix socket). Who asks is told by the kernel ([`attest`]) and found by the same selectors as any caller.
//!
//! What is given to a process says so (`ca::Holder`): agents take it for nobody's word among themselves, so that a process that
//! has its own key gets no further without its agent than with it.

mod answers;
mod attest;
mod messages;
mod named;
mod stream;
#[cfg(test)]
mod tests;
mod tokens;

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;

use self::answers::Caller;
use self::attest::Attested;
use self::messages::{
    JwtBundlesResponse, JwtSvidRequest, JwtSvidResponse, ValidateJwtSvidRequest, ValidateJwtSvidResponse,
    X509BundlesResponse, X509SvidResponse,
};
use self::named::Named;
use self::stream::Streams;
use crate::app::Node;
use crate::limits::Limit;

/// A client that is not there any more, though its connection is: asked so often, and given up after that.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIME_MAX: Duration = Duration::from_secs(10);
/// What a browser or a careless proxy would not send (SPIFFE Workload Endpoint, 4.1).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// What listens for processes.
pub(crate) struct Listener {
    node: Arc<Node>,
    /// Open connections by the cgroup that they came from.
    open: RefCell<HashMap<String, usize>>,
}

impl Listener {
    pub(crate) fn new(node: Arc<Node>) -> Rc<Self> {
        Rc::new(Self { node, open: RefCell::default() })
    }

    /// One connection of a process.
    pub(crate) async fn serve(self: Rc<Self>, stream: UnixStream) {
        let who = Attested::of(&stream).and_then(|who| who.process().map(|process| (who, process)));
        let (who, process) = match who {
            Ok(known) => known,
            Err(error) => return tracing::warn!(%error, "a connection to the Workload API is closed"),
        };
        if !self.opened(&process.cgroup) {
            return;
        }
        if let Err(error) = serve(stream, who, &self.node).await {
            tracing::debug!(%error, "a connection to the Workload API broke");
        }
        let mut open = self.open.borrow_mut();
        if let Some(count) = open.get_mut(&process.cgroup) {
            *count -= 1;
        }
        open.retain(|_, count| *count > 0);
    }

    fn opened(&self, cgroup: &str) -> bool {
        let limits = &self.node.limits;
        let mut open = self.open.borrow_mut();
        let own = open.get(cgroup).copied().unwrap_or_default();
        let limit = if open.values().sum::<usize>() >= limits.workload_api_connections_max {
            Limit::WorkloadApiConnections
        } else if own >= limits.workload_api_connections_per_cgroup_max {
            Limit::WorkloadApiConnectionsPerCgroup
        } else {
            open.insert(cgroup.to_owned(), own + 1);
            return true;
        };
        let what =
            format!("a connection of cgroup `{cgroup}` to the Workload API is closed: {limit} is reached");
        self.node.metrics.limits.count(limit, &what);
        false
    }
}

/// Until either end closes, or who connected has ended: what another process makes of the connection then is not heard.
async fn serve(
    stream: UnixStream,
    who: Attested,
    node: &Arc<Node>,
) -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: an `OwnedFd` is the same descriptor until it is dropped, which is after its registration.
    let ended = unsafe { AsyncFd::register_with_interest(who.pidfd()?, Interest::READABLE) }?;
    let caller = Arc::new(Caller::new(who, Arc::clone(node)));
    let answered = |request| {
        let caller = Arc::clone(&caller);
        async move { Ok::<_, Infallible>(answer(caller, request).await) }
    };
    let streams = u32::try_from(node.limits.workload_api_streams_max).unwrap_or(u32::MAX);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME_MAX)
        .serve_connection(TokioIo::new(Named::new(stream)), service_fn(answered));
    tokio::select! {
        served = connection => Ok(served?),
        ended = ended.readable() => Ok(ended.map(drop)?),
    }
}

async fn answer(caller: Arc<Caller>, request: Request<Incoming>) -> Response<Body> {
    if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
        let why = "the header `workload.spiffe.io: true` is missing";
        return Status::invalid_argument(why).into_http();
    }
    match request.uri().path() {
        "/SpiffeWorkloadAPI/FetchX509SVID" => {
            let codec = ProstCodec::<X509SvidResponse, _>::default();
            Grpc::new(codec).server_streaming(Streams::new(caller), request).await
        }
        "/SpiffeWorkloadAPI/FetchX509Bundles" => {
            let codec = ProstCodec::<X509BundlesResponse, _>::default();
            Grpc::new(codec).server_streaming(Streams::new(caller), request).await
        }
        "/SpiffeWorkloadAPI/FetchJWTSVID" => {
            let codec = ProstCodec::<JwtSvidResponse, JwtSvidRequest>::default();
            Grpc::new(codec).unary(tokens::Fetch(caller), request).await
        }
        "/SpiffeWorkloadAPI/FetchJWTBundles" => {
            let codec = ProstCodec::<JwtBundlesResponse, _>::default();
            Grpc::new(codec).server_streaming(Streams::new(caller), request).await
        }
        "/SpiffeWorkloadAPI/ValidateJWTSVID" => {
            let codec = ProstCodec::<ValidateJwtSvidResponse, ValidateJwtSvidRequest>::default();
            Grpc::new(codec).unary(tokens::Validate(caller), request).await
        }
        path => Status::unimplemented(format!("`{path}` is not served here")).into_http(),
    }
}

//! `listen.authority`: nodes join here, and fetch what they need: HTTP over TLS 1.3, a node's certificate for all but the
//! join. What is asked is decided by the authority's thread; here is who asks.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::nodes::NodeError;
use super::wire::{
    BODY_BYTES_MAX, JOIN, JWT, JwtRequest, NODE_PATH, RENEW, RenewRequest, SVID, SvidRequest, TRUST,
};
use crate::record::Recorder;
use crate::svid::{NodeAsk, Peer, PeerVerifier, SvidError, Svids, VerifyError, provider, shown_by, verify};

/// Connections at once; one more is closed.
const CONNECTIONS_MAX: usize = 1_024;
/// Until a client has shown who it is, and between two requests.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What listens for nodes.
pub struct Listener {
    svids: Svids,
    /// With when it is to be made anew.
    tls: RefCell<Option<(Arc<ServerConfig>, SystemTime)>>,
    connections: Cell<usize>,
}

/// A line of the audit.
#[derive(Serialize)]
struct Event<'e> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'e str>,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// What a node is told when it does not get what it asked for.
#[derive(Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error: String,
}

impl Listener {
    /// For the nodes of an authority.
    #[must_use]
    pub fn new(svids: Svids) -> Rc<Self> {
        Rc::new(Self { svids, tls: RefCell::default(), connections: Cell::new(0) })
    }

    /// One connection of a node, or of who wants to be one.
    pub async fn serve(self: Rc<Self>, stream: TcpStream, from: SocketAddr, recorder: &Recorder) {
        if self.connections.get() >= CONNECTIONS_MAX {
            tracing::warn!(%from, "a node's connection too many is closed");
            return;
        }
        self.connections.set(self.connections.get() + 1);
        if let Err(why) = self.served(stream, from, recorder).await {
            tracing::info!(%from, %why, "a node's connection has ended");
        }
        self.connections.set(self.connections.get() - 1);
    }

    async fn served(&self, stream: TcpStream, from: SocketAddr, recorder: &Recorder) -> Result<(), String> {
        let tls = self.tls().await.map_err(|error| error.to_string())?;
        let accepted = tokio::time::timeout(HANDSHAKE_TIME_MAX, TlsAcceptor::from(tls).accept(stream)).await;
        let stream = accepted.map_err(|_| "no handshake in time")?.map_err(|error| error.to_string())?;
        let peer = match stream.get_ref().1.peer_certificates() {
            Some(chain) => Some(shown_by(chain).map_err(|error| error.to_string())?),
            None => None,
        };
        let answered = |request| async {
            let response = self.answer(request, peer.as_ref(), from, recorder).await;
            Ok::<_, Infallible>(response)
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX)
            .serve_connection(TokioIo::new(stream), service_fn(answered));
        connection.await.map_err(|error| error.to_string())
    }

    async fn tls(&self) -> Result<Arc<ServerConfig>, SvidError> {
        let now = SystemTime::now();
        if let Some((tls, renew_at)) = &*self.tls.borrow()
            && now < *renew_at
        {
            return Ok(Arc::clone(tls));
        }
        let own = self.svids.own().await?;
        let svids = self.svids.clone();
        // Who it is, each answer looks at, and whether it was revoked: then it is told so, and not merely cut off.
        let verifier =
            PeerVerifier::new(move |chain, role, now| match verify(chain, &svids.trust(), role, now) {
                Ok(_) | Err(VerifyError::Revoked { .. }) => Ok(()),
                Err(error) => Err(rustls::Error::General(error.to_string())),
            });
        let failed = |cause: rustls::Error| SvidError::Tls { cause: cause.to_string() };
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(Arc::new(verifier.or_nobody()))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own.certified)));
        // A resumed session would not be proven again.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let tls = Arc::new(tls);
        *self.tls.borrow_mut() = Some((Arc::clone(&tls), own.renew_at));
        Ok(tls)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Option<&Peer>,
        from: SocketAddr,
        recorder: &Recorder,
    ) -> Response<Full<Bytes>> {
        let node = peer.map(|peer| self.node(peer)).transpose();
        let node = match node {
            Ok(node) => node.map(str::to_owned),
            Err(why) => return refused(StatusCode::FORBIDDEN, why),
        };
        let ask = match read(request, node.as_deref()).await {
            Ok(ask) => ask,
            Err((status, why)) => return refused(status, why),
        };
        let joins = if let NodeAsk::Join(wanted) = &ask { Some(wanted.node.clone()) } else { None };
        let who = joins.as_deref().or(node.as_deref());
        let answered = self.svids.node(ask).await;
        let event = match &answered {
            Ok(_) => joins.is_some().then_some("node_joined"),
            Err(SvidError::Node(NodeError::Refused(_))) => Some("node_refused"),
            Err(_) => None,
        };
        if let Some(event) = event {
            let detail = answered.as_ref().err().map(ToString::to_string);
            let event = Event { event, node: who, address: from.to_string(), detail };
            if let Err(error) = recorder.event(&event) {
                return refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
            }
        }
        match answered {
            Ok(answer) => json(StatusCode::OK, &answer),
            Err(SvidError::Node(NodeError::Refused(why))) => refused(StatusCode::FORBIDDEN, why.to_string()),
            Err(error) => {
                tracing::error!(%error, "a node is not answered");
                refused(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the authority cannot: its log says why".to_owned(),
                )
            }
        }
    }

    /// The node of a certificate, as long as that holds: a connection may last longer.
    fn node<'p>(&self, peer: &'p Peer) -> Result<&'p str, String> {
        if self.svids.trust().revoked.covers(peer) {
            return Err(format!("`{}` was revoked", peer.id));
        }
        if peer.not_after <= SystemTime::now() {
            return Err(format!("the certificate of `{}` has ended", peer.id));
        }
        let node = peer.id.path().strip_prefix(NODE_PATH);
        node.ok_or_else(|| format!("`{}` is no node", peer.id))
    }
}

/// What is asked, by whom it may be asked.
async fn read(request: Request<Incoming>, node: Option<&str>) -> Result<NodeAsk, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    let body = tokio::time::timeout(HANDSHAKE_TIME_MAX, body).await;
    let body = body.map_err(|_| bad("no body in time".to_owned()))?;
    let body = body.map_err(|problem| bad(problem.to_string()))?.to_bytes();
    let wrong = |problem: serde_json::Error| bad(problem.to_string());
    let of_a_node = || {
        let why = "only a node with its certificate may ask that".to_owned();
        node.map(str::to_owned).ok_or((StatusCode::FORBIDDEN, why))
    };
    match (&head.method, path.as_str()) {
        (&Method::POST, JOIN) => Ok(NodeAsk::Join(serde_json::from_slice(&body).map_err(wrong)?)),
        (&Method::POST, RENEW) => {
            let node = of_a_node()?;
            let RenewRequest { csr } = serde_json::from_slice(&body).map_err(wrong)?;
            Ok(NodeAsk::Renew { node, csr })
        }
        (&Method::POST, SVID) => {
            let node = of_a_node()?;
            let wanted: SvidRequest = serde_json::from_slice(&body).map_err(wrong)?;
            Ok(NodeAsk::Svid { node, wanted })
        }
        (&Method::POST, JWT) => {
            let node = of_a_node()?;
            let wanted: JwtRequest = serde_json::from_slice(&body).map_err(wrong)?;
            Ok(NodeAsk::Jwt { node, wanted })
        }
        (&Method::GET, TRUST) => Ok(NodeAsk::Trust { node: of_a_node()? }),
        (method, path) => Err((StatusCode::NOT_FOUND, format!("no {method} {path} here"))),
    }
}

fn refused(status: StatusCode, error: String) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!(ErrorBody { error }))
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.to_string().into()));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

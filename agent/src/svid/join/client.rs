//! A node's connection to its authority: kept open between two questions, proven anew whenever it is opened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use toolgate_core::spiffe::SpiffeId;

use super::member::Member;
use super::{Bundle, JoinError, JoinToken, Trust};
use crate::ca::listener::ErrorBody;
use crate::ca::wire::{AUTHORITY_PATH, BODY_BYTES_MAX};
use crate::svid::tls::{PeerVerifier, provider};
use crate::svid::{VerifyError, hex, verify};

/// Until the authority has answered, connection and handshake included.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// The root that a pinned handshake found.
type Found = Arc<Mutex<Vec<CertificateDer<'static>>>>;

pub(super) struct Client {
    authority: String,
    tls: Arc<ClientConfig>,
    found: Found,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// One that believes what a token says, and shows nothing.
    pub(super) fn pinned(token: &JoinToken) -> Result<Self, JoinError> {
        let found = Found::default();
        let (keep, pin, trust_domain) = (Arc::clone(&found), token.root.clone(), token.trust_domain.clone());
        let believed = move |chain: &[CertificateDer<'_>]| {
            let root =
                chain.iter().find(|one| hex(&Sha256::digest(one)) == pin).ok_or(VerifyError::Unpinned)?;
            let roots = vec![root.clone().into_owned()];
            keep.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&roots);
            let bundle = Arc::new(Bundle::new(roots)?);
            let bundles = [(trust_domain.as_str().into(), bundle)].into();
            Ok(Arc::new(Trust { bundles, ..Trust::default() }))
        };
        let verifier = verifier(believed, authority_of(&token.trust_domain, &token.authority)?);
        let tls = client_config(verifier, &token.authority, None)?;
        Ok(Self { authority: token.authority.clone(), tls, found, open: None })
    }

    /// One that shows the node's certificate, and believes its bundle.
    pub(super) fn member(member: &Member) -> Result<Self, JoinError> {
        let trust_domain = member.trust_domain.as_str();
        let bundles = [(trust_domain.into(), Arc::clone(&member.bundle))].into();
        let trust = Arc::new(Trust { bundles, ..Trust::default() });
        let expected = authority_of(trust_domain, &member.authority)?;
        let verifier = verifier(move |_| Ok(Arc::clone(&trust)), expected);
        let tls = client_config(verifier, &member.authority, Some(member))?;
        Ok(Self { authority: member.authority.clone(), tls, found: Found::default(), open: None })
    }

    /// The root of a pinned handshake.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks, over the connection that is open, or a new one where it broke.
    pub(super) async fn call<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, JoinError> {
        let away = |cause: String| JoinError::Away { authority: self.authority.clone(), cause };
        let text = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| away(error.to_string()))?,
            None => Vec::new(),
        };
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let request = || {
            let mut request = Request::new(Full::new(Bytes::from(text.clone())));
            *request.method_mut() = method.clone();
            *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
            request.headers_mut().insert(HOST, HeaderValue::from_static("authority"));
            request
        };
        let kept = self.open.take().filter(|open| !open.is_closed());
        let exchange = async {
            if let Some(mut open) = kept
                && open.ready().await.is_ok()
                && let Ok(response) = open.send_request(request()).await
            {
                return Ok((open, response));
            }
            let mut open = connect(&self.authority, Arc::clone(&self.tls)).await?;
            let response = open.send_request(request()).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((open, response))
        };
        let exchange = async {
            let (open, response) = exchange.await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
            Ok::<_, String>((open, status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let answered = tokio::time::timeout(ANSWER_TIME_MAX, exchange).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer in {ANSWER_TIME_MAX:?}")));
        let (open, status, body) = answered.map_err(away)?;
        let authority = self.authority.clone();
        self.open = Some(open);
        if status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|error| JoinError::Nonsense { authority, problem: error.to_string() });
        }
        let why =
            serde_json::from_slice::<ErrorBody>(&body).map_or_else(|_| status.to_string(), |body| body.error);
        Err(match status {
            StatusCode::FORBIDDEN => JoinError::Refused { authority, why },
            _other => JoinError::Away { authority, cause: why },
        })
    }
}

async fn connect(authority: &str, tls: Arc<ClientConfig>) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(authority).await.map_err(|error| error.to_string())?;
    // Who it is, its certificate tells; a name is not asked for.
    let name = ServerName::try_from("toolgate-authority").map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| error.to_string())?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the authority broke");
        }
    });
    Ok(sender)
}

/// Believes nobody but who is expected.
fn verifier(
    believed: impl Fn(&[CertificateDer<'_>]) -> Result<Arc<Trust>, VerifyError> + Send + Sync + 'static,
    expected: SpiffeId,
) -> PeerVerifier {
    PeerVerifier::new(move |chain, role, now| {
        let proven = believed(chain).and_then(|trust| verify(chain, &trust, role, now));
        let proven = proven.and_then(|peer| match peer.id == expected {
            true => Ok(()),
            false => Err(VerifyError::Unexpected { id: peer.id, expected: expected.clone() }),
        });
        proven.map_err(|error| rustls::Error::General(error.to_string()))
    })
}

fn authority_of(trust_domain: &str, authority: &str) -> Result<SpiffeId, JoinError> {
    SpiffeId::parse(&format!("spiffe://{trust_domain}{AUTHORITY_PATH}"))
        .map_err(|error| JoinError::Nonsense { authority: authority.to_owned(), problem: error.to_string() })
}

fn client_config(
    verifier: PeerVerifier,
    authority: &str,
    member: Option<&Member>,
) -> Result<Arc<ClientConfig>, JoinError> {
    let failed =
        |cause: rustls::Error| JoinError::Away { authority: authority.to_owned(), cause: cause.to_string() };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match member {
        None => builder.with_no_client_auth(),
        Some(member) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(member.key.serialize_der()));
            let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).map_err(failed)?;
            let certified = CertifiedKey::new(member.chain.clone(), key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    // A resumed session would not be proven again.
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

//! The command line's side of the admin socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;

use super::api::ErrorBody;
pub use super::api::{BypassRequest, ExecRequest, UpgradeRequest};
pub use super::authority::AuthorityRequest;
pub use super::definitions::{ChangeRequest, DefinitionsRequest};

/// Why the agent did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers at `{}`: {cause}; start it with `toolgate run`", path.display())]
    NoAgent {
        /// The admin socket.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The socket is root's.
    #[error("the admin socket `{}` is root's alone; try again with sudo", path.display())]
    NotRoot {
        /// The admin socket.
        path: PathBuf,
    },
    /// HTTP broke.
    #[error("the agent's answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Not what was expected.
    #[error("the agent's answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// `GET /status`.
///
/// # Errors
/// [`ClientError`].
pub async fn status(socket: &Path) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::GET, "/status", &serde_json::Value::Null).await
}

/// `GET /discover`.
///
/// # Errors
/// [`ClientError`].
pub async fn discover(socket: &Path) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::GET, "/discover", &serde_json::Value::Null).await
}

/// `POST /exec`: this process is moved before the answer comes, which says what its environment must have.
///
/// # Errors
/// [`ClientError`].
pub async fn exec(socket: &Path, wanted: &ExecRequest) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/exec", wanted).await
}

/// `POST /inspection`: where clients whose TLS is read find whom to believe.
///
/// # Errors
/// [`ClientError`].
pub async fn inspection(socket: &Path) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/inspection", &serde_json::Value::Null).await
}

/// `POST /bypass`: what began, or ended.
///
/// # Errors
/// [`ClientError`].
pub async fn bypass(socket: &Path, wanted: &BypassRequest) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/bypass", wanted).await
}

/// `POST /upgrade`: the agent's process id, now and before.
///
/// # Errors
/// [`ClientError`]: the agent that runs goes on.
pub async fn upgrade(socket: &Path, wanted: &UpgradeRequest) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/upgrade", wanted).await
}

/// `POST /authority`: what was asked of it.
///
/// # Errors
/// [`ClientError`]: nothing was done.
pub async fn authority(socket: &Path, wanted: &AuthorityRequest) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/authority", wanted).await
}

/// `POST /definitions`: what servers offer.
///
/// # Errors
/// [`ClientError`].
pub async fn definitions(
    socket: &Path,
    wanted: &DefinitionsRequest,
) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/definitions", wanted).await
}

/// `POST /definitions/change`: what was approved or revoked.
///
/// # Errors
/// [`ClientError`]: nothing was.
pub async fn change(socket: &Path, wanted: &ChangeRequest) -> Result<serde_json::Value, ClientError> {
    call(socket, Method::POST, "/definitions/change", wanted).await
}

async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<serde_json::Value, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|cause| {
        let path = socket.to_owned();
        if cause.kind() == io::ErrorKind::PermissionDenied {
            ClientError::NotRoot { path }
        } else {
            ClientError::NoAgent { path, cause }
        }
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Full::new(Bytes::from(serde_json::to_vec(body)?)));
    *request.method_mut() = method;
    *request.uri_mut() = hyper::Uri::try_from(path).unwrap_or_default();
    request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("toolgate"));
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    let (status, body) = tokio::select! {
        exchanged = exchange => exchanged?,
        broken = connection => return Err(match broken {
            Err(error) => error.into(),
            Ok(()) => ClientError::Refused("the agent closed without an answer".to_owned()),
        }),
    };
    if status.is_success() {
        return Ok(serde_json::from_slice(&body)?);
    }
    Err(ClientError::Refused(serde_json::from_slice::<ErrorBody>(&body)?.error))
}

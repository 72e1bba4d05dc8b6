//! The server that the official conformance suite asks: rmcp, with the tools, resources and prompts that the suite calls
//! by name. Says `listening`, then one line for each HTTP request that reached it: its method, and that of its message.

mod catalogue;
mod handler;
mod jobs;
mod rounds;
mod skills;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::handler::Handler;

type Mcp = StreamableHttpService<Handler, LocalSessionManager>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("tell it where to listen")?;
    let handler = Handler::new()?;
    let config = StreamableHttpServerConfig::default();
    let mcp: Mcp = StreamableHttpService::new(move || Ok(handler.clone()), Arc::default(), config);
    let listener = TcpListener::bind(address).await.context("cannot listen")?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(serve(stream, mcp.clone()));
    }
}

async fn serve(stream: TcpStream, mcp: Mcp) {
    let answer = service_fn(|request| async {
        let request = told(request).await?;
        Ok::<Response<_>, hyper::Error>(mcp.handle(request).await)
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    // A client may leave at any time.
    let _ = connection.await;
}

/// Tells of a request that reached the server, and hands it on whole.
async fn told(request: Request<Incoming>) -> hyper::Result<Request<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let message = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let line = json!({ "http": head.method.as_str(), "method": message.get("method") });
    println!("{line}");
    Ok(Request::from_parts(head, Full::<Bytes>::new(body)))
}

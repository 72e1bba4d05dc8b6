//! The routes.

use std::fmt::Write as _;
use std::sync::PoisonError;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::unix::UCred;

use super::{Context, Port, exec};
use crate::config::AgentConfig;

/// The most bytes of a request's body.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What `toolgate exec` asks for. Who asks is told by the kernel, not by this.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The App ID that the program is to have.
    pub app_id: String,
    /// The program's path.
    pub exe: String,
    /// The user that it will run as.
    pub uid: u32,
}

/// What went wrong, for the operator.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ErrorBody {
    /// In a sentence.
    pub(super) error: String,
}

pub(super) async fn route(
    request: Request<Incoming>,
    port: Port,
    context: &Context,
) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match (port, &method, path.as_str()) {
        (Port::Ready, &Method::GET, _) => text("ready\n".to_owned()),
        (Port::Metrics, &Method::GET, "/metrics") => {
            text(context.node.metrics.text(&kernel_metrics(context)))
        }
        (Port::Admin(peer), _, _) if exec::is_captured(peer.pid(), &context.node.agent.capture.cgroups) => {
            error(StatusCode::FORBIDDEN, "captured processes may not use the admin socket")
        }
        (Port::Admin(_), &Method::GET, "/status") => json(&status(context)),
        (Port::Admin(peer), &Method::POST, "/exec") => exec_route(request, peer, context).await,
        (Port::Ready | Port::Metrics | Port::Admin(_), _, _) => {
            error(StatusCode::NOT_FOUND, &format!("no {method} {path} here"))
        }
    }
}

async fn exec_route(request: Request<Incoming>, peer: UCred, context: &Context) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(problem) => return error(StatusCode::BAD_REQUEST, &format!("cannot read the body: {problem}")),
    };
    let wanted: ExecRequest = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(problem) => return error(StatusCode::BAD_REQUEST, &format!("cannot read the body: {problem}")),
    };
    match exec::enter(&wanted, peer, &context.node) {
        Ok(cgroup) => json(&serde_json::json!({ "cgroup": cgroup })),
        Err(refused) => error(StatusCode::FORBIDDEN, &refused.to_string()),
    }
}

/// What `toolgate status` shows.
#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    pid: u32,
    observe: bool,
    generation: u64,
    capture: Capture,
    workloads: Vec<String>,
    servers: Vec<ServerStatus<'a>>,
    sessions: usize,
    /// Errors of a changed configuration that was not taken over.
    refused_configuration: Vec<String>,
    requests: Vec<serde_json::Value>,
    recent: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct Capture {
    cgroups: Vec<String>,
    exec: &'static str,
}

#[derive(Serialize)]
struct ServerStatus<'a> {
    app_id: String,
    address: String,
    path: &'a str,
}

fn status(context: &Context) -> serde_json::Value {
    let node = &context.node;
    let resources = node.resources.load();
    let agent: &AgentConfig = &node.agent;
    let recent = node.recent.lock().unwrap_or_else(PoisonError::into_inner);
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        observe: node.mode.observe,
        generation: resources.generation,
        capture: Capture {
            cgroups: agent.capture.cgroups.iter().map(ToString::to_string).collect(),
            exec: toolgate_core::workload::EXEC_CGROUP,
        },
        workloads: resources.workloads.iter().map(|workload| workload.identity.to_string()).collect(),
        servers: resources
            .servers
            .iter()
            .map(|server| ServerStatus {
                app_id: server.identity.to_string(),
                address: server.address.to_string(),
                path: &server.path,
            })
            .collect(),
        sessions: node.sessions.count(),
        refused_configuration: node.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        requests: node.metrics.requests(),
        recent: recent.iter().filter_map(|line| RawValue::from_string(line.clone()).ok()).collect(),
    };
    // Strings, numbers and lines that were JSON when they were written.
    serde_json::to_value(&status).unwrap_or_default()
}

/// The programs' counters and what the node holds, in the text format 0.0.4.
fn kernel_metrics(context: &Context) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP toolgate_sessions Sessions bound to their callers\n# TYPE toolgate_sessions gauge"
    );
    let _ = writeln!(out, "toolgate_sessions {}", context.node.sessions.count());
    let generation = context.node.resources.load().generation;
    let _ = writeln!(
        out,
        "# HELP toolgate_generation Generation of the resources in force\n# TYPE toolgate_generation gauge\ntoolgate_generation {generation}"
    );
    match context.kernel.counters() {
        Ok(counters) => {
            let _ = writeln!(
                out,
                "# HELP toolgate_kernel_events_total Ways taken through the BPF programs\n# TYPE toolgate_kernel_events_total counter"
            );
            for counter in counters {
                let _ = writeln!(
                    out,
                    "toolgate_kernel_events_total{{program=\"{}\",branch=\"{}\"}} {}",
                    counter.program, counter.branch, counter.count
                );
            }
        }
        Err(error) => tracing::warn!(%error, "the programs' counters cannot be read"),
    }
    out
}

fn text(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let plain = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, plain);
    response
}

fn json(body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.to_string().into()));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

fn error(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = json(&serde_json::json!(ErrorBody { error: message.to_owned() }));
    *response.status_mut() = status;
    response
}

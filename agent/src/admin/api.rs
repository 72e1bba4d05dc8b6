//! The routes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::unix::UCred;
use tokio::sync::oneshot;
use toolgate_core::decision::{Place, Server};
use toolgate_core::denial::Reason;

use super::{Context, Port, authority, definitions, endpoints, exec, inspection};
use crate::app::bypass::{self, Asked, Bypass, BypassError, Whom};
use crate::app::canary;
use crate::bindings::Kind;
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

/// What `toolgate bypass` asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BypassRequest {
    /// Which cgroups.
    pub whom: Whom,
    /// How long, and why; `None`: those that they have end.
    pub begin: Option<(Duration, String)>,
}

/// What `toolgate upgrade` asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The binary; `None`: what is now where the agent was started from.
    pub binary: Option<PathBuf>,
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
        (Port::Ready, &Method::GET, _) => match context.node.unready() {
            None => text("ready\n".to_owned()),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        (Port::Invoke, _, _) => not_captured(context),
        (Port::Metrics, &Method::GET, "/metrics") => {
            text(context.node.metrics.text(&kernel_metrics(context)))
        }
        (Port::Admin(peer), _, _) if exec::is_captured(peer.pid(), &context.node.agent.capture.cgroups) => {
            error(StatusCode::FORBIDDEN, "captured processes may not use the admin socket")
        }
        (Port::Admin(_), &Method::GET, "/status") => json(&status(context)),
        (Port::Admin(_), &Method::GET, "/discover") => {
            let node = &context.node;
            json(&serde_json::json!({
                "servers": node.discovered.all(),
                "untrusting": inspection::untrusting(node),
            }))
        }
        (Port::Admin(peer), &Method::POST, "/inspection") => {
            answer(request, async |_nothing: serde_json::Value| {
                only_root(peer, "inspect trust")?;
                inspection::trust(&context.node)
            })
            .await
        }
        (Port::Admin(peer), &Method::POST, "/exec") => {
            answer(request, async |wanted| exec_route(&wanted, peer, context)).await
        }
        (Port::Admin(peer), &Method::POST, "/bypass") => {
            answer(request, async |wanted| bypass_route(&wanted, peer, context)).await
        }
        (Port::Admin(_), &Method::POST, "/definitions") => {
            answer(request, async |wanted| {
                definitions::list(&wanted, context).await.map_err(|refused| refused.to_string())
            })
            .await
        }
        (Port::Admin(peer), &Method::POST, "/definitions/change") => {
            answer(request, async |wanted| {
                only_root(peer, "tools")?;
                definitions::change(&wanted, peer, context).await.map_err(|refused| refused.to_string())
            })
            .await
        }
        (Port::Admin(peer), &Method::POST, "/authority") => {
            answer(request, async |wanted| {
                only_root(peer, "ca")?;
                authority::answer(wanted, peer, context).await.map_err(|refused| refused.to_string())
            })
            .await
        }
        (Port::Admin(peer), &Method::POST, "/upgrade") => {
            answer(request, async |wanted| upgrade_route(wanted, peer, context).await).await
        }
        (Port::Ready | Port::Metrics | Port::Admin(_), _, _) => {
            error(StatusCode::NOT_FOUND, &format!("no {method} {path} here"))
        }
    }
}

/// Reads what is asked for, and answers it.
async fn answer<T: DeserializeOwned>(
    request: Request<Incoming>,
    with: impl AsyncFnOnce(T) -> Result<serde_json::Value, String>,
) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(problem) => return error(StatusCode::BAD_REQUEST, &format!("cannot read the body: {problem}")),
    };
    let wanted: T = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(problem) => return error(StatusCode::BAD_REQUEST, &format!("cannot read the body: {problem}")),
    };
    match with(wanted).await {
        Ok(done) => json(&done),
        Err(refused) => error(StatusCode::FORBIDDEN, &refused),
    }
}

/// Who calls by App ID, and came by another way than through the kernel's programs.
fn not_captured(context: &Context) -> Response<Full<Bytes>> {
    context.node.metrics.refused(Reason::NoRecord);
    let message = "toolgate: this process is not captured, so that it cannot be told who calls: start it with \
                   `toolgate exec`, or let capture.cgroups name its cgroup";
    let mut response = json(&serde_json::json!({ "errorCode": "ERR_DIRECT_INVOKE", "message": message }));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

fn exec_route(wanted: &ExecRequest, peer: UCred, context: &Context) -> Result<serde_json::Value, String> {
    let cgroup = exec::enter(wanted, peer, &context.node).map_err(|refused| refused.to_string())?;
    let variables = inspection::variables_of(&wanted.app_id, &context.node);
    Ok(serde_json::json!({ "cgroup": cgroup, "variables": variables }))
}

fn bypass_route(wanted: &BypassRequest, peer: UCred, context: &Context) -> Result<serde_json::Value, String> {
    only_root(peer, "bypass")?;
    let done = bypassed(wanted, peer, context).map_err(|refused| refused.to_string())?;
    Ok(serde_json::json!({ "bypasses": done.iter().map(shown).collect::<Vec<_>>() }))
}

fn bypassed(wanted: &BypassRequest, peer: UCred, context: &Context) -> Result<Vec<Bypass>, BypassError> {
    let node = &context.node;
    let workloads = &node.resources.load().workloads;
    let cgroups = bypass::cgroups(&wanted.whom, workloads, &node.agent.trust_domain)?;
    let by = exec::who(peer);
    match &wanted.begin {
        Some((length, reason)) => {
            let asked = Asked { length: *length, reason, by: &by };
            node.bypasses.begin(&asked, &cgroups, &context.kernel, &node.record)
        }
        None => node.bypasses.end(&cgroups, &by, &context.kernel, &node.record),
    }
}

fn shown(one: &Bypass) -> serde_json::Value {
    serde_json::json!({
        "cgroup": canary::shown(&one.cgroup),
        "reason": one.reason,
        "by": one.by,
        "until": one.until,
        "seconds_left": one.left().as_secs(),
    })
}

/// Answered when the new agent has taken over, or failed to.
async fn upgrade_route(
    wanted: UpgradeRequest,
    peer: UCred,
    context: &Context,
) -> Result<serde_json::Value, String> {
    only_root(peer, "upgrade")?;
    let (outcome, told) = oneshot::channel();
    let ends = || "the agent ends".to_owned();
    context.upgrades.send((wanted.binary, outcome)).await.map_err(|_| ends())?;
    let pid = told.await.map_err(|_| ends())??;
    Ok(serde_json::json!({ "pid": pid, "before": std::process::id() }))
}

fn only_root(peer: UCred, verb: &str) -> Result<(), String> {
    if peer.uid() == 0 {
        Ok(())
    } else {
        Err(format!("only root may do that; run `toolgate {verb}` with sudo"))
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
    /// Why the agent is not ready.
    unready: Option<String>,
    /// Why the source of this node's identities gives nothing new.
    identity_failing: Option<String>,
    bypasses: Vec<serde_json::Value>,
    workloads: Vec<String>,
    /// Clients whose TLS is to be read, and that do not believe this node.
    untrusting: serde_json::Value,
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
    /// Where captured processes call servers by App ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    invoke: Option<String>,
    /// Captured cgroups that a canary was sent into: what it said.
    canaries: serde_json::Map<String, serde_json::Value>,
    /// Connections older than their capture, by what became of them.
    older: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
struct ServerStatus<'a> {
    app_id: String,
    address: String,
    path: &'a str,
    /// Of one that is not local.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<endpoints::Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pins: Option<definitions::Counts>,
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
            invoke: agent.listen.invoke.map(|at| at.to_string()),
            canaries: canaries(context),
            older: node.metrics.older().into_iter().map(|(result, count)| (result, count.into())).collect(),
        },
        unready: node.unready(),
        identity_failing: node.svids.failing().map(|why| why.to_string()),
        bypasses: node.bypasses.all().iter().map(shown).collect(),
        workloads: resources.workloads.iter().map(|workload| workload.identity.to_string()).collect(),
        untrusting: inspection::untrusting(node),
        servers: resources
            .servers
            .iter()
            .map(|server| ServerStatus {
                app_id: server.identity.to_string(),
                address: place(server),
                path: &server.path,
                endpoints: endpoints::all(server, node),
                pins: definitions::counts(server, node),
            })
            .collect(),
        sessions: node.bindings.count(Kind::Session),
        refused_configuration: node.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        requests: node.metrics.requests(),
        recent: recent.iter().filter_map(|line| RawValue::from_string(line.clone()).ok()).collect(),
    };
    // Strings, numbers and lines that were JSON when they were written.
    serde_json::to_value(&status).unwrap_or_default()
}

/// Where callers find it.
fn place(server: &Server) -> String {
    match &server.place {
        Place::Local { address } | Place::Peer { address, .. } => address.to_string(),
        Place::External(external) => external.to_string(),
    }
}

fn canaries(context: &Context) -> serde_json::Map<String, serde_json::Value> {
    let all = context.node.canaries.all();
    all.into_iter()
        .map(|(name, canary)| {
            (canary::shown(&name).to_owned(), canary.lost.unwrap_or("ok".to_owned()).into())
        })
        .collect()
}

/// The programs' counters and what the node holds, in the text format 0.0.4.
fn kernel_metrics(context: &Context) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP toolgate_sessions Sessions bound to their callers\n# TYPE toolgate_sessions gauge"
    );
    let _ = writeln!(out, "toolgate_sessions {}", context.node.bindings.count(Kind::Session));
    let _ = writeln!(out, "# HELP toolgate_tasks Tasks bound to their callers\n# TYPE toolgate_tasks gauge");
    let _ = writeln!(out, "toolgate_tasks {}", context.node.bindings.count(Kind::Task));
    let generation = context.node.resources.load().generation;
    let _ = writeln!(
        out,
        "# HELP toolgate_generation Generation of the resources in force\n# TYPE toolgate_generation gauge\ntoolgate_generation {generation}"
    );
    let _ = writeln!(
        out,
        "# HELP toolgate_bypasses Cgroups that are let through for now\n# TYPE toolgate_bypasses gauge\ntoolgate_bypasses {}",
        context.node.bypasses.all().len()
    );
    let _ = writeln!(
        out,
        "# HELP toolgate_identity_source_failing Whether the source of SVIDs and bundles gives nothing new\n# TYPE toolgate_identity_source_failing gauge\ntoolgate_identity_source_failing {}",
        u8::from(context.node.svids.failing().is_some())
    );
    definitions::metrics(&mut out, &context.node);
    endpoints::metrics(&mut out, &context.node);
    canary_metrics(&mut out, context);
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

fn canary_metrics(out: &mut String, context: &Context) {
    let canaries = context.node.canaries.all();
    let _ = writeln!(
        out,
        "# HELP toolgate_canary_lost Captured cgroups whose last canary did not get through\n# TYPE toolgate_canary_lost gauge"
    );
    // A label's value: backslash and quote are escaped, as systemd's names have both.
    let label = |name: &str| canary::shown(name).replace('\\', "\\\\").replace('"', "\\\"");
    for (name, canary) in &canaries {
        let lost = u8::from(canary.lost.is_some());
        let _ = writeln!(out, "toolgate_canary_lost{{cgroup=\"{}\"}} {lost}", label(name));
    }
    let _ = writeln!(
        out,
        "# HELP toolgate_canary_failures_total Canaries that did not get through\n# TYPE toolgate_canary_failures_total counter"
    );
    for (name, canary) in &canaries {
        let failures = canary.failures;
        let _ = writeln!(out, "toolgate_canary_failures_total{{cgroup=\"{}\"}} {failures}", label(name));
    }
}

fn text(body: String) -> Response<Full<Bytes>> {
    plain(StatusCode::OK, body)
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
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

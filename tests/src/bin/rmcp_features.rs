//! The official Rust SDK: the features of `fixtures/matrix/features.py`, in the same form.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientConfig, ClientRequest, ElicitRequestParams, ElicitResult,
    GetPromptRequestParams, Implementation, ProgressNotificationParam, ProtocolVersion,
    ReadResourceRequestParams,
};
#[expect(deprecated, reason = "servers ask for them all the same")]
use rmcp::model::{CreateMessageRequestParams, CreateMessageResult, ListRootsResult};
use rmcp::service::{
    ClientLifecycleMode, NotificationContext, PeerRequestOptions, RequestContext, RunningService,
    serve_client_with_lifecycle,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientHandler, ErrorData, RoleClient};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;

type Client = RunningService<RoleClient, Handler>;

/// Answers what servers ask.
struct Handler {
    config: ClientConfig,
    /// The steps that were seen: 1, 2, 3.
    steps: AtomicUsize,
    all_seen: Arc<Notify>,
}

/// A value of the protocol's from its JSON.
fn read<T: DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value).map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        self.config.clone()
    }

    #[expect(deprecated, reason = "as above")]
    async fn create_message(
        &self,
        _params: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let content = json!({ "type": "text", "text": "what the model says" });
        read(json!({ "role": "assistant", "model": "none", "content": content }))
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        read(json!({ "action": "accept", "content": { "name": "Ada" } }))
    }

    #[expect(deprecated, reason = "as above")]
    async fn list_roots(&self, _context: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        read(json!({ "roots": [{ "uri": "file:///srv" }] }))
    }

    async fn on_progress(
        &self,
        _params: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        if self.steps.fetch_add(1, Ordering::SeqCst) == 2 {
            self.all_seen.notify_one();
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let time_max = std::env::var("FOR").context("say in FOR what a feature may take")?;
    let time_max = Duration::from_secs(time_max.parse().context("FOR is no number")?);
    let mut all = tokio::task::JoinSet::new();
    for argument in std::env::args().skip(1) {
        all.spawn(column(argument, time_max));
    }
    while let Some(done) = all.join_next().await {
        if let Err(error) = done.context("a column panicked")? {
            eprintln!("{error:#}");
        }
    }
    println!("{}", json!({ "done": true }));
    Ok(())
}

/// `COLUMN,MODE,URL,FEATURE+FEATURE..`
async fn column(argument: String, time_max: Duration) -> Result<()> {
    let [name, mode, url, features] = argument
        .split(',')
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| anyhow!("not a column: `{argument}`"))?;
    ensure!(mode != "legacy", "{name}: it has no such transport");
    let client = tokio::time::timeout(time_max, connect(url)).await.context(name.to_owned())??;
    let revision = client.peer().peer_info().map(|info| info.protocol_version.to_string());
    ensure!(
        revision.as_deref().is_none_or(|revision| name.starts_with(revision)),
        "{name}: it speaks {revision:?}"
    );
    let client = &client;
    let one = |feature: String| async move {
        let said = answer(feature_of(client, &feature), time_max).await;
        println!("{}", json!({ "column": name, "feature": feature, "said": said }));
    };
    let mut all: Vec<_> = features.split('+').map(|feature| Box::pin(one(feature.to_owned()))).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    Ok(())
}

async fn connect(url: &str) -> Result<Client> {
    let able = serde_json::from_value(json!({ "sampling": {}, "elicitation": { "form": {} }, "roots": {} }));
    let config = ClientConfig::new(able.context("no capabilities")?, Implementation::new("rmcp", "1"));
    let handler = Handler { config, steps: AtomicUsize::new(0), all_seen: Arc::default() };
    let mode = ClientLifecycleMode::Auto {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        legacy_version: None,
    };
    let transport = StreamableHttpClientTransport::from_uri(url);
    serve_client_with_lifecycle(handler, transport, mode).await.context("no session")
}

async fn feature_of(client: &Client, feature: &str) -> Result<()> {
    match feature {
        "tools" => {
            let tools = client.list_all_tools().await?;
            ensure!(tools.iter().any(|tool| tool.name == "add"), "no tool `add`");
            equal(&call(client, "add", &json!({ "a": 2, "b": 40 })).await?, "42")
        }
        "resources" => {
            let all = client.list_all_resources().await?;
            ensure!(all.iter().map(|one| one.uri.as_str()).eq(["note://one"]), "{all:?}");
            let read = client.read_resource(ReadResourceRequestParams::new("note://one")).await?;
            let text = json!(read).pointer("/contents/0/text").cloned().unwrap_or_default();
            equal(text.as_str().unwrap_or_default(), "the note note://one")
        }
        "prompts" => {
            let all = client.list_all_prompts().await?;
            ensure!(all.iter().map(|one| one.name.as_str()).eq(["greet"]), "{all:?}");
            let arguments = json!({ "name": "Ada" }).as_object().cloned().unwrap_or_default();
            let asked = GetPromptRequestParams::new("greet").with_arguments(arguments);
            let text = json!(client.get_prompt(asked).await?).pointer("/messages/0/content/text").cloned();
            equal(text.unwrap_or_default().as_str().unwrap_or_default(), "hello Ada")
        }
        "completion" => equal(&client.complete_prompt_simple("greet", "name", "a").await?.join(" "), "ada"),
        "sampling" => equal(&call(client, "ask_model", &json!({})).await?, "what the model says"),
        "elicitation" => equal(&call(client, "ask_user", &json!({})).await?, "Ada"),
        "roots" => equal(call(client, "ask_roots", &json!({})).await?.trim_end_matches('/'), "file:///srv"),
        "progress" => {
            equal(&call(client, "steps", &json!({})).await?, "counted")?;
            client.service().all_seen.notified().await;
            Ok(())
        }
        "cancellation" => cancelled(client).await,
        "resumption" => equal(&call(client, "breaks", &json!({})).await?, "said on another stream"),
        _tasks => bail!("it has no way to do that"),
    }
}

async fn cancelled(client: &Client) -> Result<()> {
    static KEYS: AtomicUsize = AtomicUsize::new(0);
    let key = format!("{}/{}", std::process::id(), KEYS.fetch_add(1, Ordering::SeqCst));
    let request = CallToolRequest::new(asked("wait", &json!({ "key": key })));
    let request = ClientRequest::CallToolRequest(request);
    let call_that_waits = client.send_cancellable_request(request, PeerRequestOptions::no_options()).await?;
    equal(&call(client, "until", &json!({ "what": "begun", "key": key })).await?, "begun")?;
    call_that_waits.cancel(None).await?;
    equal(&call(client, "until", &json!({ "what": "cancelled", "key": key })).await?, "cancelled")
}

fn asked(tool: &str, arguments: &Value) -> CallToolRequestParams {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)
}

async fn call(client: &Client, tool: &str, arguments: &Value) -> Result<String> {
    let result = client.call_tool(asked(tool, arguments)).await?;
    let text: String = result.content.iter().filter_map(|part| Some(part.as_text()?.text.as_str())).collect();
    if result.is_error.unwrap_or_default() {
        bail!(text);
    }
    Ok(text)
}

fn equal(said: &str, expected: &str) -> Result<()> {
    ensure!(said == expected, "`{said}`, not `{expected}`");
    Ok(())
}

async fn answer(work: impl Future<Output = Result<()>>, time_max: Duration) -> String {
    let done = tokio::time::timeout(time_max, work).await.unwrap_or_else(|_| Err(anyhow!("no answer")));
    done.err().map(|error| format!("{error:#}")).unwrap_or_default()
}

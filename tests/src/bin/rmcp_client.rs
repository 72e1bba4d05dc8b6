//! The official Rust SDK: the steps of `fixtures/clients/steps.py`, in the same form. Environment: MODE, `legacy` (its
//! default) or `auto`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
#[expect(deprecated, reason = "it is what comes on the stream of a session")]
use rmcp::model::LoggingMessageNotificationParam;
use rmcp::model::{CallToolRequestParams, ProgressNotificationParam, ProtocolVersion, SubscriptionFilter};
use rmcp::service::{ClientLifecycleMode, NotificationContext, RunningService, serve_client_with_lifecycle};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientHandler, RoleClient};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// Longer than any answer takes on a busy machine; a step that takes longer has no answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

type Client = RunningService<RoleClient, Handler>;

/// Says how far a count is, and takes what the server tells.
struct Handler {
    url: String,
    key: String,
    told: Arc<Notify>,
}

impl ClientHandler for Handler {
    async fn on_progress(
        &self,
        params: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        let step = json!({ "url": self.url, "step": "progress", "said": params.progress.to_string(), "key": self.key });
        println!("{step}");
    }

    #[expect(deprecated, reason = "as above")]
    async fn on_logging_message(
        &self,
        _params: LoggingMessageNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.told.notify_one();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (restart, restarted) = watch::channel(false);
    let mut all = tokio::task::JoinSet::new();
    for url in std::env::args().skip(1) {
        all.spawn(whole(url, restarted.clone()));
    }
    let line = || std::io::stdin().read_line(&mut String::new());
    tokio::task::spawn_blocking(line).await?.context("cannot read")?;
    restart.send(true).context("nobody waits for the restart")?;
    while let Some(done) = all.join_next().await {
        done.context("a URL's steps panicked")??;
    }
    Ok(())
}

async fn whole(url: String, mut restarted: watch::Receiver<bool>) -> Result<()> {
    let say = |step: &str, said: Value| println!("{}", json!({ "url": url, "step": step, "said": said }));
    let client = connect(&url).await?;
    let tools = client.list_all_tools().await.context("no list")?;
    say("list", tools.iter().map(|tool| tool.name.as_ref()).collect());
    let key = &client.service().key;
    for (step, tool, arguments) in [
        ("permitted", "add", json!({ "a": 2, "b": 40 })),
        ("denied_tool", "delete_everything", json!({})),
        ("denied_argument", "add", json!({ "a": 2, "b": 4000 })),
        ("counted", "count", json!({ "key": key })),
    ] {
        say(step, answer(call(&client, tool, arguments)).await);
    }
    say("notified", answer(announced(&client)).await);
    say("restart", json!(""));
    restarted.wait_for(|&is| is).await.context("no restart")?;
    say("after", answer(sum(&client)).await);
    drop(client);
    let anew = async {
        let client = connect(&url).await?;
        let said = sum(&client).await?;
        client.cancel().await.context("cannot end the session")?;
        Ok(said)
    };
    say("anew", answer(anew).await);
    Ok(())
}

async fn connect(url: &str) -> Result<Client> {
    let handler = Handler {
        url: url.to_owned(),
        key: format!("{}/{}", std::process::id(), if url.contains('[') { "six" } else { "four" }),
        told: Arc::default(),
    };
    let mode = if is_legacy() {
        ClientLifecycleMode::Initialize
    } else {
        ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: None,
        }
    };
    let transport = StreamableHttpClientTransport::from_uri(url);
    serve_client_with_lifecycle(handler, transport, mode).await.context("no session")
}

fn is_legacy() -> bool {
    std::env::var_os("MODE").is_some_and(|mode| mode == "legacy")
}

async fn sum(client: &Client) -> Result<String> {
    call(client, "add", json!({ "a": 2, "b": 40 })).await
}

async fn call(client: &Client, tool: &str, arguments: Value) -> Result<String> {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    let asked = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
    let result = client.call_tool(asked).await?;
    let text: String = result.content.iter().filter_map(|part| Some(part.as_text()?.text.as_str())).collect();
    if result.is_error.unwrap_or_default() {
        bail!(text);
    }
    Ok(text)
}

async fn announced(client: &Client) -> Result<String> {
    let uri = format!("note://{}", client.service().key);
    let arguments = json!({ "uri": uri });
    if is_legacy() {
        call(client, "announce", arguments).await?;
        client.service().told.notified().await;
    } else {
        let mut subscription =
            client.listen(SubscriptionFilter::builder().resource_subscription(uri).build()).await?;
        call(client, "announce", arguments).await?;
        subscription.next().await?.context("the stream ended")?;
    }
    Ok("told".to_owned())
}

async fn answer(work: impl Future<Output = Result<String>>) -> Value {
    let said =
        tokio::time::timeout(ANSWER_TIME_MAX, work).await.unwrap_or_else(|_| Err(anyhow!("no answer")));
    said.unwrap_or_else(|error| format!("error: {error:#}")).into()
}

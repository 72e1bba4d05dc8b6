//! Tools whose calls may become tasks (extension of 2026-07-28).

use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{CallToolResponse, CallToolResult, ClientCapabilities, CreateTaskResult, InputRequest};
use rmcp::task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How often a task may be asked about: a suite that waits longer takes longer.
const POLL_INTERVAL_MS: u64 = 100;

/// What is done.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Job {
    work: Work,
    /// A client that knows no tasks may not call it.
    #[serde(default)]
    needs_task: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    /// Takes as many seconds as its argument says.
    Computes,
    /// A result that says that it is an error.
    Fails,
    /// An error of the protocol.
    Breaks,
    /// Asks for these, all at once, and says the answers.
    Asks(Vec<String>),
    /// Says what the call was answered before it became a task.
    Says,
}

impl Job {
    /// What the call comes to: a task where the client knows tasks.
    pub(crate) async fn done(
        &self,
        arguments: Map<String, Value>,
        answered: Value,
        able: &ClientCapabilities,
        tasks: &TaskManager,
    ) -> Result<CallToolResponse, ErrorData> {
        let knows_tasks = able.supports_tasks();
        if !knows_tasks && self.needs_task {
            let needed = ClientCapabilities::builder().enable_tasks().build();
            return Err(ErrorData::missing_required_client_capability(needed));
        }
        let work = self.work.clone();
        if !knows_tasks {
            return match work.result(&arguments, &answered, None).await {
                Ok(result) => Ok(result.into()),
                Err(TaskExit::Error(error)) => Err(error),
                Err(TaskExit::Cancelled) => Err(ErrorData::internal_error("cancelled", None)),
            };
        }
        let options = TaskOptions::new().with_poll_interval_ms(POLL_INTERVAL_MS);
        let task = tasks.spawn(options, |context| {
            Box::pin(async move { work.result(&arguments, &answered, Some(&context)).await })
        });
        Ok(CreateTaskResult::new(task).into())
    }
}

impl Work {
    async fn result(
        &self,
        arguments: &Map<String, Value>,
        answered: &Value,
        task: Option<&TaskContext>,
    ) -> Result<CallToolResult, TaskExit> {
        let said = match self {
            Self::Computes => {
                let seconds = arguments.get("seconds").and_then(Value::as_u64).unwrap_or_default();
                let ended = async {
                    match task {
                        Some(task) => task.cancelled().await,
                        None => std::future::pending().await,
                    }
                };
                if tokio::time::timeout(Duration::from_secs(seconds), ended).await.is_ok() {
                    return Err(TaskExit::Cancelled);
                }
                json!("computed")
            }
            Self::Fails => return Ok(text(&json!("it fails"), true)?),
            Self::Breaks => return Err(ErrorData::internal_error("it breaks", None).into()),
            Self::Asks(keys) => {
                let task = task.ok_or(ErrorData::internal_error("it asks within a task alone", None))?;
                // All of them wait at the same time.
                let mut asking = tokio::task::JoinSet::new();
                for key in keys.clone() {
                    let task = task.clone();
                    asking.spawn(async move { task.request_input(&key, question(&key)?).await });
                }
                let mut answers = Vec::new();
                while let Some(answer) = asking.join_next().await {
                    answers
                        .push(answer.map_err(|error| ErrorData::internal_error(error.to_string(), None))??);
                }
                json!(answers)
            }
            Self::Says => answered.clone(),
        };
        Ok(text(&said, false)?)
    }
}

fn question(key: &str) -> Result<InputRequest, ErrorData> {
    let schema = json!({ "type": "object", "properties": { key: { "type": "boolean" } }, "required": [key] });
    let params = json!({ "mode": "form", "message": format!("{key}?"), "requestedSchema": schema });
    read(json!({ "method": "elicitation/create", "params": params }))
}

fn text(said: &Value, is_error: bool) -> Result<CallToolResult, ErrorData> {
    let content =
        json!([{ "type": "text", "text": said.as_str().map_or_else(|| said.to_string(), str::to_owned) }]);
    read(json!({ "resultType": "complete", "content": content, "isError": is_error }))
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value).map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

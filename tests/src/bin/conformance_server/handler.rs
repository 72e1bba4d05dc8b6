//! Every request of the suite, answered from the catalogue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
#[expect(deprecated, reason = "the suite asks for it, as clients do")]
use rmcp::model::SetLevelRequestParams;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams,
    CompleteRequestParams, CompleteResult, CompletionInfo, GetPromptRequestParams, GetPromptResponse,
    GetPromptResult, GetSkillRequestParams, GetSkillResult, GetTaskParams, GetTaskResult,
    InputRequiredResult, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListSkillsResult, ListToolsResult, PaginatedRequestParams, ReadResourceDirectoryRequestParams,
    ReadResourceDirectoryResult, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
    RequestStateCodec, SKILLS_EXTENSION_ID, ServerCapabilities, ServerConfig, ServerNotification,
    SubscribeRequestParams, SubscriptionFilter, TASKS_EXTENSION_ID, Tool, UnsubscribeRequestParams,
    UpdateTaskParams,
};
use rmcp::service::{RequestContext, SubscriptionContext, SubscriptionSink};
use rmcp::task_manager::TaskManager;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::catalogue::{self, Catalogue, Does, List, Rounds};
use crate::rounds::{Given, Next};
use crate::skills;

type Context = RequestContext<RoleServer>;

/// How long a list may be kept: the suite wants it said.
const LIST_TTL_MS: u64 = 60_000;
/// The suite tries to forge what is sealed with it.
const STATE_KEY: &[u8] = b"no secret: nobody but a test asks this server";

#[derive(Clone)]
pub(crate) struct Handler {
    catalogue: Arc<Catalogue>,
    able: ServerCapabilities,
    codec: RequestStateCodec,
    subscribers: Arc<Mutex<BTreeMap<u64, SubscriptionSink>>>,
    next_subscriber: Arc<AtomicU64>,
    tasks: TaskManager,
}

/// What a tool or a prompt comes to.
enum Said {
    Result(Value),
    Input(InputRequiredResult),
}

impl Handler {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            catalogue: Arc::new(catalogue::read()?),
            codec: RequestStateCodec::try_new(STATE_KEY).context("no key for states")?,
            able: serde_json::from_value(json!({
                "completions": {},
                "logging": {},
                "prompts": { "listChanged": true },
                "resources": { "listChanged": true, "subscribe": true },
                "tools": { "listChanged": true },
                "extensions": { TASKS_EXTENSION_ID: {}, SKILLS_EXTENSION_ID: { "directoryRead": true } },
            }))
            .context("no capabilities")?,
            subscribers: Arc::default(),
            next_subscriber: Arc::default(),
            tasks: TaskManager::new(),
        })
    }

    /// What both `tools/call` and `prompts/get` come to.
    async fn done(
        &self,
        does: &Does,
        arguments: &Map<String, Value>,
        given: Given<'_>,
        context: &Context,
    ) -> Result<Said, ErrorData> {
        let text = match does {
            Does::Says(result) => return Ok(Said::Result(catalogue::filled(result, arguments))),
            Does::Rounds(rounds) | Does::RoundsThenJob(rounds, _) => return self.asked(rounds, &given),
            Does::Job(_) => "begun".to_owned(),
            Does::Echoes(argument) => {
                let said = arguments.get(argument).and_then(Value::as_str);
                said.ok_or_else(|| ErrorData::invalid_params("it is no text", None))?.to_owned()
            }
            Does::Greets(argument) => {
                format!("Hello, {}!", arguments.get(argument).and_then(Value::as_str).unwrap_or_default())
            }
            Does::Logs(lines) => {
                for line in lines {
                    log(&json!("info"), line, context).await?;
                }
                "logged".to_owned()
            }
            Does::LogsIfAsked => {
                if let Some(level) = context.meta.log_level() {
                    log(&json!(level), "a level was asked for", context).await?;
                }
                "done".to_owned()
            }
            Does::Progresses(steps) => {
                for step in steps {
                    progressed(*step, context).await?;
                }
                "all done".to_owned()
            }
            Does::Tells(list) => {
                self.tell(*list).await;
                "told".to_owned()
            }
            Does::NeedsSampling => {
                if given.able.sampling.is_none() {
                    return Err(ErrorData::missing_required_client_capability(read(
                        json!({ "sampling": {} }),
                    )?));
                }
                "the client can sample".to_owned()
            }
            Does::Asks(request) => {
                let request = read(catalogue::filled(request, arguments))?;
                let answer = context.peer.send_request(request).await;
                let answer = answer.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
                format!("the client answered: {}", json!(answer))
            }
        };
        Ok(Said::Result(json!({ "content": [{ "type": "text", "text": text }] })))
    }

    fn asked(&self, rounds: &Rounds, given: &Given<'_>) -> Result<Said, ErrorData> {
        Ok(match rounds.next(given, &self.codec)? {
            Next::Ask(result) => Said::Input(result),
            // Both kinds of results, for the reader that takes the one it asked for.
            Next::Done => {
                let content =
                    json!({ "type": "text", "text": format!("answered: {}", json!(given.responses)) });
                Said::Result(
                    json!({ "content": [content], "messages": [{ "role": "user", "content": content }] }),
                )
            }
        })
    }

    async fn tell(&self, list: List) {
        let subscribers: Vec<_> =
            self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for subscriber in subscribers {
            // One that has left is not told.
            let _ = match list {
                List::Tools => subscriber.notify_tool_list_changed().await,
                List::Prompts => subscriber.notify_prompt_list_changed().await,
            };
        }
    }
}

/// A value of the protocol's from its JSON.
fn read<T: DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value).map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

/// Marked as 2026-07-28 has it; the SDK leaves that out of what it sends in older revisions.
fn complete(mut result: Value) -> Value {
    if let Some(members) = result.as_object_mut() {
        members.insert("resultType".to_owned(), json!("complete"));
    }
    result
}

async fn notify(method: &str, params: Value, context: &Context) -> Result<(), ErrorData> {
    let notification: ServerNotification = read(json!({ "method": method, "params": params }))?;
    let sent = context.peer.send_notification(notification).await;
    sent.map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

async fn log(level: &Value, line: &str, context: &Context) -> Result<(), ErrorData> {
    notify("notifications/message", json!({ "level": level, "logger": "conformance", "data": line }), context)
        .await
}

async fn progressed(step: f64, context: &Context) -> Result<(), ErrorData> {
    let Some(token) = context.meta.get_progress_token() else { return Ok(()) };
    let params = json!({ "progressToken": token, "progress": step, "total": 100, "message": "at work" });
    notify("notifications/progress", params, context).await
}

fn unknown(what: &str, name: &str) -> ErrorData {
    ErrorData::invalid_params(format!("no {what} `{name}`"), None)
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(self.able.clone())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let tool = self.catalogue.tools.iter().find(|tool| tool.definition.name == name);
        tool.map(|tool| tool.definition.clone())
    }

    async fn ping(&self, _context: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.catalogue.tools.iter().map(|tool| tool.definition.clone()).collect();
        let list = ListToolsResult { tools, ..Default::default() };
        Ok(list.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let tool = self.catalogue.tools.iter().find(|tool| tool.definition.name == request.name);
        let does = &tool.ok_or_else(|| unknown("tool", &request.name))?.does;
        let arguments = request.arguments.unwrap_or_default();
        let given = Given {
            responses: request.input_responses.as_ref(),
            state: request.request_state.as_deref(),
            able: context.meta.client_capabilities().unwrap_or_default(),
        };
        let (answered, able) = (json!(given.responses), given.able.clone());
        let said = self.done(does, &arguments, given, &context).await?;
        let job = if let Does::Job(job) | Does::RoundsThenJob(_, job) = does { Some(job) } else { None };
        match (said, job) {
            (Said::Result(_), Some(job)) => job.done(arguments, answered, &able, &self.tasks).await,
            (Said::Result(result), None) => Ok(read::<CallToolResult>(complete(result))?.into()),
            (Said::Input(result), _) => Ok(result.into()),
        }
    }

    async fn get_task(&self, request: GetTaskParams, _context: Context) -> Result<GetTaskResult, ErrorData> {
        self.tasks.get_task(&request.task_id).map(GetTaskResult::new)
    }

    async fn update_task(&self, request: UpdateTaskParams, _context: Context) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(&self, request: CancelTaskParams, _context: Context) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }

    async fn list_resources(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resources = self.catalogue.resources.iter().map(|document| document.definition.clone()).collect();
        let list = ListResourcesResult { resources, ..Default::default() };
        Ok(list.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let resource_templates = vec![self.catalogue.template.clone()];
        let list = ListResourceTemplatesResult { resource_templates, ..Default::default() };
        Ok(list.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = request.uri.as_str();
        let document = self.catalogue.resources.iter().find(|document| document.definition.uri == uri);
        let id = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
        let contents = match (document, id) {
            (Some(document), _) => document.contents.clone(),
            (None, Some(id)) => {
                let text = json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") });
                read(json!({ "uri": uri, "mimeType": "application/json", "text": text.to_string() }))?
            }
            (None, None) => {
                return Err(ErrorData::resource_not_found("no such resource", Some(json!({ "uri": uri }))));
            }
        };
        let result = ReadResourceResult::new(vec![contents]);
        Ok(result.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public).into())
    }

    async fn list_skills(
        &self,
        page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListSkillsResult, ErrorData> {
        let list = skills::page(&self.catalogue, page)?;
        Ok(list.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn get_skill(
        &self,
        request: GetSkillRequestParams,
        _context: Context,
    ) -> Result<GetSkillResult, ErrorData> {
        let skill = GetSkillResult::new(skills::named(&self.catalogue, &request.uri)?);
        Ok(skill.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn read_resource_directory(
        &self,
        request: ReadResourceDirectoryRequestParams,
        _context: Context,
    ) -> Result<ReadResourceDirectoryResult, ErrorData> {
        let list = ListResourcesResult::with_all_items(skills::children(&self.catalogue, &request.uri)?);
        Ok(list.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn subscribe(&self, _request: SubscribeRequestParams, _context: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(
        &self,
        _request: UnsubscribeRequestParams,
        _context: Context,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let key = self.next_subscriber.fetch_add(1, Ordering::Relaxed);
        let subscribers = || self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers().insert(key, context.sink().clone());
        context.cancelled().await;
        subscribers().remove(&key);
        Ok(())
    }

    async fn list_prompts(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        let prompts = self.catalogue.prompts.iter().map(|prompt| prompt.definition.clone()).collect();
        let list = ListPromptsResult { prompts, ..Default::default() };
        Ok(list.with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let prompt = self.catalogue.prompts.iter().find(|prompt| prompt.definition.name == request.name);
        let does = &prompt.ok_or_else(|| unknown("prompt", &request.name))?.does;
        let arguments = request.arguments.unwrap_or_default();
        let given = Given {
            responses: request.input_responses.as_ref(),
            state: request.request_state.as_deref(),
            able: context.meta.client_capabilities().unwrap_or_default(),
        };
        Ok(match self.done(does, &arguments, given, &context).await? {
            Said::Result(result) => read::<GetPromptResult>(complete(result))?.into(),
            Said::Input(result) => result.into(),
        })
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: Context,
    ) -> Result<CompleteResult, ErrorData> {
        let values = vec![request.argument.value, "Paris".to_owned()];
        let completion =
            CompletionInfo::new(values).map_err(|error| ErrorData::internal_error(error, None))?;
        Ok(CompleteResult::new(completion))
    }

    #[expect(deprecated, reason = "as above")]
    async fn set_level(&self, _request: SetLevelRequestParams, _context: Context) -> Result<(), ErrorData> {
        Ok(())
    }
}

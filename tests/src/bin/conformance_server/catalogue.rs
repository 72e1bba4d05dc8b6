//! What the server has and how it answers, as data: `fixtures/conformance/catalogue.json`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use rmcp::model::{Prompt, Resource, ResourceContents, ResourceTemplate, Tool};
use serde::Deserialize;
use serde_json::Value;

use crate::jobs::Job;
use crate::skills::Outline;

/// All of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Catalogue {
    pub(crate) tools: Vec<Entry<Tool>>,
    pub(crate) resources: Vec<Document>,
    pub(crate) template: ResourceTemplate,
    pub(crate) prompts: Vec<Entry<Prompt>>,
    pub(crate) skills: Vec<Outline>,
}

/// A tool or a prompt.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry<D> {
    pub(crate) definition: D,
    pub(crate) does: Does,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Document {
    pub(crate) definition: Resource,
    pub(crate) contents: ResourceContents,
}

/// What a tool or a prompt does when it is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Does {
    /// This is the result; a text `$name` is the argument of that name.
    Says(Value),
    /// The argument of that name is the result's text.
    Echoes(String),
    /// `Hello,` and the argument of that name is the result's text.
    Greets(String),
    /// These are logged before the result.
    Logs(Vec<String>),
    /// Something is logged if the request asks for a level.
    LogsIfAsked,
    /// How far it is, before the result.
    Progresses(Vec<f64>),
    /// Subscribers learn that this list changed.
    Tells(List),
    /// Without a client that can sample it is an error.
    NeedsSampling,
    /// A request to the client; its answer is in the result. Up to 2025-11-25.
    Asks(Value),
    /// Results that ask for input, until all is answered. Since 2026-07-28.
    Rounds(Rounds),
    /// What may become a task.
    Job(Job),
    /// The same, when all is answered.
    RoundsThenJob(Rounds, Job),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum List {
    Tools,
    Prompts,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Rounds {
    /// What each round asks, by key.
    pub(crate) rounds: Vec<BTreeMap<String, Value>>,
    /// The client carries the round's number, sealed.
    pub(crate) sealed: bool,
    /// Nothing is asked that the client does not say it can answer.
    pub(crate) only_what_client_can: bool,
}

pub(crate) fn read() -> Result<Catalogue> {
    serde_json::from_str(include_str!("../../../fixtures/conformance/catalogue.json"))
        .context("the catalogue is broken")
}

/// `value` with every text `$name` replaced by the argument of that name.
pub(crate) fn filled(value: &Value, arguments: &serde_json::Map<String, Value>) -> Value {
    match value {
        Value::String(text) => {
            let argument = text.strip_prefix('$').and_then(|name| arguments.get(name));
            argument.unwrap_or(value).clone()
        }
        Value::Array(items) => items.iter().map(|item| filled(item, arguments)).collect(),
        Value::Object(members) => {
            let filled = |(key, member): (&String, _)| (key.clone(), filled(member, arguments));
            Value::Object(members.iter().map(filled).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

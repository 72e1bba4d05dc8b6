//! The ids of tasks, where servers give them.

use std::borrow::Cow;

use super::json::{Kind, Value};
use super::message::Call;

impl Call<'_> {
    /// Whether its client says that it knows tasks, which in MCP 2026-07-28 are an extension.
    #[must_use]
    pub fn knows_tasks(&self) -> bool {
        let extensions = ["_meta", "io.modelcontextprotocol/clientCapabilities", "extensions"];
        let said = extensions.iter().try_fold(self.params, |object, key| Some(object?.get(key)));
        said.flatten().is_some_and(|extensions| extensions.get("io.modelcontextprotocol/tasks").is_some())
    }
}

/// The ids of the task that `reply`, a whole JSON-RPC response, gives in the place of a result: `result.task.taskId`
/// (MCP 2025-11-25, `CreateTaskResult`), or `result.taskId` where `resultType` is `task` (2026-07-28, tasks extension).
/// A reader of one revision may find another than a reader of the other.
pub fn given(reply: Value<'_>) -> impl Iterator<Item = Cow<'_, str>> {
    let result = reply.get("result");
    let nested = result.and_then(|result| result.get("task"));
    let is_task = |result: &Value<'_>| {
        result.get("resultType").and_then(Value::as_str).is_some_and(|result_type| result_type == "task")
    };
    nested.into_iter().chain(result.filter(is_task)).filter_map(id)
}

/// Whose task a notification is about, where it tells of one: `notifications/tasks/status` (MCP 2025-11-25) and
/// `notifications/tasks` (2026-07-28, tasks extension). Empty: it does not say.
#[must_use]
pub fn told<'b>(method: &str, notification: Value<'b>) -> Option<Cow<'b, str>> {
    let tells = matches!(method, "notifications/tasks/status" | "notifications/tasks");
    tells.then(|| notification.get("params").and_then(id).unwrap_or_default())
}

fn id(task: Value<'_>) -> Option<Cow<'_, str>> {
    let is_clear = task.kind() == Kind::Object && !task.collides("taskId");
    task.get("taskId").filter(|_| is_clear).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::super::json::{JsonLimits, Scratch, validate};
    use super::*;

    fn read(text: &str, look: impl Fn(Value<'_>) -> Vec<String>) -> Vec<String> {
        look(validate(text.as_bytes(), &mut Scratch::new(), &JsonLimits::default()).unwrap())
    }

    #[test]
    fn ids_are_found_where_a_client_would_read_them() {
        let table: &[(&str, &[&str])] = &[
            (r#"{"task":{"taskId":"a","status":"working"}}"#, &["a"]),
            (r#"{"resultType":"task","taskId":"b"}"#, &["b"]),
            (r#"{"resultType":"task","taskId":"b","task":{"taskId":"a"}}"#, &["a", "b"]),
            (r#"{"resultType":"complete","taskId":"b"}"#, &[]),
            (r#"{"taskId":"b"}"#, &[]),
            (r#"{"task":{"taskId":7}}"#, &[]),
            (r#"{"task":{"taskId":"a","TASKID":"b"}}"#, &[]),
            (r#"{"task":"taskId"}"#, &[]),
            (r#"{"content":[{"task":{"taskId":"a"}}]}"#, &[]),
            (r#"{"content":[]}"#, &[]),
        ];
        for (result, expected) in table {
            let reply = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
            let found = read(&reply, |reply| given(reply).map(Cow::into_owned).collect());
            assert_eq!(found, *expected, "{result}");
        }
    }

    #[test]
    fn notifications_say_whose_task_they_tell_of() {
        let table: &[(&str, &str, Option<&str>)] = &[
            ("notifications/tasks/status", r#"{"taskId":"a","status":"working"}"#, Some("a")),
            ("notifications/tasks", r#"{"taskId":"a","result":{}}"#, Some("a")),
            ("notifications/tasks/status", r#"{"taskId":"a","taskID":"b"}"#, Some("")),
            ("notifications/tasks/status", "{}", Some("")),
            ("notifications/progress", r#"{"taskId":"a"}"#, None),
        ];
        for (method, params, expected) in table {
            let text = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
            let found = read(&text, |value| told(method, value).map(Cow::into_owned).into_iter().collect());
            assert_eq!(found.first().map(String::as_str), *expected, "{text}");
        }
    }
}

//! Tasks belong to whose call made them: nobody else names them, lists them or is told of them, and what is allowed of
//! their tool holds for them as long as they live.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, message, resources, text};
use toolgate_tests::{Connection, Scene};

const METHODS: [&str; 4] = ["tasks/get", "tasks/result", "tasks/update", "tasks/cancel"];

/// What becomes of a message: the code of its error, or that it is a result.
fn outcome(connection: &mut Connection, body: &[u8]) -> Result<Option<i64>> {
    let reply = connection.post(body)?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok(reply.message()?.pointer("/error/code").and_then(Value::as_i64))
}

fn about(method: &str, task: &str) -> Vec<u8> {
    message(5, method, &json!({ "taskId": task }))
}

/// Has the server make a task of a call of `tool`.
fn made(scene: &Scene, connection: &mut Connection, tool: &str, result: &Value) -> Result<()> {
    scene.server.answers("tools/call", "task", result);
    connection.request("POST", "X-Variant: task\r\n", &call(1, tool, &json!({})))?;
    let reply = connection.reply()?;
    assert_eq!(reply.message()?.get("result"), Some(result));
    scene.server.request().map(drop)
}

/// A task as a server of 2025-11-25 gives it, and as one of 2026-07-28 does.
fn tasks() -> [(Value, &'static str); 2] {
    let stateless = json!({ "resultType": "task", "taskId": "t-new", "status": "working" });
    [(json!({ "task": { "taskId": "t-old", "status": "working" } }), "t-old"), (stateless, "t-new")]
}

#[test]
fn a_task_belongs_to_whose_call_made_it() -> Result<()> {
    let scene = Scene::set()?;
    let (_reader, mut own) = scene.reader()?;
    let (mut caller, mut sent) = (scene.caller("writer")?, 0);
    for (result, task) in tasks() {
        made(&scene, &mut own, "echo", &result)?;
        for method in METHODS {
            let body = about(method, task);
            assert_eq!(outcome(&mut own, &body)?, None, "{method}: its own");
            assert_eq!(scene.server.request()?.body, body);
            let mut others = caller.http(scene.server.address)?;
            assert_eq!(outcome(&mut others, &body)?, Some(-32602), "{method}: of another caller");
            assert_eq!(outcome(&mut others, &about(method, "made-up"))?, Some(-32602), "{method}: nobody's");
            let nameless = message(6, method, &json!({ "taskId": 7 }));
            assert_eq!(outcome(&mut own, &nameless)?, Some(-32602), "{method}: no id");
            scene.nothing_reached_the_server(&mut own).with_context(|| method.to_owned())?;
            sent += 5;
        }
        sent += 1;
    }
    let lines = scene.agent.audit(sent)?;
    let count = |reason: &str, decision: &str, tool: &str| {
        let of_a_task = |line: &&Value| METHODS.contains(&text(line, "method"));
        let is_so = |line: &&Value| {
            ["reason", "decision", "tool"].map(|field| text(line, field)) == [reason, decision, tool]
        };
        lines.iter().filter(of_a_task).filter(is_so).count()
    };
    assert_eq!(count("permitted", "permit", "echo"), 8, "the tool is told: {lines:#?}");
    assert_eq!(count("task_hijack", "deny", ""), 8);
    assert_eq!(count("unknown_task", "deny", ""), 16);
    Ok(())
}

#[test]
fn a_task_is_of_use_as_long_as_its_tool_is_allowed() -> Result<()> {
    let scene = Scene::set()?;
    let (_reader, mut own) = scene.reader()?;
    let [(result, task), _] = tasks();
    made(&scene, &mut own, "echo", &result)?;
    assert_eq!(outcome(&mut own, &about("tasks/get", task))?, None);
    let without = resources(scene.server.address).replace("tools: [echo, ", "tools: [");
    scene.agent.write_resources(&without)?;
    scene.agent.counts("toolgate_generation", &[], 2.0)?;
    assert_eq!(outcome(&mut own, &about("tasks/result", task))?, Some(-31403));
    scene.agent.write_resources(&resources(scene.server.address))?;
    scene.agent.counts("toolgate_generation", &[], 3.0)?;
    assert_eq!(outcome(&mut own, &about("tasks/result", task))?, None);
    let lines = scene.agent.audit(4)?;
    let told: Vec<_> = lines.iter().map(|line| ["tool", "reason"].map(|field| text(line, field))).collect();
    let expected = ["permitted", "permitted", "no_rule", "permitted"].map(|reason| ["echo", reason]);
    assert_eq!(told, expected);
    Ok(())
}

#[test]
fn a_list_of_tasks_shows_its_readers_own() -> Result<()> {
    let scene = Scene::set()?;
    let (_reader, mut own) = scene.reader()?;
    let [(result, task), _] = tasks();
    made(&scene, &mut own, "echo", &result)?;
    let all = json!({ "tasks": [{ "taskId": task, "status": "working" }, { "taskId": "other" }] });
    scene.server.answers("tasks/list", "", &all);
    let mut writer = scene.caller("writer")?;
    let shown = |connection: &mut Connection| -> Result<Vec<String>> {
        let reply = connection.post(&message(2, "tasks/list", &json!({})))?.message()?;
        let tasks = reply.pointer("/result/tasks").and_then(Value::as_array).context("no list")?;
        Ok(tasks.iter().map(|task| text(task, "taskId").to_owned()).collect())
    };
    assert_eq!(shown(&mut own)?, [task]);
    assert_eq!(shown(&mut writer.http(scene.server.address)?)?, [""; 0], "and does not make them its own");
    let lines = scene.agent.audit(3)?;
    let told: Vec<_> = lines.iter().map(|line| text(line, "detail")).collect();
    assert_eq!(told, ["", "not shown, tasks of others: 1", "not shown, tasks of others: 2"]);
    Ok(())
}

#[test]
fn a_stream_tells_of_its_readers_own_tasks() -> Result<()> {
    let scene = Scene::set()?;
    let (_reader, mut own) = scene.reader()?;
    let [(result, task), _] = tasks();
    made(&scene, &mut own, "echo", &result)?;
    own.request("GET", "", b"")?;
    scene.server.request()?;
    assert_eq!(own.head()?.status, 200);
    let told = |method: &str, params: Value| json!({ "jsonrpc": "2.0", "method": method, "params": params });
    for method in ["notifications/tasks/status", "notifications/tasks"] {
        scene.server.send_event(&told(method, json!({ "taskId": "other", "result": "secret" })))?;
        scene.server.send_event(&told(method, json!({ "result": "secret" })))?;
        let news = told(method, json!({ "taskId": task, "status": "completed" }));
        scene.server.send_event(&news)?;
        assert_eq!(own.event()?, Some(format!("event: message\ndata: {news}\n\n")));
    }
    scene.server.end_stream()?;
    assert_eq!(own.event()?, None);
    let lines = scene.agent.audit(2)?;
    assert_eq!(lines.last().map(|line| text(line, "detail")), Some("not shown, tasks of others: 4"));
    Ok(())
}

/// A server that gives one caller another's task, as an event of a stream and as a whole reply.
#[test]
fn a_task_is_not_given_twice() -> Result<()> {
    let scene = Scene::set()?;
    let (_reader, mut own) = scene.reader()?;
    let [(result, task), _] = tasks();
    made(&scene, &mut own, "echo", &result)?;
    let mut writer = scene.caller("writer")?;
    let mut whole = writer.http(scene.server.address)?;
    whole.request("POST", "X-Variant: task\r\n", &call(1, "echo", &json!({})))?;
    let reply = whole.reply()?;
    assert_eq!((reply.status, reply.text().contains(task)), (502, false), "{}", reply.text());
    let mut streamed = writer.http(scene.server.address)?;
    streamed.request("POST", "", &call(2, "stream", &json!({})))?;
    scene.server.request()?;
    scene.server.request()?;
    let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": {} });
    scene.server.send_event(&progress)?;
    assert_eq!(streamed.head()?.status, 200);
    assert!(streamed.event()?.context("no event")?.contains("progress"));
    scene.server.send_event(&json!({ "jsonrpc": "2.0", "id": 2, "result": result }))?;
    let told = streamed.event()?.context("the stream ended without an error")?;
    assert!(told.contains("-31403") && !told.contains(task), "{told}");
    assert_eq!(outcome(&mut own, &about("tasks/get", task))?, None, "it stays whose it was");
    let lines = scene.agent.audit(4)?;
    let faults = lines.iter().filter(|line| text(line, "reason") == "server_fault");
    assert!(
        faults.clone().all(|line| text(line, "detail").contains("task id cannot be bound")),
        "{lines:#?}"
    );
    assert_eq!(faults.count(), 2);
    Ok(())
}

#[test]
fn tasks_go_on_with_the_next_agent() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut reader, mut own) = scene.reader()?;
    let [(result, task), _] = tasks();
    made(&scene, &mut own, "echo", &result)?;
    let mut writer = scene.caller("writer")?;
    scene.agent.upgrade(&[])?;
    assert_eq!(outcome(&mut reader.http(scene.server.address)?, &about("tasks/get", task))?, None);
    assert_eq!(outcome(&mut writer.http(scene.server.address)?, &about("tasks/get", task))?, Some(-32602));
    let lines = scene.agent.audit(3)?;
    let told: Vec<_> = lines.iter().map(|line| ["tool", "reason"].map(|field| text(line, field))).collect();
    assert_eq!(told, [["echo", "permitted"], ["echo", "permitted"], ["", "task_hijack"]]);
    Ok(())
}

//! What servers ask of their callers: passed on where a rule permits it, on every stream, and answered once, by who was asked.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, initialize, message, resources, text};
use toolgate_tests::{Agent, Caller, Connection, Server, Setup};

const ANSWERED: u16 = 202;

/// `reader` may be asked to elicit and for roots; `writer` for nothing.
struct Asked {
    agent: Agent,
    server: Server,
}

/// A caller with its session, and the stream that it opened there.
struct Client {
    caller: Caller,
    session: String,
    stream: Connection,
}

impl Asked {
    fn set() -> Result<Self> {
        let server = Server::start()?;
        let rule = "  - name: asked
    effect: allow
    callers: [reader]
    servers: [docs]
    server_requests: [elicitation, roots]
";
        let resources = resources(server.address) + rule;
        let agent = Agent::start(Setup { resources: &resources, ..Setup::default() })?;
        Ok(Self { agent, server })
    }

    /// With an open stream: of a call's reply, or of a GET.
    fn client(&self, app_id: &str, by_get: bool) -> Result<Client> {
        let mut caller = self.agent.caller(app_id)?;
        let opened = caller.http(self.server.address)?.post(&initialize())?;
        self.server.request()?;
        let session =
            format!("Mcp-Session-Id: {}\r\n", opened.header("mcp-session-id").context("no session")?);
        let mut stream = caller.http(self.server.address)?;
        if by_get {
            stream.request("GET", &session, b"")?;
        } else {
            stream.request("POST", &session, &call(1, "stream", &json!({})))?;
        }
        self.server.request()?;
        assert_eq!(stream.head()?.status, 200);
        Ok(Client { caller, session, stream })
    }

    /// Sends an answer, and tells whether it reached the server.
    fn answer(&self, client: &mut Client, answer: &Value) -> Result<bool> {
        let body = answer.to_string().into_bytes();
        let marker = message(9999, "ping", &json!({}));
        // Each on a connection of its own: while one agent hands over to another, a connection may be closed after one.
        for (sent, status) in [(&body, ANSWERED), (&marker, 200)] {
            let mut posts = client.caller.http(self.server.address)?;
            posts.request("POST", &client.session, sent)?;
            assert_eq!(posts.reply()?.status, status);
        }
        let first = self.server.request()?;
        let came = first.body == body;
        let last = if came { self.server.request()? } else { first };
        ensure!(last.body == marker, "{}", last.json());
        Ok(came)
    }
}

fn asks(id: &Value, method: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": {} })
}

fn shown(message: &Value) -> Option<String> {
    Some(format!("event: message\ndata: {message}\n\n"))
}

fn answer(id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": { "action": "accept" } })
}

#[test]
fn what_a_rule_permits_is_asked_and_answered_once_on_every_stream() -> Result<()> {
    for by_get in [false, true] {
        let scene = Asked::set()?;
        let mut reader = scene.client("reader", by_get)?;
        let refused = scene.answer(&mut reader, &answer(&json!(7)))?;
        ensure!(!refused, "nobody has asked yet");
        for (id, method) in
            [(json!(7), "elicitation/create"), (json!("seven"), "roots/list"), (json!(8), "ping")]
        {
            // What is not permitted holds nothing up, and its id is nobody's to answer.
            scene.server.send_event(&asks(&json!("other"), "sampling/createMessage"))?;
            scene.server.send_event(&asks(&id, method))?;
            assert_eq!(reader.stream.event()?, shown(&asks(&id, method)), "by GET: {by_get}");
            let other_id = if id.is_number() { json!(id.to_string()) } else { json!(7) };
            for (id, comes) in [(&json!("other"), false), (&other_id, false), (&id, true), (&id, false)] {
                let came = scene.answer(&mut reader, &answer(id))?;
                ensure!(came == comes, "{id} to {method}, by GET: {by_get}");
            }
        }
    }
    Ok(())
}

#[test]
fn nobody_answers_for_another() -> Result<()> {
    let scene = Asked::set()?;
    let mut writer = scene.client("writer", false)?;
    // The last stream is the one that the server's events go to.
    let mut second = scene.client("reader", false)?;
    let mut reader = scene.client("reader", false)?;
    scene.server.send_event(&asks(&json!(7), "roots/list"))?;
    reader.stream.event()?;
    for (name, other) in [("writer", &mut writer), ("the same caller in another session", &mut second)] {
        ensure!(!scene.answer(other, &answer(&json!(7)))?, "{name}");
    }
    ensure!(scene.answer(&mut reader, &answer(&json!(7)))?, "its twin");

    let lines = scene.agent.audit_until("what was answered", |lines| {
        lines.iter().filter(|line| text(line, "method") == "response").count() == 3
    })?;
    let told = |wanted: &str, field: &str| -> Vec<String> {
        let of = lines.iter().filter(|line| text(line, field) == wanted);
        of.map(|line| ["caller/app_id", "method", "decision", "reason"].map(|f| text(line, f)).join(" "))
            .collect()
    };
    assert_eq!(told("from_server", "direction"), ["reader roots/list permit permitted"]);
    assert_eq!(
        told("response", "method"),
        [
            "writer response deny unexpected_response",
            "reader response deny unexpected_response",
            "reader response permit permitted",
        ]
    );
    Ok(())
}

#[test]
fn what_was_asked_before_an_upgrade_is_answered_after_it() -> Result<()> {
    let mut scene = Asked::set()?;
    let mut writer = scene.client("writer", false)?;
    let mut second = scene.client("reader", false)?;
    let mut reader = scene.client("reader", false)?;
    for id in [7, 8] {
        scene.server.send_event(&asks(&json!(id), "roots/list"))?;
        reader.stream.event()?;
    }
    ensure!(scene.answer(&mut reader, &answer(&json!(8)))?, "before it");
    scene.agent.upgrade(&[])?;
    // On the stream that the agent before has.
    scene.server.send_event(&asks(&json!(9), "roots/list"))?;
    assert_eq!(reader.stream.event()?, shown(&asks(&json!(9), "roots/list")));
    for id in [7, 9] {
        ensure!(!scene.answer(&mut writer, &answer(&json!(id)))?, "{id}: writer");
        ensure!(!scene.answer(&mut second, &answer(&json!(id)))?, "{id}: the same caller in another session");
        ensure!(scene.answer(&mut reader, &answer(&json!(id)))?, "{id}: who was asked");
        ensure!(!scene.answer(&mut reader, &answer(&json!(id)))?, "{id}: once more");
    }
    ensure!(!scene.answer(&mut reader, &answer(&json!(8)))?, "it was answered before");
    Ok(())
}

/// A rule that is taken away counts for the answer too, and on streams that are open already.
#[test]
fn an_answer_is_decided_by_what_holds_when_it_comes() -> Result<()> {
    let scene = Asked::set()?;
    let mut reader = scene.client("reader", false)?;
    scene.server.send_event(&asks(&json!(7), "roots/list"))?;
    scene.server.send_event(&asks(&json!(8), "elicitation/create"))?;
    reader.stream.event()?;
    reader.stream.event()?;
    let rule =
        "  - { name: no-roots, effect: deny, callers: [reader], servers: [docs], server_requests: [roots] }
  - { name: asked, effect: allow, callers: [reader], servers: [docs], server_requests: [elicitation, roots] }
";
    scene.agent.write_resources(&(resources(scene.server.address) + rule))?;
    scene.agent.counts("toolgate_generation", &[], 2.0)?;
    ensure!(!scene.answer(&mut reader, &answer(&json!(7)))?, "roots");
    ensure!(scene.answer(&mut reader, &answer(&json!(8)))?, "its twin");
    scene.server.send_event(&asks(&json!(9), "roots/list"))?;
    scene.server.send_event(&asks(&json!(10), "elicitation/create"))?;
    assert_eq!(reader.stream.event()?, shown(&asks(&json!(10), "elicitation/create")));
    Ok(())
}

/// What `tools/call` results in from now on: asks within its answer (MCP 2026-07-28).
fn input_required(scene: &Asked, methods: &[&str], state: &str) {
    let requests: serde_json::Map<_, _> = methods
        .iter()
        .map(|&method| (method.to_owned(), json!({ "method": method, "params": {} })))
        .collect();
    let result = json!({ "resultType": "input_required", "inputRequests": requests, "requestState": state });
    scene.server.answers("tools/call", "", &result);
}

const STATELESS: &str = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: echo\r\n";

fn first_call(client: &mut Connection) -> Result<Value> {
    client.request("POST", STATELESS, &call(1, "echo", &json!({})))?;
    client.reply()?.message()
}

/// A call that goes on with a state; what it is answered.
fn retry(client: &mut Connection, tool: &str, state: &Value) -> Result<Value> {
    let params = json!({
        "name": tool, "arguments": {}, "requestState": state,
        "inputResponses": { "roots/list": { "roots": [] } },
    });
    let headers = STATELESS.replace("echo", tool);
    client.request("POST", &headers, &message(2, "tools/call", &params))?;
    client.reply()?.message()
}

#[test]
fn what_an_answer_asks_within_is_decided_like_a_request() -> Result<()> {
    let scene = Asked::set()?;
    let mut reader = scene.agent.caller("reader")?;
    let mut client = reader.http(scene.server.address)?;
    let elicits = "elicitation/create";
    let table: [(&[&str], bool); 5] = [
        (&[], true),
        (&[elicits], true),
        (&[elicits, "roots/list"], true),
        (&[elicits, "sampling/createMessage"], false),
        (&["of/its_own"], false),
    ];
    for (methods, passes) in table {
        input_required(&scene, methods, "s");
        let told = first_call(&mut client)?;
        let asked = told.pointer("/result/inputRequests").is_some();
        let is_error = told.pointer("/result/isError") == Some(&json!(true));
        assert_eq!((asked, is_error), (passes, !passes), "{methods:?}: {told}");
        assert_eq!((&told["id"], told.to_string().contains("requestState")), (&json!(1), passes), "{told}");
    }
    let refused = |line: &&Value| text(line, "tool") == "echo" && text(line, "reason") == "server_request";
    let lines =
        scene.agent.audit_until("what was refused", |lines| lines.iter().filter(refused).count() == 2)?;
    let from_server = lines.iter().filter(|line| text(line, "direction") == "from_server");
    let decided: Vec<_> = from_server.map(|line| text(line, "decision")).collect();
    assert_eq!(decided, ["permit", "permit", "permit", "permit", "deny", "deny"], "{lines:#?}");
    // On a stream: as its last event.
    client.request("POST", "", &call(1, "stream", &json!({})))?;
    assert_eq!(client.head()?.status, 200);
    scene
        .server
        .send_event(&json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": {} }))?;
    client.event()?;
    let result = json!({ "inputRequests": { "a": { "method": "sampling/createMessage" } } });
    scene.server.send_event(&json!({ "jsonrpc": "2.0", "id": 1, "result": result }))?;
    let last = client.event()?.context("the stream ended")?;
    ensure!(last.contains("isError") && !last.contains("inputRequests"), "{last}");
    assert_eq!(client.event()?, None);
    Ok(())
}

#[test]
fn a_request_state_is_good_for_who_got_it() -> Result<()> {
    let scene = Asked::set()?;
    let mut callers = [scene.agent.caller("reader")?, scene.agent.caller("writer")?];
    input_required(&scene, &[], "given");
    first_call(&mut callers[0].http(scene.server.address)?)?;
    a_state_was_given_to_the_first(&scene, &mut callers)
}

#[test]
fn a_request_state_is_good_with_the_next_agent() -> Result<()> {
    let mut scene = Asked::set()?;
    let mut callers = [scene.agent.caller("reader")?, scene.agent.caller("writer")?];
    input_required(&scene, &[], "given");
    first_call(&mut callers[0].http(scene.server.address)?)?;
    scene.agent.upgrade(&[])?;
    a_state_was_given_to_the_first(&scene, &mut callers)
}

fn a_state_was_given_to_the_first(scene: &Asked, callers: &mut [Caller; 2]) -> Result<()> {
    let [reader, writer] = callers;
    let mut clients = [reader.http(scene.server.address)?, writer.http(scene.server.address)?];
    scene.server.answers("tools/call", "", &json!({ "content": [], "isError": false }));
    assert_eq!(scene.server.requests_now().len(), 1, "the first call");
    let (given, made_up) = (json!("given"), json!("made-up"));
    let table = [
        ("another's", 1, "echo", &given, "request_state_hijack"),
        ("nobody's", 0, "echo", &made_up, "unknown_request_state"),
        ("one's own", 0, "echo", &given, "permitted"),
        ("one's own, for what is denied", 0, "delete_everything", &given, "no_rule"),
    ];
    for (name, client, tool, state, reason) in table {
        let told = retry(&mut clients[client], tool, state)?;
        let is_error = told.pointer("/result/isError") == Some(&json!(true));
        assert_eq!(is_error, reason == "no_rule", "{name}: {told}");
        let is_unknown = told.pointer("/error/code") == Some(&json!(-32602));
        assert_eq!(is_unknown, reason.contains("request_state"), "{name}: {told}");
        assert_eq!(scene.server.requests_now().len(), usize::from(reason == "permitted"), "{name}");
        let is_it = |line: &Value| text(line, "reason") == reason && text(line, "tool") == tool;
        scene.agent.audit_until(name, |lines| lines.last().is_some_and(is_it))?;
    }
    Ok(())
}

/// With answers and without a state, a call goes only to who may be asked for something.
#[test]
fn answers_without_a_state_pass_where_something_may_be_asked() -> Result<()> {
    let scene = Asked::set()?;
    for (app_id, reason) in [("writer", "server_request"), ("reader", "permitted")] {
        let mut caller = scene.agent.caller(app_id)?;
        let mut client = caller.http(scene.server.address)?;
        let params = json!({ "name": "echo", "arguments": {}, "inputResponses": { "a": { "roots": [] } } });
        client.request("POST", STATELESS, &message(2, "tools/call", &params))?;
        let told = client.reply()?.message()?;
        let is_error = told.pointer("/result/isError") == Some(&json!(true));
        assert_eq!(is_error, reason != "permitted", "{app_id}: {told}");
        assert_eq!(scene.server.requests_now().len(), usize::from(!is_error), "{app_id}");
        let is_it = |line: &Value| text(line, "reason") == reason && text(line, "caller/app_id") == app_id;
        scene.agent.audit_until(app_id, |lines| lines.last().is_some_and(is_it))?;
    }
    Ok(())
}

/// A URL to visit, asked for by an error (MCP 2025-11-25).
#[test]
fn what_an_error_asks_within_is_decided_like_a_request() -> Result<()> {
    let scene = Asked::set()?;
    for (app_id, passes) in [("writer", false), ("reader", true)] {
        let mut client = scene.client(app_id, false)?;
        let data = json!({ "elicitations": [{ "mode": "url", "url": "https://secret.example" }] });
        let error = json!({ "code": -32042, "message": "first this", "data": data });
        scene.server.send_event(&json!({ "jsonrpc": "2.0", "id": 1, "error": error }))?;
        let told = client.stream.event()?.context("the stream ended")?;
        assert_eq!((told.contains("-32042"), told.contains("secret")), (passes, passes), "{app_id}: {told}");
        scene.server.end_stream()?;
    }
    Ok(())
}

/// A task that waits for its caller (MCP 2026-07-28): both what it asks and what it is told.
#[test]
fn what_a_task_asks_within_is_decided_like_a_request() -> Result<()> {
    let scene = Asked::set()?;
    for (app_id, task, may) in [("reader", "of-reader", true), ("writer", "of-writer", false)] {
        let mut caller = scene.agent.caller(app_id)?;
        let mut client = caller.http(scene.server.address)?;
        let made = json!({ "resultType": "task", "taskId": task, "status": "working" });
        scene.server.answers("tools/call", "", &made);
        ensure!(client.post(&call(1, "echo", &json!({})))?.text().contains(task), "{app_id}");
        for (method, passes) in [("sampling/createMessage", false), ("elicitation/create", may)] {
            let requests = json!({ "a": { "method": method, "params": {} } });
            let waits = json!({ "taskId": task, "status": "input_required", "inputRequests": requests });
            scene.server.answers("tasks/get", "", &waits);
            let told = client.post(&message(2, "tasks/get", &json!({ "taskId": task })))?.message()?;
            let is_refused = told.pointer("/error/code") == Some(&json!(-31403));
            assert_eq!(
                (is_refused, told.to_string().contains(method)),
                (!passes, passes),
                "{app_id}: {told}"
            );
        }
        assert_eq!(scene.server.requests_now().len(), 3, "{app_id}: its call, and twice how it is");
        let answers = json!({ "taskId": task, "inputResponses": { "a": { "action": "accept" } } });
        client.post(&message(3, "tasks/update", &answers))?;
        assert_eq!(scene.server.requests_now().len(), usize::from(may), "{app_id} answers");
        let reason = if may { "permitted" } else { "server_request" };
        let is_it = |line: &Value| text(line, "method") == "tasks/update" && text(line, "reason") == reason;
        scene.agent.audit_until(app_id, |lines| lines.last().is_some_and(is_it))?;
    }
    Ok(())
}

#[test]
fn what_a_notification_asks_within_is_decided_like_a_request() -> Result<()> {
    let scene = Asked::set()?;
    let mut reader = scene.client("reader", true)?;
    for (method, passes) in
        [("sampling/createMessage", false), ("elicitation/create", true), ("roots/list", true)]
    {
        let within = json!({ "a": { "method": method, "params": {} } });
        let note = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "inputRequests": within } });
        let ping = asks(&json!("p"), "ping");
        scene.server.send_event(&note)?;
        scene.server.send_event(&ping)?;
        if passes {
            assert_eq!(reader.stream.event()?, shown(&note), "{method}");
        }
        assert_eq!(reader.stream.event()?, shown(&ping), "{method}");
    }
    Ok(())
}

/// Where there are no sessions, there is nothing to answer either.
#[test]
fn an_answer_is_no_message_of_the_revision_without_sessions() -> Result<()> {
    let scene = Asked::set()?;
    let mut reader = scene.agent.caller("reader")?;
    let mut client = reader.http(scene.server.address)?;
    let body = answer(&json!(7)).to_string().into_bytes();
    for (version, status) in [("2026-07-28", 400), ("2025-11-25", ANSWERED)] {
        let mut client = reader.http(scene.server.address)?;
        client.request("POST", &format!("MCP-Protocol-Version: {version}\r\n"), &body)?;
        assert_eq!(client.reply()?.status, status, "{version}");
    }
    let told = first_call(&mut client)?;
    ensure!(told.get("result").is_some(), "{told}");
    let first = scene.server.request()?;
    assert_eq!(first.json()["method"], "tools/call", "nothing came before it");
    Ok(())
}

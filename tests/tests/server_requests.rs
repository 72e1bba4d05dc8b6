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
    _caller: Caller,
    session: String,
    stream: Connection,
    posts: Connection,
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
        let mut posts = caller.http(self.server.address)?;
        let opened = posts.post(&initialize())?;
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
        Ok(Client { _caller: caller, session, stream, posts })
    }

    /// Sends an answer, and tells whether it reached the server.
    fn answer(&self, client: &mut Client, answer: &Value) -> Result<bool> {
        let body = answer.to_string().into_bytes();
        client.posts.request("POST", &client.session, &body)?;
        assert_eq!(client.posts.reply()?.status, ANSWERED);
        let marker = message(9999, "ping", &json!({}));
        client.posts.request("POST", &client.session, &marker)?;
        client.posts.reply()?;
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

//! Where an operator changes what a caller may see of a server's lists, its open streams are told; nobody else's are.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{message, resources, text};
use toolgate_tests::{Agent, Caller, Connection, Peer, SdkClient, SdkServer, Setup};

const TOOLS: &str = "tools";
const LISTEN: &str = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n";

/// An agent whose server the test plays.
struct Stage {
    agent: Agent,
    peer: Peer,
    pins: &'static str,
    generation: f64,
    events: usize,
}

/// An open event stream, both ends.
struct Stream {
    _caller: Caller,
    client: Connection,
    server: Connection,
}

/// One more rule.
fn rule(effect: &str, callers: &str, what: &str) -> String {
    format!("  - {{ name: more, effect: {effect}, callers: [{callers}], servers: [docs], {what} }}\n")
}

impl Stage {
    fn set(pins: &'static str) -> Result<Self> {
        let peer = Peer::start()?;
        let all = Self::resources(&peer, pins, "");
        let agent = Agent::start(Setup { resources: &all, ..Setup::default() })?;
        Ok(Self { agent, peer, pins, generation: 1.0, events: 0 })
    }

    fn resources(peer: &Peer, pins: &str, more: &str) -> String {
        let pinned = format!("  path: /mcp\n  pins: {pins}\n");
        resources(peer.address).replace("  path: /mcp\n", &pinned) + more
    }

    /// Takes over the scene's resources with these rules more.
    fn reload(&mut self, more: &str) -> Result<()> {
        self.agent.write_resources(&Self::resources(&self.peer, self.pins, more))?;
        self.generation += 1.0;
        self.agent.counts("toolgate_generation", &[], self.generation)
    }

    fn open(&self, app_id: &str, method: &str, headers: &str, body: &[u8]) -> Result<Stream> {
        let mut caller = self.agent.caller(app_id)?;
        let mut client = caller.http(self.peer.address)?;
        client.request(method, headers, body)?;
        let mut server = self.peer.accept()?;
        server.through("\r\n\r\n")?;
        server.exactly(body.len())?;
        server.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: open\n\n")?;
        ensure!(client.head()?.status == 200);
        ensure!(client.event()?.as_deref() == Some(": open\n\n"));
        Ok(Stream { _caller: caller, client, server })
    }

    fn get(&self, app_id: &str) -> Result<Stream> {
        self.open(app_id, "GET", "", b"")
    }

    /// Whether the stream is told of these lists, in this order, and of nothing else.
    fn check(&mut self, name: &str, stream: &mut Stream, lists: &[&str]) -> Result<()> {
        for list in lists {
            let told = stream.client.event()?.with_context(|| format!("{name}: the stream ended"))?;
            ensure!(told == changed(list, None), "{name}: {told}, not {list}");
        }
        self.nothing_else(name, stream)
    }

    /// An event of the server's is the next that the client gets.
    fn nothing_else(&mut self, name: &str, stream: &mut Stream) -> Result<()> {
        self.events += 1;
        let own =
            json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "n": self.events } });
        let own = format!("data: {own}\n\n");
        stream.server.send(own.as_bytes())?;
        let next = stream.client.event()?.with_context(|| format!("{name}: the stream ended"))?;
        ensure!(next == own, "{name}: {next}");
        Ok(())
    }
}

fn changed(list: &str, subscription: Option<&str>) -> String {
    let method = format!("notifications/{list}/list_changed");
    let params = subscription
        .map(|id| format!(r#","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}"#));
    let params = params.unwrap_or_default();
    format!("event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"{method}\"{params}}}\n\n")
}

#[test]
fn a_reload_is_told_to_those_who_may_see_something_else() -> Result<()> {
    let mut stage = Stage::set("off")?;
    let mut reader = stage.get("reader")?;
    let mut writer = stage.get("writer")?;
    let arguments = r#"tools: [echo], list: true, arguments: { text: { max_length: 3 } }"#;
    /// A rule more, and what `reader` and `writer` are told of when it comes and when it goes.
    type Row = (&'static str, String, &'static [&'static str], &'static [&'static str]);
    let table: [Row; 8] = [
        ("a tool", rule("allow", "reader", "tools: [new]"), &[TOOLS], &[]),
        ("a tool of the other's", rule("allow", "writer", "tools: [new]"), &[], &[TOOLS]),
        (
            "all at once",
            rule("deny", "reader, writer", "methods: [\"*/*\"]"),
            &[TOOLS, "resources", "prompts"],
            &[TOOLS, "resources", "prompts"],
        ),
        ("prompts", rule("allow", "reader", "prompts: [\"*\"]"), &["prompts"], &[]),
        ("resources", rule("allow", "reader", "resources: [\"docs://*\"]"), &["resources"], &[]),
        ("what is not shown", rule("allow", "reader", "tools: [new], list: false"), &[], &[]),
        ("what is shown already, for some arguments", rule("allow", "reader", arguments), &[], &[]),
        ("what the server asks", rule("allow", "reader", "server_requests: [roots]"), &[], &[]),
    ];
    for (name, more, for_reader, for_writer) in table {
        for more in [&more, ""] {
            stage.reload(more)?;
            stage.check(name, &mut reader, for_reader)?;
            stage.check(name, &mut writer, for_writer)?;
        }
    }
    drop(reader);
    let told = |line: &Value| {
        text(line, "method") == "stream" && text(line, "detail").contains("told of changed lists: 8")
    };
    stage.agent.audit_until("the end of the reader's stream", |lines| lines.iter().any(told))?;
    Ok(())
}

#[test]
fn it_is_told_between_two_events() -> Result<()> {
    let mut stage = Stage::set("off")?;
    let mut reader = stage.get("reader")?;
    let event = "id: 7\ndata: {\"jsonrpc\":\"2.0\",\ndata: \"method\":\"notifications/message\"}\n\n";
    let (first, rest) = event.split_at(30);
    reader.server.send(first.as_bytes())?;
    stage.reload(&rule("allow", "reader", "tools: [new]"))?;
    ensure!(reader.client.event()? == Some(changed(TOOLS, None)));
    reader.server.send(rest.as_bytes())?;
    ensure!(reader.client.event()?.as_deref() == Some(event));
    stage.nothing_else("after the event", &mut reader)
}

/// However often it changes while a client does not read.
#[test]
fn a_slow_reader_is_told_once_and_loses_nothing() -> Result<()> {
    const EVENTS: usize = 20_000;
    let mut stage = Stage::set("off")?;
    let mut reader = stage.get("reader")?;
    let event = |number: usize| {
        let params = json!({ "n": number, "text": "x".repeat(1024) });
        format!(
            "data: {}\n\n",
            json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": params })
        )
    };
    // More than the kernel holds for one who does not read.
    reader.server.send_meanwhile((0..EVENTS).map(event).collect::<String>().into_bytes())?;
    ensure!(reader.client.event()? == Some(event(0)));
    for round in 0..3 {
        stage.reload(&rule("allow", "reader", &format!("tools: [new_{round}]")))?;
    }
    let mut told = 0;
    for number in 1..EVENTS {
        let mut next = reader.client.event()?.context("the stream ended")?;
        while next == changed(TOOLS, None) {
            told += 1;
            next = reader.client.event()?.context("the stream ended")?;
        }
        ensure!(next == event(number), "{number}: {next}");
    }
    ensure!(told == 1, "told {told} times");
    stage.nothing_else("after the flood", &mut reader)
}

#[test]
fn an_approval_is_told_to_those_who_were_given_the_definition() -> Result<()> {
    let mut stage = Stage::set("enforce")?;
    let mut reader = stage.get("reader")?;
    let mut writer = stage.get("writer")?;
    let tool = |name: &str, words: &str| json!({ "name": name, "description": words, "inputSchema": {} });
    let given = |app_id: &str, tools: &[Value]| -> Result<()> {
        let mut caller = stage.agent.caller(app_id)?;
        let mut client = caller.http(stage.peer.address)?;
        client.request("POST", "", &message(1, "tools/list", &json!({})))?;
        let mut server = stage.peer.accept()?;
        server.through("\r\n\r\n")?;
        let body = json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": tools } }).to_string();
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
        server.send(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
        client.reply().map(drop)
    };
    given("reader", &[tool("echo", "For readers."), tool("add", "Adds."), tool("hidden", "No.")])?;
    given("writer", &[tool("echo", "For writers."), tool("add", "Adds.")])?;
    let digest_of = |caller: &str| -> Result<String> {
        let mut list = toolgate_tests::toolgate();
        list.args(["tools", "list", "docs", "--json", "--config"]).arg(stage.agent.config());
        let all: Value = serde_json::from_slice(&list.output()?.stdout)?;
        let all = all["definitions"].as_array().context("no definitions")?;
        let is_it = |one: &&Value| text(one, "name") == "echo" && one["given_to"] == json!([caller]);
        Ok(text(all.iter().find(is_it).context("none")?, "digest").to_owned())
    };
    let (for_readers, for_writers) = (digest_of("reader")?, digest_of("writer")?);
    let change = |stage: &Stage, arguments: &[&str]| -> Result<()> {
        let mut command = toolgate_tests::toolgate();
        let (verb, rest) = arguments.split_first().context("no verb")?;
        command.args(["tools", verb, "--config"]).arg(stage.agent.config()).args(rest);
        let done = command.output()?;
        ensure!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    };
    type Row<'r> = (&'static str, &'r [&'r str], &'static [&'static str], &'static [&'static str]);
    let table: [Row<'_>; 7] = [
        ("what no policy lets them see", &["approve", "docs", "hidden"], &[], &[]),
        ("the reader's own", &["approve", "docs", "echo", "--digest", &for_readers], &[TOOLS], &[]),
        ("the writer's own", &["approve", "docs", "echo", "--digest", &for_writers], &[], &[TOOLS]),
        ("of both, and only one may use it", &["approve", "docs", "add"], &[TOOLS], &[]),
        ("not any more", &["revoke", "docs", "add"], &[TOOLS], &[]),
        ("forgotten", &["revoke", "docs", "add"], &[], &[]),
        ("the reader's, not any more", &["revoke", "docs", "echo", "--digest", &for_readers], &[TOOLS], &[]),
    ];
    for (name, arguments, for_reader, for_writer) in table {
        change(&stage, arguments).context(name)?;
        stage.check(name, &mut reader, for_reader)?;
        stage.check(name, &mut writer, for_writer)?;
    }
    Ok(())
}

/// MCP 2026-07-28: what the client has asked for and the server has acknowledged, in the subscription's name.
#[test]
fn a_subscription_is_told_of_what_it_asked_for() -> Result<()> {
    let mut stage = Stage::set("off")?;
    let filter = json!({ "toolsListChanged": true, "resourcesListChanged": true });
    let body = message(7, "subscriptions/listen", &json!({ "notifications": filter }));
    let mut reader = stage.open("reader", "POST", LISTEN, &body)?;
    let all = rule("allow", "reader", "tools: [new]")
        + &rule("allow", "reader", "prompts: [new]").replace("more", "too")
        + &rule("allow", "reader", "resources: [\"a://*\"]").replace("more", "three");
    stage.reload(&all)?;
    stage.check("not acknowledged yet", &mut reader, &[])?;
    let honored = json!({ "toolsListChanged": true, "promptsListChanged": true });
    let meta = json!({ "io.modelcontextprotocol/subscriptionId": 7 });
    let acknowledged = json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged",
                               "params": { "notifications": honored, "_meta": meta } });
    let acknowledged = format!("data: {acknowledged}\n\n");
    reader.server.send(acknowledged.as_bytes())?;
    ensure!(reader.client.event()? == Some(acknowledged));
    stage.reload("")?;
    ensure!(reader.client.event()? == Some(changed(TOOLS, Some("7"))));
    stage.nothing_else("tools alone are both asked for and acknowledged", &mut reader)
}

#[test]
fn an_official_sdk_lists_again_and_sees_the_new_tool() -> Result<()> {
    let server = SdkServer::start()?;
    let agent = Agent::start(Setup { resources: &resources(server.address), ..Setup::default() })?;
    let mut writer = SdkClient::start(agent.exec("writer"), &server.url())?;
    assert_eq!(writer.tools()?, ["echo", "slow_count"]);
    let stream =
        |lines: &str| lines.contains("\"method\":\"stream\"") && lines.contains("\"phase\":\"opened\"");
    toolgate_tests::wait::until("the client's stream", || {
        let audit = std::fs::read_to_string(agent.config().join("audit.jsonl"))?;
        Ok(stream(&audit).then_some(()))
    })?;
    agent.write_resources(&(resources(server.address) + &rule("allow", "writer", "tools: [add]")))?;
    assert_eq!(writer.answer("changed")?, json!(true));
    assert_eq!(writer.tools()?, ["echo", "add", "slow_count"]);
    Ok(())
}

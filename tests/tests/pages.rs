//! Lists in pages: where a caller would be shown an empty one, the next is asked for in its place, up to the limits.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{initialize, message, resources, text};
use toolgate_tests::{Agent, Caller, Connection, Peer, SdkClient, SdkServer, Setup, wait};

const PROGRESS: &str = "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1,\"progress\":1}}\n\n";
/// What the caller sends with each request.
const HEADERS: &str = "Mcp-Session-Id: session-0\r\nX-Own: kept\r\n";
/// No rule permits it.
const HIDDEN: &[&str] = &["delete_everything"];

/// How a page comes.
#[derive(Clone, Copy, Debug)]
enum By {
    Json,
    /// As the one event of a stream.
    Event,
    /// As a stream that the client has seen begin.
    Stream,
    /// As an event of a stream that does not end.
    Open,
}

/// The tools on a page, where the list goes on, and how it comes.
type Page<'p> = (&'p [&'p str], Option<&'p str>, By);

/// A caller with a session, and the server that the test plays.
struct Stage {
    agent: Agent,
    peer: Peer,
    caller: Caller,
    client: Connection,
    server: Option<Connection>,
    /// The client has seen a stream begin.
    has_begun: bool,
}

fn reply(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn json_reply(head: &str, message: &Value) -> Vec<u8> {
    reply(&format!("{head}\r\nContent-Type: application/json"), &message.to_string())
}

impl Stage {
    fn set(limits: &str, pins: &str) -> Result<Self> {
        let peer = Peer::start()?;
        let pinned = format!("  path: /mcp\n  pins: {pins}\n");
        let resources = resources(peer.address).replace("  path: /mcp\n", &pinned);
        let agent = Agent::start(Setup { resources: &resources, limits, ..Setup::default() })?;
        let mut caller = agent.caller("reader")?;
        let client = caller.http(peer.address)?;
        let mut stage = Self { agent, peer, caller, client, server: None, has_begun: false };
        stage.client.request("POST", "", &initialize())?;
        stage.asked()?;
        let opened = json!({ "jsonrpc": "2.0", "id": 0, "result": {} });
        stage.say(&json_reply("200 OK\r\nMcp-Session-Id: session-0", &opened))?;
        ensure!(stage.client.reply()?.status == 200, "no session");
        Ok(stage)
    }

    fn ask(&mut self, params: &Value) -> Result<()> {
        self.has_begun = false;
        self.client.request("POST", HEADERS, &message(1, "tools/list", params))
    }

    /// The server's end of the next request: its head and its message.
    fn asked(&mut self) -> Result<(String, Value)> {
        if self.server.is_none() {
            self.server = Some(self.peer.accept()?);
        }
        let server = self.server.as_mut().context("no connection")?;
        let head = server.through("\r\n\r\n")?;
        let length: usize = toolgate_tests::http::header(&head, "content-length").unwrap_or("0").parse()?;
        let body = server.exactly(length)?;
        Ok((head, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// The next page that the server is asked for: by the same request but for its cursor.
    fn asked_for(&mut self, cursor: &Value) -> Result<()> {
        let (head, message) = self.asked()?;
        let header = |name| toolgate_tests::http::header(&head, name);
        ensure!((header("mcp-session-id"), header("x-own")) == (Some("session-0"), Some("kept")), "{head}");
        ensure!((&message["id"], &message["method"]) == (&json!(1), &json!("tools/list")), "{message}");
        let params = &message["params"];
        ensure!(&params["cursor"] == cursor, "{message}, not {cursor}");
        ensure!(params["_meta"] == json!({ "progressToken": 1 }), "{message}");
        Ok(())
    }

    fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.server.as_mut().context("no connection")?.send(bytes)
    }

    fn give(&mut self, (tools, next, by): Page<'_>) -> Result<()> {
        let tools = tools.iter().map(|name| json!({ "name": name, "inputSchema": { "type": "object" } }));
        let mut result = json!({ "tools": tools.collect::<Vec<_>>() });
        if let Some(next) = next {
            result["nextCursor"] = json!(next);
        }
        let message = json!({ "jsonrpc": "2.0", "id": 1, "result": result });
        let event = format!("event: message\ndata: {message}\n\n");
        let events = "200 OK\r\nContent-Type: text/event-stream";
        match by {
            By::Json => self.say(&json_reply("200 OK", &message)),
            By::Event => self.say(&reply(events, &event)),
            By::Stream => {
                let length = PROGRESS.len() + event.len();
                self.say(
                    format!("HTTP/1.1 {events}\r\nContent-Length: {length}\r\n\r\n{PROGRESS}").as_bytes(),
                )?;
                if !std::mem::replace(&mut self.has_begun, true) {
                    ensure!(self.client.head()?.header("content-type") == Some("text/event-stream"));
                }
                ensure!(self.client.event()?.as_deref() == Some(PROGRESS));
                self.say(event.as_bytes())
            }
            By::Open => {
                self.say(format!("HTTP/1.1 {events}\r\n\r\n{event}").as_bytes())?;
                // Its connection cannot take another request.
                self.server = None;
                Ok(())
            }
        }
    }

    /// What the client is told in the end.
    fn told(&mut self) -> Result<Value> {
        if !self.has_begun {
            return self.client.reply()?.message();
        }
        let event = self.client.event()?.context("the stream ended")?;
        ensure!(self.client.event()?.is_none(), "it goes on behind {event}");
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).context("no data")?;
        Ok(serde_json::from_str(data)?)
    }

    /// The client asks for the first page, and gets the last of these.
    fn check(&mut self, name: &str, pages: &[Page<'_>]) -> Result<()> {
        self.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
        let mut cursor = Value::Null;
        for page in pages {
            self.asked_for(&cursor).with_context(|| format!("{name}: {page:?}"))?;
            self.give(*page).with_context(|| format!("{name}: {page:?}"))?;
            cursor = json!(page.1);
        }
        let told = self.told().with_context(|| name.to_owned())?;
        let tools = told["result"]["tools"].as_array().with_context(|| format!("{name}: {told}"))?;
        let names: Vec<_> = tools.iter().map(|tool| text(tool, "name")).collect();
        let (offered, next, _) = pages.last().context("no pages")?;
        let shown: Vec<_> = offered.iter().copied().filter(|tool| !HIDDEN.contains(tool)).collect();
        ensure!((&names, &told["result"]["nextCursor"]) == (&shown, &json!(next)), "{name}: {told}");
        ensure!(told["id"] == json!(1), "{name}: {told}");
        let skipped = pages.len() - 1;
        let expected = if skipped == 0 { String::new() } else { format!("empty pages not shown: {skipped}") };
        self.is_last_in_audit(name, "permitted", &expected)
    }

    fn is_last_in_audit(&self, name: &str, reason: &str, detail: &str) -> Result<()> {
        let is_it = |line: &&Value| text(line, "reason") == reason && text(line, "detail").contains(detail);
        // The last list, whatever began behind it.
        let lists = |line: &&Value| text(line, "method") == "tools/list";
        self.agent.audit_until(name, |lines| lines.iter().rfind(lists).filter(is_it).is_some()).map(drop)
    }
}

#[test]
fn no_empty_page_is_shown_that_is_not_the_last() -> Result<()> {
    use By::{Event, Json, Open, Stream};
    let mut stage = Stage::set("", "off")?;
    let both = &["delete_everything", "echo"];
    let table: [(&str, &[Page<'_>]); 15] = [
        ("one page", &[(&["echo"], None, Json)]),
        ("a page of which something is shown", &[(both, Some("b"), Json)]),
        ("the last, empty", &[(HIDDEN, None, Json)]),
        ("empty as the server has it", &[(&[], Some("b"), Json), (&["echo"], None, Json)]),
        ("two", &[(HIDDEN, Some("b"), Json), (&["echo"], None, Json)]),
        (
            "three, and there is more",
            &[(HIDDEN, Some("b"), Json), (HIDDEN, Some("c"), Json), (both, Some("d"), Json)],
        ),
        (
            "all of them empty",
            &[(HIDDEN, Some("b"), Json), (HIDDEN, Some("\"\u{e9}\n"), Json), (&[], None, Json)],
        ),
        ("to some the end", &[(HIDDEN, Some(""), Json)]),
        ("events", &[(HIDDEN, Some("b"), Event), (&["echo"], None, Event)]),
        ("events, then JSON", &[(HIDDEN, Some("b"), Event), (&["echo"], None, Json)]),
        ("JSON, then events", &[(HIDDEN, Some("b"), Json), (&["echo"], None, Event)]),
        (
            "a stream that goes on",
            &[(HIDDEN, Some("b"), Stream), (HIDDEN, Some("c"), Stream), (&["echo"], None, Stream)],
        ),
        ("a stream that goes on in one event", &[(HIDDEN, Some("b"), Stream), (&["echo"], Some("c"), Event)]),
        (
            "a stream that JSON ends",
            &[(HIDDEN, Some("b"), Stream), (HIDDEN, Some("c"), Json), (&["echo"], None, Json)],
        ),
        ("a stream that stays open", &[(HIDDEN, Some("b"), Open), (&["echo"], None, Json)]),
    ];
    for (name, pages) in table {
        stage.check(name, pages)?;
    }
    Ok(())
}

#[test]
fn every_kind_of_list_is_asked_on() -> Result<()> {
    let mut stage = Stage::set("", "off")?;
    for (method, list, name) in [
        ("resources/list", "resources", "uri"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate"),
        ("prompts/list", "prompts", "name"),
    ] {
        stage.client.request("POST", "", &message(1, method, &json!({ "cursor": "a" })))?;
        for (own, next) in [("a", json!("b")), ("b", Value::Null)] {
            let (_, asked) = stage.asked()?;
            ensure!(
                (&asked["method"], &asked["params"]["cursor"]) == (&json!(method), &json!(own)),
                "{asked}"
            );
            let result = json!({ list: [{ name: "hidden" }], "nextCursor": next });
            stage.say(&json_reply("200 OK", &json!({ "jsonrpc": "2.0", "id": 1, "result": result })))?;
        }
        let told = stage.client.reply()?.message()?;
        ensure!(told["result"][list] == json!([]) && told["result"]["nextCursor"].is_null(), "{told}");
    }
    Ok(())
}

/// The client is told at once, or at the end of the stream that it has.
#[test]
fn a_list_without_end_is_the_servers_fault() -> Result<()> {
    let limits = "{ list_pages_max: 3, list_bytes_max: 4KiB }";
    let mut stage = Stage::set(limits, "off")?;
    let long = "c".repeat(2048);
    let table: [(&str, &[Option<&str>], &str); 4] = [
        ("ever other cursors", &[Some("b"), Some("c"), Some("d"), Some("e")], "list_pages_max"),
        ("the same cursor", &[Some("b"), Some("b")], "a cursor of it came before"),
        ("a circle", &[Some("b"), Some("c"), Some("a")], "a cursor of it came before"),
        ("large pages", &[Some("b"), Some(&long)], "list_bytes_max"),
    ];
    for (name, cursors, detail) in table {
        for by in [By::Json, By::Event, By::Stream] {
            stage.ask(&json!({ "cursor": "a", "_meta": { "progressToken": 1 } }))?;
            let mut own = json!("a");
            for next in cursors {
                stage.asked_for(&own).with_context(|| format!("{name}, {by:?}"))?;
                // The last is shown to nobody: the one who waits for it is told before its stream has ended.
                let many = vec!["delete_everything"; if detail == "list_bytes_max" { 40 } else { 1 }];
                stage.give((&many, *next, by))?;
                own = json!(next);
            }
            let told = stage.told()?;
            ensure!(
                told["error"]["code"] == json!(-31403) && told["id"] == json!(1),
                "{name}, {by:?}: {told}"
            );
            stage.is_last_in_audit(name, "server_fault", detail)?;
            stage.server = None; // the connection is of no use to anybody
        }
    }
    for limit in ["limit=\"list_pages_max\"", "limit=\"list_bytes_max\""] {
        ensure!(stage.agent.metric("toolgate_limit_refusals_total", &[limit])? == 3.0, "{limit}");
    }
    stage.check(
        "its twin",
        &[(HIDDEN, Some("b"), By::Json), (HIDDEN, Some("c"), By::Json), (&["echo"], None, By::Json)],
    )
}

#[test]
fn a_list_that_takes_too_long_is_the_callers_to_go_on_with() -> Result<()> {
    let mut stage = Stage::set("{ list_pages_time_max: 1ms }", "off")?;
    stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
    stage.asked_for(&Value::Null)?;
    stage.give((HIDDEN, Some("b"), By::Json))?;
    stage.asked_for(&json!("b"))?;
    let asked = Instant::now();
    wait::until("the time to be over", || Ok((asked.elapsed() > Duration::from_millis(5)).then_some(())))?;
    stage.give((HIDDEN, Some("c"), By::Json))?;
    let told = stage.told()?;
    ensure!(told["result"] == json!({ "tools": [], "nextCursor": "c" }), "{told}");
    stage.is_last_in_audit("the page", "permitted", "empty pages not shown: 1")
}

/// What comes in the place of the next page.
#[test]
fn the_next_page_is_decided_and_answered_like_the_first() -> Result<()> {
    let failed =
        |id: Value| json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32602, "message": "no" } });
    let mut stage = Stage::set("", "off")?;
    for by in [By::Json, By::Stream] {
        // An error of the server's.
        for (head, id) in [("200 OK", json!(1)), ("404 Not Found", Value::Null)] {
            stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
            stage.asked_for(&Value::Null)?;
            stage.give((HIDDEN, Some("b"), by))?;
            stage.asked_for(&json!("b"))?;
            stage.say(&json_reply(head, &failed(id.clone())))?;
            let told = stage.told()?;
            // As it is, unless a stream has begun on which it would be nobody's.
            let is_passed = head == "200 OK" || matches!(by, By::Json);
            let code = if is_passed { -32602 } else { -31403 };
            ensure!(told["error"]["code"] == json!(code), "{by:?} {head}: {told}");
            if !is_passed {
                stage.server = None;
            }
        }
        // An answer to something else.
        stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
        stage.asked_for(&Value::Null)?;
        stage.give((HIDDEN, Some("b"), by))?;
        stage.asked_for(&json!("b"))?;
        stage.say(&json_reply("200 OK", &failed(json!(2))))?;
        ensure!(stage.told()?["error"]["code"] == json!(-31403), "{by:?}");
        stage.is_last_in_audit("another's answer", "server_fault", "answers another request")?;
        // The server is gone.
        stage.server = None;
        stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
        stage.asked_for(&Value::Null)?;
        stage.give((HIDDEN, Some("b"), by))?;
        stage.asked_for(&json!("b"))?;
        stage.server = None;
        ensure!(stage.told()?["error"]["code"] == json!(-31403), "{by:?}");
        stage.is_last_in_audit("a server that leaves", "server_fault", "closed in the middle")?;
    }
    // Its session ends between two pages.
    stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
    stage.asked_for(&Value::Null)?;
    let mut other = stage.caller.http(stage.peer.address)?;
    other.request("DELETE", HEADERS, b"")?;
    let mut ending = stage.peer.accept()?;
    ending.through("\r\n\r\n")?;
    ending.send(&reply("200 OK", ""))?;
    ensure!(other.reply()?.status == 200);
    stage.give((HIDDEN, Some("b"), By::Json))?;
    let refused = stage.client.reply()?;
    ensure!(refused.status == 404, "{}", refused.text());
    stage.is_last_in_audit("a session that has ended", "unknown_session", "cannot be asked for")
}

#[test]
fn a_caller_that_leaves_is_noticed_between_two_pages() -> Result<()> {
    let mut stage = Stage::set("", "off")?;
    stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
    stage.asked_for(&Value::Null)?;
    stage.give((HIDDEN, Some("b"), By::Json))?;
    stage.asked_for(&json!("b"))?;
    stage.client.finish()?;
    stage.is_last_in_audit("a client that left", "client_left", "")?;
    ensure!(stage.server.context("no connection")?.rest()?.is_empty(), "it is asked for more");
    Ok(())
}

#[test]
fn pins_see_every_page() -> Result<()> {
    let mut stage = Stage::set("", "enforce")?;
    for by in [By::Json, By::Stream] {
        stage.ask(&json!({ "_meta": { "progressToken": 1 } }))?;
        stage.asked_for(&Value::Null)?;
        stage.give((&["echo"], Some("b"), by))?;
        stage.asked_for(&json!("b"))?;
        stage.give((&["add", "stream"], None, by))?;
        let told = stage.told()?;
        ensure!(told["result"]["tools"] == json!([]), "{told}");
        let detail = "not shown, not approved: 3; empty pages not shown: 1";
        stage.is_last_in_audit("a list", "permitted", detail)?;
    }
    stage.agent.counts("toolgate_definitions", &["target=\"docs\"", "state=\"pending\""], 3.0)
}

#[test]
fn official_sdks_see_no_empty_pages() -> Result<()> {
    for by_json in [false, true] {
        let server = SdkServer::paged(by_json)?;
        let direct = SdkClient::outside(&server.url())?.pages()?;
        ensure!(direct.len() == 4, "the server has a page for each tool: {direct:?}");
        let agent = Agent::start(Setup { resources: &resources(server.address), ..Setup::default() })?;
        let mut writer = SdkClient::start(agent.exec("writer"), &server.url())?;
        let pages = writer.pages()?;
        ensure!(pages == [["echo"], ["slow_count"]], "JSON: {by_json}: {pages:?}");
    }
    Ok(())
}

//! A malicious server: where each thing that it may try is tested, and what no other file has.
//!
//! | what it tries | where |
//! | --- | --- |
//! | requests hidden in replies: in the place of an answer, within one, beside one, in a batch | `hostile_servers/lies.rs`, `server_requests.rs` (`what_an_answer_asks_within_*`, `what_a_notification_asks_within_*`) |
//! | `inputRequests` without a rule, in answers, events, notifications and tasks | `server_requests.rs` |
//! | a `requestState`, an answer, or answers within a call, that are another's or nobody's | `server_requests.rs` |
//! | another caller's session, task, event | `streams.rs` (`a_session_belongs_to_who_got_it`), `tasks.rs`, `resumption.rs` |
//! | one id of a session or task for two callers | `tasks.rs` (`a_task_is_not_given_twice`), `agent/src/bindings.rs` |
//! | tools renamed on every list: memory, store | `pins.rs` (`a_list_of_100_000_tools_*`) |
//! | tools renamed on every list: labels of metrics | here |
//! | a list of 100,000 tools | `pins.rs` |
//! | pages without end, or in a circle | `pages.rs` |
//! | a definition changed between list and call | `pins.rs` (`a_changed_definition_*`) |
//! | another id, two replies, a reply to nobody, invalid UTF-8, a compressed body, a redirect, 1 GB, a line without end | `hostile_servers/lies.rs` |
//! | broken HTTP, replies that stop, bytes beyond a reply, an answer before the question | `hostile_servers/broken.rs`, `hostile_servers/main.rs` |
//! | a message that its session's revision does not have | `revisions.rs`, `methods.rs` |

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, message, resources};
use toolgate_tests::{Agent, Server, Setup};

const TOOLS_LABELLED_MAX: usize = 200;
const SERIES_MAX: usize = 5_000;

#[test]
fn tools_that_are_renamed_on_every_list_share_a_label_beyond_200() -> Result<()> {
    let server = Server::start()?;
    let rule = "  - { name: all, effect: allow, callers: [reader], servers: [docs], tools: [\"*\"] }\n";
    let all = resources(server.address) + rule;
    let agent = Agent::start(Setup { resources: &all, ..Setup::default() })?;
    let mut caller = agent.caller("reader")?;
    let mut client = caller.http(server.address)?;
    let rounds = 2 * TOOLS_LABELLED_MAX;
    for round in 0..rounds {
        let name = format!("tool_{round}");
        server.answers("tools/list", "", &json!({ "tools": [{ "name": name, "inputSchema": {} }] }));
        let list = client.post(&message(1, "tools/list", &json!({})))?;
        ensure!(list.text().contains(&name), "{}", list.text());
        ensure!(is_result(&client.post(&call(2, &name, &json!({})))?)?, "{name}");
    }
    let calls = ["method=\"tools/call\"", "target=\"docs\""];
    agent.counts("toolgate_requests_total", &calls, 400.0)?;
    let text = agent.metrics()?;
    let counted = |line: &&str| {
        line.starts_with("toolgate_requests_total{") && calls.iter().all(|one| line.contains(one))
    };
    let labels: Vec<&str> = text.lines().filter(counted).collect();
    ensure!(labels.len() == TOOLS_LABELLED_MAX + 1, "{} labels", labels.len());
    let others = labels.iter().find(|line| line.contains("tool=\"other\"")).context("no `other`")?;
    ensure!(others.ends_with(&format!(" {}", rounds - TOOLS_LABELLED_MAX)), "{others}");
    ensure!(text.lines().count() < SERIES_MAX, "{} lines", text.lines().count());
    Ok(())
}

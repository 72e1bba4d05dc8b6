//! What no Server declares is found, and what is shown of it can be pasted.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toolgate_tests::scene::{call, initialize, is_result, message, text};
use toolgate_tests::{Agent, Scene, Server, Setup};

fn discover(agent: &Agent, arguments: &[&str]) -> Result<String> {
    let output = agent.toolgate("discover").args(arguments).output().context("cannot start it")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// By caller and address: the path, the tools and the number of messages.
fn found(agent: &Agent) -> Result<Vec<Value>> {
    let answer: Value = serde_json::from_str(&discover(agent, &["--json"])?)?;
    let servers = answer["servers"].as_array().cloned().context("no list")?;
    let told =
        |one: &Value| json!([one["caller"], one["address"], one["path"], one["tools"], one["messages"]]);
    Ok(servers.iter().map(told).collect())
}

#[test]
fn undeclared_servers_are_found_whether_they_are_let_through_or_not() -> Result<()> {
    for capture in ["{ undeclared: deny }", "{ undeclared: dangerous_allow }"] {
        let scene = Scene::with(capture, false)?;
        let shadow = Server::start()?;
        assert!(discover(&scene.agent, &[])?.contains("no undeclared MCP server"));
        let (mut reader, mut writer) = (scene.caller("reader")?, scene.caller("writer")?);
        reader.http(shadow.address)?.post(&initialize())?;
        for tool in ["search", "add", "search"] {
            reader.http(shadow.address)?.post(&call(1, tool, &json!({})))?;
        }
        writer.http(shadow.address)?.post(&message(1, "tools/list", &json!({})))?;
        // What is declared, and what is not MCP, is no find.
        reader.http(scene.server.address)?.post(&call(1, "echo", &json!({})))?;
        let mut web = reader.http(shadow.address)?;
        web.send(format!("GET /web HTTP/1.1\r\nHost: {}\r\n\r\n", shadow.address).as_bytes())?;
        web.head()?;
        let address = shadow.address;
        let expected = [
            json!(["reader", address, "/mcp", ["add", "search"], 4]),
            json!(["writer", address, "/mcp", [], 1]),
        ];
        assert_eq!(found(&scene.agent)?, expected, "{capture}");
    }
    Ok(())
}

#[test]
fn what_is_found_is_declared_by_what_is_shown() -> Result<()> {
    let scene = Scene::set()?;
    let shadow = Server::start()?;
    let mut reader = scene.caller("reader")?;
    let sum = call(1, "search", &json!({}));
    assert_eq!(reader.http(shadow.address)?.post(&sum)?.status, 403);
    let shown = discover(&scene.agent, &[])?;
    let (table, resource) = shown.split_once("---\n").context("no resource")?;
    assert!(table.contains("reader") && table.contains("search"), "{table}");
    let name = format!("mcp-{}", shadow.address.to_string().replace(['.', ':'], "-"));
    let policy = format!(
        "---\napiVersion: toolgate/v1\nkind: Policy\nmetadata: {{ name: found }}\nspec:\n  rules:\n  - {{ name: search, \
         effect: allow, callers: [reader], servers: [{name}], tools: [search] }}\n"
    );
    scene.agent.write_resources(&[resource, &policy].concat())?;
    scene.agent.counts("toolgate_generation", &[], 2.0)?;
    assert!(is_result(&reader.http(shadow.address)?.post(&sum)?)?);
    let lines = scene.agent.audit(2)?;
    assert_eq!(lines.last().map(|line| text(line, "target")), Some(name.as_str()));
    Ok(())
}

/// A captured process must not learn from the agent where the servers of others are.
#[test]
fn captured_processes_are_not_told() -> Result<()> {
    let scene = Scene::with_setup(Setup::default())?;
    let mut command = scene.agent.exec("reader");
    command.arg(toolgate_tests::toolgate().get_program()).arg("discover").arg("--config");
    let output = command.arg(scene.agent.config()).output().context("cannot start it")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("captured processes"), "{said}");
    Ok(())
}

//! The official SDKs at both ends: what is permitted is as it would be without an agent, what is not is an error like any
//! other.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::{resources, text};
use toolgate_tests::{Agent, Process, SdkClient, SdkServer, Setup, free_address, packages};

type Start = fn(Command, &str) -> Result<SdkClient>;

const CLIENTS: [(&str, Start); 3] = [
    ("Python 1.x", SdkClient::legacy),
    ("Python 2.x", SdkClient::legacy_python2),
    ("TypeScript 1.x", SdkClient::legacy_typescript),
];

/// `reader` may be asked to sample, `writer` not; both may call the tool that asks.
const RULES: &str =
    "  - { name: asks, effect: allow, callers: [reader, writer], servers: [docs], tools: [ask_model] }
  - { name: asked, effect: allow, callers: [reader], servers: [docs], server_requests: [sampling] }
";

fn outside() -> Command {
    let mut plain = Command::new("env");
    plain.arg("--");
    plain
}

/// What a client says to one call after another, and to the list.
fn steps(client: &mut SdkClient, server: &mut SdkServer) -> Result<Vec<String>> {
    let mut said = vec![client.tools()?.join(" ")];
    let calls = [
        ("result", "echo", json!({ "text": "hello" })),
        ("result", "add", json!({ "a": 2, "b": 40 })),
        ("result", "ask_model", json!({})),
    ];
    for (kind, tool, arguments) in calls {
        client.call(tool, &arguments)?;
        said.push(client.answer(kind)?.as_str().unwrap_or_default().to_owned());
    }
    // The next step is taken when the one before has arrived.
    client.call("slow_count", &json!({ "steps": 3 }))?;
    for step in 1..=3 {
        ensure!(client.answer("progress")?.as_f64() == Some(f64::from(step)), "step {step}");
        server.release()?;
    }
    said.push(client.answer("result")?.as_str().unwrap_or_default().to_owned());
    Ok(said)
}

fn denied(client: &mut SdkClient, tool: &str, arguments: &Value) -> Result<()> {
    client.call(tool, arguments)?;
    let told = client.answer("error")?.to_string();
    ensure!(told.contains("toolgate: policy does not permit"), "{tool}: {told}");
    Ok(())
}

#[test]
fn the_sdks_do_as_they_do_without_an_agent_but_for_what_is_denied() -> Result<()> {
    for (name, start) in CLIENTS {
        let mut server = SdkServer::legacy()?;
        let url = server.legacy_url();
        let mut direct = start(outside(), &url).context(name)?;
        let directly = steps(&mut direct, &mut server).with_context(|| format!("{name}, directly"))?;
        assert_eq!(directly[0], "echo add read_file slow_count ask_model", "{name}");
        drop(direct);

        let declared = resources(server.address).replace("path: /mcp", "transport: sse") + RULES;
        let agent = Agent::start(Setup { resources: &declared, ..Setup::default() })?;
        let mut reader = start(agent.exec("reader"), &url).context(name)?;
        let captured = steps(&mut reader, &mut server).with_context(|| format!("{name}, captured"))?;
        assert_eq!(captured[0], directly[0], "{name}: reader may them all");
        assert_eq!(captured[1..], directly[1..], "{name}");
        let before = server.calls()?.len();
        denied(&mut reader, "delete_everything", &json!({}))?;
        denied(&mut reader, "add", &json!({ "a": 2, "b": 4000 }))?;
        denied(&mut reader, "read_file", &json!({ "path": "/etc/shadow" }))?;
        // The session goes on.
        reader.call("echo", &json!({ "text": "again" }))?;
        assert_eq!(reader.answer("result")?, json!("again"), "{name}");
        assert_eq!(server.calls()?.len(), before + 1, "{name}: only what is permitted gets there");

        let mut writer = start(agent.exec("writer"), &url).context(name)?;
        assert_eq!(writer.tools()?, ["echo", "slow_count", "ask_model"], "{name}");
        writer.call("ask_model", &json!({}))?;
        let withheld = |line: &Value| {
            text(line, "method") == "sampling/createMessage" && text(line, "decision") == "deny"
        };
        agent.audit_until("what was withheld", |lines| lines.iter().any(withheld))?;
    }
    Ok(())
}

/// The SDK for TypeScript on the server's side.
#[test]
fn the_everything_server_is_used_as_directly() -> Result<()> {
    let address = free_address()?;
    let mut command = Command::new("node");
    command.arg(packages("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js")?);
    let server = Process::start(command.arg("sse").env("PORT", address.port().to_string()))?;
    server.line("Server is running on port")?;
    let url = format!("http://{address}/sse");
    let rule = "  - name: some
    effect: allow
    callers: [reader]
    servers: [docs]
    tools: [get-sum, trigger-long-running-operation]
";
    let declared = resources(address).replace("path: /mcp", "transport: sse") + rule;
    let agent = Agent::start(Setup { resources: &declared, ..Setup::default() })?;
    for (name, start) in CLIENTS {
        let mut reader = start(agent.exec("reader"), &url).context(name)?;
        assert_eq!(reader.tools()?, ["echo", "get-sum", "trigger-long-running-operation"], "{name}");
        reader.call("get-sum", &json!({ "a": 2, "b": 40 }))?;
        assert_eq!(reader.answer("result")?, json!("The sum of 2 and 40 is 42."), "{name}");
        denied(&mut reader, "get-env", &json!({}))?;
        reader.call("trigger-long-running-operation", &json!({ "duration": 0.2, "steps": 2 }))?;
        // The last step comes with the result, and the TypeScript SDK forgets who waits for steps when it has that.
        ensure!(reader.answer("progress")?.as_f64() == Some(1.0), "{name}");
        ensure!(reader.answer("result")?.to_string().contains("completed"), "{name}");
    }
    Ok(())
}
